"""Transactions of validators: register, bond, unbond, leave, unjail, anchor anew.

All of them count for the next set that is frozen; the set in force, and one already frozen, never change. Where
`params.epoch_heights` is 0 there is no next set, and each fails with "epochs-off".
"""

from __future__ import annotations

from dataclasses import replace

from node.ledger.block import Receipt, SystemCode
from node.ledger.bodies import (
    ValidatorAnchor,
    ValidatorBond,
    ValidatorLeave,
    ValidatorRegister,
    ValidatorUnbond,
    ValidatorUnjail,
)
from node.ledger.environment import Environment, event
from node.ledger.errors import ExecutionError, FailedTransactionError, FailureCode
from node.ledger.money import lock_stake
from node.ledger.overlay import Overlay
from node.ledger.stakes import (
    CANDIDATES_KEY,
    CANDIDATES_MAX,
    KEY_OWNER,
    PEER_OWNER,
    UNBONDERS,
    UNBONDERS_PER_EPOCH_MAX,
    UNBONDINGS_PER_ACCOUNT_MAX,
    Candidates,
    Stake,
    Unbonders,
    Unbonding,
    epoch_key,
    get_candidates,
    get_epoch,
    get_next_validators,
    get_stake,
    get_unbonders,
    possession_digest,
    put_stake,
)


def require_epochs(env: Environment) -> None:
    """Fail the transaction where this chain has one epoch for ever."""
    if not env.params.epoch_heights:
        raise FailedTransactionError(FailureCode.EPOCHS_OFF)


def _registered(overlay: Overlay, env: Environment, account: bytes) -> Stake:
    """The registration of a validator that has not left."""
    require_epochs(env)
    stake = get_stake(overlay, account)
    if stake is None:
        raise FailedTransactionError(FailureCode.NOT_REGISTERED, account=account)
    if stake.leaving:
        raise FailedTransactionError(FailureCode.LEAVING, account=account)
    return stake


def register_validator(
    overlay: Overlay, env: Environment, sender: bytes, body: ValidatorRegister, tx_hash: bytes
) -> list[Receipt]:
    """Make the sender a candidate. Account, consensus key and peer id are each in at most one registration."""
    require_epochs(env)
    if get_stake(overlay, sender) is not None:
        raise FailedTransactionError(FailureCode.ALREADY_REGISTERED, account=sender)
    if overlay.get(KEY_OWNER + body.consensus_key) is not None:
        raise FailedTransactionError(FailureCode.CONSENSUS_KEY_TAKEN, consensus_key=body.consensus_key)
    if overlay.get(PEER_OWNER + body.peer_id.encode()) is not None:
        raise FailedTransactionError(FailureCode.PEER_ID_TAKEN, peer_id=body.peer_id)
    if body.stake < env.params.stake_min:
        raise FailedTransactionError(FailureCode.STAKE_TOO_LOW, stake=body.stake, needed=env.params.stake_min)
    if not env.check(body.consensus_key, possession_digest(env.context.chain_id, sender), body.possession):
        raise FailedTransactionError(FailureCode.BAD_POSSESSION, consensus_key=body.consensus_key)
    lock_stake(overlay, sender, body.stake)
    events = _make_room(overlay, env, body.stake)
    accounts = (*get_candidates(overlay), sender)
    overlay.put_record(CANDIDATES_KEY, Candidates(accounts))
    put_stake(overlay, sender, Stake(body.consensus_key, body.peer_id, body.beacon_anchor, body.stake))
    return events


def _make_room(overlay: Overlay, env: Environment, stake: int) -> list[Receipt]:
    """Among the most candidates that there may be, a larger stake displaces the smallest that is in no set.

    So small stakes cannot close the door; the displaced one leaves like anybody else and loses nothing.
    """
    accounts = get_candidates(overlay)
    if len(accounts) < CANDIDATES_MAX:
        return []
    seated = {entry.account for entry in env.validators.validators}
    frozen = get_next_validators(overlay)
    if frozen is not None:
        seated |= {entry.account for entry in frozen.validators}
    standing = [(_stake(overlay, account).bonded, account) for account in accounts if account not in seated]
    if not standing or stake <= min(standing)[0]:
        raise FailedTransactionError(FailureCode.BACKLOG_FULL, candidates=len(accounts))
    _, weakest = min(standing)
    _depart(overlay, weakest, _stake(overlay, weakest))
    return [event(weakest, SystemCode.DISPLACED)]


def _stake(overlay: Overlay, account: bytes) -> Stake:
    stake = get_stake(overlay, account)
    if stake is None:
        raise ExecutionError("an index names an account without stake", account=account)
    return stake


