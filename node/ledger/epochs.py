"""Epochs at the end of each block: history, release of unbonded stake, choice of the next set, change of sets.

An epoch's life::

    began --(epoch_heights and epoch_ms passed)--> frozen: the next set is chosen and its hash is in every outcome
    frozen --(a block that carries the hash: `BlockContext.ends_epoch`)--> the frozen set is in force, the next epoch began

The next set holds the candidates that are neither jailed nor leaving, with at least params.stake_min and an anchor whose
reveals are not public, the largest stakes first, at most `VALIDATORS_MAX`. If there were none, the set in force
stays: a chain without validators could never choose any. Leaders are drawn from the mix of this epoch's reveals, if
proposers of more than a third of the stake revealed, weighted by stake and by what the committed blocks say of each.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from consensus.digest import digest
from consensus.validators import Validator, make_validator_set
from consensus.validators import ValidatorSet as ConsensusValidators
from node.ledger.block import Receipt, SystemCode
from node.ledger.entries import (
    BEACON,
    VALIDATORS_KEY,
    VALIDATORS_MAX,
    Payout,
    Role,
    ValidatorEntry,
    ValidatorSet,
)
from node.ledger.environment import Environment, event
from node.ledger.errors import ExecutionError
from node.ledger.fields import to_bytes
from node.ledger.money import return_stake
from node.ledger.overlay import Overlay, StateReader
from node.ledger.results import HASH_BYTES
from node.ledger.stakes import (
    EPOCH_KEY,
    HISTORY_KEY,
    NEXT_VALIDATORS_KEY,
    PAST_EPOCH,
    UNBONDERS,
    Epoch,
    History,
    PastEpoch,
    epoch_key,
    forget_stake,
    get_candidates,
    get_epoch,
    get_history,
    get_next_validators,
    get_past_epoch,
    get_stake,
    get_unbonders,
    put_stake,
)
from node.ledger.state import get_reveal

ACTIVE, INACTIVE, FAILED = 100, 10, 1
"""Leader's weight for each unit of stake (Aptos' values): proposed, did not, missed more rounds than it proposed."""

LEADER_WEIGHTS_MAX = 2**62
"""Most that all leaders' weights sum to."""

EPOCHS_CLOSED_PER_BLOCK_MAX = 4
"""Ended epochs whose stake one block pays out; after a halt more may be due, and wait a block."""


def consensus_set(validators: ValidatorSet, epoch: int) -> ConsensusValidators:
    """The set as consensus knows it; its `hash` is what headers and hand-overs carry."""
    rows = [
        Validator(entry.consensus_key, entry.stake, entry.beacon_anchor, leader_weight=entry.leader_weight)
        for entry in validators.validators
    ]
    ordered = make_validator_set(epoch, rows)
    return ConsensusValidators(epoch, ordered.validators, seed=validators.seed)


@lru_cache(maxsize=8)
def _hash(validators: ValidatorSet, epoch: int) -> bytes:
    return consensus_set(validators, epoch).hash


def reveals_at(reader: StateReader, validators: ValidatorSet) -> tuple[tuple[int, bytes], ...]:
    """(number of reveals, the last) on each validator's chain as executed blocks know it, in the order of the set.

    A validator that has revealed nothing of its anchor's chain has (0, anchor).
    """
    reveals = []
    for entry in validators.validators:
        known = get_reveal(reader, entry.consensus_key)
        if known is None or known.anchor != entry.beacon_anchor:
            reveals.append((0, entry.beacon_anchor))
        else:
            reveals.append((known.count, known.last))
    return tuple(reveals)


def next_validators_hash(reader: StateReader) -> bytes:
    """Consensus hash (32 bytes) of the frozen set of the next epoch; empty before the freezing."""
    frozen = get_next_validators(reader)
    return b"" if frozen is None else _hash(frozen, get_epoch(reader).number + 1)


def check_epoch(overlay: Overlay, env: Environment) -> None:
    """Raise :class:`ExecutionError` for a header of another epoch, or one that ends an epoch that never ends."""
    context = env.context
    if not env.params.epoch_heights:
        if context.ends_epoch:
            raise ExecutionError("this chain has one epoch", height=context.height)
        return
    epoch = get_epoch(overlay)
    if context.epoch != epoch.number:
        raise ExecutionError("a block of another epoch", epoch=context.epoch, expected=epoch.number)


