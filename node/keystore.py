"""The encrypted key file: one Ed25519 seed under a passphrase (Argon2id, then XSalsa20-Poly1305).

One JSON object of at most `SEALED_BYTES_MAX` bytes; every member is required, no other is accepted, bytes are lowercase hex::

    {"kind": "openledger-key", "version": 1,
     "public_key": 32 bytes, in the clear: an address can be read without the passphrase
     "kdf":    {"name": "argon2id13", "passes": int, "memory_bytes": int, "salt": 16 bytes},
     "cipher": {"name": "xsalsa20-poly1305", "nonce": 24 bytes, "text": 48 bytes: the seed and its tag},
     "checksum": BLAKE3 ("key-file") of the members above as JSON without spaces and with sorted names}

The checksum has no secret in it: it tells damage from a wrong passphrase. What protects is the cipher's tag, and that the
decrypted seed must derive ``public_key``. Argon2id is RFC 9106's, the cipher is NaCl's secretbox, both libsodium's.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from consensus.digest import digest
from node.errors import KeyFileInvalid

SEED_BYTES = 32
SEALED_BYTES_MAX = 4096
PASSPHRASE_CHARACTERS_MIN = 8

KIND = "openledger-key"
VERSION = 1
_KDF = "argon2id13"
_CIPHER = "xsalsa20-poly1305"
_SALT_BYTES = 16
_NONCE_BYTES = 24
_TAG_BYTES = 16
_DERIVED_MAX = 8


@dataclass(frozen=True, slots=True)
class KdfCost:
    """What deriving a key from a passphrase takes: Argon2id's passes over ``memory_bytes``, in one lane."""

    passes: int
    memory_bytes: int


SEALING_COST = KdfCost(passes=3, memory_bytes=256 * 2**20)
"""Of new files: libsodium's MODERATE."""

OPENING_COST_MAX = KdfCost(passes=16, memory_bytes=1 << 30)
"""A file that asks for more is refused before anything is allocated: a hostile one could name terabytes."""

OPENING_COST_MIN = KdfCost(passes=1, memory_bytes=8 * 1024)
"""What libsodium computes at all."""


class KeyMalformed(KeyFileInvalid):
    """The file is neither a plain seed nor an encrypted key, or it was cut or damaged."""


class KeyTooCostly(KeyFileInvalid):
    """Opening the file would take more passes or memory than this program agrees to, or than this machine has."""


class KeyLocked(KeyFileInvalid):
    """The file is encrypted and no passphrase was given."""


class PassphraseWrong(KeyFileInvalid):
    """The passphrase does not open the file."""


class KeyMismatch(KeyFileInvalid):
    """The decrypted seed is not that of the public key which the file states."""


class Passphrase:
    """A secret text that prints as nothing, and the keys derived from it, so that equal salts are derived once.

    Everything it seals carries one salt, drawn when it was made: a node's four files open with one derivation.
    """

    __slots__ = ("_derived", "_secret", "characters", "salt")

    def __init__(self, text: str) -> None:
        from unicodedata import normalize

        # One text has several spellings in Unicode, and keyboards differ in which one they send.
        composed = normalize("NFC", text)
        self.characters = len(composed)
        self._secret = composed.encode("utf-8", "surrogatepass")
        self._derived: dict[tuple[bytes, KdfCost], bytes] = {}
        self.salt = secrets.token_bytes(_SALT_BYTES)

    def __repr__(self) -> str:
        return "Passphrase(...)"

    def equals(self, other: Passphrase) -> bool:
        """Whether both are the same text, in time that does not depend on it."""
        return secrets.compare_digest(self._secret, other._secret)

    def derive(self, salt: bytes, cost: KdfCost) -> bytes:
        """Return the 32-byte key; raises `nacl.exceptions.RuntimeError` where the memory is not to be had."""
        from nacl.pwhash import argon2id

        name = (salt, cost)
        if name not in self._derived:
            if len(self._derived) >= _DERIVED_MAX:
                self._derived.clear()
            self._derived[name] = argon2id.kdf(
                SEED_BYTES, self._secret, salt, opslimit=cost.passes, memlimit=cost.memory_bytes
            )
        return self._derived[name]


@dataclass(frozen=True, slots=True)
class SealedKey:
    """An encrypted key file as read: ``public_key`` 32 bytes and not yet proven, ``text`` the seed and its tag."""

    public_key: bytes
    cost: KdfCost
    salt: bytes
    nonce: bytes
    text: bytes


def public_key(seed: bytes) -> bytes:
    """Return the 32-byte Ed25519 public key of a 32-byte seed: the address, where it is an account's."""
    from nacl.signing import SigningKey

    return bytes(SigningKey(seed).verify_key)


def seal_seed(seed: bytes, passphrase: Passphrase, cost: KdfCost | None = None) -> bytes:
    """Return the bytes of an encrypted key file for a 32-byte seed; ``cost`` is `SEALING_COST` unless given."""
    from nacl.secret import SecretBox

    spent = SEALING_COST if cost is None else cost
    nonce = secrets.token_bytes(_NONCE_BYTES)
    box = SecretBox(passphrase.derive(passphrase.salt, spent))
    members: dict[str, object] = {
        "kind": KIND,
        "version": VERSION,
        "public_key": public_key(seed).hex(),
        "kdf": {
            "name": _KDF,
            "passes": spent.passes,
            "memory_bytes": spent.memory_bytes,
            "salt": passphrase.salt.hex(),
        },
        "cipher": {
            "name": _CIPHER,
            "nonce": nonce.hex(),
            "text": box.encrypt(seed, nonce).ciphertext.hex(),
        },
    }
    members["checksum"] = _checksum(members)
    return json.dumps(members, indent=2).encode() + b"\n"


