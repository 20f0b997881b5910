"""Attestations: commit, open, and what the end of a block does with audits whose window is over.

An audit's life after its reveal::

    COMMITTING --(window over and > 2/3 of stake committed, or everybody committed)--> OPENING
    COMMITTING --(window over, fewer committed)--> the window starts again
    OPENING    --(everybody that committed opened, or window over)--> tally:
                   > 2/3 of all stake on one result -> SETTLED | SLASHED | REFUNDED
                   otherwise                        -> COMMITTING of the next attempt

No commitment is taken once the phase is OPENING, and no opening before it: whoever sees an opening can no longer
commit, so there is nothing to copy from. Openings stand across attempts. In a later attempt those who did not open (or
who recomputed and change their mind) may commit and open again; since openings are public by then, an opening of
attempt 1 or later counts for the quorum but earns nothing. So an audit can always still be settled, copying never
pays, and those who opened in time lose nothing to those who did not.

Everything is counted against the set in force when it is counted, not the one in which the audit began: a validator that
left can no more be waited for, its openings no longer count (and are not paid), and one that came may commit and
open in this attempt or the next. So no change of the set can lock a fee for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from node.ledger.block import Receipt, SystemCode
from node.ledger.bodies import AttestCommit, AttestOpen
from node.ledger.entries import (
    AUDITS_KEY,
    INFERENCE,
    Deadline,
    Deadlines,
    Inference,
    InferenceStatus,
    Opened,
    ValidatorSet,
)
from node.ledger.environment import Environment, event
from node.ledger.errors import InvalidCode, InvalidTransactionError
from node.ledger.overlay import Overlay
from node.ledger.results import PROVIDER_FAULTS, AuditResult, AuditStatus, attestation_commitment
from node.ledger.serving import existing, put_deadline, schedule
from node.ledger.settlement import refund, settle, slash
from node.ledger.state import get_deadlines, get_inference


def _not_owed(reason: str, inference: bytes) -> InvalidTransactionError:
    return InvalidTransactionError(InvalidCode.DUTY_NOT_OWED, reason, inference=inference)


def _owed(
    overlay: Overlay, env: Environment, sender: bytes, name: bytes, attempt: int, status: InferenceStatus
) -> Inference:
    if env.validators.by_account(sender) is None:
        raise _not_owed("not a validator", name)
    inference = get_inference(overlay, name)
    if inference is None or inference.status != status or inference.attempt != attempt:
        raise _not_owed("nothing of the kind is awaited for this inference", name)
    return inference


def attest_commit(
    overlay: Overlay, env: Environment, sender: bytes, body: AttestCommit, tx_hash: bytes
) -> list[Receipt]:
    """Note a validator's commitment; the openings begin as soon as nobody is missing."""
    inference = _owed(overlay, env, sender, body.inference, body.attempt, InferenceStatus.COMMITTING)
    if inference.committed(sender) is not None:
        raise _not_owed("committed already", body.inference)
    # Who left the set since has no voice any more; without that a commitment or an opening could be one too many.
    seated = env.validators.accounts
    kept = tuple(entry for entry in inference.commitments if entry[0] in seated)
    inference = replace(inference, commitments=(*kept, (sender, body.commitment)))
    if seated <= _heard(inference):
        opening, deadline = _begin_openings(overlay, env, body.inference, inference)
        put_deadline(overlay, deadline)
        return [opening]
    overlay.put_record(INFERENCE + body.inference, inference)
    return []


def _heard(inference: Inference) -> frozenset[bytes]:
    """Validators that committed in this attempt or opened in an earlier one."""
    return frozenset(account for account, _ in inference.commitments) | {
        entry.account for entry in inference.openings
    }


def _begin_openings(
    overlay: Overlay, env: Environment, name: bytes, inference: Inference
) -> tuple[Receipt, Deadline]:
    params = env.params
    inference = replace(inference, status=InferenceStatus.OPENING)
    deadline = schedule(overlay, env, name, inference, params.open_window_heights, params.open_window_ms)
    return event(name, SystemCode.OPENING), deadline


