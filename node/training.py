"""What an adapter was trained on, as the ledger says it: contributions in order, and what is erased of them.

An adapter's index has one row for each training record, in training order. Records erased before the adapter was
published are not among them; those erased since are rows that count no more.
"""

from __future__ import annotations

from dataclasses import dataclass

from node.ledger.entries import Adapter
from node.ledger.erasure import Erasures, get_erasures
from node.ledger.overlay import StateReader
from node.ledger.queries import RecordOwner, adapter_records
from node.recompute.jobs import Gap


@dataclass(frozen=True, slots=True)
class Training:
    """Contributions in training order; what was erased of them by their place; the height of the adapter."""

    contributions: tuple[RecordOwner, ...]
    erasures: dict[int, Erasures]
    height: int

    @property
    def owners(self) -> tuple[tuple[bytes, int], ...]:
        """Owner and number of rows of each contribution."""
        return tuple(
            (entry.contributor, entry.record_count - len(self.omitted(place)))
            for place, entry in enumerate(self.contributions)
        )

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """The contributions of which something was erased, as a worker's job names them."""
        return tuple(
            Gap(place, self.contributions[place].records_root, tuple(sorted(self.omitted(place))))
            for place in sorted(self.erasures)
        )

    @property
    def blanked(self) -> frozenset[int]:
        """Places of contributions whose blob, as nodes keep it, has hashes in place of some records."""
        return frozenset(place for place, erasures in self.erasures.items() if erasures.done)

    def omitted(self, place: int) -> frozenset[int]:
        """Numbers of a contribution's records that were erased before the adapter was published."""
        erasures = self.erasures.get(place)
        if erasures is None:
            return frozenset()
        return frozenset(
            number for entry in erasures.entries if entry.height < self.height for number in entry.records
        )

    def erased_rows(self, before: int | None = None, done: bool = False) -> tuple[int, ...]:
        """Rows erased since the adapter was published and below a height (None: ever); only those `done` where asked for."""
        rows: list[int] = []
        first = 0
        for place, contribution in enumerate(self.contributions):
            omitted = self.omitted(place)
            erasures = self.erasures.get(place)
            if erasures is not None:
                gone = {
                    number
                    for entry in erasures.entries
                    if entry.height >= self.height
                    and (before is None or entry.height < before)
                    and (entry.done_height or not done)
                    for number in entry.records
                }
                kept = (number for number in range(contribution.record_count) if number not in omitted)
                rows += [first + row for row, number in enumerate(kept) if number in gone]
            first += contribution.record_count - len(omitted)
        return tuple(rows)


def training_of(reader: StateReader, adapter_id: bytes, adapter: Adapter) -> Training:
    """What an adapter of the ledger was trained on."""
    contributions = adapter_records(reader, adapter_id) or ()
    erasures = {
        place: found
        for place, entry in enumerate(contributions)
        if (found := get_erasures(reader, entry.contribution)) is not None
    }
    return Training(contributions, erasures, adapter.height)
