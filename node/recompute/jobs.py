"""What the daemon asks of its worker, what it gets back, and the frames both travel in.

A frame is a 4-byte big-endian length and a canonical array. Paths are text, relative to nothing: daemon and
worker share one file system and one home.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from consensus import codec

FRAME_BYTES_MAX = 32 << 20
ELEMENTS_MAX = 1 << 18
"""Values in one frame: twice what a prompt and an output of the ledger's longest take, and their owners."""
_LENGTH = struct.Struct("!I")

Fields = list[object]


class WorkerProtocolError(Exception):
    """The other end of the pipe sent something that is not a frame of ours."""


@dataclass(frozen=True, slots=True)
class Gap:
    """What is missing of the contribution at `place` (in training order), of which records were erased.

    Its blob may hold hashes in place of records and then proves itself against `root`; the records `omitted` were erased
    before the adapter was published and are not among its training records.
    """

    place: int
    root: bytes
    omitted: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class IndexJob:
    """Rebuild the index of an adapter from the blobs of its training records.

    `contributions` are paths of records blobs in training order; the index is left in `index_folder`.
    """

    base: str
    adapter: str
    adapter_hash: bytes
    contributions: tuple[str, ...]
    index_folder: str
    gaps: tuple[Gap, ...] = ()

    def fields(self) -> Fields:
        """The job as an array."""
        return [
            "index",
            self.base,
            self.adapter,
            self.adapter_hash,
            list(self.contributions),
            self.index_folder,
            *([_gap_fields(self.gaps)] if self.gaps else []),
        ]


@dataclass(frozen=True, slots=True)
class AuditJob:
    """Recompute one inference: the output from the prompt, and who is to be paid for it.

    `owners` gives each contribution's owner and record count, in training order; `floor_ppm` is the cosine
    below which a record is not paid, in parts per million. `erased` are the rows of the index that were erased before
    the inference was recorded, ascending: they count as if they were not there. Only with them are `contributions` and
    `gaps` given, for who leads the near-duplicates that remain.
    """

    base: str
    adapter: str
    adapter_hash: bytes
    index_folder: str
    index_root: bytes
    owners: tuple[tuple[bytes, int], ...]
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    new_tokens_max: int
    floor_ppm: int
    erased: tuple[int, ...] = ()
    contributions: tuple[str, ...] = ()
    gaps: tuple[Gap, ...] = ()

    def fields(self) -> Fields:
        """The job as an array."""
        missing = [list(self.erased), list(self.contributions), _gap_fields(self.gaps)]
        return [
            "audit",
            self.base,
            self.adapter,
            self.adapter_hash,
            self.index_folder,
            self.index_root,
            [list(owner) for owner in self.owners],
            list(self.prompt_ids),
            list(self.output_ids),
            self.new_tokens_max,
            self.floor_ppm,
            *(missing if self.erased else []),
        ]


@dataclass(frozen=True, slots=True)
class EraseJob:
    """Blank rows of an adapter's index on disk, for good; an index that is not there has none."""

    index_folder: str
    rows: tuple[int, ...]
    contributions: tuple[str, ...]
    gaps: tuple[Gap, ...]

    def fields(self) -> Fields:
        """The job as an array."""
        return [
            "erase",
            self.index_folder,
            list(self.rows),
            list(self.contributions),
            _gap_fields(self.gaps),
        ]


@dataclass(frozen=True, slots=True)
class TakeJob:
    """Take the index that was fetched from a peer into the `unfinished_folder` beside `index_folder`, if it is the one with `index_root`.

    `rows` are those whose erasure is done: they are blanked, and no other may be missing. Who leads the near-duplicates
    that remain, which the root does not cover, is found from the records and not believed.
    """

    index_folder: str
    index_root: bytes
    rows: tuple[int, ...]
    contributions: tuple[str, ...]
    gaps: tuple[Gap, ...]

    def fields(self) -> Fields:
        """The job as an array."""
        return [
            "take",
            self.index_folder,
            self.index_root,
            list(self.rows),
            list(self.contributions),
            _gap_fields(self.gaps),
        ]


Job = AuditJob | IndexJob | EraseJob | TakeJob


def unfinished_folder(index_folder: Path) -> Path:
    """Where an index is built, or fetched to, until it is whole."""
    return index_folder.with_suffix(".part")


def _gap_fields(gaps: tuple[Gap, ...]) -> Fields:
    return [[gap.place, gap.root, list(gap.omitted)] for gap in gaps]


def _gaps(value: list[object]) -> tuple[Gap, ...]:
    found = []
    for entry in value:
        match entry:
            case [int(place), bytes(root), list(omitted)]:
                found.append(Gap(place, root, _integers(omitted)))
            case other:
                raise WorkerProtocolError(f"no gap: {str(other)[:80]}")
    return tuple(found)


def _integers(value: list[object]) -> tuple[int, ...]:
    if any(type(entry) is not int for entry in value):
        raise WorkerProtocolError("not a list of integers")
    return tuple(entry for entry in value if isinstance(entry, int))


@dataclass(frozen=True, slots=True)
class IndexBuilt:
    """An index stands in its folder; `index_root` is what was computed, whatever was published."""

    index_root: bytes
    record_count: int

    def fields(self) -> Fields:
        """The result as an array."""
        return ["index-built", self.index_root, self.record_count]


