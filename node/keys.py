"""Key files: a 32-byte Ed25519 seed, encrypted (`node.keystore`) or plain as 64 lowercase hex digits.

Both are 0600, belong to whoever runs the program, and lie in a folder that is 0700. An account's address is its Ed25519
public key. Files are written whole or not at all and never over another key, except where a key is encrypted in place.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from node.errors import HomeExists, KeyFileInvalid
from node.home import write_atomic, write_new
from node.keystore import (
    SEALED_BYTES_MAX,
    SEED_BYTES,
    KeyLocked,
    KeyMalformed,
    KeyMismatch,
    Passphrase,
    SealedKey,
    open_sealed,
    parse_sealed,
    public_key,
    seal_seed,
)
from node.passphrase import Unlock

__all__ = [
    "SEED_BYTES",
    "KeyExposed",
    "KeyFolderExposed",
    "KeyMissing",
    "KeyNotRegular",
    "KeyOwnerForeign",
    "NamedKey",
    "PlainKey",
    "account_path",
    "check_folder",
    "ensure_seed",
    "generate_seed",
    "list_accounts",
    "load_seed",
    "make_folder",
    "open_key",
    "public_key",
    "public_key_of",
    "read_key",
    "read_private",
    "reseal",
    "store_bytes",
    "store_sealed",
    "store_seed",
]

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_FOLDER_MODE = 0o700


class KeyMissing(KeyFileInvalid):
    """There is no such file, or it cannot be opened."""


class KeyNotRegular(KeyFileInvalid):
    """The name is that of a symbolic link, a folder, a pipe or a device."""


class KeyOwnerForeign(KeyFileInvalid):
    """The file belongs to another user."""


class KeyExposed(KeyFileInvalid):
    """Others may read or write the file."""


class KeyFolderExposed(KeyFileInvalid):
    """The folder belongs to another user, or others may enter or write to it; ``path`` is the folder."""

    def __init__(self, path: Path, expected: str) -> None:
        super().__init__(path, expected)
        self.args = (f"folder of keys {path}: expected {expected}",)


@dataclass(frozen=True, slots=True)
class PlainKey:
    """A key file that is not encrypted: its 32-byte seed, which is not shown."""

    seed: bytes

    def __repr__(self) -> str:
        return "PlainKey(...)"


@dataclass(frozen=True, slots=True)
class NamedKey:
    """An account of the command line: its name, address (32 bytes), key file, and whether that is encrypted.

    ``problem`` says why the file cannot be used, where it cannot; the address is then empty.
    """

    name: str
    address: bytes
    path: Path
    encrypted: bool = False
    problem: KeyFileInvalid | None = None


def generate_seed() -> bytes:
    """Return 32 random bytes from the operating system."""
    return secrets.token_bytes(SEED_BYTES)


def read_key(path: Path) -> PlainKey | SealedKey:
    """Read a key file as it stands; an encrypted one needs no passphrase for this.

    Raises `KeyMissing`, `KeyNotRegular`, `KeyOwnerForeign`, `KeyExposed`, `node.keystore.KeyMalformed` and `KeyTooCostly`.
    """
    data = read_private(path)
    if data.lstrip()[:1] == b"{":
        return parse_sealed(path, data)
    text = data.removesuffix(b"\n")
    if not re.fullmatch(rb"[0-9a-f]{64}", text):
        raise KeyMalformed(path, "64 lowercase hex digits, or an encrypted key as a JSON object")
    return PlainKey(bytes.fromhex(text.decode()))


def read_private(path: Path) -> bytes:
    """Return a key file's bytes, unread by others; raises as `read_key` does, but for their form."""
    try:
        # Not blocking: a pipe under this name must not hold the daemon up. Not following: a link leads where
        # permissions were not checked.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise KeyNotRegular(
                path, "a regular file, it is a symbolic link; name the file itself"
            ) from error
        raise KeyMissing(path, f"a readable file ({error.strerror})") from error
    try:
        # The checks are made on the open file, so that it cannot be swapped in between.
        details = os.fstat(descriptor)
        if not stat.S_ISREG(details.st_mode):
            raise KeyNotRegular(path, "a regular file")
        _check_private(path, details)
        return os.read(descriptor, SEALED_BYTES_MAX + 1)
    finally:
        os.close(descriptor)


def check_folder(folder: Path) -> None:
    """Refuse a folder of keys that is another user's or that others may enter; raises `KeyFolderExposed`.

    Whoever may write to it could put another key into place, whatever the permissions of the files.
    """
    try:
        details = folder.stat()
    except OSError as error:
        raise KeyFolderExposed(folder, f"a folder of keys ({error.strerror})") from error
    owner, mode = _faults(details, f"chmod 700 {folder}", "0700")
    if owner or mode:
        raise KeyFolderExposed(folder, owner or mode)


def _check_private(path: Path, details: os.stat_result) -> None:
    owner, mode = _faults(details, f"chmod 600 {path}", "0600")
    if owner:
        raise KeyOwnerForeign(path, owner)
    if mode:
        raise KeyExposed(path, mode)


