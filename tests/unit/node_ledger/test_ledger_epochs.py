"""Epochs: when a set is frozen, what is in it, how it comes into force, and what consensus reads of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from consensus.digest import digest
from consensus.epochs import carry_reveals
from node.directory import make_directory
from node.ledger import epochs
from node.ledger.bodies import (
    BaseRegister,
    ValidatorAnchor,
    ValidatorBond,
    ValidatorLeave,
    ValidatorUnbond,
)
from node.ledger.entries import VALIDATORS_KEY, ArtefactStatus, InferenceStatus, ValidatorSet
from node.ledger.epochs import (
    ACTIVE,
    FAILED,
    INACTIVE,
    LEADER_WEIGHTS_MAX,
    consensus_set,
    leader_weights,
    reputation,
    reveals_at,
)
from node.ledger.errors import ExecutionError, GenesisError, ParameterError
from node.ledger.fields import to_bytes
from node.ledger.genesis import make_genesis
from node.ledger.openings import inference_id
from node.ledger.params import EPOCHS_KEPT_MAX, OPEN, check_params
from node.ledger.stakes import NEXT_VALIDATORS_KEY, get_epoch, get_history, get_next_validators
from node.ledger.state import get_base, get_draws, get_reveal, get_validators
from tests.unit.node_ledger.seats import (
    EPOCH_HEIGHTS,
    EPOCHS,
    anchor,
    boundary,
    freeze,
    pass_epochs,
    registration,
    seated,
    stake_of,
)
from tests.unit.node_ledger.world import (
    BASE_HASH,
    STAKE,
    VALIDATORS,
    World,
    address,
    consensus_key,
    genesis,
)


def test_a_set_is_frozen_when_both_the_heights_and_the_time_of_an_epoch_have_passed() -> None:
    world = World(EPOCHS)
    for _ in range(EPOCH_HEIGHTS + 2):
        world.block(context=world.context(step_ms=1))
    assert not get_epoch(world.state).frozen_height
    world.block(context=world.context(step_ms=EPOCHS.epoch_ms))
    assert get_epoch(world.state).frozen_height == world.height
    quick = World(EPOCHS)
    quick.block(context=quick.context(step_ms=10 * EPOCHS.epoch_ms))
    assert not get_epoch(quick.state).frozen_height


def test_the_next_hash_is_named_from_the_freezing_to_the_block_before_the_boundary() -> None:
    world = World(EPOCHS)
    frozen = freeze(world)
    named = frozen.next_validators_hash
    assert len(named) == 32
    assert [outcome.next_validators_hash for outcome in world.outcomes[:-1]] == [b""] * (world.height - 1)
    assert world.block().next_validators_hash == named
    assert world.block(world.tx("val0", ValidatorBond(OPEN))).next_validators_hash == named
    ended = boundary(world)
    assert ended.next_validators_hash == b""
    epoch = get_epoch(world.state)
    assert (epoch.number, epoch.start_height, epoch.frozen_height) == (1, ended.height, 0)
    assert consensus_set(get_validators(world.state), 1).hash == named
    assert make_directory(get_validators(world.state)).consensus_set(1).hash == named
    began = [receipt for receipt in ended.receipts if receipt.code == "epoch-began"]
    assert [receipt.subject for receipt in began] == [named]


def test_the_frozen_set_is_the_one_that_comes_into_force_byte_by_byte() -> None:
    world = World(EPOCHS)
    world.accept("ann", registration(world, "ann"))
    freeze(world)
    frozen = world.state[NEXT_VALIDATORS_KEY]
    world.accept("ben", registration(world, "ben"))
    world.accept("val0", ValidatorLeave())
    world.accept("val1", ValidatorUnbond(OPEN))
    boundary(world)
    assert world.state[VALIDATORS_KEY] == frozen
    assert NEXT_VALIDATORS_KEY not in world.state
    boundary(world)
    assert address("ben") in seated(world)
    assert address("val0") not in seated(world)


def test_a_header_that_does_not_follow_the_epoch_stops_execution() -> None:
    world = World(EPOCHS)
    context = world.context()
    for wrong in (
        replace(context, epoch=1),
        replace(context, ends_epoch=True),
        replace(context, missed=(bytes(32),)),
    ):
        with pytest.raises(ExecutionError):
            world.execute(wrong, [])
    boundary(world)
    with pytest.raises(ExecutionError):
        world.execute(replace(world.context(), epoch=0), [])
    dormant = World()
    with pytest.raises(ExecutionError):
        dormant.execute(replace(dormant.context(), ends_epoch=True), [])


def test_the_largest_stakes_make_the_set_and_equal_ones_go_by_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs, "VALIDATORS_MAX", 3)
    world = World(EPOCHS, (STAKE, STAKE, STAKE + 1, STAKE - 1))
    world.accept("ann", registration(world, "ann", STAKE + 2))
    boundary(world)
    tied = min(("val0", "val1"), key=consensus_key)
    assert set(seated(world)) == {address("ann"), address("val2"), address(tied)}
    keys = [entry.consensus_key for entry in get_validators(world.state).validators]
    assert keys == sorted(keys)


def test_a_set_is_never_empty_even_when_nobody_may_validate() -> None:
    world = World(EPOCHS)
    before = {entry.consensus_key for entry in get_validators(world.state).validators}
    for name in VALIDATORS:
        stake = stake_of(world, name)
        world.state[b"v/" + address(name)] = to_bytes(replace(stake, jailed=1))
    boundary(world)
    assert {entry.consensus_key for entry in get_validators(world.state).validators} == before
    world.block()


# --- leaders ---


def test_reputation_is_of_committed_blocks_and_skipped_rounds() -> None:
    assert (reputation(3, 0), reputation(1, 1), reputation(0, 0), reputation(0, 1), reputation(2, 3)) == (
        ACTIVE,
        ACTIVE,
        INACTIVE,
        FAILED,
        FAILED,
    )


def test_leaders_are_weighted_by_what_the_epochs_blocks_say_and_seeded_by_its_reveals() -> None:
    world = World(EPOCHS)
    skipped = (consensus_key("val3"), consensus_key("val3"), consensus_key("val2"))
    world.block(world.tx("ann", registration(world, "ann")), context=world.context("val2"))
    world.block(context=replace(world.context("val0"), missed=skipped))
    world.block(context=world.context("val1"))
    frozen = get_next_validators(world.state)
    assert frozen is not None
    seed = bytes(32)
    for context, _ in world.inputs:
        seed = digest("epoch-mix", seed + context.beacon_reveal, world.chain)
    assert frozen.seed == seed
    factors = {"val0": ACTIVE, "val1": ACTIVE, "val2": ACTIVE, "val3": FAILED, "ann": INACTIVE}
    assert {entry.consensus_key: entry.leader_weight for entry in frozen.validators} == {
        consensus_key(name): factor * STAKE for name, factor in factors.items()
    }


def test_too_few_proposers_give_no_seed_and_leaders_take_turns() -> None:
    world = World(EPOCHS)
    for _ in range(EPOCH_HEIGHTS):
        world.block(context=world.context("val0"))
    frozen = get_next_validators(world.state)
    assert frozen is not None
    assert frozen.seed == bytes(32), "a quarter of the stake could have chosen its own reveals"
    silent = World(EPOCHS)
    for _ in range(EPOCH_HEIGHTS):
        silent.block(context=silent.context(reveal=b""))
    assert (get_next_validators(silent.state) or frozen).seed == bytes(32)


def test_each_epochs_history_begins_anew() -> None:
    world = World(EPOCHS)
    boundary(world)
    assert set(get_history(world.state, 4).proposed) == {0}
    world.block(context=world.context("val0"))
    assert sum(get_history(world.state, 4).proposed) == 1


def test_weights_of_the_largest_stakes_fit_and_keep_their_order() -> None:
    assert leader_weights([5, 7], [ACTIVE, INACTIVE]) == [500, 70]
    whole = 2**63 - 1
    weights = leader_weights([whole // 2, whole // 2 - 128, 1], [ACTIVE, FAILED, FAILED])
    assert weights[0] > weights[1] >= weights[2] == 1
    assert sum(weights) <= LEADER_WEIGHTS_MAX + 128


# --- the beacon across epochs ---


def test_reveals_carry_over_exactly_as_consensus_carries_them() -> None:
    """Stay, leave, re-anchor, re-anchor back, join: after each boundary the ledger's answer is that of `carry_reveals`."""
    world = World(replace(EPOCHS, unbonding_heights=100))
    carried: tuple[tuple[int, bytes], ...] = reveals_at(world.state, get_validators(world.state))
    plans = {
        1: lambda: world.accept("val0", ValidatorAnchor(bytes([8]) * 32)),
        2: lambda: world.accept("ann", registration(world, "ann")),
        3: lambda: world.accept("val0", ValidatorAnchor(digest("blob", b"anchor"))),
        4: lambda: world.accept("val1", ValidatorLeave()),
        5: lambda: world.accept("val2", ValidatorAnchor(anchor("val2"))),
    }
    for number in range(8):
        old = get_validators(world.state)
        start, height = reveals_at(world.state, old), world.height
        assert start == carried
        if number in plans:
            plans[number]()
        for _ in range(number % 3):
            world.block(context=world.context("val0" if number == 3 else None))
        boundary(world)
        state = list(start)
        keys = [entry.consensus_key for entry in old.validators]
        for context, _ in world.inputs[height:]:
            at = keys.index(context.proposer)
            state[at] = (state[at][0] + 1, context.beacon_reveal)
        new = get_validators(world.state)
        carried = carry_reveals(consensus_set(old, number), tuple(state), consensus_set(new, number + 1))
        assert reveals_at(world.state, new) == carried


