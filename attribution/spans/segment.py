"""One file of a span index: some records, all their places in sorted order, and how often each token occurs.

**File**, integers little-endian but for the tokens::

    OLSPANS1; u8 bytes per token t (1, 2, 4); u8 bytes per place p (1 to 4); u16 0; u32 records R; u32 distinct tokens D;
    u32 tokens N
    R x u64     numbers of the records, ascending
    (R+1) x u32 first token of every record, ascending, and N
    D x u32     the distinct tokens, ascending;  D x u32 how often each occurs
    N x t bytes the tokens, **big-endian**, so that comparing bytes compares tokens
    N x p bytes the places, in the order of `suffixes.suffix_order`

That is t + p bytes a token (4 for text of bytes) and 12 bytes a record. Files are never changed once they have
their name.
"""

from __future__ import annotations

import mmap
import os
import struct
from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from attribution.spans.errors import SpanFileError
from attribution.spans.suffixes import Positions, suffix_order

SEGMENT_TOKENS_MAX = 1 << 22
"""Tokens of one segment: bounds the memory of a sort (about 350 MB) and the work of an erasure."""

_HEADER = struct.Struct("<8sBBHIII")
_MAGIC = b"OLSPANS1"
_TOKEN = {1: ">u1", 2: ">u2", 4: ">u4"}

