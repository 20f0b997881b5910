"""Key files: a 32-byte Ed25519 seed as lowercase hex, 0600, owned by who runs the node.

Keys are stored in the clear, protected by the file's permissions alone; the encrypted keystore is not part of this
version. An account's address is its Ed25519 public key.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from node.errors import HomeExists, KeyFileInvalid
from node.home import write_new

SEED_BYTES = 32
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


@dataclass(frozen=True, slots=True)
class NamedKey:
    """An account of the command line: its name, address (32 bytes) and key file."""

    name: str
    address: bytes
    path: Path


def generate_seed() -> bytes:
    """Return 32 random bytes from the operating system."""
    return secrets.token_bytes(SEED_BYTES)


def public_key(seed: bytes) -> bytes:
    """Return the 32-byte Ed25519 public key of a 32-byte seed: the address, where it is an account's."""
    from nacl.signing import SigningKey

    return bytes(SigningKey(seed).verify_key)


def load_seed(path: Path) -> bytes:
    """Read a key file's 32-byte seed.

    Raises `KeyFileInvalid` where the file is absent, not a regular file, owned by another user, readable or
    writable by group or others, or not exactly 64 lowercase hex digits (a final newline is allowed).
    """
    try:
        # Not blocking: a pipe under this name must not hold the daemon up.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise KeyFileInvalid(path, f"a readable file ({error.strerror})") from error
    try:
        # The checks are made on the open file, so that it cannot be swapped in between.
        _check_private(path, os.fstat(descriptor))
        text = os.read(descriptor, 2 * SEED_BYTES + 2)
    finally:
        os.close(descriptor)
    text = text.removesuffix(b"\n")
    if not re.fullmatch(rb"[0-9a-f]{64}", text):
        raise KeyFileInvalid(path, "64 lowercase hex digits")
    return bytes.fromhex(text.decode())


def _check_private(path: Path, details: os.stat_result) -> None:
    if not stat.S_ISREG(details.st_mode):
        raise KeyFileInvalid(path, "a regular file")
    if details.st_uid != os.geteuid():
        raise KeyFileInvalid(path, f"an owner with user id {os.geteuid()}, got {details.st_uid}")
    if details.st_mode & 0o077:
        mode = stat.S_IMODE(details.st_mode)
        raise KeyFileInvalid(path, f"permissions 0600, got {mode:04o}; mend it with `chmod 600 {path}`")


def store_seed(path: Path, seed: bytes) -> None:
    """Write a new key file with permissions 0600; raises `HomeExists` where there is one already."""
    if len(seed) != SEED_BYTES:
        raise KeyFileInvalid(path, f"a seed of {SEED_BYTES} bytes, got {len(seed)}")
    write_new(path, seed.hex().encode() + b"\n", mode=0o600)


def ensure_seed(path: Path) -> bytes:
    """Return the seed of a key file, generating and storing it first where there is none."""
    with contextlib.suppress(HomeExists):
        store_seed(path, generate_seed())
    return load_seed(path)


def account_path(folder: Path, name: str) -> Path:
    """Return where the account called ``name`` is kept; raises `KeyFileInvalid` for a name that is not plain."""
    if not _NAME.fullmatch(name):
        raise KeyFileInvalid(folder / f"{name}.key", "a name of a-z, 0-9, _ and -, at most 63 characters")
    return folder / f"{name}.key"


def list_accounts(folder: Path) -> list[NamedKey]:
    """Return the accounts in ``folder``, by name; raises `KeyFileInvalid` at the first bad file."""
    paths = sorted(path for path in folder.glob("*.key") if _NAME.fullmatch(path.stem))
    return [NamedKey(path.stem, public_key(load_seed(path)), path) for path in paths]