def test_a_chain_of_reveals_that_was_left_does_not_go_on_where_it_was() -> None:
    """Re-anchored, silent for an epoch, and back at the old anchor: consensus begins that chain anew, and so does the ledger."""
    world = World(EPOCHS)
    first = digest("blob", b"anchor")
    world.block(context=world.context("val0"))
    for target in (bytes([8]) * 32, first):
        world.block(world.tx("val0", ValidatorAnchor(target)), context=world.context("val1"))
        while not get_epoch(world.state).frozen_height:
            world.block(context=world.context("val1"))
        world.block(context=replace(world.context("val1"), ends_epoch=True))
    validators = get_validators(world.state)
    at = [entry.account for entry in validators.validators].index(address("val0"))
    assert reveals_at(world.state, validators)[at] == (0, first)


def test_who_dropped_out_of_a_set_comes_back_with_a_new_anchor_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs, "VALIDATORS_MAX", 4)
    world = World(EPOCHS, (STAKE, STAKE, STAKE, STAKE - OPEN))
    world.accept("ann", registration(world, "ann", STAKE))
    world.block(context=world.context("val3"))
    boundary(world)
    assert address("val3") not in seated(world)
    assert get_reveal(world.state, consensus_key("val3")) is None
    assert stake_of(world, "val3").anchor_spent == 1
    world.accept("val3", ValidatorBond(10 * OPEN))
    boundary(world)
    assert address("val3") not in seated(world), "its reveals are public: it would be predictable"
    world.accept("val3", ValidatorAnchor(anchor("val3")))
    boundary(world)
    assert address("val3") in seated(world)


