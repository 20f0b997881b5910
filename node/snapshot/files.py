"""Snapshots as files: ``HOME/snapshots/HEIGHT/`` holds a manifest and the chunks, a folder that is whole or not there.

Chunks are written into ``HEIGHT.part``, synced, and the folder is renamed last: what a crash leaves behind is swept at the
next start. What is being fetched from others lies in ``incoming`` the same way, and is taken up again there.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from consensus import codec, fields
from consensus.errors import CodecError
from node.snapshot.format import CHUNK_BYTES_MAX, CHUNKS_MAX, chunk_digest, snapshot_root

MANIFEST_VERSION = 1
MANIFEST_BYTES_MAX = CHUNKS_MAX * 34 + 256
_MANIFEST = "manifest"
_PART = ".part"
_INCOMING = "incoming"
_PLAN = "plan"


@dataclass(frozen=True, slots=True)
class Manifest:
    """Height of a snapshot and the digests of its chunks, in order."""

    height: int
    digests: tuple[bytes, ...]

    @property
    def root(self) -> bytes:
        """The Merkle root over the digests."""
        return snapshot_root(self.digests)


def encode_manifest(manifest: Manifest) -> bytes:
    """Canonical bytes, on disk and on the wire."""
    return codec.encode([MANIFEST_VERSION, manifest.height, list(manifest.digests)])


def decode_manifest(data: bytes) -> Manifest:
    """Read a manifest; raises CodecError."""
    version, height, digests = fields.array(codec.decode(data, MANIFEST_BYTES_MAX), 3, "manifest")
    known = type(version) is int and version == MANIFEST_VERSION
    if not known or not isinstance(digests, list) or not 2 <= len(digests) <= CHUNKS_MAX:
        raise CodecError("manifest: another version, or no number of chunks that a snapshot has")
    hashes = tuple(fields.hash32(item, "chunk digest") for item in digests)
    return Manifest(fields.uint(height, "height"), hashes)


class Shelf:
    """The snapshots of one home. One thread at a time writes; any may read."""

    def __init__(self, folder: Path, kept: int) -> None:
        """Use `folder` (created when missing), keep the newest `kept`; half-written ones are removed."""
        self.folder = folder
        self._kept = kept
        folder.mkdir(parents=True, exist_ok=True)
        for left_over in folder.glob(f"*{_PART}"):
            shutil.rmtree(left_over)

    def heights(self) -> list[int]:
        """Heights of the snapshots that are here, newest first."""
        return sorted(
            (int(path.name) for path in self.folder.iterdir() if path.name.isdecimal()), reverse=True
        )

    def manifest(self, height: int) -> Manifest | None:
        """The manifest of a snapshot that is here, or None; a damaged one is no snapshot."""
        return _read_manifest(self.folder / str(height))

    def chunk(self, height: int, index: int) -> bytes | None:
        """A chunk's bytes, or None; not checked: whoever asked for it checks it."""
        return _read(self.folder / str(height) / str(index), CHUNK_BYTES_MAX)

    def begin(self, height: int) -> "Draft":
        """Start writing a snapshot; raises OSError."""
        part = self.folder / f"{height}{_PART}"
        if part.exists():
            shutil.rmtree(part)
        part.mkdir()
        return Draft(part, self.folder / str(height))

    def tidy(self) -> None:
        """Remove all but the newest."""
        for height in self.heights()[self._kept :]:
            # Renamed first: nobody finds half of one.
            gone = self.folder / f"{height}{_PART}"
            (self.folder / str(height)).rename(gone)
            shutil.rmtree(gone)

    def incoming(self) -> "Incoming":
        """What is being fetched from others."""
        return Incoming(self.folder / _INCOMING)


class Draft:
    """A snapshot that is being written; nothing of it counts before `finish`."""

    def __init__(self, part: Path, place: Path) -> None:
        self._part = part
        self._place = place

    def write(self, index: int, data: bytes) -> None:
        """Write one chunk; raises OSError."""
        write_synced(self._part / str(index), data)

    def finish(self, manifest: Manifest) -> None:
        """Make it a snapshot; raises OSError."""
        write_synced(self._part / _MANIFEST, encode_manifest(manifest))
        _sync_folder(self._part)
        if self._place.exists():
            shutil.rmtree(self._place)
        self._part.rename(self._place)
        _sync_folder(self._place.parent)

    def abandon(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self._part, ignore_errors=True)


class Incoming:
    """A snapshot on its way here: the manifest, and each chunk that came and was checked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def manifest(self) -> Manifest | None:
        """What is being fetched, or None."""
        return _read_manifest(self.folder)

    def begin(self, manifest: Manifest) -> None:
        """Fetch this snapshot from now on; chunks that it does not have go. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / _PLAN).unlink(missing_ok=True)
        needed = {name.hex() for name in manifest.digests}
        for path in self.folder.iterdir():
            if path.name not in needed:
                path.unlink()
        write_synced(self.folder / _MANIFEST, encode_manifest(manifest))

    def put(self, name: bytes, data: bytes) -> None:
        """Keep a chunk that was checked, under its digest; raises OSError."""
        write_synced(self.folder / name.hex(), data)

    def missing(self, manifest: Manifest, chain_id: bytes) -> list[int]:
        """Numbers of the chunks that are not here, or not whole. Reads them all."""
        return [index for index, name in enumerate(manifest.digests) if self._whole(name, chain_id) is None]

    def chunks(self, manifest: Manifest, chain_id: bytes) -> Iterator[bytes]:
        """Yield the chunks in order, each checked; raises OSError for one that rotted or is gone."""
        for name in manifest.digests:
            data = self._whole(name, chain_id)
            if data is None:
                raise OSError(f"{self.folder / name.hex()} is damaged or gone")
            yield data

    def _whole(self, name: bytes, chain_id: bytes) -> bytes | None:
        data = _read(self.folder / name.hex(), CHUNK_BYTES_MAX)
        return data if data is not None and chunk_digest(data, chain_id) == name else None

    def keep_plan(self, data: bytes) -> None:
        """Say, synced, that everything is here and was checked, and what to install besides the state."""
        write_synced(self.folder / _PLAN, data)
        _sync_folder(self.folder)

    def plan(self, bytes_max: int) -> bytes | None:
        """What `keep_plan` said, or None."""
        return _read(self.folder / _PLAN, bytes_max)

    def clear(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file whole, or not at all, and sync it; raises OSError."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _read(path: Path, bytes_max: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            data = file.read(bytes_max + 1)
    except FileNotFoundError:
        return None
    return data if len(data) <= bytes_max else None


def _read_manifest(folder: Path) -> Manifest | None:
    data = _read(folder / _MANIFEST, MANIFEST_BYTES_MAX)
    if data is None:
        return None
    try:
        return decode_manifest(data)
    except CodecError:
        return None


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
