"""The first look: full scores for what it keeps, a pure function of index and query, blind to copies and erased rows."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution import first_look
from attribution.first_look import LOOKED_BYTES, likeliest, looked_places, looked_scores, short_rows
from attribution.signs import integer_scores, sign_bytes
from attribution.whitening import FactorShape
from tests.profiles import examples

Rows = npt.NDArray[np.uint8]
Scales = npt.NDArray[np.uint32]
Query = npt.NDArray[np.int32]


def shapes_of(coordinates: list[int]) -> list[FactorShape]:
    return [FactorShape(f"f{k}", wide, 1) for k, wide in enumerate(coordinates)]


def drawn(seed: int, records: int, shapes: list[FactorShape], top: int) -> tuple[Query, Rows, Scales]:
    """A query with zeros where factors are padded, rows, and few different scales, so that looks are often equal."""
    random = np.random.default_rng(seed)
    parts = [np.pad(random.integers(-top, top + 1, s.coordinates), (0, -s.coordinates % 8)) for s in shapes]
    rows = random.integers(0, 256, (records, sum(map(sign_bytes, shapes))), np.uint8)
    scales = random.integers(0, 3, (records, len(shapes))).astype(np.uint32)
    return np.concatenate(parts).astype(np.int32), rows, scales


def plainly(
    query: Query, rows: Rows, scales: Scales, shapes: list[FactorShape], leading: list[bool], kept: int
) -> list[int]:
    """The module's formula in plain integers."""
    factor_of = [f for f, s in enumerate(shapes) for _ in range(sign_bytes(s))]
    width = len(factor_of)
    looked = {(2 * k + 1) * width // (2 * first_look.LOOKED_BYTES) for k in range(first_look.LOOKED_BYTES)}
    places = looked if width > first_look.LOOKED_BYTES else set(range(width))

    def over(record: int, among: set[int]) -> int:
        total = 0
        for place in among:
            for bit in range(8):
                sign = 1 if int(rows[record, place]) >> bit & 1 else -1
                total += int(scales[record, factor_of[place]]) * sign * int(query[8 * place + bit])
        return total

    def look(record: int) -> int:
        signs = np.unpackbits(rows[record, sorted(places)], bitorder="little").astype(np.int64) * 2 - 1
        upper = [round(Fraction(int(q), 256)) for q in query.reshape(-1, 8)[sorted(places)].ravel()]
        counted = [max(-31, min(31, u)) for u in upper]
        return int((signs.ravel() * np.array(counted)).sum()) if scales[record].any() else 0

    looks = {i: look(i) for i in range(len(rows)) if leading[i]}
    chosen = sorted((-look, i) for i, look in looks.items() if look > 0)[:kept]
    return [over(i, set(range(width))) if i in {n for _, n in chosen} else 0 for i in range(len(rows))]


@settings(max_examples=examples(40))
@given(
    st.integers(0, 1 << 20),
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
    st.integers(3, 12),
    st.integers(1, 6),
    st.integers(1, 12),
    st.sampled_from([128, 256, 900, 8192]),
    st.data(),
)
def test_large_indices_are_scored_by_the_formula_in_plain_integers(
    seed: int, sizes: list[int], records: int, looked: int, kept: int, top: int, data: st.DataObject
) -> None:
    shapes = shapes_of(sizes)
    query, rows, scales = drawn(seed, records, shapes, top)
    leading = data.draw(st.lists(st.booleans(), min_size=records, max_size=records))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(first_look, "RECORDS_SCANNED", 2)
        patch.setattr(first_look, "RECORDS_KEPT", kept)
        patch.setattr(first_look, "LOOKED_BYTES", looked)
        expected = plainly(query, rows, scales, shapes, leading, kept)
        assert looked_scores(query, rows, scales, shapes, np.array(leading)).tolist() == expected


def test_of_equal_looks_the_smaller_numbers_are_kept() -> None:
    signs = np.full((9, 2), 255, np.uint8)
    signs[4, 1] = 0
    short = short_rows(signs, np.ones((9, 1), np.uint32))
    query = np.full(16, 256, np.int32)
    assert likeliest(query, short, np.ones(9, np.bool_), 3).tolist() == [0, 1, 2]
    leading = np.arange(9) != 1
    assert likeliest(query, short, leading, 3).tolist() == [0, 2, 3]
    query[:8] = 3 * 256
    signs[7] = 0
    short = short_rows(signs, np.ones((9, 1), np.uint32))
    assert likeliest(query, short, leading, 7).tolist() == [0, 2, 3, 4, 5, 6, 8]


def test_up_to_the_limit_every_record_has_its_full_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_look, "RECORDS_SCANNED", 20)
    monkeypatch.setattr(first_look, "RECORDS_KEPT", 3)
    shapes = shapes_of([100, 30])
    query, rows, scales = drawn(1, 21, shapes, 8192)
    leading = np.zeros(20, np.bool_)
    full = integer_scores(query, rows[:20], scales[:20], shapes)
    assert looked_scores(query, rows[:20], scales[:20], shapes, leading).tolist() == full.tolist()
    assert np.count_nonzero(looked_scores(query, rows, scales, shapes, np.ones(21, np.bool_))) <= 3