# --- what is open across a change of the set ---


def leave_all_but(world: World, stays: str) -> None:
    """Everybody but one leaves, four others come."""
    for name in VALIDATORS:
        if name != stays:
            world.accept(name, ValidatorLeave())
    for name in ("ann", "ben", "cid"):
        world.accept(name, registration(world, name))
    boundary(world)


def test_an_audit_settles_though_its_attesters_left() -> None:
    """Three committed, two of them opened: no quorum. Then they go, and the set in force attests in a later attempt."""
    world = World(replace(EPOCHS, epoch_heights=40, commit_window_heights=2, open_window_heights=2))
    name = world.revealed(world.active_adapter())
    world.block(*[world.tx(v, world.commit_body(name, world.answer(name), v)) for v in VALIDATORS[:3]])
    world.until(name, InferenceStatus.OPENING)
    world.block(*[world.tx(v, world.answer(name)) for v in VALIDATORS[:2]])
    assert len(world.inference(name).openings) == 2
    escrowed = world.inference(name).voucher.fee
    leave_all_but(world, "val3")
    new = ("val3", "ann", "ben", "cid")
    for _ in range(40):
        inference = world.inference(name)
        if inference.closed_height:
            break
        answers = {v: world.answer(name, attempt=inference.attempt) for v in new}
        items = [
            world.tx(v, world.commit_body(name, answer, v))
            for v, answer in answers.items()
            if inference.status == InferenceStatus.COMMITTING and inference.committed(address(v)) is None
        ]
        items += [
            world.tx(v, answer)
            for v, answer in answers.items()
            if inference.status == InferenceStatus.OPENING
        ]
        world.block(*items)
    closed = world.inference(name)
    assert closed.closed_height
    assert sum(payout.amount for payout in closed.payouts) + closed.burned == escrowed
    assert {opened.account for opened in closed.openings} <= {address(voice) for voice in new}


def test_attesters_that_left_are_neither_waited_for_nor_counted_as_there() -> None:
    world = World(replace(EPOCHS, epoch_heights=40, commit_window_heights=200, commit_window_ms=10**6))
    name = world.revealed(world.active_adapter())
    world.block(*[world.tx(v, world.commit_body(name, world.answer(name), v)) for v in VALIDATORS[:3]])
    leave_all_but(world, "val3")
    assert len(world.inference(name).commitments) == 3
    for voice in ("val3", "ann", "ben"):
        world.block(world.tx(voice, world.commit_body(name, world.answer(name), voice)))
        assert world.inference(name).status == InferenceStatus.COMMITTING, (
            "one of the set in force is missing"
        )
    assert {account for account, _ in world.inference(name).commitments} == {
        address(voice) for voice in ("val3", "ann", "ben")
    }
    world.block(world.tx("cid", world.commit_body(name, world.answer(name), "cid")))
    assert world.inference(name).status == InferenceStatus.OPENING


