"""What a node asks of a state: a validator's open duties, and who owns the records of an adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from node.ledger.data import datanet_entry_key
from node.ledger.entries import (
    ARTEFACTS_KEY,
    AUDITS_KEY,
    ArtefactStatus,
    Contribution,
    Inference,
    InferenceStatus,
)
from node.ledger.errors import ExecutionError
from node.ledger.overlay import StateReader
from node.ledger.state import (
    get_adapter,
    get_base,
    get_contribution,
    get_datanet,
    get_deadlines,
    get_draws,
    get_inference,
)


@dataclass(frozen=True, slots=True)
class HoldDuty:
    """An artefact that a validator should obtain, rebuild and attest. A base has an empty index root."""

    artefact: bytes
    index_root: bytes
    is_adapter: bool


@dataclass(frozen=True, slots=True)
class RecordOwner:
    """One contribution of an adapter, in training order: who owns it and where its bytes are."""

    contribution: bytes
    contributor: bytes
    record_count: int
    records_root: bytes
    blob_digest: bytes
    blob_bytes: int


@dataclass(frozen=True, slots=True)
class AuditDuty:
    """An inference to attest: its id, the attempt to name in the transaction, and its record."""

    inference_id: bytes
    attempt: int
    inference: Inference


def artefacts_to_hold(reader: StateReader, account: bytes) -> tuple[HoldDuty, ...]:
    """Artefacts that this validator has not attested yet, pending ones and those activated meanwhile, oldest first."""
    duties = []
    for entry in get_deadlines(reader, ARTEFACTS_KEY):
        adapter = get_adapter(reader, entry.id)
        record = adapter or get_base(reader, entry.id)
        if record is not None and account not in record.held and record.status != ArtefactStatus.EXPIRED:
            duties.append(HoldDuty(entry.id, adapter.index_root if adapter else b"", adapter is not None))
    return tuple(duties)


def _audits(
    reader: StateReader, read: Callable[[StateReader, bytes], Inference | None] = get_inference
) -> list[tuple[bytes, Inference]]:
    found = []
    for entry in get_deadlines(reader, AUDITS_KEY):
        inference = read(reader, entry.id)
        if inference is None:
            raise ExecutionError("the index names an unknown inference", inference=entry.id)
        found.append((entry.id, inference))
    return found


def inferences_to_reveal(reader: StateReader, provider: bytes) -> tuple[AuditDuty, ...]:
    """Drawn inferences of this provider that still want their reveal."""
    return tuple(
        AuditDuty(name, inference.attempt, inference)
        for name, inference in _audits(reader)
        if inference.status == InferenceStatus.AWAITING_REVEAL and inference.voucher.provider == provider
    )


def audits_owed(
    reader: StateReader,
    account: bytes,
    read: Callable[[StateReader, bytes], Inference | None] = get_inference,
) -> tuple[tuple[AuditDuty, ...], tuple[AuditDuty, ...]]:
    """(inferences to commit to, commitments to open) of this validator, in one pass; `read` may remember records."""
    commits, opens = [], []
    for name, inference in _audits(reader, read):
        duty = AuditDuty(name, inference.attempt, inference)
        opened = inference.opened(account)
        if inference.status == InferenceStatus.COMMITTING:
            if opened is None and inference.committed(account) is None:
                commits.append(duty)
        elif (
            inference.status == InferenceStatus.OPENING
            and inference.committed(account) is not None
            and (opened is None or opened.attempt != inference.attempt)
        ):
            opens.append(duty)
    return tuple(commits), tuple(opens)


def inferences_to_commit(reader: StateReader, account: bytes) -> tuple[AuditDuty, ...]:
    """Revealed inferences that this validator has neither committed to in this attempt nor opened in an earlier one."""
    return audits_owed(reader, account)[0]


def inferences_to_open(reader: StateReader, account: bytes) -> tuple[AuditDuty, ...]:
    """Inferences whose openings are taken, that this validator committed to in this attempt and has not opened."""
    return audits_owed(reader, account)[1]


def inferences_awaiting_draw(reader: StateReader) -> tuple[bytes, ...]:
    """Ids of recorded inferences that the beacon has not judged yet."""
    return tuple(name for group in get_draws(reader) for name in group.inferences)


def adapter_records(reader: StateReader, adapter: bytes) -> tuple[RecordOwner, ...] | None:
    """Contributions of an adapter in training order; None for an unknown adapter."""
    found = get_adapter(reader, adapter)
    if found is None:
        return None
    owners = []
    for name in found.contributions:
        contribution = get_contribution(reader, name)
        if contribution is None:
            raise ExecutionError("an adapter names an unknown contribution", contribution=name)
        owners.append(
            RecordOwner(
                name,
                contribution.contributor,
                contribution.record_count,
                contribution.records_root,
                contribution.blob_digest,
                contribution.blob_bytes,
            )
        )
    return tuple(owners)


def datanet_contributions(
    reader: StateReader, datanet: bytes, start: int = 0, count_max: int = 100
) -> tuple[tuple[bytes, Contribution], ...]:
    """A page of a datanet's contributions with their ids, in ledger order; empty past the end or if unknown."""
    found = get_datanet(reader, datanet)
    if found is None:
        return ()
    page = []
    for number in range(max(start, 0), min(found.contribution_count, max(start, 0) + count_max)):
        name = reader.get(datanet_entry_key(datanet, number))
        contribution = get_contribution(reader, name) if name else None
        if name is None or contribution is None:
            raise ExecutionError("a datanet's entry is missing", datanet=datanet, number=number)
        page.append((name, contribution))
    return tuple(page)