Tokens = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Contents:
    """Records of a segment: ``numbers`` uint64 (records), ``starts`` int64 (records + 1), ``tokens``, sorted places."""

    numbers: npt.NDArray[np.uint64]
    starts: Positions
    tokens: Tokens
    places: Positions

    @classmethod
    def unsorted(cls, numbers: Sequence[int], records: Sequence[Sequence[int]]) -> Contents:
        """Records with ascending numbers, without their places."""
        lengths = np.fromiter(map(len, records), np.int64, len(records))
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        tokens = np.fromiter(chain.from_iterable(records), np.uint32, int(starts[-1]))
        return cls(np.array(numbers, np.uint64), starts, tokens, np.zeros(0, np.int64))

    @classmethod
    def joined(cls, one: Contents, other: Contents) -> Contents:
        """Both, without their places; the other's numbers are the larger ones."""
        starts = np.concatenate([one.starts, other.starts[1:] + one.starts[-1]])
        tokens = np.concatenate([one.tokens, other.tokens])
        return cls(np.concatenate([one.numbers, other.numbers]), starts, tokens, np.zeros(0, np.int64))

    def sorted(self) -> Contents:
        """With all places in their order."""
        return replace(self, places=suffix_order(self.tokens, self.starts))

    def without(self, numbers: Collection[int]) -> Contents:
        """What omission of some records leaves. Nothing is sorted: the places that remain are in order already."""
        gone = np.isin(self.numbers, np.fromiter(numbers, np.uint64, len(numbers)))
        lengths = np.diff(self.starts)
        kept = np.repeat(~gone, lengths)
        moved = np.cumsum(kept) - 1
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[~gone])])
        places = moved[self.places[kept[self.places]]]
        return Contents(self.numbers[~gone], starts, self.tokens[kept], places)

    def write(self, path: Path, token_bytes: int) -> None:
        """Write the file whole, to disk, under its name or not at all."""
        count = len(self.tokens)
        place_bytes = max(1, -(-max(0, count - 1).bit_length() // 8))
        distinct, often = np.unique(self.tokens, return_counts=True)
        header = _HEADER.pack(_MAGIC, token_bytes, place_bytes, 0, len(self.numbers), len(distinct), count)
        places = self.places.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :place_bytes]
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            file.write(header)
            file.write(self.numbers.astype("<u8").tobytes())
            for values in (self.starts, distinct, often):
                file.write(values.astype("<u4").tobytes())
            file.write(self.tokens.astype(_TOKEN[token_bytes]).tobytes())
            file.write(places.tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)


class Segment:
    """A segment's file, mapped. Every read is checked against the sizes, so that a damaged file cannot lead outside."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            head = _HEADER.unpack_from(self._map)
        except (OSError, ValueError, struct.error) as error:
            raise SpanFileError(f"{path.name}: {error}") from error
        magic, token_bytes, place_bytes, zero, records, distinct, tokens = head
        self.token_bytes: int = token_bytes
        self.record_count: int = records
        self.token_count: int = tokens
        self._place_bytes: int = place_bytes
        self._distinct: int = distinct
        at = _HEADER.size
        self._numbers_at, at = at, at + 8 * self.record_count
        self._starts_at, at = at, at + 4 * (self.record_count + 1)
        self._distinct_at, at = at, at + 4 * distinct
        self._often_at, at = at, at + 4 * distinct
        self._tokens_at, at = at, at + self.token_bytes * self.token_count
        self._places_at, at = at, at + self._place_bytes * self.token_count
        widths = self.token_bytes in _TOKEN and 1 <= self._place_bytes <= 4
        if magic != _MAGIC or zero or not widths or at != len(self._map) or not self.record_count:
            raise SpanFileError(f"{path.name} is not a segment, or not all of one")
        self._starts = self.starts().data  # no copy where integers are little-endian
        if self._starts[0] != 0 or self._starts[self.record_count] != self.token_count:
            raise SpanFileError(f"{path.name}: its records do not add up to its tokens")

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        return len(self._map)

    def numbers(self) -> npt.NDArray[np.uint64]:
        """Numbers of the records."""
        found = np.frombuffer(self._map, "<u8", self.record_count, self._numbers_at)
        return found.astype(np.uint64, copy=False)

    def number(self, record: int) -> int:
        """Number of the segment's record at a position."""
        return int.from_bytes(
            self._map[self._numbers_at + 8 * record : self._numbers_at + 8 * record + 8], "little"
        )

    def starts(self) -> Tokens:
        """First token of every record, and the number of tokens."""
        found = np.frombuffer(self._map, "<u4", self.record_count + 1, self._starts_at)
        return found.astype(np.uint32, copy=False)

    def frequencies(self) -> list[tuple[int, int]]:
        """Distinct tokens and how often each occurs."""
        distinct = np.frombuffer(self._map, "<u4", self._distinct, self._distinct_at)
        often = np.frombuffer(self._map, "<u4", self._distinct, self._often_at)
        return list(zip(distinct.tolist(), often.tolist(), strict=True))

    def contents(self) -> Contents:
        """Everything, read into memory."""
        tokens = np.frombuffer(self._map, _TOKEN[self.token_bytes], self.token_count, self._tokens_at)
        places = self.places(0, self.token_count)
        return Contents(
            self.numbers().copy(), self.starts().astype(np.int64), tokens.astype(np.uint32), places
        )

    def places(self, low: int, high: int) -> Positions:
        """Places in the slots from ``low`` to ``high``, in sorted order."""
        width, at = self._place_bytes, self._places_at
        raw = np.frombuffer(self._map, np.uint8, (high - low) * width, at + low * width)
        wide = np.zeros((high - low, 4), np.uint8)
        wide[:, :width] = raw.reshape(-1, width)
        places = wide.view("<u4").reshape(-1).astype(np.int64)
        if len(places) and int(places.max()) >= self.token_count:
            raise SpanFileError(f"{self.path.name}: a place beyond its tokens")
        return places

    def slots(self, pattern: bytes) -> tuple[int, int]:
        """Slots (first, past the last) of the places where ``pattern`` (tokens, big-endian) stands."""
        low = self._bound(pattern, 0, self.token_count, after=False)
        return low, self._bound(pattern, low, self.token_count, after=True)

    def longest(self, pattern: bytes) -> int:
        """Tokens of the longest beginning of ``pattern`` that stands in a record.

        It is shared with a neighbour of the slot where the whole pattern would be sorted in.
        """
        slot = self._bound(pattern, 0, self.token_count, after=False)
        near = [self._follows(at, len(pattern)) for at in (slot - 1, slot) if 0 <= at < self.token_count]
        return max((_common(pattern, text) for text in near), default=0) // self.token_bytes

    def _bound(self, pattern: bytes, low: int, high: int, *, after: bool) -> int:
        """First slot whose text is not below the pattern or, ``after``, is above every text that begins with it."""
        size = len(pattern)
        while low < high:
            middle = (low + high) // 2
            text = self._follows(middle, size)
            if text < pattern or (after and text == pattern):
                low = middle + 1
            else:
                high = middle
        return low

    def _follows(self, slot: int, size: int) -> bytes:
        """At most ``size`` bytes of text from a slot's place on, not beyond its record's end."""
        at = self._places_at + slot * self._place_bytes
        place = int.from_bytes(self._map[at : at + self._place_bytes], "little")
        if place >= self.token_count:
            raise SpanFileError(f"{self.path.name}: a place beyond its tokens")
        end = self._tokens_at + self._starts[bisect_right(self._starts, place)] * self.token_bytes
        begin = self._tokens_at + place * self.token_bytes
        return self._map[begin : min(begin + size, end)]


def _common(one: bytes, other: bytes) -> int:
    """Length of the longest common beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
