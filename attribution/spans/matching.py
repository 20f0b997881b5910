"""Maximal matching spans of an output in some segments, the rarest first, in integers.

Let L(i) be the length of the longest stretch that begins at the output's token i and stands in some record. It is never
cut on the right, and it can be extended to the left exactly if L(i - 1) > L(i); so the maximal spans are the (i, L(i))
with i = 0 or L(i - 1) <= L(i). No span lies inside another.

*Long and rare first*: a span weighs the bits by which chance would miss it, if tokens came independently with the
frequencies that they have in the records (OLMoTrace, Liu et al. 2025, ranks by the same unigram probability)::

    surprise = sum over the span's tokens of floor(1024 log2 N) - floor(1024 log2 n(token))

with N tokens in all records and n of that one, so a line of forty dashes ranks below a sentence. Larger surprise first,
then fewer occurrences, then the earlier start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from attribution.spans.segment import Segment

OUTPUT_TOKENS_MAX = 1 << 12
PLACES_MAX = 8
"""Records that a span names, the earliest ones."""
OCCURRENCES_READ_MAX = 1 << 12
"""A span that occurs oftener is counted, but its places are not read: it names no record."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a span stands: the record's number, and the first of its tokens at which it begins there."""

    record: int
    offset: int


@dataclass(frozen=True, slots=True)
class Span:
    """A maximal span ``output[start:start + length]``.

    It stands ``occurrences`` times in all (overlapping ones counted) in ``records`` distinct records, the earliest of
    which ``places`` names; ``surprise`` is in 1/1024 bit. Beyond `OCCURRENCES_READ_MAX`, ``records`` is None.
    """

    start: int
    length: int
    occurrences: int
    records: int | None
    surprise: int
    places: tuple[Place, ...]


def find_spans(
    segments: Sequence[Segment],
    frequencies: Mapping[int, int],
    output: Sequence[int],
    data: bytes,
    length_min: int,
) -> tuple[Span, ...]:
    """Spans of ``output``, whose big-endian bytes are ``data``, of at least ``length_min`` tokens."""
    total = sum(frequencies.values())
    spans, before = list[Span](), 0
    width = len(data) // max(1, len(output))
    for start, token in enumerate(output):
        pattern = data[start * width :]
        length = max((s.longest(pattern) for s in segments), default=0) if token in frequencies else 0
        if length >= length_min and (start == 0 or before <= length):
            occurrences, records, places = _places(segments, pattern[: length * width])
            text = output[start : start + length]
            rates = (log2_floor(frequencies.get(token, 1)) for token in text)  # 1: a damaged file
            surprise = length * log2_floor(total) - sum(rates)
            spans.append(Span(start, length, occurrences, records, surprise, places))
        before = length
    return tuple(sorted(spans, key=lambda s: (-s.surprise, s.occurrences, s.start)))


@lru_cache(maxsize=1 << 16)
def log2_floor(number: int) -> int:
    """floor(1024 log2(number)) of a positive integer, exactly: 2^k <= number^1024 < 2^(k + 1)."""
    return int((number**1024).bit_length()) - 1


def _places(segments: Sequence[Segment], text: bytes) -> tuple[int, int | None, tuple[Place, ...]]:
    """Occurrences, distinct records and the earliest places of a text that stands somewhere."""
    slots = [(segment, *segment.slots(text)) for segment in segments]
    occurrences = sum(high - low for _, low, high in slots)
    if occurrences > OCCURRENCES_READ_MAX:
        return occurrences, None, ()
    records, named = 0, list[Place]()
    for segment, low, high in slots:  # in the order of their records' numbers
        if low == high:
            continue
        found = np.sort(segment.places(low, high))
        starts = segment.starts()
        within = np.searchsorted(starts, found.astype(np.uint32), "right") - 1
        holders, first = np.unique(within, return_index=True)
        records += len(holders)
        for holder, at in zip(holders.tolist(), first.tolist(), strict=True):
            if len(named) == PLACES_MAX:
                break
            named.append(Place(segment.number(holder), int(found[at]) - int(starts[holder])))
    return occurrences, records, tuple(named)
