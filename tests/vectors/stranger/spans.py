"""Maximal stretches of an output that stand in records (docs/attribution.md, "Verbatim spans"): by looking everywhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PLACES_MAX = 8
OCCURRENCES_READ_MAX = 4096


@dataclass(frozen=True, slots=True)
class Span:
    """``output[start : start + length]``; `places` are (record, offset), of the earliest eight records the first offset each."""

    start: int
    length: int
    occurrences: int
    records: int | None
    surprise: int
    places: tuple[tuple[int, int], ...]


def spans(records: Sequence[Sequence[int]], output: Sequence[int], length_min: int) -> list[Span]:
    """Larger surprise first, then fewer occurrences, then the earlier start."""
    often = Counter(token for record in records for token in record)
    found, before = list[Span](), 0
    for start in range(len(output)):
        length = longest(records, output[start:])
        if length >= length_min and (start == 0 or before <= length):
            found.append(_span(records, often, output, start, length))
        before = length
    return sorted(found, key=lambda span: (-span.surprise, span.occurrences, span.start))


def longest(records: Sequence[Sequence[int]], text: Sequence[int]) -> int:
    """L: tokens of the longest beginning of ``text`` that stands in a record."""
    return max((length for length in range(1, len(text) + 1) if _places(records, text[:length])), default=0)


def log2_floor(n: int) -> int:
    """floor(1024 log2 n)."""
    return int((n**1024).bit_length()) - 1


def _span(
    records: Sequence[Sequence[int]], often: Mapping[int, int], output: Sequence[int], start: int, length: int
) -> Span:
    text = output[start : start + length]
    surprise = sum(log2_floor(sum(often.values())) - log2_floor(often[token]) for token in text)
    places = _places(records, text)
    if len(places) > OCCURRENCES_READ_MAX:
        return Span(start, length, len(places), None, surprise, ())
    first = dict(reversed(places))
    named = tuple((record, first[record]) for record in sorted(first)[:PLACES_MAX])
    return Span(start, length, len(places), len(first), surprise, named)


def _places(records: Sequence[Sequence[int]], text: Sequence[int]) -> list[tuple[int, int]]:
    """(record, offset) of every place where ``text`` stands."""
    return [
        (number, at)
        for number, record in enumerate(records)
        for at in range(len(record) - len(text) + 1)
        if list(record[at : at + len(text)]) == list(text)
    ]
