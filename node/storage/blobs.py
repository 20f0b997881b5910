"""Content-addressed blobs: files named by the BLAKE3 digest of their bytes.

A blob is on disk before anything says that it is: bytes go to a temporary file, are synced, renamed, and the
folder is synced too, so that a storage receipt signed afterwards is true after a power cut.

A blob that no ledger state refers to is *loose*. Beside it lies a note (``NAME.note``) of whose it is and since when;
loose blobs have quotas, and go when they are old (`node.keeper` decides). A note only ever makes a blob go: one that is lost
is made anew, and what the ledger refers to has none.

Of a blob of records some of which were erased only the rest may lie here, under a name of its own that is no digest; whoever
knows the ledger (`node.erasing`) judges such bytes, and says which blobs must not come back.
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from consensus import codec
from consensus.digest import digest
from consensus.errors import CodecError
from node.storage.errors import (
    BlobDigestMismatch,
    BlobErased,
    BlobQuotaExceeded,
    BlobTooLarge,
    LooseQuotaExceeded,
)

BLOB_BYTES_MAX = 8 << 20
LOOSE_BYTES_MIN = 8 << 10
"""A loose blob counts at least so much: a file takes a block of the disk, and so does its note."""

NOTE_BYTES_MAX = 128
_NOTE = ".note"


def blob_digest(data: bytes) -> bytes:
    """Return the 32-byte name of a blob: `digest("blob", data)`, the same on every chain."""
    return digest("blob", data)


@dataclass(frozen=True, slots=True)
class Note:
    """Why a loose blob is here: for whom (an account, empty while nobody named it), since when (height and Unix ms).

    `until_height` is the last height at which a transaction that names it may execute; 0 where there is none.
    """

    owner: bytes
    height: int
    ms: int
    until_height: int = 0

    def renewed(self, later: "Note") -> "Note":
        """Return this note with what a later one adds: the first owner stays, time starts again."""
        return Note(
            self.owner or later.owner, later.height, later.ms, max(self.until_height, later.until_height)
        )


@dataclass(frozen=True, slots=True)
class LooseLimits:
    """Most bytes of loose blobs: of all, of one owner, and of all that have no owner yet."""

    bytes_max: int = 1 << 30
    owner_bytes_max: int = 64 << 20
    unnamed_bytes_max: int = 256 << 20


class BlobStore:
    """Blobs under one folder, limited in the size of each and of all; safe to call from several threads.

    `referred`, `erased` and `remaining` are set by whoever knows the ledger's state, and may be asked from any thread: whether
    the ledger refers to a blob, whether a blob must not be here, and what of some bytes belongs under a name that is not
    their digest (None: nothing).

    `_writing` is held while bytes are synced to disk; `_lock`, which guards notes and sums, never for so long.
    """

    def __init__(self, folder: Path, bytes_max: int, loose: LooseLimits | None = None) -> None:
        """Use `folder` (created when missing); what a killed run left half done is removed."""
        self.folder = folder
        self.bytes_max = bytes_max
        self.loose_limits = loose or LooseLimits()
        self.referred: Callable[[bytes], bool] = lambda name: False
        self.erased: Callable[[bytes], bool] = lambda name: False
        self.remaining: Callable[[bytes, bytes], bytes | None] = lambda name, data: None
        self._writing = threading.RLock()
        self._lock = threading.RLock()
        folder.mkdir(parents=True, exist_ok=True)
        for left_over in folder.glob("*/*.tmp"):
            left_over.unlink()
        # Sizes as they were counted: a file that is cut short later gives back what it took.
        self._sizes = {file.name: file.stat().st_size for file in folder.glob("*/*") if file.suffix != _NOTE}
        self._kept_bytes = sum(self._sizes.values())
        self._notes: dict[bytes, Note] = {}
        self._counted: dict[bytes, int] = {}
        self._loose_bytes: dict[bytes, int] = {}
        self._loose_bytes_all = 0
        for file in folder.glob(f"*/*{_NOTE}"):
            note = _read_note(file)
            if note is None or file.stem not in self._sizes:
                file.unlink()
            else:
                self._enter(bytes.fromhex(file.stem), note)

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

    def put(self, data: bytes, expected: bytes | None = None, note: Note | None = None) -> bytes:
        """Keep `data` durably and return its digest; a damaged copy of it is replaced.

        Without `note`, or where `referred` says so, the ledger refers to it; with one it is loose, unless it is here already
        without. A loose one that is put again is renewed. Raises BlobTooLarge, BlobQuotaExceeded (LooseQuotaExceeded for the quotas of loose
        ones), BlobErased, BlobDigestMismatch (when `expected` is another), OSError.
        """
        if len(data) > BLOB_BYTES_MAX:
            raise BlobTooLarge(len(data), BLOB_BYTES_MAX)
        name = blob_digest(data)
        if self.erased(name):
            raise BlobErased(name)
        if expected is not None and name != expected:
            left = self.remaining(expected, data)
            if left is None:
                raise BlobDigestMismatch(expected, name)
            name, data = expected, left
        with self._writing:
            if self.get(name) is not None and self._put_again(name, note):
                return name
            self._reserve(name, len(data), note)
            try:
                self._write(self.path(name), data)
            except OSError:
                self._release(name)
                raise
        return name

    def _put_again(self, name: bytes, note: Note | None) -> bool:
        """Bring the note of a blob up to date; False when it was collected a moment ago."""
        with self._lock:
            if name.hex() not in self._sizes:
                return False
            if note is None or self.referred(name):
                self._uncount(name)
            elif name in self._notes:
                self._renew(name, note)
            return True

    def _reserve(self, name: bytes, size_bytes: int, note: Note | None) -> None:
        """Count a blob before it is written. Its note goes first: a loose blob without one would be nobody's."""
        with self._lock:
            if self._kept_bytes + size_bytes > self.bytes_max:
                raise BlobQuotaExceeded(self._kept_bytes, self.bytes_max)
            if note is not None and self.referred(name):  # it came late, or its copy was lost
                note = None
            if note is not None:
                self._check_quota(note.owner, size_bytes)
            self._sizes[name.hex()] = size_bytes
            self._kept_bytes += size_bytes
            if note is not None:
                self.path(name).parent.mkdir(exist_ok=True)
                try:
                    self._count(name, note)
                except OSError:
                    self._release(name)
                    raise

    def _release(self, name: bytes) -> None:
        with self._lock:
            self._kept_bytes -= self._sizes.pop(name.hex(), 0)
            self._uncount(name)

    def get(self, name: bytes) -> bytes | None:
        """Return the bytes, checked against their name, or None.

        Bytes that rotted are removed: what is missing is fetched again, what is damaged would stay so. So are those that came
        back although they were erased, as out of a backup.
        """
        try:
            data = self.path(name).read_bytes()
        except FileNotFoundError:
            return None
        if blob_digest(data) == name:
            if not self.erased(name):
                return data
        elif (left := self.remaining(name, data)) is not None:
            if left != data:
                with self._writing:
                    self._write(self.path(name), left)
            return left
        self.remove(name)
        return None

    def read_part(self, name: bytes, offset: int, length: int) -> bytes | None:
        """Return up to `length` bytes from `offset`, or None.

        The first part is given only of a blob whose bytes are whole: a peer would blame us for damaged ones.
        """
        if self.erased(name) or (offset == 0 and self.get(name) is None):
            return None
        try:
            with self.path(name).open("rb") as file:
                file.seek(offset)
                return file.read(length)
        except FileNotFoundError:
            return None

    def remove(self, name: bytes) -> None:
        """Forget a blob; missing is fine. The bytes go before the note: what is left of a killed run is swept."""
        with self._lock:
            self.path(name).unlink(missing_ok=True)
            self._release(name)

    # --- loose blobs ---

    def note(self, name: bytes) -> Note | None:
        """The note of a loose blob; None for one that the ledger refers to, or that is not here."""
        return self._notes.get(name)

    def notes(self) -> tuple[tuple[bytes, Note], ...]:
        """Every loose blob with its note."""
        with self._lock:
            return tuple(self._notes.items())

    def claim(self, name: bytes, note: Note) -> None:
        """A transaction of `note.owner` names this blob: if it is loose it is the owner's from now on.

        Raises LooseQuotaExceeded when the owner has no room for it; a blob that is not here is nobody's concern.
        """
        with self._lock:
            if name in self._notes:
                self._renew(name, note)

    def has_room(self, owner: bytes, size_bytes: int) -> bool:
        """Whether a loose blob of this size would be taken for this owner now."""
        with self._lock:
            try:
                self._check_quota(owner, size_bytes)
            except LooseQuotaExceeded:
                return False
            return self._kept_bytes + size_bytes <= self.bytes_max

    def keep(self, name: bytes) -> None:
        """The ledger refers to this blob from now on."""
        with self._lock:
            self._uncount(name)

    def loosen(self, name: bytes, note: Note) -> None:
        """The ledger refers to this blob no longer; quotas ask nothing here, since they would come too late."""
        with self._lock:
            if name.hex() in self._sizes and name not in self._notes:
                self._count(name, note)

    def settle(self, referred: Callable[[bytes], bool], note: Note) -> None:
        """Give `note` to each blob that has none and is not referred to, and take the note from each that is."""
        with self._lock:
            for text in tuple(self._sizes):
                name = bytes.fromhex(text)
                if referred(name):
                    self._uncount(name)
                elif name not in self._notes:
                    with suppress(OSError):  # a full disk: made again at the next start
                        _write_note(self.path(name).with_suffix(_NOTE), note)
                    self._enter(name, note)

    def collect(self, name: bytes, note: Note) -> bool:
        """Remove a loose blob if its note is still the one that was judged; returns whether it is gone."""
        with self._lock:
            if self._notes.get(name) != note:
                return False
            self.remove(name)
            return True

    def loose_bytes(self, owner: bytes | None = None) -> int:
        """What loose blobs count, of one owner or of all, in bytes."""
        return self._loose_bytes_all if owner is None else self._loose_bytes.get(owner, 0)

    def _check_quota(self, owner: bytes, size_bytes: int, known: Note | None = None) -> None:
        """Raise LooseQuotaExceeded where `size_bytes` more of an owner's would be too much.

        Nobody may take more than is left for all the others, so that whoever comes next finds half of what was left.
        """
        limits, size_bytes = self.loose_limits, max(size_bytes, LOOSE_BYTES_MIN)
        free = limits.bytes_max - self._loose_bytes_all + (size_bytes if known is not None else 0)
        own_max = min(limits.owner_bytes_max if owner else limits.unnamed_bytes_max, free)
        taken = self._loose_bytes.get(owner, 0)
        if taken + size_bytes > own_max:
            raise LooseQuotaExceeded(owner, taken, own_max)

    def _renew(self, name: bytes, note: Note) -> None:
        """Bring the note of a loose blob up to date; one that was nobody's becomes the owner's, within its quota."""
        known = self._notes[name]
        if note.owner and not known.owner:
            self._check_quota(note.owner, self._sizes[name.hex()], known)
        self._count(name, known.renewed(note))

    def _count(self, name: bytes, note: Note) -> None:
        """Set a blob's note; raises OSError, and changes nothing, where the disk does not take it."""
        _write_note(self.path(name).with_suffix(_NOTE), note)
        self._enter(name, note)

    def _enter(self, name: bytes, note: Note) -> None:
        self._subtract(name)
        size_bytes = max(self._sizes[name.hex()], LOOSE_BYTES_MIN)
        self._notes[name], self._counted[name] = note, size_bytes
        self._loose_bytes[note.owner] = self._loose_bytes.get(note.owner, 0) + size_bytes
        self._loose_bytes_all += size_bytes

    def _uncount(self, name: bytes) -> None:
        if name in self._notes:
            self._subtract(name)
            self.path(name).with_suffix(_NOTE).unlink(missing_ok=True)

    def _subtract(self, name: bytes) -> None:
        note = self._notes.pop(name, None)
        if note is None:
            return
        size_bytes = self._counted.pop(name)
        self._loose_bytes_all -= size_bytes
        self._loose_bytes[note.owner] -= size_bytes
        if not self._loose_bytes[note.owner]:
            del self._loose_bytes[note.owner]

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


def _write_note(path: Path, note: Note) -> None:
    """Not synced: a note that a power cut took is made anew, and its blob stays the longer for it."""
    path.write_bytes(codec.encode([note.owner, note.height, note.ms, note.until_height]))


def _read_note(path: Path) -> Note | None:
    """A note, or None for one that is damaged."""
    try:
        match codec.decode(path.read_bytes()[: NOTE_BYTES_MAX + 1], NOTE_BYTES_MAX):
            case [bytes(owner), int(height), int(ms), int(until_height)]:
                return Note(owner, height, ms, until_height)
    except CodecError:
        return None
    return None
