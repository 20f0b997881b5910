"""What the daemon asks of its worker, what it gets back, and the frames both travel in.

A frame is a 4-byte big-endian length and a canonical array. Paths are text, relative to nothing: daemon and
worker share one file system and one home.
"""

import struct
from dataclasses import dataclass
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
class IndexJob:
    """Rebuild the index of an adapter from the blobs of its training records.

    `contributions` are paths of records blobs in training order; the index is left in `index_folder`.
    """

    base: str
    adapter: str
    adapter_hash: bytes
    contributions: tuple[str, ...]
    index_folder: str

    def fields(self) -> Fields:
        """The job as an array."""
        return [
            "index",
            self.base,
            self.adapter,
            self.adapter_hash,
            list(self.contributions),
            self.index_folder,
        ]


@dataclass(frozen=True, slots=True)
class AuditJob:
    """Recompute one inference: the output from the prompt, and who is to be paid for it.

    `owners` gives each contribution's owner and record count, in training order; `floor_ppm` is the cosine
    below which a record is not paid, in parts per million.
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

    def fields(self) -> Fields:
        """The job as an array."""
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
        ]


Job = IndexJob | AuditJob


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
    """The job could not be done here (a damaged file, a machine that fails its self-check); nothing is attested."""

    reason: str

    def fields(self) -> Fields:
        """The result as an array."""
        return ["refused", self.reason]


@dataclass(frozen=True, slots=True)
class IndexRefused(JobRefused):
    """A `JobRefused` that says which job it is about: an audit may be in hand beside the index."""

    def fields(self) -> Fields:
        """The result as an array."""
        return ["index-refused", self.reason]


JobResult = IndexBuilt | AuditDone | JobRefused


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
        case ["index", str(base), str(adapter), bytes(adapter_hash), list(contributions), str(folder)]:
            return IndexJob(base, adapter, adapter_hash, tuple(map(str, contributions)), folder)
        case [
            "audit", str(base), str(adapter), bytes(adapter_hash), str(folder), bytes(index_root), list(owners),
            list(prompt_ids), list(output_ids), int(new_tokens_max), int(floor_ppm),
        ]:  # fmt: skip
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
            )
        case other:
            raise WorkerProtocolError(f"no job: {str(other)[:80]}")


def parse_result(body: bytes) -> JobResult:
    """Return the result in a frame; raises WorkerProtocolError."""
    match codec.decode(body, FRAME_BYTES_MAX):
        case ["index-built", bytes(index_root), int(record_count)]:
            return IndexBuilt(index_root, record_count)
        case ["audit-done", int(status), bytes(result_hash), list(shares)]:
            return AuditDone(status, result_hash, tuple((address, share) for address, share in shares))
        case ["refused", str(reason)]:
            return JobRefused(reason)
        case ["index-refused", str(reason)]:
            return IndexRefused(reason)
        case other:
            raise WorkerProtocolError(f"no result: {str(other)[:80]}")
