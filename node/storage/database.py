"""The one LevelDB of a node.

One database, and so one write-ahead log: a synced write makes every earlier write durable too. The order
"block and batch first, then the safety record with sync" needs nothing else (consensus.md, state that must
survive a crash).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import plyvel

from node.storage.errors import (
    DatabaseCorrupt,
    DatabaseInUse,
    DatabaseNotWritable,
    DatabaseUnreadable,
    StorageError,
)

# LevelDB keeps this much in memory before it writes a table; small, since a node's state is small.
WRITE_BUFFER_BYTES = 8 << 20
CACHE_BYTES = 16 << 20


class Database:
    """Bytes to bytes, ordered by key. Safe to call from several threads (LevelDB locks inside)."""

    def __init__(self, path: Path) -> None:
        """Open or create the database at `path`; raises DatabaseInUse, DatabaseCorrupt, or StorageError."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (path / "CURRENT").exists() and (any(path.glob("*.log")) or any(path.glob("*.ldb"))):
            # LevelDB would take the folder for a new database, and delete what it finds there.
            raise DatabaseCorrupt(path, "its file CURRENT is missing")
        try:
            self._db = plyvel.DB(
                str(path),
                create_if_missing=True,
                paranoid_checks=True,
                write_buffer_size=WRITE_BUFFER_BYTES,
                lru_cache_size=CACHE_BYTES,
            )
        except plyvel.CorruptionError as error:
            raise DatabaseCorrupt(path, str(error)) from error
        except plyvel.IOError as error:
            if "lock" in str(error).lower():
                raise DatabaseInUse(path) from error
            raise StorageError(
                f"cannot open {path}: {error}; is the disk full, or is the folder another user's?"
            ) from error

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, or None."""
        try:
            value: bytes | None = self._db.get(key, verify_checksums=True)
        except plyvel.CorruptionError as error:
            raise DatabaseCorrupt(self.path, str(error)) from error
        except plyvel.IOError as error:
            raise DatabaseUnreadable(self.path, str(error)) from error
        return value

    def write(self, changes: Mapping[bytes, bytes | None], *, sync: bool) -> None:
        """Put (or, for None, delete) every key in one atomic write; `sync` waits for the disk."""
        try:
            with self._db.write_batch(transaction=True, sync=sync) as batch:
                for key, value in changes.items():
                    if value is None:
                        batch.delete(key)
                    else:
                        batch.put(key, value)
        except plyvel.CorruptionError as error:
            raise DatabaseCorrupt(self.path, str(error)) from error
        except plyvel.IOError as error:
            raise DatabaseNotWritable(self.path, str(error)) from error

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key without the prefix, value) in key order; raises DatabaseCorrupt."""
        try:
            # Iterators, unlike point reads above, would believe a block whose checksum is wrong.
            with self._db.iterator(prefix=prefix, verify_checksums=True) as rows:
                for key, value in rows:
                    yield key[len(prefix) :], value
        except plyvel.CorruptionError as error:
            raise DatabaseCorrupt(self.path, str(error)) from error
        except plyvel.IOError as error:
            raise DatabaseUnreadable(self.path, str(error)) from error

    def keys(self, prefix: bytes, *, newest_first: bool = False) -> Iterator[bytes]:
        """Yield the keys that begin with `prefix`, without it, in (falling) order; raises DatabaseCorrupt."""
        try:
            with self._db.iterator(
                prefix=prefix, include_value=False, verify_checksums=True, reverse=newest_first
            ) as rows:
                for key in rows:
                    yield key[len(prefix) :]
        except plyvel.CorruptionError as error:
            raise DatabaseCorrupt(self.path, str(error)) from error
        except plyvel.IOError as error:
            raise DatabaseUnreadable(self.path, str(error)) from error

    def freeze(self) -> "Frozen":
        """Return a view of everything as it is now, which later writes do not change; it costs room until it is closed."""
        return Frozen(self.path, self._db.snapshot())

    def compact(self, prefix: bytes) -> None:
        """Give back the room of what was deleted under a prefix. Reads and writes much; call it in a thread."""
        try:
            self._db.compact_range(start=prefix, stop=prefix + b"\xff" * 64)
        except plyvel.CorruptionError as error:
            raise DatabaseCorrupt(self.path, str(error)) from error
        except plyvel.IOError as error:
            raise DatabaseNotWritable(self.path, f"compaction: {error}") from error

    def close(self) -> None:
        """Release the lock; further calls fail."""
        self._db.close()


class Frozen:
    """The database as it was at one moment (a LevelDB snapshot). Safe to read from another thread."""

    def __init__(self, path: Path, snapshot: Any) -> None:
        self._path = path
        self._snapshot = snapshot

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key without the prefix, value) in key order; raises DatabaseCorrupt."""
        try:
            with self._snapshot.iterator(prefix=prefix, verify_checksums=True, fill_cache=False) as rows:
                for key, value in rows:
                    yield key[len(prefix) :], value
        except plyvel.CorruptionError as error:
            raise DatabaseCorrupt(self._path, str(error)) from error
        except plyvel.IOError as error:
            raise DatabaseUnreadable(self._path, str(error)) from error

    def close(self) -> None:
        """Let LevelDB drop what only this view kept."""
        self._snapshot.close()
