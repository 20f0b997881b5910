"""A span index in a folder: segments of doubling sizes, so that adding and erasing touch little.

Records are numbered in the order they come, from 0, and a number is never used twice. What is added becomes
segments of its own; neighbours are then joined while the older is less than twice the newer and both fit
`SEGMENT_TOKENS_MAX` (the logarithmic method of Bentley and Saxe 1980): a token is sorted at most about
log2(SEGMENT_TOKENS_MAX) times, and there are at most as many small segments and N / (SEGMENT_TOKENS_MAX / 2)
large ones. Erasing rewrites the segments that hold the records, without sorting.

The file ``segments`` names what counts; it is replaced atomically after the segments are on disk, and before
any is removed. Whatever else lies in the folder with an ending of ours is a crash's leftover and is removed
when the index is opened for writing, erased records included. One process writes at a time; readers that opened
earlier go on with what they mapped.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from attribution.spans.errors import SpanFileError, SpanLimit
from attribution.spans.matching import OUTPUT_TOKENS_MAX, Span, find_spans
from attribution.spans.segment import SEGMENT_TOKENS_MAX, Contents, Segment

SEGMENTS_MAX = 1 << 10
RECORD_TOKENS_MAX = 1 << 16
RECORDS_MAX = 1 << 20
"""Records of one call of `SpanIndex.add`, and of one segment."""

_LIST = "segments"
_HEADER = struct.Struct("<8sB7xQQI4x")
_MAGIC = b"OLSPANL1"


class SpanIndex:
    """Records, searchable by every stretch of their tokens. Make one with `create`, `open` it later.

    ``token_bytes`` is 1, 2 or 4: ids are below 256, 65,536 or 2^32.
    """

    def __init__(
        self, directory: Path, token_bytes: int, next_record: int, next_file: int, segments: Sequence[Segment]
    ) -> None:
        self.directory = directory
        self.token_bytes = token_bytes
        self._next_file = next_file
        self._hold(segments, next_record)

    def _hold(self, segments: Sequence[Segment], next_record: int) -> None:
        self._next_record = next_record
        self._segments = tuple(segments)
        self._frequencies = Counter[int]()
        for segment in segments:
            self._frequencies.update(dict(segment.frequencies()))

    @classmethod
    def create(cls, directory: Path, token_bytes: int = 1) -> SpanIndex:
        """An empty index in a folder that has none. Raises `SpanFileError`."""
        if token_bytes not in (1, 2, 4):
            raise SpanLimit(f"{token_bytes} bytes a token; 1, 2 or 4 are possible")
        directory.mkdir(parents=True, exist_ok=True)
        if (directory / _LIST).exists():
            raise SpanFileError(f"{directory} holds an index already")
        index = cls(directory, token_bytes, 0, 0, ())
        index._commit((), 0)
        return index

    @classmethod
    def open(cls, directory: Path, *, writable: bool = True) -> SpanIndex:
        """Map an index's segments. Raises `SpanFileError`.

        ``writable`` also clears away what a crash left, and a writer's unfinished files with it: a reader
        beside a writer opens without it, and again where a segment was replaced in between (then a file is
        missing).
        """
        try:
            data = (directory / _LIST).read_bytes()
            magic, token_bytes, next_record, next_file, count = _HEADER.unpack_from(data)
            if magic != _MAGIC or count > SEGMENTS_MAX or len(data) != _HEADER.size + 8 * count:
                raise SpanFileError(f"{_LIST} is not a list of segments, or not all of one")
            files = struct.unpack_from(f"<{count}Q", data, _HEADER.size)
        except (OSError, struct.error) as error:
            raise SpanFileError(f"{directory}: {error}") from error
        segments = [Segment(directory / _name(file)) for file in files]
        if any(segment.token_bytes != token_bytes for segment in segments):
            raise SpanFileError(f"{directory}: segments of different tokens")
        if writable:
            _clear(directory, {segment.path for segment in segments})
        return cls(directory, token_bytes, next_record, next_file, segments)

    @property
    def record_count(self) -> int:
        """Live records."""
        return sum(segment.record_count for segment in self._segments)

    @property
    def next_record(self) -> int:
        """Number of the next record that is added: how many were, erased ones included."""
        return self._next_record

    @property
    def token_count(self) -> int:
        """Tokens of the live records."""
        return sum(segment.token_count for segment in self._segments)

    @property
    def segment_count(self) -> int:
        """Files that a query reads."""
        return len(self._segments)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return (self.directory / _LIST).stat().st_size + sum(s.size_bytes for s in self._segments)

    def add(self, records: Sequence[Sequence[int]]) -> range:
        """Index more records (token ids); returns their numbers. Raises `SpanLimit`, and then nothing was added."""
        if len(records) > RECORDS_MAX:
            raise SpanLimit(f"{len(records)} records at once; at most {RECORDS_MAX}")
        for record in records:
            if len(record) > RECORD_TOKENS_MAX:
                raise SpanLimit(f"a record of {len(record)} tokens; at most {RECORD_TOKENS_MAX}")
            self._check(record)
        numbers = range(self._next_record, self._next_record + len(records))
        segments = list(self._segments)
        for low, high in _portions(records):
            newer = Contents.unsorted(numbers[low:high], records[low:high])
            while segments and _joins(segments[-1], newer):
                newer = Contents.joined(segments.pop().contents(), newer)
            segments.append(self._write(newer.sorted()))
        if len(segments) > SEGMENTS_MAX:
            _clear(self.directory, {segment.path for segment in self._segments})
            raise SpanLimit(f"more than {SEGMENTS_MAX} segments")
        self._commit(segments, len(records))
        return numbers

    def erase(self, numbers: Collection[int]) -> int:
        """Remove records: their tokens leave every file. Returns how many there were; unknown numbers are not.

        The answers afterwards equal those of an index that never had them. What the file system keeps of removed
        files (snapshots, flash memory) is not in this code's hands.
        """
        wanted = np.array(sorted({n for n in numbers if 0 <= n < self._next_record}), np.uint64)
        segments, before = list[Segment](), self.record_count
        for segment in self._segments:
            there = wanted[np.isin(wanted, segment.numbers())]
            if not len(there):
                segments.append(segment)
            elif len(there) < segment.record_count:
                segments.append(self._write(segment.contents().without(there.tolist())))
        if len(segments) != len(self._segments) or segments != list(self._segments):
            self._commit(segments, 0)
        return before - self.record_count

    def spans(self, output: Sequence[int], length_min: int = 1) -> tuple[Span, ...]:
        """Maximal spans of ``output`` (token ids) of at least ``length_min`` tokens, long and rare first.

        Time: (tokens of the output) x (segments) binary searches. Raises `SpanLimit` on an output of more than
        `OUTPUT_TOKENS_MAX` tokens, or of ids that this index cannot hold, or ``length_min`` below 1.
        """
        if len(output) > OUTPUT_TOKENS_MAX or length_min < 1:
            raise SpanLimit(
                f"an output of {len(output)} tokens, at most {OUTPUT_TOKENS_MAX}; spans of 1 or more"
            )
        self._check(output)
        data = b"".join(token.to_bytes(self.token_bytes, "big") for token in output)
        return find_spans(self._segments, self._frequencies, output, data, length_min)

    def count(self, text: Sequence[int]) -> int:
        """How often ``text``, of at least one token, stands in the records. Raises `SpanLimit`."""
        if not 1 <= len(text) <= OUTPUT_TOKENS_MAX:
            raise SpanLimit(f"a text of {len(text)} tokens; 1 to {OUTPUT_TOKENS_MAX} are possible")
        self._check(text)
        data = b"".join(token.to_bytes(self.token_bytes, "big") for token in text)
        return sum(high - low for low, high in (segment.slots(data) for segment in self._segments))

    def _check(self, tokens: Sequence[int]) -> None:
        if len(tokens) and not 0 <= min(tokens) <= max(tokens) < 1 << 8 * self.token_bytes:
            raise SpanLimit(f"a token id outside [0, 2^{8 * self.token_bytes})")

    def _write(self, contents: Contents) -> Segment:
        path = self.directory / _name(self._next_file)
        self._next_file += 1
        contents.write(path, self.token_bytes)
        return Segment(path)

    def _commit(self, segments: Sequence[Segment], added: int) -> None:
        """Let ``segments`` be the index, then remove the files of all others."""
        files = [int(segment.path.stem, 16) for segment in segments]
        head = _HEADER.pack(
            _MAGIC, self.token_bytes, self._next_record + added, self._next_file, len(segments)
        )
        part = self.directory / f"{_LIST}.part"
        with part.open("wb") as file:
            file.write(head + struct.pack(f"<{len(files)}Q", *files))
            file.flush()
            os.fsync(file.fileno())
        _sync(self.directory)  # the segments' names, before the list that relies on them
        os.replace(part, self.directory / _LIST)
        _sync(self.directory)
        _clear(self.directory, {segment.path for segment in segments})
        self._hold(segments, self._next_record + added)


def _name(file: int) -> str:
    return f"{file:016x}.span"


def _joins(older: Segment, newer: Contents) -> bool:
    """Whether the older of two neighbours is to be sorted again with the newer."""
    old = older.token_count + older.record_count
    new = len(newer.tokens) + len(newer.numbers)
    fits = older.token_count + len(newer.tokens) <= SEGMENT_TOKENS_MAX
    return fits and older.record_count + len(newer.numbers) <= RECORDS_MAX and old < 2 * new


def _portions(records: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """Runs of records that fit one segment."""
    low, tokens = 0, 0
    for high, record in enumerate(records):
        if tokens + len(record) > SEGMENT_TOKENS_MAX:
            yield low, high
            low, tokens = high, 0
        tokens += len(record)
    if records:
        yield low, len(records)


def _clear(directory: Path, kept: Collection[Path]) -> None:
    for path in sorted(directory.iterdir()):
        if path.suffix in (".span", ".part") and path not in kept:
            path.unlink()


def _sync(directory: Path) -> None:
    folder = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
