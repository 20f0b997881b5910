"""Every unit of a fee goes somewhere named, whatever the parameters, stakes and shares."""

from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from node.ledger.entries import InferenceStatus, Role, ValidatorEntry, ValidatorSet
from node.ledger.money import split
from node.ledger.params import DEFAULTS, PPM, Params, check_params
from node.ledger.results import SHARES_TOTAL, TREASURY, Shares
from node.ledger.settlement import contributor_payouts, fee_parts, validator_payouts
from node.ledger.state import get_supply
from tests.profiles import examples
from tests.unit.node_ledger.world import PARAMS, VALIDATORS, World

AMOUNTS = st.integers(0, 2**63 - 1)
WEIGHTS = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=40).filter(any)


def shares_of(parts: list[int]) -> Shares:
    """Shares that sum to the whole, for as many addresses as there are positive parts."""
    scaled = split(SHARES_TOTAL, parts)
    return tuple((bytes([number]) * 32, part) for number, part in enumerate(scaled) if part)


@st.composite
def split_params(draw: st.DrawFn) -> Params:
    cuts = sorted(draw(st.lists(st.integers(0, PPM), min_size=3, max_size=3)))
    owner, provider, validators = cuts[0], cuts[1] - cuts[0], cuts[2] - cuts[1]
    return check_params(
        replace(
            DEFAULTS,
            burn_ppm=draw(st.integers(0, PPM)),
            split_owner_ppm=owner,
            split_provider_ppm=provider,
            split_validators_ppm=validators,
            split_contributors_ppm=PPM - cuts[2],
        )
    )


@given(AMOUNTS, WEIGHTS)
def test_a_split_is_exact_and_no_part_is_a_unit_away_from_its_quota(amount: int, weights: list[int]) -> None:
    parts, total = split(amount, weights), sum(weights)
    assert sum(parts) == amount
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part * total - amount * weight) < total
        assert weight or not part


@given(AMOUNTS, WEIGHTS)
def test_a_larger_weight_never_gets_a_smaller_part(amount: int, weights: list[int]) -> None:
    parts = split(amount, weights)
    pairs = sorted(zip(weights, parts, strict=True))
    assert all(low[1] <= high[1] or low[0] == high[0] for low, high in pairwise(pairs))


@given(AMOUNTS, split_params(), st.lists(st.integers(0, 10**6), min_size=1, max_size=60).filter(any))
def test_the_parts_of_a_fee_sum_to_the_fee(fee: int, params: Params, parts: list[int]) -> None:
    burned, (owner, provider, validators, contributors) = fee_parts(params, fee)
    assert burned + owner + provider + validators + contributors == fee
    payouts = contributor_payouts(contributors, shares_of(parts))
    assert sum(payout.amount for payout in payouts) == contributors
    assert all((payout.role == Role.UNATTRIBUTED) == (payout.address == TREASURY) for payout in payouts)


@given(AMOUNTS, st.lists(st.integers(1, 10**15), min_size=1, max_size=20), st.sets(st.integers(0, 19)))
def test_validators_parts_sum_and_only_those_who_were_right_are_paid(
    amount: int, stakes: list[int], right: set[int]
) -> None:
    entries = tuple(
        ValidatorEntry(bytes([number]) * 32, bytes([number + 100]) * 32, f"p{number}", stake, bytes(32))
        for number, stake in enumerate(stakes)
    )
    paid = frozenset(entry.account for number, entry in enumerate(entries) if number in right)
    payouts = validator_payouts(ValidatorSet(entries), amount, paid)
    assert sum(payout.amount for payout in payouts) == amount
    assert {payout.address for payout in payouts if payout.role == Role.VALIDATOR} == paid


@settings(max_examples=examples(20))
@given(
    fee=st.integers(PARAMS.inference_fee_min, 10**12),
    stakes=st.lists(st.integers(1, 10**13), min_size=4, max_size=4),
    parts=st.lists(st.integers(0, 10**6), min_size=4, max_size=4).filter(any),
)
def test_a_settlement_on_the_ledger_conserves_every_unit(
    fee: int, stakes: list[int], parts: list[int]
) -> None:
    world = World(replace(PARAMS, in_flight_fees_max_ppm=10 * PPM), stakes)
    name = world.revealed(world.active_adapter(), fee=fee)
    scaled = split(SHARES_TOTAL, parts)
    named = dict(zip(("treasury", "ann", "ben", "cid"), scaled, strict=True))
    shares = world.shares(**{person: part for person, part in named.items() if part})
    answer = replace(world.answer(name), shares=shares)
    world.attest(name, dict.fromkeys(VALIDATORS, answer))
    inference = world.inference(name)
    assert inference.status == InferenceStatus.SETTLED
    assert sum(payout.amount for payout in inference.payouts) + inference.burned == fee
    assert world.accounted() == get_supply(world.state).total