def end_epoch(overlay: Overlay, env: Environment) -> list[Receipt]:
    """The end of a block, as far as epochs and stakes are concerned."""
    if not env.params.epoch_heights:
        return []
    epoch = get_epoch(overlay)
    if not epoch.frozen_height:
        _note_block(overlay, env)
    epoch, events = _close_epochs(overlay, env, epoch)
    if env.context.ends_epoch:
        epoch, began = _begin_epoch(overlay, env, epoch)
        events.append(began)
    elif not epoch.frozen_height and _is_over(env, epoch):
        epoch, frozen = _freeze(overlay, env, epoch)
        events.append(frozen)
    overlay.put_record(EPOCH_KEY, epoch)
    return events


def _is_over(env: Environment, epoch: Epoch) -> bool:
    return env.due(epoch.start_height + env.params.epoch_heights, epoch.start_ms + env.params.epoch_ms)


# --- history ---


def _note_block(overlay: Overlay, env: Environment) -> None:
    """Count who proposed, who was skipped, and mix the reveal."""
    context, validators = env.context, env.validators.validators
    position = {entry.consensus_key: at for at, entry in enumerate(validators)}
    history = get_history(overlay, len(validators))
    proposed, missed, revealed = list(history.proposed), list(history.missed), set(history.revealed)
    mix, proposer = history.mix, position[context.proposer]
    proposed[proposer] += 1
    for key in context.missed:
        if key not in position:
            raise ExecutionError("a missed leader is no validator", leader=key)
        missed[position[key]] += 1
    if context.beacon_reveal:
        mix = digest("epoch-mix", mix + context.beacon_reveal, context.chain_id)
        revealed.add(proposer)
    record = History(tuple(proposed), tuple(missed), tuple(sorted(revealed)), mix)
    overlay.put_record(HISTORY_KEY, record)


def reputation(proposed: int, missed: int) -> int:
    """Weight of a validator's stake among leaders, by what it did in the epoch before."""
    if missed > proposed:
        return FAILED
    return ACTIVE if proposed else INACTIVE


