"""Leaders by stake and round alone; reveals that only one preimage can satisfy."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.beacon import BeaconChain, reveal_hash
from consensus.leaders import SLOTS_MAX, Leaders
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
    ):
        with pytest.raises(ValueError, match=r".+"):
            ValidatorSet(0, bad)
    assert ValidatorSet(0, (one, two)).hash != ValidatorSet(1, (one, two)).hash


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
