"""Files between the steps of a sharded build: written under another name, renamed when whole, known by their digests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from attribution.sharding.errors import ShardFileWrong

_DOMAIN = b"openledger/shard-file/v1\0"
_READ_AT_ONCE = 1 << 20

Data = bytes | memoryview


def digest_of(data: Data) -> str:
    """Digest of a file's content: 64 hexadecimal digits."""
    digest: str = blake3(_DOMAIN).update(data).hexdigest()
    return digest


def write_file(path: Path, parts: Iterable[Data]) -> str:
    """Write ``parts`` to ``path`` and return the digest. The file is whole under its name, or was never there.

    Two writers of one file are no harm: a call that was given up may still be at work, and writes the same.
    """
    hasher = blake3(_DOMAIN)
    handle, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                file.write(part)
                hasher.update(part)
        os.replace(name, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise
    digest: str = hasher.hexdigest()
    return digest


def read_file(path: Path, digest: str, bytes_max: int) -> bytes:
    """Content of a file that has this digest and at most ``bytes_max`` bytes. Raises `ShardFileWrong`."""
    try:
        with path.open("rb") as file:
            data = file.read(bytes_max + 1)
    except OSError as error:
        raise ShardFileWrong(f"{path.name}: {error.strerror}") from error
    if len(data) > bytes_max or digest_of(data) != digest:
        raise ShardFileWrong(f"{path.name} is not what was written")
    return data


def copy_checked(path: Path, digest: str, target: Path) -> None:
    """Append a file to ``target``, which then has other bytes if this raises `ShardFileWrong`."""
    hasher = blake3(_DOMAIN)
    try:
        with path.open("rb") as source, target.open("ab") as file:
            while data := source.read(_READ_AT_ONCE):
                hasher.update(data)
                file.write(data)
    except FileNotFoundError as error:
        raise ShardFileWrong(f"{path.name}: {error.strerror}") from error
    if hasher.hexdigest() != digest:
        raise ShardFileWrong(f"{path.name} is not what was written")
