"""What can go wrong on disk, as types a caller can act on."""

from pathlib import Path


class StorageError(Exception):
    """A fault of the disk or of what lies on it; the message says what to do."""


class DatabaseInUse(StorageError):
    """Another process has the database open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(f"{path} is open in another process; stop that daemon first")


class DatabaseCorrupt(StorageError):
    """The database cannot be read; blocks can be fetched again, the safety record cannot."""

    def __init__(self, path: Path, detail: str) -> None:
        self.path = path
        super().__init__(
            f"{path} is damaged ({detail}); move it away and restart to sync again, "
            "but never restart a validator without its own safety record: join with a new key instead"
        )


class SafetyRecordUnusable(StorageError):
    """A validator's safety record is lost, damaged or not of this chain's epoch; without it nothing may be signed."""

    def __init__(self, problem: str, remedy: str) -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(
            f"{problem}; a validator that signs without its own safety record may contradict itself and lose its "
            f"stake: {remedy}"
        )


class BlobTooLarge(StorageError):
    """A blob is over the limit of one blob."""

    def __init__(self, size_bytes: int, bytes_max: int) -> None:
        self.size_bytes = size_bytes
        self.bytes_max = bytes_max
        super().__init__(f"a blob of {size_bytes} bytes is over the limit of {bytes_max}")


class BlobQuotaExceeded(StorageError):
    """The blobs kept by this node have reached their limit."""

    def __init__(self, kept_bytes: int, bytes_max: int) -> None:
        self.kept_bytes = kept_bytes
        self.bytes_max = bytes_max
        super().__init__(f"the blob store holds {kept_bytes} bytes of {bytes_max}; nothing more is taken")


class BlobDigestMismatch(StorageError):
    """Bytes do not hash to the name they were offered under."""

    def __init__(self, expected: bytes, actual: bytes) -> None:
        self.expected = expected
        self.actual = actual
        super().__init__(f"expected blob {expected.hex()}, got bytes of {actual.hex()}")