def test_places_are_spread_over_the_row_and_none_is_taken_twice() -> None:
    for width in (1, LOOKED_BYTES - 1, LOOKED_BYTES, LOOKED_BYTES + 1, 7552, 1 << 21):
        places = looked_places(width)
        assert len(set(places.tolist())) == len(places) == min(width, LOOKED_BYTES)
        assert 0 <= places[0] <= places[-1] < width
        gaps = np.diff(places)
        assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


def planted(records: int, cosine: float) -> tuple[Query, Rows, Scales, list[FactorShape], int]:
    """Random rows, one of which is like a random query by about `cosine`."""
    random = np.random.default_rng(4)
    shapes = shapes_of([3000] * 20)
    width = sum(map(sign_bytes, shapes))
    query = np.clip(random.standard_normal(8 * width) * 1500, -8191, 8191).astype(np.int32)
    rows = random.integers(0, 256, (records, width), np.uint8)
    # A sign that agrees with chance (1 + t) / 2 gives a cosine of t sqrt(2 / pi).
    agree = random.random(8 * width) < (1.0 + cosine * np.sqrt(np.pi / 2.0)) / 2.0
    rows[records // 2] = np.packbits((query >= 0) == agree, bitorder="little")
    return query, rows, np.full((records, 20), 1000, np.uint32), shapes, records // 2


def test_a_record_at_the_recommended_floor_is_kept_among_strangers() -> None:
    query, rows, scales, _, mine = planted(1500, 0.12)
    short = short_rows(rows, scales)
    assert mine in likeliest(query, short, np.ones(1500, np.bool_), 15)


def test_copies_that_do_not_lead_crowd_nobody_out() -> None:
    query, rows, scales, _, mine = planted(300, 0.15)
    crowd = np.arange(100)
    # A hundred copies of what answers best, committed first; the original leads them.
    rows[crowd] = np.packbits(query >= 0, bitorder="little")
    short = short_rows(rows, scales)
    everyone, leaders = np.ones(300, np.bool_), np.ones(300, np.bool_)
    leaders[crowd[1:]] = False
    assert mine not in likeliest(query, short, everyone, 100)
    assert likeliest(query, short, leaders, 2).tolist() == [0, mine]


def test_an_erased_row_is_looked_at_in_vain_and_changes_no_others_score(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(first_look, "RECORDS_SCANNED", 10)
    monkeypatch.setattr(first_look, "RECORDS_KEPT", 2)
    query, rows, scales, shapes, mine = planted(60, 0.3)
    everyone = np.ones(60, np.bool_)
    before = looked_scores(query, rows, scales, shapes, everyone)
    assert before[mine] > 0
    (other,) = np.flatnonzero(before)[np.flatnonzero(before) != mine]
    rows[mine], scales[mine] = 0, 0
    after = looked_scores(query, rows, scales, shapes, everyone)
    without = np.delete(np.arange(60), mine)
    assert after[mine] == 0
    assert after[other] == before[other]
    gone = looked_scores(query, rows[without], scales[without], shapes, everyone[without])
    assert after[without].tolist() == gone.tolist()


def test_an_erased_row_takes_nobodys_place_even_where_zeros_look_best() -> None:
    signs, scales = np.zeros((3, 4), np.uint8), np.ones((3, 1), np.uint32)
    signs[1:, 0], scales[0] = 0x0F, 0
    query = np.full(32, -4000, np.int32)
    short = short_rows(signs, scales)
    assert likeliest(query, short, np.ones(3, np.bool_), 1).tolist() == [1]
    assert likeliest(
        query, short_rows(signs, np.ones((3, 1), np.uint32)), np.ones(3, np.bool_), 1
    ).tolist() == [0]


def test_short_parts_that_are_kept_give_what_taking_them_anew_gives() -> None:
    query, rows, scales, shapes, _ = planted(40, 0.2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(first_look, "RECORDS_SCANNED", 4)
        patch.setattr(first_look, "RECORDS_KEPT", 7)
        patch.setattr(first_look, "_ROWS_AT_ONCE", 32)
        short, everyone = short_rows(rows, scales), np.ones(40, np.bool_)
        kept = looked_scores(query, rows, scales, shapes, everyone, short)
        patch.setattr(first_look, "_ROWS_AT_ONCE", 64)
        assert looked_scores(query, rows, scales, shapes, everyone).tolist() == kept.tolist()
        assert short.signs.shape in ((40, LOOKED_BYTES), (2, LOOKED_BYTES, 32))
        assert np.count_nonzero(kept) == 7
