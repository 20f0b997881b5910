"""Validators come and go: registrations, stake in and out, and what is refused with which code."""

from __future__ import annotations

from dataclasses import replace

import pytest

from node.ledger import stakes, staking
from node.ledger.bodies import (
    Body,
    Transfer,
    ValidatorAnchor,
    ValidatorBond,
    ValidatorLeave,
    ValidatorRegister,
    ValidatorUnbond,
    ValidatorUnjail,
)
from node.ledger.entries import Role
from node.ledger.errors import FailureCode, MalformedError
from node.ledger.fields import to_bytes, validate
from node.ledger.params import OPEN
from node.ledger.peers import is_peer_id
from node.ledger.stakes import (
    CANDIDATES_KEY,
    KEY_OWNER,
    PAST_EPOCH,
    PEER_OWNER,
    UNBONDERS,
    Candidates,
    get_candidates,
    get_epoch,
    get_stake,
    sign_possession,
)
from node.ledger.state import get_supply
from tests.unit.node_ledger.seats import (
    EPOCHS,
    anchor,
    boundary,
    freeze,
    pass_epochs,
    peer,
    registration,
    seated,
    stake_of,
    two_votes,
)
from tests.unit.node_ledger.world import STAKE, VALIDATORS, World, address, codes, consensus_key, seed


def refusal(world: World, name: str, body: Body) -> str:
    before = world.accounted()
    code = world.submit(name, body).code
    assert world.accounted() == before
    return code


def test_without_epochs_no_staking_transaction_succeeds_and_no_record_of_it_exists() -> None:
    world = World()
    bodies: list[Body] = [
        registration(world, "ann"),
        ValidatorBond(OPEN),
        ValidatorUnbond(OPEN),
        ValidatorLeave(),
        ValidatorUnjail(),
        ValidatorAnchor(bytes(32)),
        two_votes(world, "val0", 0),
    ]
    for body in bodies:
        name = "ann" if isinstance(body, ValidatorRegister) else "val0"
        assert refusal(world, name, body) == FailureCode.EPOCHS_OFF
    prefixes = (b"v/", b"y/", b"z/", b"x/", b"u/", b"g/epoch", b"g/history", b"q/candidates")
    assert not [key for key in world.state if key.startswith(prefixes)]
    assert all(outcome.next_validators_hash == b"" for outcome in world.outcomes)


def test_a_candidate_joins_the_next_set_with_its_keys_and_stake() -> None:
    world = World(EPOCHS)
    world.accept("ann", registration(world, "ann", 500 * OPEN))
    assert address("ann") not in seated(world)
    boundary(world)
    entry = seated(world)[address("ann")]
    assert (entry.consensus_key, entry.peer_id, entry.stake) == (
        consensus_key("ann"),
        peer("ann"),
        500 * OPEN,
    )
    assert entry.beacon_anchor == anchor("ann")
    world.block(context=world.context("ann"))  # it proposes


def test_a_key_is_registered_only_by_the_account_that_its_owner_signed_for() -> None:
    world = World(EPOCHS)
    body = registration(world, "ann")
    for stolen in (
        replace(body, possession=bytes(64)),
        replace(body, possession=sign_possession(seed("consensus ann"), world.chain, address("ben"))),
        replace(body, possession=sign_possession(seed("consensus ann"), bytes(32), address("ann"))),
    ):
        assert refusal(world, "ann", stolen) == FailureCode.BAD_POSSESSION
    assert refusal(world, "ben", body) == FailureCode.BAD_POSSESSION
    world.accept("ann", body)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "peer-ann",
        "12D3Koo",
        "1" * 52,
        "2" * 52,
        peer("ann")[:-1] + "0",
        peer("ann") + "1",
        "1" + peer("ann")[:-1],
    ],
)
def test_a_peer_id_that_no_network_could_read_never_gets_into_a_set(text: str) -> None:
    body = registration(World(EPOCHS), "ann")
    assert is_peer_id(body.peer_id)
    assert not is_peer_id(text)
    with pytest.raises(MalformedError):
        validate(replace(body, peer_id=text))


def test_account_key_and_peer_are_each_in_one_registration() -> None:
    world = World(EPOCHS)
    world.accept("ann", registration(world, "ann"))
    assert refusal(world, "ann", registration(world, "ann")) == FailureCode.ALREADY_REGISTERED
    assert refusal(world, "val0", registration(world, "ben")) == FailureCode.ALREADY_REGISTERED
    own = registration(world, "ben")
    for owner in ("ann", "val1"):
        taken = replace(own, consensus_key=consensus_key(owner))
        assert refusal(world, "ben", taken) == FailureCode.CONSENSUS_KEY_TAKEN
    world.state[PEER_OWNER + peer("cid").encode()] = address("val1")
    for owner in ("ann", "cid"):
        assert refusal(world, "ben", replace(own, peer_id=peer(owner))) == FailureCode.PEER_ID_TAKEN
    world.accept("ben", own)


