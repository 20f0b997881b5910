"""Evidence: who is slashed, how much, how often, for how long, and what proves nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from consensus.evidence import make_evidence
from node.ledger.bodies import (
    EvidenceSubmit,
    ValidatorAnchor,
    ValidatorBond,
    ValidatorLeave,
    ValidatorUnbond,
    ValidatorUnjail,
)
from node.ledger.errors import FailureCode
from node.ledger.evidence import is_punishable, slashed
from node.ledger.params import OPEN
from node.ledger.stakes import Stake, Unbonding, get_epoch, get_past_epoch
from node.ledger.state import get_supply
from tests.unit.node_ledger.seats import (
    EPOCHS,
    anchor,
    boundary,
    freeze,
    pass_epochs,
    registration,
    seated,
    stake_of,
    two_votes,
    vote,
)
from tests.unit.node_ledger.world import STAKE, World, address, consensus_key


def test_two_votes_in_a_round_burn_a_part_of_the_stake_and_jail_their_author() -> None:
    world = World(EPOCHS)
    before = get_supply(world.state)
    outcome = world.block(world.tx("ann", two_votes(world, "val0", 0)))
    burned = STAKE // 20
    event = outcome.receipts[1]
    assert (event.subject, event.code, event.burned) == (address("val0"), "slashed-equivocation", burned)
    stake = stake_of(world, "val0")
    assert (stake.bonded, stake.jailed, stake.slashed) == (STAKE - burned, 1, burned)
    after = get_supply(world.state)
    assert (before.total - after.total, after.burned, before.staked - after.staked) == (burned,) * 3
    assert world.accounted() == after.total
    assert address("val0") in seated(world), "the set in force does not change within its epoch"
    boundary(world)
    assert address("val0") not in seated(world)


def test_a_validator_is_slashed_once_for_an_epoch_whatever_it_did_and_whoever_reports() -> None:
    world = World(EPOCHS)
    assert is_punishable(world.state, consensus_key("val0"), 0)
    world.accept("ann", two_votes(world, "val0", 0))
    assert not is_punishable(world.state, consensus_key("val0"), 0)
    for body in (two_votes(world, "val0", 0), two_votes(world, "val0", 0, round_=9)):
        assert world.submit("ben", body).code == FailureCode.ALREADY_SLASHED
    boundary(world)
    assert world.submit("ben", two_votes(world, "val0", 0, round_=5)).code == FailureCode.ALREADY_SLASHED
    assert not is_punishable(world.state, consensus_key("val0"), 0)
    assert is_punishable(world.state, consensus_key("val1"), 0)
    assert stake_of(world, "val0").slashed == STAKE // 20


def test_offences_in_two_epochs_are_two_slashes() -> None:
    world = World(EPOCHS)
    boundary(world)
    world.accept("ann", two_votes(world, "val0", 0))
    world.accept("ann", two_votes(world, "val0", 1))
    left = STAKE - STAKE // 20
    assert stake_of(world, "val0").bonded == left - left // 20


def test_evidence_of_an_ended_epoch_counts_until_both_windows_after_it_are_over() -> None:
    world = World(EPOCHS)
    ended = boundary(world).height
    while world.height < ended + EPOCHS.evidence_heights + 1:
        world.block(context=world.context("val1", step_ms=1))
    world.accept("ann", two_votes(world, "val0", 0))  # the time is not over
    late = replace(world.context("val1"), timestamp_ms=world.now_ms + EPOCHS.evidence_ms)
    assert is_punishable(world.state, consensus_key("val1"), 0)
    outcome = world.block(world.tx("ann", two_votes(world, "val1", 0)), context=late)
    assert not is_punishable(world.state, consensus_key("val1"), 0)
    assert outcome.receipts[0].code == FailureCode.EVIDENCE_EXPIRED
    while get_past_epoch(world.state, 0) is not None:
        world.block(context=world.context("val1"))
    assert world.submit("ann", two_votes(world, "val1", 0)).code == FailureCode.EVIDENCE_EPOCH_UNKNOWN


def test_evidence_of_a_coming_epoch_or_of_no_validator_is_refused() -> None:
    world = World(EPOCHS)
    unknown = (("val0", 1), ("ben", 0))
    assert not any(is_punishable(world.state, consensus_key(name), epoch) for name, epoch in unknown)
    assert not is_punishable(World().state, consensus_key("val0"), 0), "epochs are off"
    assert world.submit("ann", two_votes(world, "val0", 1)).code == FailureCode.EVIDENCE_EPOCH_UNKNOWN
    assert world.submit("ann", two_votes(world, "ben", 0)).code == FailureCode.NOT_A_VALIDATOR_THEN
    world.accept("ben", registration(world, "ben"))
    assert world.submit("ann", two_votes(world, "ben", 0)).code == FailureCode.NOT_A_VALIDATOR_THEN
    boundary(world)
    assert world.submit("ann", two_votes(world, "ben", 0)).code == FailureCode.NOT_A_VALIDATOR_THEN
    assert stake_of(world, "ben").slashed == 0


def test_what_proves_nothing_slashes_nobody() -> None:
    world = World(EPOCHS)
    one, two = (vote(world, "val0", 0, 1, bytes([fill]) * 32) for fill in (1, 2))
    good = make_evidence(one, two)
    other_chain = World(replace(EPOCHS, stake_min=1))
    refused = [
        EvidenceSubmit(b""),
        EvidenceSubmit(b"\x90"),
        EvidenceSubmit(good.to_bytes()[:-1]),
        EvidenceSubmit(make_evidence(one, one).to_bytes()),
        EvidenceSubmit(make_evidence(one, vote(world, "val1", 0, 1, bytes(32))).to_bytes()),
        EvidenceSubmit(make_evidence(one, vote(world, "val0", 0, 2, bytes(32))).to_bytes()),
        EvidenceSubmit(make_evidence(one, replace(two, signature=bytes(64))).to_bytes()),
        two_votes(other_chain, "val0", 0),
    ]
    for body in refused:
        assert world.submit("ann", body).code == FailureCode.BAD_EVIDENCE
    assert stake_of(world, "val0").slashed == 0
    world.accept("ann", EvidenceSubmit(good.to_bytes()))


def test_stake_that_unbonds_is_slashed_with_what_is_bonded_and_what_left_before_is_not() -> None:
    entries = (Unbonding(3, 1_000), Unbonding(4, 1_000), Unbonding(5, 1_001))
    burned, left = slashed(Stake(bytes(32), "peer", bytes(32), 2_000, unbondings=entries), 4, 50_000)
    assert [entry.amount for entry in left.unbondings] == [1_000, 950, 950]
    assert (left.bonded, burned, left.slashed) == (1_900, 100 + 50 + 51, 201)
    assert slashed(Stake(bytes(32), "peer", bytes(32), 1), 0, 1)[0] == 1, "no stake is too small"
    assert slashed(Stake(bytes(32), "peer", bytes(32), 9), 0, 0)[0] == 0


def test_who_leaves_after_an_offence_does_not_escape_its_slash() -> None:
    world = World(EPOCHS)
    world.accept("val0", ValidatorLeave())
    boundary(world)
    world.accept("ann", two_votes(world, "val0", 0))
    assert stake_of(world, "val0").unbondings == (Unbonding(0, STAKE - STAKE // 20),)
    pass_epochs(world, 4)
    paid = [
        payout for outcome in world.outcomes for receipt in outcome.receipts for payout in receipt.payouts
    ]
    assert [payout.amount for payout in paid] == [STAKE - STAKE // 20]
    assert world.accounted() == get_supply(world.state).total


def test_a_jailed_validator_stays_out_until_it_asks_after_the_jail_windows() -> None:
    world = World(EPOCHS)
    assert world.submit("val0", ValidatorUnjail()).code == FailureCode.NOT_JAILED
    world.accept("ann", two_votes(world, "val0", 0))
    jailed = stake_of(world, "val0")
    while world.height + 1 < jailed.jailed_height + EPOCHS.jail_heights:
        assert world.submit("val0", ValidatorUnjail()).code == FailureCode.JAIL_NOT_OVER
    world.accept("val0", ValidatorUnjail())
    pass_epochs(world, 1)
    assert address("val0") not in seated(world)
    world.accept("val0", ValidatorAnchor(anchor("val0")))  # it dropped out: its reveals are public
    pass_epochs(world, 1)
    assert address("val0") in seated(world)


def test_a_slash_below_the_least_stake_needs_more_before_the_jail_opens() -> None:
    world = World(replace(EPOCHS, jail_heights=0, jail_ms=0, stake_min=STAKE))
    world.accept("ann", two_votes(world, "val0", 0))
    assert world.submit("val0", ValidatorUnjail()).code == FailureCode.STAKE_TOO_LOW
    world.accept("val0", ValidatorBond(STAKE // 20))
    world.accept("val0", ValidatorUnjail())


def test_evidence_that_comes_after_the_freezing_keeps_its_author_out_of_the_set_after_the_next() -> None:
    world = World(EPOCHS)
    freeze(world)
    world.accept("ann", two_votes(world, "val0", 0))
    boundary(world)
    assert address("val0") in seated(world)
    boundary(world)
    assert address("val0") not in seated(world)


def test_evidence_is_taken_in_the_very_block_that_ends_its_epoch() -> None:
    world = World(EPOCHS)
    freeze(world)
    outcome = boundary(world, world.tx("ann", two_votes(world, "val0", 0)))
    assert outcome.receipts[1].code == "slashed-equivocation"
    past = get_past_epoch(world.state, 0)
    assert past is not None
    assert past.slashed == (consensus_key("val0"),)
    assert get_epoch(world.state).slashed == ()


@pytest.mark.parametrize("part_ppm", [0, 1_000_000])
def test_nothing_and_everything_can_be_slashed(part_ppm: int) -> None:
    world = World(replace(EPOCHS, slash_equivocation_ppm=part_ppm))
    world.accept("val0", ValidatorUnbond(OPEN))
    world.accept("ann", two_votes(world, "val0", 0))
    assert stake_of(world, "val0").slashed == STAKE * part_ppm // 1_000_000
    world.accept("val0", ValidatorLeave())
    total = world.accounted()
    pass_epochs(world, 5)
    assert world.accounted() == total
    assert b"z/peer-val0" not in world.state
