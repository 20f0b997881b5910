"""Bases and adapters: artefacts that gate no vote and become active once > 2/3 of stake attested to hold them."""

from __future__ import annotations

from dataclasses import replace

from node.ledger.block import Receipt, SystemCode
from node.ledger.bodies import AdapterPublish, BaseRegister, Held
from node.ledger.entries import (
    ADAPTER,
    ADAPTER_HASH,
    ARTEFACTS_KEY,
    BASE,
    Adapter,
    ArtefactStatus,
    BaseModel,
    Deadline,
    Deadlines,
)
from node.ledger.environment import Environment, event
from node.ledger.erasure import erased_records
from node.ledger.errors import FailedTransactionError, FailureCode, InvalidCode, InvalidTransactionError
from node.ledger.order import first_out_of_order
from node.ledger.overlay import Overlay
from node.ledger.state import get_adapter, get_base, get_contribution, get_deadlines

RECORDS_PER_ADAPTER_MAX = 4_096
"""Records of one adapter: what a worker builds in its time. An index can hold more (attribution.whitening.RECORDS_MAX)."""
TOKENS_PER_ADAPTER_MAX = 1 << 23
"""Tokens of all its records: finding the leaders of near-duplicates takes up to 100 bytes of memory and 3 us for each."""


def register_base(
    overlay: Overlay, env: Environment, sender: bytes, body: BaseRegister, tx_hash: bytes
) -> list[Receipt]:
    """Name a base. One that expired for want of holders may be registered again."""
    known = get_base(overlay, body.base_hash)
    taken = get_adapter(overlay, body.base_hash) is not None  # duties name both by the same field
    if taken or (known is not None and known.status != ArtefactStatus.EXPIRED):
        raise FailedTransactionError(FailureCode.DUPLICATE, base=body.base_hash)
    _await_holders(overlay, env, body.base_hash)
    overlay.put_record(
        BASE + body.base_hash, BaseModel(ArtefactStatus.PENDING, sender, body.name, env.context.height)
    )
    return []


def publish_adapter(
    overlay: Overlay, env: Environment, sender: bytes, body: AdapterPublish, tx_hash: bytes
) -> list[Receipt]:
    """Publish an adapter on an active base over known contributions; its id is the transaction's hash."""
    base = get_base(overlay, body.base_hash)
    if base is None:
        raise FailedTransactionError(FailureCode.UNKNOWN_BASE, base=body.base_hash)
    if base.status != ArtefactStatus.ACTIVE:
        raise FailedTransactionError(FailureCode.BASE_NOT_ACTIVE, base=body.base_hash)
    same = overlay.get(ADAPTER_HASH + body.adapter_hash)
    if same is not None:
        raise FailedTransactionError(FailureCode.DUPLICATE, adapter=same)
    _check_contributions(overlay, env, body.contributions)
    _await_holders(overlay, env, tx_hash)
    adapter = Adapter(
        ArtefactStatus.PENDING,
        sender,
        body.name,
        body.base_hash,
        body.contributions,
        body.recipe,
        body.adapter_hash,
        body.blob_digest,
        body.blob_bytes,
        body.index_root,
        env.context.height,
    )
    overlay.put_record(ADAPTER + tx_hash, adapter)
    return []


def _check_contributions(overlay: Overlay, env: Environment, contributions: tuple[bytes, ...]) -> None:
    """Bound the contributions, their records and, so that a settlement stays small, the distinct contributors.

    They stand in the order of commitment, from which every validator finds the same leaders of near-duplicates.
    """
    if len(contributions) > env.params.contributions_per_adapter_max:
        raise FailedTransactionError(FailureCode.LIMIT_EXCEEDED, contributions=len(contributions))
    contributors, records, tokens = set(), 0, 0
    height = env.context.height
    for name in contributions:
        contribution = get_contribution(overlay, name)
        if contribution is None:
            raise FailedTransactionError(FailureCode.UNKNOWN_CONTRIBUTION, contribution=name)
        contributors.add(contribution.contributor)
        left = contribution.record_count - len(erased_records(overlay, name, before=height))
        if not left:
            raise FailedTransactionError(
                FailureCode.NOTHING_LEFT, "all of its records were erased", contribution=name
            )
        records += left
        tokens += contribution.token_count
    if len(contributors) > env.params.contributors_per_adapter_max:
        raise FailedTransactionError(FailureCode.LIMIT_EXCEEDED, contributors=len(contributors))
    if records > RECORDS_PER_ADAPTER_MAX:
        raise FailedTransactionError(FailureCode.LIMIT_EXCEEDED, records=records)
    if tokens > TOKENS_PER_ADAPTER_MAX:
        raise FailedTransactionError(FailureCode.LIMIT_EXCEEDED, tokens=tokens)
    misplaced = first_out_of_order(overlay, contributions)
    if misplaced is not None:
        raise FailedTransactionError(
            FailureCode.CONTRIBUTIONS_OUT_OF_ORDER,
            "contributions stand in the order in which they were committed: train on them in that order, sort by `number`",
            contribution=misplaced,
        )


