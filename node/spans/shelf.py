"""One datanet's span index on disk, grown contribution by contribution.

    spans/DATANET_ID/        `attribution.spans.SpanIndex`

Records have numbers in the order of the ledger: those of the first contribution come first, and an erased one keeps its
number, with no tokens. So how far the index is, is how many records it has; a crash loses at most the contribution in hand.
"""

from __future__ import annotations

import shutil
import threading
from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attribution.spans import Span, SpanIndex

Rows = Sequence[Sequence[int] | None]


@dataclass(frozen=True, slots=True)
class Indexed:
    """A contribution of the index: its id, its contributor, and the numbers of its records."""

    contribution: bytes
    contributor: bytes
    first: int
    record_count: int


@dataclass(frozen=True, slots=True)
class Found:
    """Spans of some tokens in one datanet, each with the contributions of the records that it names."""

    datanet: bytes
    contributions: int
    spans: tuple[tuple[Span, tuple[Indexed, ...]], ...]


class DatanetSpans:
    """The index of one datanet and what its record numbers mean. Its methods block; safe to call from several threads."""

    def __init__(self, folder: Path) -> None:
        """Open the index in `folder`, or make an empty one; raises `attribution.spans.SpanFileError`."""
        from attribution.spans import SpanIndex

        self.folder = folder
        self.contributions: list[Indexed] = []
        self._firsts: list[int] = []
        self._by_id: dict[bytes, Indexed] = {}
        self._lock = threading.Lock()
        self._index: SpanIndex = (
            SpanIndex.open(folder) if (folder / "segments").exists() else SpanIndex.create(folder)
        )

    @property
    def record_count(self) -> int:
        """Numbers that are given, in the index and in `contributions`."""
        last = self.contributions[-1] if self.contributions else None
        return 0 if last is None else last.first + last.record_count

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return self._index.size_bytes

    def holds(self, record_count: int) -> bool:
        """Whether the index has the next contribution already, which has so many records."""
        return self._index.next_record >= self.record_count + record_count

    def note(self, contribution: bytes, contributor: bytes, record_count: int) -> None:
        """The next contribution is in the index already."""
        with self._lock:
            self._note(contribution, contributor, record_count)

    def _note(self, contribution: bytes, contributor: bytes, record_count: int) -> None:
        entry = Indexed(contribution, contributor, self.record_count, record_count)
        self._firsts.append(entry.first)
        self._by_id[contribution] = entry
        self.contributions.append(entry)

    def add(self, contribution: bytes, contributor: bytes, rows: Rows) -> bool:
        """Index the next contribution's records, None for an erased one; False where the index has to begin anew.

        That is when a token id does not fit the width that was enough so far.
        """
        from attribution.spans import SpanIndex

        widest = max((token for row in rows if row for token in row), default=0)
        with self._lock:
            if widest >> 8 * self._index.token_bytes:
                shutil.rmtree(self.folder)
                self._index = SpanIndex.create(self.folder, 2 if widest < 1 << 16 else 4)
                self.contributions, self._firsts, self._by_id = [], [], {}
                return False
            self._index.add([row or () for row in rows])
            self._note(contribution, contributor, len(rows))
            return True

    def erase(self, numbers: Collection[int]) -> int:
        """Remove the tokens of these records, for good; safe to repeat. Returns how many there were."""
        with self._lock:
            return self._index.erase(numbers)

    def spans(self, tokens: Sequence[int], length_min: int) -> list[tuple[Span, tuple[Indexed, ...]]]:
        """Maximal spans of `tokens` that stand in some record, long and rare first, with the contribution of each place."""
        from attribution.spans import Span

        with self._lock:
            limit, found = 1 << 8 * self._index.token_bytes, list[Span]()
            start = 0
            for end in (*(at for at, token in enumerate(tokens) if token >= limit), len(tokens)):
                if end > start:  # an id that no record has ends every span
                    found += [
                        Span(s.start + start, s.length, s.occurrences, s.records, s.surprise, s.places)
                        for s in self._index.spans(tokens[start:end], length_min)
                    ]
                start = end + 1
            found.sort(key=lambda s: (-s.surprise, s.occurrences, s.start))
            return [(span, tuple(self._owner(place.record) for place in span.places)) for span in found]

    def find(self, contribution: bytes) -> Indexed | None:
        """A contribution of the index by its id."""
        return self._by_id.get(contribution)

    def _owner(self, number: int) -> Indexed:
        return self.contributions[bisect_right(self._firsts, number) - 1]