def test_openings_of_those_that_left_are_not_waited_for() -> None:
    world = World(replace(EPOCHS, epoch_heights=40, open_window_heights=200, open_window_ms=10**6))
    name = world.revealed(world.active_adapter())
    world.block(*[world.tx(v, world.commit_body(name, world.answer(name), v)) for v in VALIDATORS])
    assert world.inference(name).status == InferenceStatus.OPENING
    leave_all_but(world, "val3")
    world.block(world.tx("val3", world.answer(name)))
    again = world.inference(name)
    assert (again.status, again.attempt) == (InferenceStatus.COMMITTING, 1)


def test_an_inference_recorded_before_a_change_is_drawn_by_the_proposers_after_it() -> None:
    """Who left no longer counts among those that revealed, and so the list stays no longer than a set."""
    world = World(replace(EPOCHS, epoch_heights=30))
    adapter = world.active_adapter()
    while world.height < 20:
        world.block()
    for voice in VALIDATORS[:3]:
        world.accept(voice, ValidatorLeave())
    for voice in ("ann", "ben", "cid"):
        world.accept(voice, registration(world, voice))
    while world.height < 28:
        world.block()
    voucher = world.voucher(adapter)
    world.block(world.tx("provider", world.record_body(voucher)), context=world.context("val0"))
    world.block(context=world.context("val0"))
    world.block(context=replace(world.context("val0"), ends_epoch=True))
    assert [group.proposers for group in get_draws(world.state)] == [(consensus_key("val0"),)]
    world.block(context=world.context("ann"))
    assert [group.proposers for group in get_draws(world.state)] == [(consensus_key("ann"),)]
    world.block(context=world.context("ben"))
    assert world.inference(inference_id(voucher)).drawn_height == world.height


def test_artefacts_find_their_holders_in_the_set_in_force() -> None:
    world = World(replace(EPOCHS, epoch_heights=20, artefact_window_heights=100, artefact_window_ms=10**6))
    world.accept("owner", BaseRegister(BASE_HASH, "tiny"))
    world.hold(BASE_HASH, b"", ("val0", "val1"))
    leave_all_but(world, "val3")
    world.hold(BASE_HASH, b"", ("val3", "ann"))
    base = get_base(world.state, BASE_HASH)
    assert base is not None
    assert base.status == ArtefactStatus.PENDING, "two of four hold it now, whoever held it before"
    world.hold(BASE_HASH, b"", ("ben",))
    base = get_base(world.state, BASE_HASH)
    assert base is not None
    assert base.status == ArtefactStatus.ACTIVE
    assert set(base.held) == {address(name) for name in ("val3", "ann", "ben")}


# --- parameters and genesis ---


@pytest.mark.parametrize(
    "wrong",
    [
        {"evidence_heights": 11},
        {"evidence_ms": 10_001},
        {"stake_min": 0},
        {"unbonding_heights": 3 * EPOCHS_KEPT_MAX, "epoch_heights": 3},
        {"unbonding_ms": 3_000 * EPOCHS_KEPT_MAX},
        {"epoch_ms": 0, "unbonding_ms": EPOCHS_KEPT_MAX},
    ],
)
def test_windows_that_would_let_stake_go_before_evidence_or_keep_too_much_are_refused(
    wrong: dict[str, int],
) -> None:
    check_params(EPOCHS)
    with pytest.raises(ParameterError):
        check_params(replace(EPOCHS, **wrong))


def test_a_genesis_validator_has_the_least_stake_and_no_weight_of_its_own() -> None:
    start = genesis(EPOCHS)
    low = replace(start.validators[0], stake=EPOCHS.stake_min - 1)
    weighted = replace(start.validators[0], leader_weight=1)
    for entry in (low, weighted):
        with pytest.raises(GenesisError):
            make_genesis(
                start.chain,
                start.timestamp_ms,
                (entry, *start.validators[1:]),
                start.accounts,
                start.params,
            )


def test_epochs_of_the_same_validators_have_different_sets_for_consensus() -> None:
    world = World(EPOCHS)
    hashes = {consensus_set(get_validators(world.state), 0).hash}
    for number in range(1, 4):
        pass_epochs(world, 1)
        hashes.add(consensus_set(get_validators(world.state), number).hash)
    assert len(hashes) == 4
    plain = ValidatorSet(genesis().validators)
    assert consensus_set(plain, 0).seed == bytes(32)
