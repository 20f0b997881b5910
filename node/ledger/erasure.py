"""Erasing records: what the ledger keeps of it, and from which height on it counts for whom.

The contributor names record numbers of its contribution. From the next height on those records are *erased* for every
inference that is recorded and every adapter that is published; what was recorded or published up to the erasure's own
height goes on as if nothing had happened, so that two validators can never disagree about an audit. Once nothing of
that kind is open any more, at the end of a block, the erasure is *done*: from that height on every node removes the
records' bytes (`node.erasing`). The hash of every record stays: the contribution's Merkle root is as it was.

| key | record |
|---|---|
| ``t/`` contribution id | `Erasures` of its records |
| ``q/erasures`` | `Deadlines`: erasures that are not done, oldest first; id: the contribution, height: the erasure's, ms 0 |
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from consensus.digest import digest
from node.ledger.block import Receipt, SystemCode
from node.ledger.bodies import RecordsErase
from node.ledger.entries import ARTEFACTS_KEY, AUDITS_KEY, Contribution, Deadline, Deadlines
from node.ledger.environment import Environment, event
from node.ledger.errors import ExecutionError, FailedTransactionError, FailureCode
from node.ledger.fields import fixed, many, nested, uint
from node.ledger.overlay import Overlay, StateReader
from node.ledger.records import RECORDS_MAX
from node.ledger.results import HASH_BYTES
from node.ledger.state import get_contribution, get_deadlines, get_draws, get_inference, read

ERASURES, ERASURES_KEY = b"t/", b"q/erasures"
ERASURES_PENDING_MAX = 256

_HASH = fixed(HASH_BYTES)
_NUMBERS = many(uint(RECORDS_MAX - 1), RECORDS_MAX, 1)


@dataclass(frozen=True, slots=True)
class Erasure:
    """Records erased at `height`, ascending; `done_height` is the block from which on their bytes go, 0 before."""

    height: int = field(metadata=uint())
    done_height: int = field(metadata=uint())
    records: tuple[int, ...] = field(metadata=_NUMBERS)


@dataclass(frozen=True, slots=True)
class Erasures:
    """All erasures of one contribution, oldest first, with the names of its blob and of its records."""

    blob_digest: bytes = field(metadata=_HASH)
    records_root: bytes = field(metadata=_HASH)
    entries: tuple[Erasure, ...] = field(metadata=many(nested(Erasure), RECORDS_MAX, 1))

    @property
    def done(self) -> frozenset[int]:
        """Records whose bytes are to be gone."""
        return frozenset(number for entry in self.entries if entry.done_height for number in entry.records)


def get_erasures(reader: StateReader, contribution: bytes) -> Erasures | None:
    """What was erased of a contribution; None where nothing was."""
    return read(reader, ERASURES + contribution, Erasures)


def erased_records(
    reader: StateReader, contribution: bytes, before: int | None = None, since: int = 0
) -> tuple[int, ...]:
    """Numbers, ascending, of the records erased at a height h with ``since <= h < before``; None: no end."""
    found = get_erasures(reader, contribution)
    if found is None:
        return ()
    chosen = (
        entry
        for entry in found.entries
        if since <= entry.height and (before is None or entry.height < before)
    )
    return tuple(sorted(number for entry in chosen for number in entry.records))


def remaining_name(blob: bytes) -> bytes:
    """Name (32 bytes) under which nodes keep and serve what erasures left of a contribution's blob.

    The bytes do not hash to it: they prove themselves against the contribution's Merkle root (`node.ledger.erased`).
    """
    return digest("remaining-blob", blob)


def erase(
    overlay: Overlay, env: Environment, sender: bytes, body: RecordsErase, tx_hash: bytes
) -> list[Receipt]:
    """Mark records of the sender's own contribution as erased, from the next height on."""
    contribution = get_contribution(overlay, body.contribution)
    if contribution is None:
        raise FailedTransactionError(FailureCode.UNKNOWN_CONTRIBUTION, contribution=body.contribution)
    if contribution.contributor != sender:
        raise FailedTransactionError(FailureCode.NOT_THE_CONTRIBUTOR, contributor=contribution.contributor)
    if body.records[-1] >= contribution.record_count:
        raise FailedTransactionError(FailureCode.UNKNOWN_RECORD, record=body.records[-1])
    known = get_erasures(overlay, body.contribution)
    earlier = (
        frozenset(number for entry in known.entries for number in entry.records) if known else frozenset()
    )
    for number in body.records:
        if number in earlier:
            raise FailedTransactionError(FailureCode.ALREADY_ERASED, record=number)
    _note(overlay, body.contribution, contribution, known, Erasure(env.context.height, 0, body.records))
    return []


def _note(
    overlay: Overlay, name: bytes, contribution: Contribution, known: Erasures | None, new: Erasure
) -> None:
    """Add an erasure; those of one contribution and height are one."""
    entries = known.entries if known else ()
    pending = get_deadlines(overlay, ERASURES_KEY)
    if entries and entries[-1].height == new.height:
        records = tuple(sorted((*entries[-1].records, *new.records)))
        entries = (*entries[:-1], replace(entries[-1], records=records))
    else:
        if len(pending) >= ERASURES_PENDING_MAX:
            raise FailedTransactionError(FailureCode.BACKLOG_FULL, pending=len(pending))
        entries = (*entries, new)
        overlay.put_record(ERASURES_KEY, Deadlines((*pending, Deadline(name, new.height, 0))))
    overlay.put_record(
        ERASURES + name, Erasures(contribution.blob_digest, contribution.records_root, entries)
    )


def end_erasures(overlay: Overlay, env: Environment) -> list[Receipt]:
    """Declare done the erasures that nothing waits for any more: their bytes go now, on every node alike."""
    pending = get_deadlines(overlay, ERASURES_KEY)
    if not pending:
        return []
    oldest = _oldest_open(overlay, env)
    due = [entry for entry in pending if entry.height < oldest]
    for entry in due:
        known = get_erasures(overlay, entry.id)
        if known is None:
            raise ExecutionError(
                "an index names an erasure that the state does not hold", contribution=entry.id
            )
        entries = tuple(
            replace(one, done_height=env.context.height) if one.height == entry.height else one
            for one in known.entries
        )
        overlay.put_record(ERASURES + entry.id, replace(known, entries=entries))
    if due:
        overlay.put_record(ERASURES_KEY, Deadlines(pending[len(due) :]))
    return [event(entry.id, SystemCode.ERASED) for entry in due]


def _oldest_open(overlay: Overlay, env: Environment) -> int:
    """Lowest height at which something was recorded or published that may still need records as they were then.

    Inferences are drawn and audited in the order of their records and artefacts wait in the order of their
    publication, so the first entry of each index is its oldest. This block's own height where nothing is open.
    """
    heights = [env.context.height]
    heights += [group.height for group in get_draws(overlay)[:1]]
    for entry in get_deadlines(overlay, AUDITS_KEY)[:1]:
        inference = get_inference(overlay, entry.id)
        if inference is None:
            raise ExecutionError(
                "an index names an inference that the state does not hold", inference=entry.id
            )
        heights.append(inference.height)
    waiting = env.params.artefact_window_heights
    heights += [entry.height - waiting for entry in get_deadlines(overlay, ARTEFACTS_KEY)[:1]]
    return min(heights)