def _await_holders(overlay: Overlay, env: Environment, artefact: bytes) -> None:
    entries = get_deadlines(overlay, ARTEFACTS_KEY)
    if len(entries) >= env.params.artefacts_pending_max:
        raise FailedTransactionError(FailureCode.BACKLOG_FULL, pending=len(entries))
    deadline = Deadline(
        artefact,
        env.context.height + env.params.artefact_window_heights,
        env.context.timestamp_ms + env.params.artefact_window_ms,
    )
    overlay.put_record(ARTEFACTS_KEY, Deadlines((*entries, deadline)))


def _forget(overlay: Overlay, artefact: bytes) -> None:
    entries = get_deadlines(overlay, ARTEFACTS_KEY)
    kept = tuple(entry for entry in entries if entry.id != artefact)
    if len(kept) != len(entries):
        overlay.put_record(ARTEFACTS_KEY, Deadlines(kept))


def _not_owed(reason: str, artefact: bytes) -> InvalidTransactionError:
    return InvalidTransactionError(InvalidCode.DUTY_NOT_OWED, reason, artefact=artefact)


def attest_held(
    overlay: Overlay, env: Environment, sender: bytes, body: Held, tx_hash: bytes
) -> list[Receipt]:
    """Count a validator among an artefact's holders, once; activate the artefact at > 2/3 of stake.

    Holders are still counted after activation (they come to owe audits), never after expiry.
    """
    if env.validators.by_account(sender) is None:
        raise _not_owed("not a validator", body.artefact)
    adapter = get_adapter(overlay, body.artefact)
    if adapter is not None:
        if body.index_root != adapter.index_root:
            raise _not_owed("another index root than the published one", body.artefact)
        return _hold(overlay, env, sender, ADAPTER + body.artefact, body.artefact, adapter)
    base = get_base(overlay, body.artefact)
    if base is None or body.index_root:
        raise _not_owed("no such artefact", body.artefact)
    return _hold(overlay, env, sender, BASE + body.artefact, body.artefact, base)


def _hold(
    overlay: Overlay,
    env: Environment,
    sender: bytes,
    key: bytes,
    artefact: bytes,
    record: Adapter | BaseModel,
) -> list[Receipt]:
    if sender in record.held or record.status == ArtefactStatus.EXPIRED:
        raise _not_owed("held already, or expired", artefact)
    # Who left the set holds nothing for it: the list stays no longer than a set.
    seated = env.validators.accounts
    held = (*(account for account in record.held if account in seated), sender)
    record = replace(record, held=held)
    events = []
    if record.status == ArtefactStatus.PENDING and env.validators.is_quorum(frozenset(record.held)):
        record = _activate(overlay, artefact, record)
        active = record.status == ArtefactStatus.ACTIVE
        events.append(event(artefact, SystemCode.ACTIVATED if active else SystemCode.EXPIRED))
    if record.status == ArtefactStatus.EXPIRED or len(record.held) == len(seated):
        _forget(overlay, artefact)
    overlay.put_record(key, record)
    return events


def _activate(overlay: Overlay, artefact: bytes, record: Adapter | BaseModel) -> Adapter | BaseModel:
    """The first adapter with given tensors to be confirmed is the one; a later copy of it expires unpaid."""
    if isinstance(record, Adapter):
        if overlay.get(ADAPTER_HASH + record.adapter_hash) is not None:
            return replace(record, status=ArtefactStatus.EXPIRED)
        overlay.put(ADAPTER_HASH + record.adapter_hash, artefact)
    return replace(record, status=ArtefactStatus.ACTIVE)


def end_artefacts(overlay: Overlay, env: Environment) -> list[Receipt]:
    """Drop artefacts whose window is over from the index; those that found no quorum of holders expire."""
    events = []
    for entry in get_deadlines(overlay, ARTEFACTS_KEY):
        if not env.due(entry.height, entry.ms):
            continue
        _forget(overlay, entry.id)
        adapter, base = get_adapter(overlay, entry.id), get_base(overlay, entry.id)
        if adapter is not None and adapter.status == ArtefactStatus.PENDING:
            overlay.put_record(ADAPTER + entry.id, replace(adapter, status=ArtefactStatus.EXPIRED))
            events.append(event(entry.id, SystemCode.EXPIRED))
        elif base is not None and base.status == ArtefactStatus.PENDING:
            overlay.put_record(BASE + entry.id, replace(base, status=ArtefactStatus.EXPIRED))
            events.append(event(entry.id, SystemCode.EXPIRED))
    return events