@dataclass(frozen=True, slots=True)
class AuditDone:
    """What this machine computed; every honest machine computes the same."""

    status: int
    result_hash: bytes
    shares: tuple[tuple[bytes, int], ...]

    def fields(self) -> Fields:
        """The result as an array."""
        return ["audit-done", int(self.status), self.result_hash, [list(share) for share in self.shares]]


@dataclass(frozen=True, slots=True)
class JobRefused:
    """The job could not be done here (a damaged file, a machine that fails its self-check); nothing is attested.

    `index_damaged` says that the files of the index are not those of its root.
    """

    reason: str
    index_damaged: bool = False

    def fields(self) -> Fields:
        """The result as an array."""
        return ["refused", self.reason, int(self.index_damaged)]


@dataclass(frozen=True, slots=True)
class IndexRefused(JobRefused):
    """A `JobRefused` that says which job it is about: an audit may be in hand beside the index."""

    def fields(self) -> Fields:
        """The result as an array."""
        return ["index-refused", self.reason, int(self.index_damaged)]


@dataclass(frozen=True, slots=True)
class RowsErased:
    """So many rows of the index are zeros now; 0 where there is no index."""

    rows: int

    def fields(self) -> Fields:
        """The result as an array."""
        return ["rows-erased", self.rows]


JobResult = IndexBuilt | AuditDone | RowsErased | JobRefused


def pack_frame(fields: Fields) -> bytes:
    """Return the frame of a job or result."""
    body = codec.encode(fields)
    return _LENGTH.pack(len(body)) + body


def frame_length(head: bytes) -> int:
    """Return the length that a frame's first 4 bytes announce; raises WorkerProtocolError over the limit."""
    (length,) = _LENGTH.unpack(head)
    if length > FRAME_BYTES_MAX:
        raise WorkerProtocolError(f"a frame of {length} bytes is over {FRAME_BYTES_MAX}")
    return int(length)


def read_frame(stream: BinaryIO) -> bytes | None:
    """Return the body of the next frame, or None when the other end has gone."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    length = frame_length(head)
    body = stream.read(length)
    return body if len(body) == length else None


def parse_job(body: bytes) -> Job:
    """Return the job in a frame; raises WorkerProtocolError."""
    match codec.decode(body, FRAME_BYTES_MAX, ELEMENTS_MAX):
        case ["index", str(base), str(adapter), bytes(adapter_hash), list(contributions), str(folder), *rest]:
            gaps = _gaps(_only_list(rest))
            return IndexJob(base, adapter, adapter_hash, tuple(map(str, contributions)), folder, gaps)
        case ["erase", str(folder), list(rows), list(contributions), list(gaps)]:
            return EraseJob(folder, _integers(rows), tuple(map(str, contributions)), _gaps(gaps))
        case ["take", str(folder), bytes(root), list(rows), list(contributions), list(gaps)]:
            return TakeJob(folder, root, _integers(rows), tuple(map(str, contributions)), _gaps(gaps))
        case [
            "audit", str(base), str(adapter), bytes(adapter_hash), str(folder), bytes(index_root), list(owners),
            list(prompt_ids), list(output_ids), int(new_tokens_max), int(floor_ppm), *missing,
        ]:  # fmt: skip
            erased, paths, gaps = _missing(missing)
            return AuditJob(
                base,
                adapter,
                adapter_hash,
                folder,
                index_root,
                tuple((owner, count) for owner, count in owners),
                tuple(prompt_ids),
                tuple(output_ids),
                new_tokens_max,
                floor_ppm,
                erased,
                paths,
                gaps,
            )
        case other:
            raise WorkerProtocolError(f"no job: {str(other)[:80]}")


def _only_list(rest: list[object]) -> list[object]:
    match rest:
        case []:
            return []
        case [list(only)]:
            return only
    raise WorkerProtocolError("more than a job has")


def _missing(rest: list[object]) -> tuple[tuple[int, ...], tuple[str, ...], tuple[Gap, ...]]:
    match rest:
        case []:
            return (), (), ()
        case [list(erased), list(contributions), list(gaps)]:
            return _integers(erased), tuple(map(str, contributions)), _gaps(gaps)
    raise WorkerProtocolError("more than a job has")


def parse_result(body: bytes) -> JobResult:
    """Return the result in a frame; raises WorkerProtocolError."""
    match codec.decode(body, FRAME_BYTES_MAX):
        case ["index-built", bytes(index_root), int(record_count)]:
            return IndexBuilt(index_root, record_count)
        case ["audit-done", int(status), bytes(result_hash), list(shares)]:
            return AuditDone(status, result_hash, tuple((address, share) for address, share in shares))
        case ["rows-erased", int(rows)]:
            return RowsErased(rows)
        case ["refused", str(reason), (0 | 1) as damaged]:
            return JobRefused(reason, bool(damaged))
        case ["index-refused", str(reason), (0 | 1) as damaged]:
            return IndexRefused(reason, bool(damaged))
        case other:
            raise WorkerProtocolError(f"no result: {str(other)[:80]}")