def leader_weights(stakes: list[int], reputations: list[int]) -> list[int]:
    """Stake times reputation, scaled down together so that they sum to at most about `LEADER_WEIGHTS_MAX`, at least 1 each."""
    weights = [stake * factor for stake, factor in zip(stakes, reputations, strict=True)]
    total = sum(weights)
    if total <= LEADER_WEIGHTS_MAX:
        return weights
    return [max(1, weight * LEADER_WEIGHTS_MAX // total) for weight in weights]


# --- the next set ---


def _freeze(overlay: Overlay, env: Environment, epoch: Epoch) -> tuple[Epoch, Receipt]:
    chosen = choose_next(overlay, env)
    overlay.put_record(NEXT_VALIDATORS_KEY, chosen)
    overlay.delete(HISTORY_KEY)
    subject = _hash(chosen, epoch.number + 1)
    return replace(epoch, frozen_height=env.context.height), event(subject, SystemCode.EPOCH_FROZEN)


def choose_next(overlay: Overlay, env: Environment) -> ValidatorSet:
    """The set of the next epoch, by the stakes and the history of this block."""
    standing = []
    for account in get_candidates(overlay):
        stake = get_stake(overlay, account)
        if stake is None:
            raise ExecutionError("an index names an account without stake", account=account)
        if stake.eligible(env.params.stake_min):
            standing.append(
                ValidatorEntry(stake.consensus_key, account, stake.peer_id, stake.bonded, stake.beacon_anchor)
            )
    standing.sort(key=lambda entry: (-entry.stake, entry.consensus_key))
    chosen = standing[:VALIDATORS_MAX] or list(env.validators.validators)
    chosen.sort(key=lambda entry: entry.consensus_key)
    return _with_leaders(overlay, env, chosen)


def _with_leaders(overlay: Overlay, env: Environment, chosen: list[ValidatorEntry]) -> ValidatorSet:
    validators = env.validators.validators
    history = get_history(overlay, len(validators))
    factors = {
        entry.consensus_key: reputation(proposed, missed)
        for entry, proposed, missed in zip(validators, history.proposed, history.missed, strict=True)
    }
    reputations = [factors.get(entry.consensus_key, INACTIVE) for entry in chosen]
    weights = leader_weights([entry.stake for entry in chosen], reputations)
    weighted = tuple(
        replace(entry, leader_weight=weight) for entry, weight in zip(chosen, weights, strict=True)
    )
    revealed = sum(validators[at].stake for at in history.revealed)
    one_honest = 3 * revealed > env.validators.stake_total
    return ValidatorSet(weighted, history.mix if one_honest else bytes(HASH_BYTES))


# --- the boundary ---


def _begin_epoch(overlay: Overlay, env: Environment, epoch: Epoch) -> tuple[Epoch, Receipt]:
    """Put the frozen set in force after this block."""
    frozen = get_next_validators(overlay)
    if frozen is None:
        raise ExecutionError("an epoch ends before the next set is frozen", epoch=epoch.number)
    context, params = env.context, env.params
    members = tuple(entry.consensus_key for entry in env.validators.validators)
    past = PastEpoch(context.height, context.timestamp_ms, members, epoch.slashed)
    overlay.put_record(epoch_key(PAST_EPOCH, epoch.number), past)
    _spend_anchors(overlay, env.validators, frozen)
    overlay.put(VALIDATORS_KEY, to_bytes(frozen))
    overlay.delete(NEXT_VALIDATORS_KEY)
    began = replace(
        epoch,
        number=epoch.number + 1,
        start_height=context.height,
        start_ms=context.timestamp_ms,
        frozen_height=0,
        slashed=(),
    )
    if epoch.oldest == epoch.number:
        began = replace(
            began,
            release_height=context.height + params.unbonding_heights,
            release_ms=context.timestamp_ms + params.unbonding_ms,
        )
    return began, event(_hash(frozen, began.number), SystemCode.EPOCH_BEGAN)


def _spend_anchors(overlay: Overlay, old: ValidatorSet, new: ValidatorSet) -> None:
    """A chain goes on only in the next set and under the same anchor, like `consensus.epochs.carry_reveals`.

    Who drops out needs a new anchor to come back: it would reveal again what everybody knows.
    """
    anchors = {entry.consensus_key: entry.beacon_anchor for entry in new.validators}
    for entry in old.validators:
        if anchors.get(entry.consensus_key) == entry.beacon_anchor:
            continue
        known = get_reveal(overlay, entry.consensus_key)
        stake = get_stake(overlay, entry.account)
        overlay.delete(BEACON + entry.consensus_key)
        if entry.consensus_key in anchors or known is None or stake is None:
            continue
        if stake.beacon_anchor == known.anchor:
            put_stake(overlay, entry.account, replace(stake, anchor_spent=1))


# --- unbonded stake ---


def _close_epochs(overlay: Overlay, env: Environment, epoch: Epoch) -> tuple[Epoch, list[Receipt]]:
    """Pay out the stake of ended epochs whose unbonding windows have passed, and forget those epochs."""
    events: list[Receipt] = []
    for _ in range(EPOCHS_CLOSED_PER_BLOCK_MAX):
        if epoch.oldest >= epoch.number or not env.due(epoch.release_height, epoch.release_ms):
            break
        for account in get_unbonders(overlay, epoch.oldest):
            events.append(_release(overlay, account, epoch.oldest))
        overlay.delete(epoch_key(UNBONDERS, epoch.oldest))
        overlay.delete(epoch_key(PAST_EPOCH, epoch.oldest))
        epoch = _next_release(overlay, env, replace(epoch, oldest=epoch.oldest + 1))
    return epoch, events


def _next_release(overlay: Overlay, env: Environment, epoch: Epoch) -> Epoch:
    past = get_past_epoch(overlay, epoch.oldest)
    if past is None:
        return replace(epoch, release_height=0, release_ms=0)
    return replace(
        epoch,
        release_height=past.end_height + env.params.unbonding_heights,
        release_ms=past.end_ms + env.params.unbonding_ms,
    )


def _release(overlay: Overlay, account: bytes, number: int) -> Receipt:
    stake = get_stake(overlay, account)
    if stake is None:
        raise ExecutionError("an index names an account without stake", account=account)
    amount = sum(entry.amount for entry in stake.unbondings if entry.epoch == number)
    kept = tuple(entry for entry in stake.unbondings if entry.epoch != number)
    return_stake(overlay, account, amount)
    stake = replace(stake, unbondings=kept)
    if stake.leaving and not kept:
        forget_stake(overlay, account, stake)
    else:
        put_stake(overlay, account, stake)
    return event(account, SystemCode.UNBONDED, (Payout(Role.STAKE, account, amount),))
