"""Content-addressed blobs: files named by the BLAKE3 digest of their bytes.

A blob is on disk before anything says that it is: bytes go to a temporary file, are synced, renamed, and the
folder is synced too, so that a storage receipt signed afterwards is true after a power cut.
"""

import os
import threading
from pathlib import Path

from consensus.digest import digest
from node.storage.errors import BlobDigestMismatch, BlobQuotaExceeded, BlobTooLarge

BLOB_BYTES_MAX = 8 << 20


def blob_digest(data: bytes) -> bytes:
    """Return the 32-byte name of a blob: `digest("blob", data)`, the same on every chain."""
    return digest("blob", data)


class BlobStore:
    """Blobs under one folder, limited in the size of each and of all; safe to call from several threads."""

    def __init__(self, folder: Path, bytes_max: int) -> None:
        """Use `folder` (created when missing); half-written files of an earlier run are removed."""
        self.folder = folder
        self.bytes_max = bytes_max
        self._lock = threading.RLock()
        folder.mkdir(parents=True, exist_ok=True)
        for left_over in folder.glob("*/*.tmp"):
            left_over.unlink()
        # Sizes as they were counted: a file that is cut short later gives back what it took.
        self._sizes = {file.name: file.stat().st_size for file in folder.glob("*/*")}
        self._kept_bytes = sum(self._sizes.values())

    def path(self, name: bytes) -> Path:
        """Where the blob of this digest lies, or would lie."""
        text = name.hex()
        return self.folder / text[:2] / text

    def has(self, name: bytes) -> bool:
        """Whether a blob lies here under this name; `get` also checks its bytes."""
        return self.path(name).is_file()

    def size_bytes(self, name: bytes) -> int | None:
        """Return the size of a blob that is here, or None."""
        try:
            return self.path(name).stat().st_size
        except FileNotFoundError:
            return None

    def put(self, data: bytes, expected: bytes | None = None) -> bytes:
        """Keep `data` durably and return its digest; a damaged copy of it is replaced.

        Raises BlobTooLarge, BlobQuotaExceeded, BlobDigestMismatch (when `expected` is another), OSError.
        """
        if len(data) > BLOB_BYTES_MAX:
            raise BlobTooLarge(len(data), BLOB_BYTES_MAX)
        name = blob_digest(data)
        if expected is not None and name != expected:
            raise BlobDigestMismatch(expected, name)
        with self._lock:
            if self.get(name) is not None:
                return name
            if self._kept_bytes + len(data) > self.bytes_max:
                raise BlobQuotaExceeded(self._kept_bytes, self.bytes_max)
            self._write(self.path(name), data)
            self._sizes[name.hex()] = len(data)
            self._kept_bytes += len(data)
        return name

    def get(self, name: bytes) -> bytes | None:
        """Return the bytes, checked against their name, or None.

        Bytes that rotted are removed: what is missing is fetched again, what is damaged would stay so.
        """
        try:
            data = self.path(name).read_bytes()
        except FileNotFoundError:
            return None
        if blob_digest(data) == name:
            return data
        self.remove(name)
        return None

    def read_part(self, name: bytes, offset: int, length: int) -> bytes | None:
        """Return up to `length` bytes from `offset`, or None.

        The first part is given only of a blob whose bytes are whole: a peer would blame us for damaged ones.
        """
        if offset == 0 and self.get(name) is None:
            return None
        try:
            with self.path(name).open("rb") as file:
                file.seek(offset)
                return file.read(length)
        except FileNotFoundError:
            return None

    def remove(self, name: bytes) -> None:
        """Forget a blob; missing is fine."""
        with self._lock:
            self.path(name).unlink(missing_ok=True)
            self._kept_bytes -= self._sizes.pop(name.hex(), 0)

    def _write(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(".tmp")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
