"""Evidence of contradicting signatures becomes a slash: once for each validator and epoch, while there is stake to burn."""

from __future__ import annotations

from dataclasses import replace

from consensus.errors import CodecError
from consensus.evidence import InvalidEvidence, Offence, evidence_from_bytes, verify_evidence
from node.ledger.block import Receipt, SystemCode
from node.ledger.bodies import EvidenceSubmit
from node.ledger.entries import ValidatorSet
from node.ledger.environment import Environment, event
from node.ledger.errors import FailedTransactionError, FailureCode
from node.ledger.money import burn_stake
from node.ledger.overlay import Overlay, StateReader
from node.ledger.params import PPM
from node.ledger.stakes import (
    EPOCH_KEY,
    KEY_OWNER,
    PAST_EPOCH,
    Stake,
    Unbonding,
    epoch_key,
    get_epoch,
    get_past_epoch,
    get_stake,
    put_stake,
)
from node.ledger.staking import require_epochs
from node.ledger.state import get_head, get_params, get_validators


def submit_evidence(
    overlay: Overlay, env: Environment, sender: bytes, body: EvidenceSubmit, tx_hash: bytes
) -> list[Receipt]:
    """Slash and jail the author of two contradicting statements. Anybody may report; nobody is paid for it.

    What the offence can burn is the stake that secured its epoch: all that is bonded, and what unbonds since that
    epoch or later. The reporter pays the fee: a reward would be a reason to provoke offences.
    """
    require_epochs(env)
    try:
        offence = verify_evidence(env.context.chain_id, evidence_from_bytes(body.evidence))
    except (CodecError, InvalidEvidence) as error:
        raise FailedTransactionError(FailureCode.BAD_EVIDENCE, str(error)) from error
    _note_offence(overlay, env, offence)
    account = overlay.get(KEY_OWNER + offence.author)
    stake = get_stake(overlay, account) if account is not None else None
    if account is None or stake is None:
        raise FailedTransactionError(FailureCode.NOT_A_VALIDATOR_THEN, consensus_key=offence.author)
    burned, stake = slashed(stake, offence.epoch, env.params.slash_equivocation_ppm)
    burn_stake(overlay, burned)
    jailed = replace(stake, jailed=1, jailed_height=env.context.height, jailed_ms=env.context.timestamp_ms)
    put_stake(overlay, account, jailed)
    return [event(account, SystemCode.SLASHED_EQUIVOCATION, burned=burned)]


def _note_offence(overlay: Overlay, env: Environment, offence: Offence) -> None:
    """Remember the slash with its epoch, or fail: no validator then, too late, or slashed for that epoch already."""
    epoch, author = get_epoch(overlay), offence.author
    if offence.epoch == epoch.number:
        _check_first(author, _members(env.validators), epoch.slashed)
        overlay.put_record(EPOCH_KEY, replace(epoch, slashed=(*epoch.slashed, author)))
        return
    past = get_past_epoch(overlay, offence.epoch) if offence.epoch < epoch.number else None
    if past is None:
        raise FailedTransactionError(FailureCode.EVIDENCE_EPOCH_UNKNOWN, epoch=offence.epoch)
    params = env.params
    if env.due(past.end_height + params.evidence_heights, past.end_ms + params.evidence_ms):
        raise FailedTransactionError(FailureCode.EVIDENCE_EXPIRED, epoch=offence.epoch)
    _check_first(author, past.members, past.slashed)
    overlay.put_record(epoch_key(PAST_EPOCH, offence.epoch), replace(past, slashed=(*past.slashed, author)))


def _check_first(author: bytes, members: tuple[bytes, ...], done: tuple[bytes, ...]) -> None:
    if author not in members:
        raise FailedTransactionError(FailureCode.NOT_A_VALIDATOR_THEN, consensus_key=author)
    if author in done:
        raise FailedTransactionError(FailureCode.ALREADY_SLASHED, consensus_key=author)


def _members(validators: ValidatorSet) -> tuple[bytes, ...]:
    return tuple(entry.consensus_key for entry in validators.validators)


def is_punishable(reader: StateReader, author: bytes, epoch_number: int) -> bool:
    """Whether evidence of an offence by this consensus key in this epoch would slash it now.

    For whoever is about to pay for reporting or to pass on a report: what is punished already, or can be no more, need
    not travel.
    """
    params, head, epoch = get_params(reader), get_head(reader), get_epoch(reader)
    if not params.epoch_heights:
        return False
    if epoch_number == epoch.number:
        return author in _members(get_validators(reader)) and author not in epoch.slashed
    past = get_past_epoch(reader, epoch_number) if epoch_number < epoch.number else None
    if past is None or author not in past.members or author in past.slashed:
        return False
    heights, ms = past.end_height + params.evidence_heights, past.end_ms + params.evidence_ms
    return head.height < heights or head.timestamp_ms < ms


def slashed(stake: Stake, epoch: int, part_ppm: int) -> tuple[int, Stake]:
    """(units to burn, what is left) for an offence in `epoch`; parts are rounded up, so that no stake is too small."""

    def cut(amount: int) -> int:
        return -(-amount * part_ppm // PPM)

    bonded = cut(stake.bonded)
    burned, entries = bonded, []
    for entry in stake.unbondings:
        part = cut(entry.amount) if entry.epoch >= epoch else 0
        burned += part
        entries.append(Unbonding(entry.epoch, entry.amount - part))
    left = replace(
        stake, bonded=stake.bonded - bonded, unbondings=tuple(entries), slashed=stake.slashed + burned
    )
    return burned, left