def _faults(details: os.stat_result, remedy: str, wanted: str) -> tuple[str, str]:
    """What is wrong with owner and mode, each empty where nothing is."""
    mine, mode = os.geteuid(), stat.S_IMODE(details.st_mode)
    owner = f"user id {mine} as its owner, got {details.st_uid}; run as that user, or make a copy of your own"
    exposed = f"permissions {wanted}, got {mode:04o}; mend it with `{remedy}`"
    return owner if details.st_uid != mine else "", exposed if mode & 0o077 else ""


def open_key(path: Path, key: PlainKey | SealedKey, unlock: Unlock | None = None) -> bytes:
    """Return the 32-byte seed of a key that was read from ``path``; ``unlock`` is asked only for an encrypted one.

    Raises `node.keystore.KeyLocked` where ``unlock`` is None, and what `open_sealed` raises.
    """
    if isinstance(key, PlainKey):
        return key.seed
    if unlock is None:
        raise KeyLocked(path, "a passphrase: the key is encrypted")
    return open_sealed(path, key, unlock(path))


def load_seed(path: Path, unlock: Unlock | None = None) -> bytes:
    """Read a key file's 32-byte seed: `read_key`, then `open_key`. Every failure is a `KeyFileInvalid`."""
    return open_key(path, read_key(path), unlock)


def public_key_of(key: PlainKey | SealedKey) -> bytes:
    """Return the 32-byte public key; that of an encrypted key is as its file states, proven once it is opened."""
    return public_key(key.seed) if isinstance(key, PlainKey) else key.public_key


def store_seed(path: Path, seed: bytes) -> None:
    """Write a new plain key file with permissions 0600; raises `HomeExists` where there is one already."""
    if len(seed) != SEED_BYTES:
        raise KeyFileInvalid(path, f"a seed of {SEED_BYTES} bytes, got {len(seed)}")
    store_bytes(path, seed.hex().encode() + b"\n")


def store_sealed(path: Path, seed: bytes, passphrase: Passphrase) -> None:
    """Write a new encrypted key file with permissions 0600; raises `HomeExists` where there is one already."""
    if len(seed) != SEED_BYTES:
        raise KeyFileInvalid(path, f"a seed of {SEED_BYTES} bytes, got {len(seed)}")
    store_bytes(path, _sealed(path, seed, passphrase))


def store_bytes(path: Path, data: bytes) -> None:
    """Write a key file's bytes to a new file, synced, with permissions 0600; raises `HomeExists`."""
    write_new(path, data, mode=0o600)


def reseal(path: Path, passphrase: Passphrase, unlock: Unlock | None = None) -> bytes:
    """Encrypt the key in ``path``, plain or encrypted before, under ``passphrase``, in place; returns its public key.

    The file is replaced in one step, after what replaces it was opened: a power cut leaves the old or the new. What a
    plain file held may remain on the disk's unused blocks. Raises `KeyFileInvalid`.
    """
    seed = load_seed(path, unlock)
    write_atomic(path, _sealed(path, seed, passphrase), mode=0o600)
    return public_key(seed)


def _sealed(path: Path, seed: bytes, passphrase: Passphrase) -> bytes:
    data = seal_seed(seed, passphrase)
    # A key that is written and cannot be opened is lost: looked at before it counts. Costs no second derivation.
    if open_sealed(path, parse_sealed(path, data), passphrase) != seed:
        raise KeyMismatch(path, "to open what was just encrypted; this machine's memory may be faulty")
    return data


def ensure_seed(path: Path) -> None:
    """Make sure that there is a key file, plain and new where there is none; one that exists must be readable."""
    with contextlib.suppress(HomeExists):
        store_seed(path, generate_seed())
    read_key(path)


def make_folder(folder: Path) -> None:
    """Create a folder of keys, 0700, with its parents; one that exists is checked (`check_folder`)."""
    folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    check_folder(folder)


def account_path(folder: Path, name: str) -> Path:
    """Return where the account called ``name`` is kept; raises `KeyFileInvalid` for a name that is not plain."""
    if not _NAME.fullmatch(name):
        raise KeyFileInvalid(
            folder / f"{name[:80]}.key", "a name of a-z, 0-9, _ and -, at most 63 characters"
        )
    return folder / f"{name}.key"


def list_accounts(folder: Path) -> list[NamedKey]:
    """Return the accounts in ``folder``, by name; a file that cannot be used is listed with its problem.

    Raises `KeyFolderExposed`; a folder that does not exist holds no accounts.
    """
    if not folder.exists():
        return []
    check_folder(folder)
    paths = sorted(path for path in folder.glob("*.key") if _NAME.fullmatch(path.stem))
    return [_named(path) for path in paths]


def _named(path: Path) -> NamedKey:
    try:
        key = read_key(path)
    except KeyFileInvalid as error:
        return NamedKey(path.stem, b"", path, problem=error)
    return NamedKey(path.stem, public_key_of(key), path, isinstance(key, SealedKey))
