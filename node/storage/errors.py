"""What can go wrong on disk, as types a caller can act on."""

from pathlib import Path

from consensus.safety import ForeignSignature


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


class DatabaseUnreadable(StorageError):
    """The system cannot read a file of the database."""

    def __init__(self, path: Path, detail: str) -> None:
        self.path = path
        super().__init__(
            f"{path} cannot be read ({detail}); check the disk and the limit of open files, then restart; if a file "
            "is cut short or gone for good, move it away and restart to sync again, but never restart a validator "
            "without its own safety record"
        )


class DatabaseNotWritable(StorageError):
    """The system refused a write; nothing was signed on the strength of it."""

    def __init__(self, path: Path, detail: str) -> None:
        self.path = path
        super().__init__(
            f"cannot write to {path}: {detail}; is the disk full? Make room and start again: "
            "what was committed is there, and nothing was signed since"
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


class SigningKeyElsewhere(StorageError):
    """Somebody else signs with this validator's key, or its whole home is an old copy."""

    def __init__(self, found: ForeignSignature) -> None:
        self.found = found
        super().__init__(
            f"a {found.kind} of round {found.round} carries this validator's signature, but its own record ends at "
            f"round {found.known_round}: another daemon signs with the same key, or this home is an old copy; nothing "
            "more is signed here. Keep only the home that signed last, never start this one again as a validator, "
            "or join with a new key"
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


class LooseQuotaExceeded(BlobQuotaExceeded):
    """One owner's blobs that no executed transaction names have reached their limit; an empty owner is nobody yet."""

    def __init__(self, owner: bytes, kept_bytes: int, bytes_max: int) -> None:
        super().__init__(kept_bytes, bytes_max)
        self.owner = owner
        whose = f"of {owner.hex()}" if owner else "that no transaction names"
        self.args = (
            f"{kept_bytes} bytes of blobs {whose} wait here and at most {bytes_max} may; wait until they are used or expire",
        )


class BlobErased(LooseQuotaExceeded):
    """Records of this blob were erased: there is no room for it, whoever brings it back."""

    def __init__(self, name: bytes) -> None:
        super().__init__(b"", 0, 0)
        self.name = name
        self.args = (f"records of the blob {name.hex()} were erased; it is not taken again",)


class BlobDigestMismatch(StorageError):
    """Bytes do not hash to the name they were offered under."""

    def __init__(self, expected: bytes, actual: bytes) -> None:
        self.expected = expected
        self.actual = actual
        super().__init__(f"expected blob {expected.hex()}, got bytes of {actual.hex()}")
