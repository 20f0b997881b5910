"""The order of commitment: every contribution's number, counted over all datanets as blocks executed them.

Of near-duplicate records the one that was committed first counts, so what an adapter pays follows from this order, and an
adapter names its contributions in it.

| key | record |
|---|---|
| ``n/`` contribution id | `Number` of the contribution |
| ``g/contributions`` | `Number`: how many there are |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from node.ledger.fields import uint
from node.ledger.overlay import Overlay, StateReader
from node.ledger.state import read

NUMBER, COUNT_KEY = b"n/", b"g/contributions"


@dataclass(frozen=True, slots=True)
class Number:
    """A count of contributions, which is also the number of the next one."""

    number: int = field(metadata=uint())


def note_contribution(overlay: Overlay, contribution: bytes) -> None:
    """Give the contribution that is being executed the next number."""
    count = read(overlay, COUNT_KEY, Number) or Number(0)
    overlay.put_record(NUMBER + contribution, count)
    overlay.put_record(COUNT_KEY, Number(count.number + 1))


def contribution_number(reader: StateReader, contribution: bytes) -> int | None:
    """Place of a contribution among all, counted from 0; None for an unknown one."""
    found = read(reader, NUMBER + contribution, Number)
    return None if found is None else found.number


def first_out_of_order(reader: StateReader, contributions: Sequence[bytes]) -> bytes | None:
    """The first contribution that was committed before the one it stands behind; None where they stand in order."""
    before = -1
    for contribution in contributions:
        number = contribution_number(reader, contribution)
        if number is None or number < before:
            return contribution
        before = number
    return None