def parse_sealed(path: Path, data: bytes) -> SealedKey:
    """Read an encrypted key file's bytes; ``path`` is for messages. Allocates nothing of what the file asks for.

    Raises `KeyMalformed` naming the member, `KeyTooCostly`.
    """
    members = _object(path, data)
    version = members.get("version")
    if members.get("kind") != KIND:
        raise KeyMalformed(path, f'an object with "kind": "{KIND}"')
    if type(version) is not int or version != VERSION:
        raise KeyMalformed(path, f"version {VERSION}; another needs another version of this program")
    _check_names(path, "the object", members, {"kind", "version", "public_key", "kdf", "cipher", "checksum"})
    kdf = _check_names(path, "kdf", members["kdf"], {"name", "passes", "memory_bytes", "salt"})
    cipher = _check_names(path, "cipher", members["cipher"], {"name", "nonce", "text"})
    if members["checksum"] != _checksum({name: members[name] for name in members if name != "checksum"}):
        raise KeyMalformed(path, "an undamaged file: its checksum is wrong; bring back a copy")
    for holder, name in ((kdf, _KDF), (cipher, _CIPHER)):
        if holder["name"] != name:
            raise KeyMalformed(path, f"the algorithm {name}")
    sealed = SealedKey(
        public_key=_bytes(path, "public_key", members["public_key"], SEED_BYTES),
        cost=_cost(path, kdf),
        salt=_bytes(path, "salt", kdf["salt"], _SALT_BYTES),
        nonce=_bytes(path, "nonce", cipher["nonce"], _NONCE_BYTES),
        text=_bytes(path, "text", cipher["text"], SEED_BYTES + _TAG_BYTES),
    )
    return sealed


def open_sealed(path: Path, sealed: SealedKey, passphrase: Passphrase) -> bytes:
    """Return the 32-byte seed; raises `PassphraseWrong`, `KeyMismatch`, `KeyTooCostly` (no memory)."""
    from nacl.exceptions import CryptoError
    from nacl.exceptions import RuntimeError as SodiumError
    from nacl.secret import SecretBox

    try:
        key = passphrase.derive(sealed.salt, sealed.cost)
    except (SodiumError, MemoryError) as error:
        needed = sealed.cost.memory_bytes >> 20
        raise KeyTooCostly(path, f"{needed} MiB of free memory to open it") from error
    try:
        seed = SecretBox(key).decrypt(sealed.text, sealed.nonce)
    except CryptoError:
        # Not chained: nothing of the attempt belongs into a log.
        raise PassphraseWrong(path, "another passphrase: this one does not open it") from None
    if public_key(seed) != sealed.public_key:
        raise KeyMismatch(path, "the seed of the public key that it states; somebody changed the file")
    return seed


def _object(path: Path, data: bytes) -> dict[str, object]:
    if len(data) > SEALED_BYTES_MAX:
        raise KeyMalformed(path, f"at most {SEALED_BYTES_MAX} bytes")
    try:
        members = json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        # Not chained: a parser's message may quote the file.
        raise KeyMalformed(path, "64 lowercase hex digits, or an encrypted key as whole JSON") from None
    if not isinstance(members, dict):
        raise KeyMalformed(path, "64 lowercase hex digits, or an encrypted key as a JSON object")
    return members


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name occurs twice")
    return members


def _check_names(path: Path, what: str, value: object, names: set[str]) -> Mapping[str, object]:
    if not isinstance(value, dict) or set(value) != names:
        raise KeyMalformed(path, f"{what} with exactly {', '.join(sorted(names))}")
    return value


def _bytes(path: Path, name: str, value: object, size_bytes: int) -> bytes:
    if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{2 * size_bytes}}}", value):
        raise KeyMalformed(path, f"{name} of {2 * size_bytes} lowercase hex digits")
    return bytes.fromhex(value)


def _cost(path: Path, kdf: Mapping[str, object]) -> KdfCost:
    low, high = OPENING_COST_MIN, OPENING_COST_MAX
    passes, memory_bytes = kdf["passes"], kdf["memory_bytes"]
    if type(passes) is not int or type(memory_bytes) is not int:
        raise KeyMalformed(path, "passes and memory_bytes as whole numbers")
    if passes < low.passes or memory_bytes < low.memory_bytes:
        raise KeyMalformed(path, f"at least {low.passes} passes over {low.memory_bytes} bytes")
    if passes > high.passes or memory_bytes > high.memory_bytes:
        raise KeyTooCostly(path, f"at most {high.passes} passes over {high.memory_bytes >> 20} MiB")
    return KdfCost(passes, memory_bytes)


def _checksum(members: Mapping[str, object]) -> str:
    text = json.dumps(members, sort_keys=True, separators=(",", ":"))
    return digest("key-file", text.encode()).hex()