def test_a_stake_below_the_least_is_refused_on_the_way_in_and_out() -> None:
    world = World(EPOCHS)
    low = EPOCHS.stake_min - 1
    assert refusal(world, "ann", registration(world, "ann", low)) == FailureCode.STAKE_TOO_LOW
    assert refusal(world, "ann", registration(world, "ann", 2**60)) == FailureCode.INSUFFICIENT_BALANCE
    assert refusal(world, "val0", ValidatorUnbond(STAKE - low)) == FailureCode.STAKE_TOO_LOW
    assert refusal(world, "val0", ValidatorUnbond(2**60)) == FailureCode.STAKE_TOO_LOW
    world.accept("val0", ValidatorUnbond(STAKE - low - 1))
    assert stake_of(world, "val0").bonded == EPOCHS.stake_min


@pytest.mark.parametrize(
    "body",
    [ValidatorBond(1), ValidatorUnbond(1), ValidatorLeave(), ValidatorUnjail(), ValidatorAnchor(bytes(32))],
)
def test_only_a_registered_validator_that_has_not_left_can_change_its_stake(body: Body) -> None:
    world = World(EPOCHS)
    assert refusal(world, "ann", body) == FailureCode.NOT_REGISTERED
    world.accept("val0", ValidatorLeave())
    assert refusal(world, "val0", body) == FailureCode.LEAVING


def test_more_stake_counts_in_the_next_set() -> None:
    world = World(EPOCHS)
    world.accept("val0", ValidatorBond(7 * OPEN))
    assert seated(world)[address("val0")].stake == STAKE
    boundary(world)
    assert seated(world)[address("val0")].stake == STAKE + 7 * OPEN


def test_unbonded_stake_leaves_the_next_set_and_comes_back_when_both_windows_after_it_have_passed() -> None:
    world = World(EPOCHS)
    world.accept("val0", ValidatorUnbond(300 * OPEN))
    before = world.balance("val0")
    ended = boundary(world).height
    assert seated(world)[address("val0")].stake == STAKE - 300 * OPEN
    due_ms = world.now_ms + EPOCHS.unbonding_ms
    while world.height < ended + EPOCHS.unbonding_heights + 2:
        outcome = world.block(context=world.context("val1", step_ms=1))
        assert "unbonded" not in codes(outcome), "the heights alone have passed"
    outcome = world.block(context=replace(world.context("val1"), timestamp_ms=due_ms))
    paid = [receipt for receipt in outcome.receipts if receipt.code == "unbonded"]
    assert [(entry.role, entry.address, entry.amount) for entry in paid[0].payouts] == [
        (Role.STAKE, address("val0"), 300 * OPEN)
    ]
    assert world.balance("val0") == before + 300 * OPEN
    assert get_supply(world.state).staked == 4 * STAKE - 300 * OPEN
    assert stake_of(world, "val0").unbondings == ()


def test_time_alone_does_not_release_stake() -> None:
    world = World(EPOCHS)
    world.accept("val0", ValidatorUnbond(300 * OPEN))
    ended = boundary(world).height
    for _ in range(EPOCHS.unbonding_heights - 1):
        assert "unbonded" not in codes(world.block(context=world.context("val1", step_ms=100_000)))
    outcome = world.block(context=world.context("val1"))
    assert outcome.height == ended + EPOCHS.unbonding_heights
    assert "unbonded" in codes(outcome)


def test_stake_that_unbonds_after_the_freezing_still_secures_the_next_epoch() -> None:
    world = World(EPOCHS)
    freeze(world)
    world.accept("val0", ValidatorUnbond(300 * OPEN))
    boundary(world)
    assert seated(world)[address("val0")].stake == STAKE
    assert stake_of(world, "val0").unbondings[0].epoch == 1
    boundary(world)
    assert seated(world)[address("val0")].stake == STAKE - 300 * OPEN


def test_who_leaves_is_paid_out_whole_and_its_names_are_free_only_then() -> None:
    world = World(EPOCHS)
    total = world.accounted()
    world.accept("val0", ValidatorLeave())
    assert stake_of(world, "val0").bonded == 0
    boundary(world)
    assert address("val0") not in seated(world)
    assert refusal(world, "val0", registration(world, "val0")) == FailureCode.ALREADY_REGISTERED
    again = replace(registration(world, "ann"), consensus_key=consensus_key("val0"))
    assert refusal(world, "ann", again) == FailureCode.CONSENSUS_KEY_TAKEN
    pass_epochs(world, 4)
    paid = [
        payout for outcome in world.outcomes for receipt in outcome.receipts for payout in receipt.payouts
    ]
    assert [(entry.address, entry.amount) for entry in paid] == [(address("val0"), STAKE)]
    assert get_stake(world.state, address("val0")) is None
    assert KEY_OWNER + consensus_key("val0") not in world.state
    assert PEER_OWNER + b"peer-val0" not in world.state
    world.accept("val0", registration(world, "val0"))
    assert world.accounted() == total