def attest_open(
    overlay: Overlay, env: Environment, sender: bytes, body: AttestOpen, tx_hash: bytes
) -> list[Receipt]:
    """Open a commitment of this attempt; an earlier opening of the same validator is replaced."""
    inference = _owed(overlay, env, sender, body.inference, body.attempt, InferenceStatus.OPENING)
    commitment = inference.committed(sender)
    earlier = inference.opened(sender)
    if commitment is None or (earlier is not None and earlier.attempt == body.attempt):
        raise _not_owed("not committed, or opened already", body.inference)
    expected = attestation_commitment(
        body.inference, body.status_code, body.result_hash, body.shares, sender, body.salt
    )
    if expected != commitment:
        raise InvalidTransactionError(InvalidCode.OPENING_MISMATCH, inference=body.inference)
    inference = _note_opening(env.validators.accounts, inference, sender, body.attempt, body.result())
    overlay.put_record(INFERENCE + body.inference, inference)
    if _all_opened(env.validators.accounts, inference):
        put_deadline(overlay, Deadline(body.inference, 0, 0))
    return []


def _note_opening(
    seated: frozenset[bytes], inference: Inference, account: bytes, attempt: int, result: AuditResult
) -> Inference:
    """Openings of accounts that left the set are dropped, and results that none stands for: never more than validators."""
    others = [entry for entry in inference.openings if entry.account != account and entry.account in seated]
    voices = [(entry.account, entry.attempt, inference.results[entry.result]) for entry in others]
    voices.append((account, attempt, result))
    results: list[AuditResult] = []
    for _, _, voiced in voices:
        if voiced not in results:
            results.append(voiced)
    openings = tuple(Opened(who, when, results.index(voiced)) for who, when, voiced in voices)
    return replace(inference, openings=openings, results=tuple(results))


def _all_opened(seated: frozenset[bytes], inference: Inference) -> bool:
    opened = {entry.account for entry in inference.openings if entry.attempt == inference.attempt}
    return all(account in opened for account, _ in inference.commitments if account in seated)


def end_audits(overlay: Overlay, env: Environment) -> list[Receipt]:
    """Move on every audit whose deadline has passed, in the index's order; finished ones leave the index."""
    entries, events = get_deadlines(overlay, AUDITS_KEY), []
    kept: list[Deadline] = []
    for entry in entries:
        if not env.due(entry.height, entry.ms):
            kept.append(entry)
            continue
        receipt, deadline = _move_on(overlay, env, entry.id, existing(overlay, entry.id))
        events.append(receipt)
        if deadline is not None:
            kept.append(deadline)
    if events:
        overlay.put_record(AUDITS_KEY, Deadlines(tuple(kept)))
    return events


def _move_on(
    overlay: Overlay, env: Environment, name: bytes, inference: Inference
) -> tuple[Receipt, Deadline | None]:
    """What happened, and the next deadline unless the inference is final."""
    if inference.status == InferenceStatus.AWAITING_REVEAL:
        return slash(overlay, env, name, inference, SystemCode.SLASHED_NO_REVEAL), None
    if inference.status == InferenceStatus.COMMITTING:
        if env.validators.is_quorum(_heard(inference)):
            return _begin_openings(overlay, env, name, inference)
        return _commit_again(overlay, env, name, inference)
    winner = quorum_result(env.validators, inference.openings, len(inference.results))
    if winner is None:
        again = replace(
            inference, status=InferenceStatus.COMMITTING, attempt=inference.attempt + 1, commitments=()
        )
        return _commit_again(overlay, env, name, again)
    inference = replace(inference, winner=winner + 1, commitments=())
    status = inference.results[winner].status
    if status == AuditStatus.OK:
        return settle(overlay, env, name, inference), None
    if status in PROVIDER_FAULTS:
        return slash(overlay, env, name, inference, SystemCode.SLASHED), None
    return refund(overlay, env, name, inference), None


def _commit_again(
    overlay: Overlay, env: Environment, name: bytes, inference: Inference
) -> tuple[Receipt, Deadline]:
    params = env.params
    deadline = schedule(overlay, env, name, inference, params.commit_window_heights, params.commit_window_ms)
    return event(name, SystemCode.EXTENDED), deadline


def quorum_result(validators: ValidatorSet, openings: Sequence[Opened], results_count: int) -> int | None:
    """Position of the result that > 2/3 of all stake opened; at most one can have that much."""
    for position in range(results_count):
        holders = frozenset(entry.account for entry in openings if entry.result == position)
        if validators.is_quorum(holders):
            return position
    return None
