"""Leaders by stake and round alone; reveals that only one preimage can satisfy."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.beacon import BeaconChain, reveal_hash
from consensus.codec import encode
from consensus.digest import digest
from consensus.leaders import MISSED_MAX, SLOTS_MAX, Leaders, missed_leaders
from consensus.validators import STAKE_TOTAL_MAX, Validator, ValidatorSet, make_validator_set


def stakes(*amounts: int) -> ValidatorSet:
    return make_validator_set(
        0, [Validator(bytes([i]) * 32, stake, bytes(32)) for i, stake in enumerate(amounts)]
    )


def test_equal_stakes_take_turns() -> None:
    leaders = Leaders(stakes(5, 5, 5, 5))
    assert [leaders.index(round_) for round_ in range(1, 9)] == [0, 1, 2, 3, 0, 1, 2, 3]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8))
def test_turns_are_proportional_to_stake_and_spread_out(amounts: list[int]) -> None:
    validators = stakes(*amounts)
    leaders = Leaders(validators)
    cycle = validators.total_stake
    turns = Counter(leaders.index(round_) for round_ in range(1, cycle + 1))
    assert [turns[index] for index in range(len(amounts))] == amounts
    assert leaders.index(1) == leaders.index(1 + cycle * 10**9)
    for index, stake in enumerate(amounts):
        for length in (cycle // 3, cycle // 2):
            share = sum(leaders.index(round_) == index for round_ in range(1, length + 1))
            assert abs(share - stake * length / cycle) < len(amounts)


def test_fine_stakes_are_rounded_but_everyone_leads() -> None:
    leaders = Leaders(stakes(1, 10**15 + 7, 3 * 10**15))
    turns = Counter(leaders.index(round_) for round_ in range(1, SLOTS_MAX + 1))
    assert turns[0] >= 1
    assert 2.9 < turns[2] / turns[1] < 3.1


def weighted(*weights: int, seed: int = 1) -> ValidatorSet:
    rows = [Validator(bytes([i]) * 32, 5, bytes(32), weight) for i, weight in enumerate(weights)]
    return make_validator_set(3, rows, digest("test-seed", bytes([seed])))


@given(
    st.lists(st.integers(0, STAKE_TOTAL_MAX), min_size=1, max_size=8),
    st.integers(1, 2**64 - 1),
    st.integers(0, 255),
)
def test_a_drawn_leader_is_the_one_whose_share_holds_the_draw(
    weights: list[int], round_: int, seed: int
) -> None:
    """One draw decides, so each weight is respected to one part in 2^185; 0 stands for the stake."""
    validators = weighted(*weights, seed=seed)
    shares = [weight or 5 for weight in weights]
    drawn = int.from_bytes(digest("leader", encode((validators.seed, round_))), "big") % sum(shares)
    index = Leaders(validators).index(round_)
    assert sum(shares[:index]) <= drawn < sum(shares[: index + 1])


def test_leaders_are_drawn_as_often_as_they_weigh_and_without_a_cycle() -> None:
    """Weights of reputation: active 100, inactive 10, failed 1."""
    leaders, rounds = Leaders(weighted(100, 100, 10, 1)), 20_000
    drawn = [leaders.index(round_) for round_ in range(1, rounds + 1)]
    counts = Counter(drawn)
    for index, weight in enumerate((100, 100, 10, 1)):
        expected = rounds * weight / 211
        assert abs(counts[index] - expected) < 5 * expected**0.5  # five standard deviations at least
    assert drawn[:100] != drawn[100:200]
    assert [leaders.index(round_) for round_ in range(1, 101)] == drawn[:100]


def test_another_seed_draws_others() -> None:
    one, other = (Leaders(weighted(1, 1, 1, 1, seed=seed)) for seed in (1, 2))
    assert [one.index(round_) for round_ in range(1, 65)] != [other.index(round_) for round_ in range(1, 65)]


def test_leaders_of_skipped_rounds_are_named_in_order_and_at_most_the_newest() -> None:
    leaders = Leaders(weighted(3, 2, 1))
    assert missed_leaders(leaders, 4, 5) == ()
    assert missed_leaders(leaders, 4, 8) == tuple(leaders.index(round_) for round_ in (5, 6, 7))
    far = missed_leaders(leaders, 4, 10**9)
    assert far == tuple(leaders.index(round_) for round_ in range(10**9 - MISSED_MAX, 10**9))


def test_validator_sets_are_checked() -> None:
    one, two = Validator(bytes([1]) * 32, 1, bytes(32)), Validator(bytes([2]) * 32, 1, bytes(32))
    for bad in (
        (),
        (two, one),
        (one, one),
        (Validator(b"short", 1, bytes(32)),),
        (Validator(bytes(32), 0, bytes(32)),),
        (Validator(bytes(32), 1, b""),),
        (Validator(bytes(32), STAKE_TOTAL_MAX, bytes(32)), one),
        (Validator(bytes(32), 1, bytes(32), -1),),
        (Validator(bytes(32), 1, bytes(32), STAKE_TOTAL_MAX + 1),),
    ):
        with pytest.raises(ValueError, match=r".+"):
            ValidatorSet(0, bad)
    with pytest.raises(ValueError, match="seed"):
        ValidatorSet(0, (one, two), b"short")
    made = ValidatorSet(0, (one, two))
    others = (
        ValidatorSet(1, (one, two)),
        ValidatorSet(0, (one, two), bytes([1]) * 32),
        ValidatorSet(0, (one, replace(two, leader_weight=1))),
        ValidatorSet(0, (one, replace(two, stake=2))),
        ValidatorSet(0, (one, replace(two, beacon_anchor=bytes([1]) * 32))),
    )
    assert len({made.hash, *(other.hash for other in others)}) == 6


@given(st.integers(1, 700))
def test_each_reveal_hashes_to_the_one_before(k: int) -> None:
    chain = BEACON
    value = chain.preimage(k)
    assert value is not None
    before = chain.anchor if k == 1 else chain.preimage(k - 1)
    assert reveal_hash(value) == before


BEACON = BeaconChain(bytes(32), 700)


def test_a_chain_ends() -> None:
    assert BEACON.preimage(701) is None
    assert BEACON.preimage(0) is None
    assert BeaconChain(bytes([1]) * 32, 700).anchor != BEACON.anchor
    with pytest.raises(ValueError, match="at least one"):
        BeaconChain(bytes(32), 0)
