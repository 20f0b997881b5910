"""Shares: exact sums, the cosine floor, copies counted once, largest remainders."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attribution.shares import SHARES_TOTAL, ScoredRows, Scores, attribute, largest_remainder

OWNERS = [b"alice", b"bob", b"carol"]


@st.composite
def scored(draw: st.DrawFn) -> tuple[Scores, list[bytes], int]:
    count = draw(st.integers(0, 12))
    norms = tuple(draw(st.lists(st.integers(0, 2**49), min_size=count, max_size=count)))
    query = draw(st.integers(0, 2**48))
    values = tuple(draw(st.lists(st.integers(-(2**49), 2**49), min_size=count, max_size=count)))
    leaders = tuple(draw(st.integers(0, i)) if draw(st.booleans()) else i for i in range(count))
    owners = draw(st.lists(st.sampled_from(OWNERS), min_size=count, max_size=count))
    return Scores(values, ScoredRows(norms, leaders), query), owners, draw(st.integers(0, 10**6))


@given(scored())
def test_shares_are_positive_sorted_and_sum_exactly(case: tuple[Scores, list[bytes], int]) -> None:
    scores, owners, floor = case
    shares = attribute(scores, owners, floor)
    assert shares.unattributed + sum(part for _, part in shares.by_owner) == SHARES_TOTAL
    assert shares.unattributed >= 0
    assert all(part > 0 for _, part in shares.by_owner)
    assert [owner for owner, _ in shares.by_owner] == sorted({owner for owner, _ in shares.by_owner})


@given(scored())
def test_shares_do_not_depend_on_the_scale_of_rows_or_query(case: tuple[Scores, list[bytes], int]) -> None:
    scores, owners, floor = case
    values = tuple(6 * v for v in scores.values)
    rows = ScoredRows(tuple(4 * n for n in scores.rows.norms), scores.rows.leaders)
    scaled = Scores(values, rows, 9 * scores.query_norm)
    assert attribute(scaled, owners, floor) == attribute(scores, owners, floor)


def with_cosines(*ppm: int, leaders: tuple[int, ...] | None = None) -> Scores:
    """Scores whose cosines are exactly these parts per million (negative ones too)."""
    return Scores(ppm, ScoredRows((10**6,) * len(ppm), leaders or tuple(range(len(ppm)))), 10**6)


def test_a_match_shares_with_nobody_by_squared_cosines() -> None:
    shares = attribute(with_cosines(450_000, 100_000, -900_000), OWNERS, 150_000)
    assert shares.by_owner == ((b"alice", 900_000_000),)
    assert shares.unattributed == 100_000_000
    assert shares.of(b"bob") == 0


def test_the_floor_is_inclusive_and_below_it_nothing_counts() -> None:
    assert attribute(with_cosines(150_000), [b"bob"], 150_000).of(b"bob") == SHARES_TOTAL // 2
    assert attribute(with_cosines(149_999), [b"bob"], 150_000).unattributed == SHARES_TOTAL


def test_an_exact_copy_earns_nothing_and_the_earliest_earns_what_it_would_alone() -> None:
    alone = attribute(with_cosines(400_000), [b"alice"], 150_000)
    copied = attribute(with_cosines(400_000, 400_000, leaders=(0, 0)), [b"alice", b"bob"], 150_000)
    assert copied == alone


@given(scored(), st.data())
def test_whatever_copies_score_and_whoever_owns_them_no_share_changes(
    case: tuple[Scores, list[bytes], int], data: st.DataObject
) -> None:
    scores, owners, floor = case
    copies = data.draw(st.integers(0, 5)) if owners else 0
    values = data.draw(st.lists(st.integers(-(2**49), 2**49), min_size=copies, max_size=copies))
    led_by = data.draw(st.lists(st.integers(0, max(0, len(owners) - 1)), min_size=copies, max_size=copies))
    theirs = data.draw(st.lists(st.sampled_from([*OWNERS, b"mallory"]), min_size=copies, max_size=copies))
    copied = Scores(
        (*scores.values, *values),
        ScoredRows((*scores.rows.norms, *[1] * copies), (*scores.rows.leaders, *led_by)),
        scores.query_norm,
    )
    assert attribute(copied, [*owners, *theirs], floor) == attribute(scores, owners, floor)


def test_records_of_one_contributor_add_up() -> None:
    shares = attribute(with_cosines(300_000, 400_000, 500_000), [b"alice", b"alice", b"bob"], 0)
    assert shares.of(b"alice") == shares.of(b"bob") == SHARES_TOTAL // 2
    assert shares.unattributed == 0


def test_no_records_no_gradient_or_no_positive_score_leave_everything_unattributed() -> None:
    for scores in (
        Scores((), ScoredRows((), ()), 5),
        Scores((3,), ScoredRows((9,), (0,)), 0),
        Scores((3,), ScoredRows((0,), (0,)), 9),
        with_cosines(-7),
    ):
        assert attribute(scores, [b"alice"] * len(scores.values), 0).unattributed == SHARES_TOTAL


def test_floors_and_owners_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="floor"):
        attribute(with_cosines(1), [b"alice"], 10**6 + 1)
    with pytest.raises(ValueError, match="floor"):
        attribute(with_cosines(1), [b"alice"], -1)
    for owners in ([], [b""], [b"alice", b"bob"]):
        with pytest.raises(ValueError, match="owner"):
            attribute(with_cosines(1), owners, 0)
    with pytest.raises(ValueError, match="owner"):
        attribute(with_cosines(900_000, -1), [b"alice", b""], 0)  # also of a record that earns nothing


@pytest.mark.parametrize(
    ("values", "norms", "query", "leaders"),
    [
        ((1,), (1, 2), 1, (0,)),
        ((1,), (1, 2), 1, (0, 1)),
        ((1,), (-1,), 1, (0,)),
        ((1,), (1,), -1, (0,)),
        ((1,), (1,), 1, (1,)),
    ],
)
def test_impossible_scores_are_refused(
    values: tuple[int, ...], norms: tuple[int, ...], query: int, leaders: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"differ|negative|no record"):
        Scores(values, ScoredRows(norms, leaders), query)


def test_scores_are_kept_as_64_bits_and_none_is_cut_to_fit() -> None:
    rows = ScoredRows((1, 1), (0, 1))
    assert Scores((2**63 - 1, -(2**63)), rows, 1) == Scores([2**63 - 1, -(2**63)], rows, 1)
    for value in (2**63, -(2**63) - 1):
        with pytest.raises(OverflowError):
            Scores((0, value), rows, 1)


@given(scored())
def test_the_best_record_is_the_earliest_with_the_largest_cosine(
    case: tuple[Scores, list[bytes], int],
) -> None:
    scores, _, _ = case
    squared = [scores.cosine_squared(i) for i in range(len(scores.values))]
    best = scores.best()
    if not any(squared):
        assert best is None
    else:
        assert best == squared.index(max(squared))


@given(
    st.dictionaries(st.binary(max_size=3), st.integers(0, 10**30), min_size=1).filter(
        lambda w: sum(w.values()) > 0
    ),
    st.integers(0, 10**9),
)
def test_largest_remainder_keeps_every_part_within_one_of_its_quota(
    weights: dict[bytes, int], total: int
) -> None:
    parts = largest_remainder(weights, total)
    whole = sum(weights.values())
    assert sum(parts.values()) == total
    for owner, weight in weights.items():
        assert abs(parts[owner] - Fraction(total * weight, whole)) < 1


def test_equal_remainders_go_to_the_smaller_id() -> None:
    assert largest_remainder({b"c": 1, b"a": 1, b"b": 1}, 2) == {b"a": 1, b"b": 1, b"c": 0}
    for weights, total in (
        ({b"a": 0}, 1),
        ({b"a": -1, b"b": 2}, 1),
        ({b"a": 1}, -1),
        (dict[bytes, int](), 1),
    ):
        with pytest.raises(ValueError, match="weights"):
            largest_remainder(weights, total)