def test_the_last_validator_that_the_next_set_could_hold_cannot_leave() -> None:
    world = World(EPOCHS)
    for name in VALIDATORS[:3]:
        world.accept(name, ValidatorLeave())
    assert refusal(world, "val3", ValidatorLeave()) == FailureCode.LAST_VALIDATOR
    boundary(world)
    assert list(seated(world)) == [address("val3")]


def test_unbonding_is_bounded_for_each_account_and_leaving_always_has_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(staking, "UNBONDINGS_PER_ACCOUNT_MAX", 2)
    world = World(replace(EPOCHS, unbonding_heights=100))
    for _ in range(2):
        world.accept("val0", ValidatorUnbond(OPEN))
        world.accept("val0", ValidatorUnbond(OPEN))  # of one epoch: one entry
        boundary(world)
    assert [entry.amount for entry in stake_of(world, "val0").unbondings] == [2 * OPEN, 2 * OPEN]
    assert refusal(world, "val0", ValidatorUnbond(OPEN)) == FailureCode.UNBONDING_FULL
    world.accept("val0", ValidatorLeave())


def test_an_epoch_pays_out_a_bounded_number_of_accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staking, "UNBONDERS_PER_EPOCH_MAX", 1)
    world = World(EPOCHS)
    world.accept("val0", ValidatorUnbond(OPEN))
    assert refusal(world, "val1", ValidatorUnbond(OPEN)) == FailureCode.UNBONDING_FULL
    boundary(world)
    world.accept("val1", ValidatorUnbond(OPEN))


def test_candidates_are_bounded_and_a_larger_stake_displaces_the_smallest_that_is_in_no_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(staking, "CANDIDATES_MAX", 5)
    world = World(EPOCHS)
    world.accept("ann", registration(world, "ann", 200 * OPEN))
    assert refusal(world, "ben", registration(world, "ben", 200 * OPEN)) == FailureCode.BACKLOG_FULL
    outcome = world.block(world.tx("ben", registration(world, "ben", 201 * OPEN)))
    assert codes(outcome)[:2] == ["", "displaced"]
    assert stake_of(world, "ann").leaving == 1
    assert stake_of(world, "ann").unbondings[0].amount == 200 * OPEN
    boundary(world)
    seat = seated(world)
    assert address("ben") in seat
    # Everybody is in a set now: nobody can be displaced, whatever is offered.
    assert refusal(world, "cid", registration(world, "cid", 9_000 * OPEN)) == FailureCode.BACKLOG_FULL


def test_an_anchor_is_replaced_from_the_next_set_on() -> None:
    world = World(EPOCHS)
    assert refusal(world, "val0", ValidatorAnchor(stake_of(world, "val0").beacon_anchor)) == (
        FailureCode.ANCHOR_UNCHANGED
    )
    world.accept("val0", ValidatorAnchor(bytes([8]) * 32))
    assert seated(world)[address("val0")].beacon_anchor != bytes([8]) * 32
    boundary(world)
    assert seated(world)[address("val0")].beacon_anchor == bytes([8]) * 32


def test_ended_epochs_are_forgotten_so_that_the_state_stays_as_small_as_it_is() -> None:
    world = World(EPOCHS)
    sizes = []
    for _ in range(12):
        world.accept("val0", ValidatorUnbond(1))
        boundary(world)
        sizes.append(len([key for key in world.state if key.startswith((PAST_EPOCH, UNBONDERS))]))
    assert max(sizes[6:]) <= max(sizes[:6])
    assert get_epoch(world.state).number == 12
    assert get_epoch(world.state).oldest > 6


def test_a_full_list_of_candidates_is_read_back() -> None:
    """What is written within the bounds can be read: the limits of the records are those of the rules."""
    world = World(EPOCHS)
    accounts = tuple(bytes([0, at]) * 16 for at in range(stakes.CANDIDATES_MAX))
    world.state[CANDIDATES_KEY] = to_bytes(Candidates(accounts))
    assert get_candidates(world.state) == accounts
    full = stakes.UNBONDERS_PER_EPOCH_MAX
    listed = stakes.Unbonders(tuple(at.to_bytes(32, "big") for at in range(full)))
    world.state[stakes.epoch_key(UNBONDERS, 5)] = to_bytes(listed)
    assert len(stakes.get_unbonders(world.state, 5)) == full


def test_stake_cannot_be_spent_before_it_is_paid_out() -> None:
    world = World(EPOCHS)
    world.accept("val0", ValidatorUnbond(500 * OPEN))
    free = world.balance("val0")
    assert refusal(world, "val0", Transfer(address("ann"), free + OPEN)) == FailureCode.INSUFFICIENT_BALANCE
