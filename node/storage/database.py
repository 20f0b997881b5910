"""The one LevelDB of a node.

One database, and so one write-ahead log: a synced write makes every earlier write durable too. The order
"block and batch first, then the safety record with sync" needs nothing else (consensus.md, state that must
survive a crash).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import plyvel

from node.storage.errors import DatabaseCorrupt, DatabaseInUse, StorageError

# LevelDB keeps this much in memory before it writes a table; small, since a node's state is small.
WRITE_BUFFER_BYTES = 8 << 20
CACHE_BYTES = 16 << 20


class Database:
    """Bytes to bytes, ordered by key. Safe to call from several threads (LevelDB locks inside)."""

    def __init__(self, path: Path) -> None:
        """Open or create the database at `path`; raises DatabaseInUse or DatabaseCorrupt."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
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
            raise StorageError(f"cannot open {path}: {error}") from error

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, or None."""
        try:
            value: bytes | None = self._db.get(key, verify_checksums=True)
        except plyvel.CorruptionError as error:
            raise DatabaseCorrupt(self.path, str(error)) from error
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
            raise StorageError(f"cannot write to {self.path}: {error}; is the disk full?") from error

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key without the prefix, value) in key order."""
        with self._db.iterator(prefix=prefix) as rows:
            for key, value in rows:
                yield key[len(prefix) :], value

    def close(self) -> None:
        """Release the lock; further calls fail."""
        self._db.close()