def add_stake(
    overlay: Overlay, env: Environment, sender: bytes, body: ValidatorBond, tx_hash: bytes
) -> list[Receipt]:
    """Add to the sender's stake."""
    stake = _registered(overlay, env, sender)
    lock_stake(overlay, sender, body.amount)
    put_stake(overlay, sender, replace(stake, bonded=stake.bonded + body.amount))
    return []


def unbond_stake(
    overlay: Overlay, env: Environment, sender: bytes, body: ValidatorUnbond, tx_hash: bytes
) -> list[Receipt]:
    """Begin to unbond a part of the sender's stake; what stays is at least params.stake_min."""
    stake = _registered(overlay, env, sender)
    if stake.bonded - body.amount < env.params.stake_min:
        raise FailedTransactionError(
            FailureCode.STAKE_TOO_LOW, stake=stake.bonded, needed=body.amount + env.params.stake_min
        )
    put_stake(overlay, sender, _unbonding(overlay, sender, stake, body.amount, UNBONDINGS_PER_ACCOUNT_MAX))
    return []


def leave(
    overlay: Overlay, env: Environment, sender: bytes, body: ValidatorLeave, tx_hash: bytes
) -> list[Receipt]:
    """Begin to unbond all of the sender's stake. The last validator that the next set could hold has to stay."""
    stake, needed = _registered(overlay, env, sender), env.params.stake_min
    others = (_stake(overlay, account) for account in get_candidates(overlay) if account != sender)
    if stake.eligible(needed) and not any(other.eligible(needed) for other in others):
        raise FailedTransactionError(FailureCode.LAST_VALIDATOR, account=sender)
    _depart(overlay, sender, stake)
    return []


def _depart(overlay: Overlay, account: bytes, stake: Stake) -> None:
    stake = _unbonding(overlay, account, stake, stake.bonded, UNBONDINGS_PER_ACCOUNT_MAX + 1)
    put_stake(overlay, account, replace(stake, leaving=1))
    kept = tuple(entry for entry in get_candidates(overlay) if entry != account)
    overlay.put_record(CANDIDATES_KEY, Candidates(kept))


def _unbonding(overlay: Overlay, account: bytes, stake: Stake, amount: int, entries_max: int) -> Stake:
    """Move `amount` from bonded to unbonding; what one epoch unbonds of one account is one entry."""
    epoch = get_epoch(overlay).staking_counts_to
    entries = list(stake.unbondings)
    if entries and entries[-1].epoch == epoch:
        entries[-1] = Unbonding(epoch, entries[-1].amount + amount)
    else:
        waiting = get_unbonders(overlay, epoch)
        if len(entries) >= entries_max or len(waiting) >= UNBONDERS_PER_EPOCH_MAX:
            raise FailedTransactionError(
                FailureCode.UNBONDING_FULL, entries=len(entries), unbonders=len(waiting)
            )
        entries.append(Unbonding(epoch, amount))
        overlay.put_record(epoch_key(UNBONDERS, epoch), Unbonders((*waiting, account)))
    return replace(stake, bonded=stake.bonded - amount, unbondings=tuple(entries))


def unjail(
    overlay: Overlay, env: Environment, sender: bytes, body: ValidatorUnjail, tx_hash: bytes
) -> list[Receipt]:
    """Let the sender stand for the next set again."""
    stake, params = _registered(overlay, env, sender), env.params
    if not stake.jailed:
        raise FailedTransactionError(FailureCode.NOT_JAILED, account=sender)
    height, at_ms = stake.jailed_height + params.jail_heights, stake.jailed_ms + params.jail_ms
    if not env.due(height, at_ms):
        raise FailedTransactionError(FailureCode.JAIL_NOT_OVER, height=height, ms=at_ms)
    if stake.bonded < params.stake_min:
        raise FailedTransactionError(FailureCode.STAKE_TOO_LOW, stake=stake.bonded, needed=params.stake_min)
    put_stake(overlay, sender, replace(stake, jailed=0, jailed_height=0, jailed_ms=0))
    return []


def anchor_anew(
    overlay: Overlay, env: Environment, sender: bytes, body: ValidatorAnchor, tx_hash: bytes
) -> list[Receipt]:
    """Replace the sender's beacon anchor: before its chain ends, or after it dropped out of a set."""
    stake = _registered(overlay, env, sender)
    if body.beacon_anchor == stake.beacon_anchor:
        raise FailedTransactionError(FailureCode.ANCHOR_UNCHANGED, beacon_anchor=body.beacon_anchor)
    put_stake(overlay, sender, replace(stake, beacon_anchor=body.beacon_anchor, anchor_spent=0))
    return []
