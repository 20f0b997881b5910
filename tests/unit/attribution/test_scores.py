"""Scores: the formula is plain integer arithmetic, records find themselves, and the floor is above strangers."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution.gradients import Example
from attribution.index import Index, build_index
from attribution.scores import WrongIndex, calibrate_floor, score, score_example
from attribution.shares import attribute
from attribution.signs import (
    integer_query,
    integer_scales,
    mean_magnitudes,
    pack_signs,
    row_norms,
    scan,
    sign_bytes,
)
from attribution.whitening import FactorShape
from tests.profiles import examples
from tests.unit.attribution.index_cases import RECORDS, adapter, tiny_base, tiny_index


@st.composite
def scanned(
    draw: st.DrawFn,
) -> tuple[list[FactorShape], list[list[int]], list[list[list[int]]], list[list[int]]]:
    """Shapes, query integers per factor, record signs (+-1) per factor, scales per record."""
    sizes = st.tuples(st.integers(1, 5), st.integers(1, 5))
    shapes = [
        FactorShape(f"f{i}", w, r) for i, (w, r) in enumerate(draw(st.lists(sizes, min_size=1, max_size=4)))
    ]
    records = draw(st.integers(1, 4))
    query = [
        draw(
            st.lists(
                st.sampled_from([-8192, -1, 0, 1, 77, 8192]), min_size=s.coordinates, max_size=s.coordinates
            )
        )
        for s in shapes
    ]
    signs = [
        [
            draw(st.lists(st.sampled_from([-1, 1]), min_size=s.coordinates, max_size=s.coordinates))
            for s in shapes
        ]
        for _ in range(records)
    ]
    scales = [
        draw(st.lists(st.integers(0, 2**24), min_size=len(shapes), max_size=len(shapes))) for _ in signs
    ]
    return shapes, query, signs, scales


@settings(max_examples=examples(60))
@given(scanned())
def test_scan_is_the_formula_in_plain_integers(
    case: tuple[list[FactorShape], list[list[int]], list[list[list[int]]], list[list[int]]],
) -> None:
    shapes, query, signs, scales = case
    padded = list(itertools.chain.from_iterable([*q, *[0] * (-len(q) % 8)] for q in query))
    packed = np.concatenate(
        [
            pack_signs(
                torch.tensor([row[f] for row in signs], dtype=torch.float32).view(len(signs), s.wide, s.rank)
            )
            for f, s in enumerate(shapes)
        ],
        axis=1,
    )
    expected = [
        sum(
            scale * sum(b * q for b, q in zip(bits, qs, strict=True))
            for scale, bits, qs in zip(row_scales, row, query, strict=True)
        )
        for row_scales, row in zip(scales, signs, strict=True)
    ]
    array = np.array(scales, np.uint32)
    assert scan(np.array(padded, np.int32), packed, array, shapes) == expected
    expected_norms = [sum(s.coordinates * k * k for s, k in zip(shapes, row, strict=True)) for row in scales]
    assert row_norms(array, shapes) == expected_norms


def test_a_query_of_more_bits_than_there_are_planes_is_refused() -> None:
    shape, rows = FactorShape("x", 4, 2), np.zeros((1, 1), np.uint8)
    for value, sign in ((8193, 1), (8193, -1), (2**20, 1)):
        query = np.array([sign * value] + [0] * 7, np.int32)
        with pytest.raises(ValueError, match="14 bits"):
            scan(query, rows, np.ones((1, 1), np.uint32), [shape])


def test_scan_is_exact_at_its_extremes_over_many_rows() -> None:
    shape = FactorShape("wide", 256, 64)
    query = np.full(shape.coordinates, 8192, np.int32)
    signs = np.full((300, sign_bytes(shape)), 255, np.uint8)
    signs[1::2] = 0
    scale = 2**24 // 2**7 + 1
    scores = scan(query, signs, np.full((300, 1), scale, np.uint32), [shape])
    assert scores == [scale * 8192 * 2**14, -scale * 8192 * 2**14] * 150


def test_the_sign_bit_of_either_zero_is_one() -> None:
    x = torch.tensor([[[0.0, -0.0, -1e-30, 1e-30, -5.0, 5.0, -0.0, 0.0, -0.0]]])
    assert pack_signs(x).tolist() == [[0b11101011, 0b1]]


def test_queries_are_fourteen_bit_integers_padded_by_factor() -> None:
    query, norm = integer_query([torch.tensor([[[1.0, -0.5, 0.25]]]), torch.tensor([[[0.0, 1.9999]]])])
    assert query.tolist() == [4096, -2048, 1024, 0, 0, 0, 0, 0, 0, 8192, 0, 0, 0, 0, 0, 0]
    assert norm == 4096**2 + 2048**2 + 1024**2 + 8192**2
    assert integer_query([torch.zeros(1, 2, 4)])[1] == 0


def test_scales_are_unit_norm_whatever_the_records_size_and_zero_rows_stay_zero() -> None:
    shapes = [FactorShape("a", 3, 4), FactorShape("b", 5, 4)]
    factors = [torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1)), torch.ones(2, 5, 4)]
    scales = integer_scales(mean_magnitudes(factors), shapes)
    scaled = integer_scales(mean_magnitudes([f * 2.0**-40 for f in factors]), shapes)
    assert np.array_equal(scales, scaled)
    for norm in row_norms(scales, shapes):
        assert abs(norm - 2**48) < 2**40
    assert not integer_scales(mean_magnitudes([f * 0.0 for f in factors]), shapes).any()


def test_every_record_finds_itself_and_its_copy_counts_once() -> None:
    index, owners = tiny_index(), [bytes([i + 1]) for i in range(len(RECORDS))]
    for i, record in enumerate(RECORDS):
        scores = score_example(tiny_base(), adapter(), index, Example((), record))
        leader = index.leaders[i]
        assert scores.best() == leader
        assert scores.cosine_ppm(leader) > 500_000
        shares = attribute(scores, owners, 300_000)
        assert shares.of(owners[leader]) > 500_000_000
        if leader != i:
            assert shares.of(owners[i]) == 0


def test_scores_are_the_same_through_files_shards_and_repetition(tmp_path: Path) -> None:
    tiny_index().save(tmp_path)
    prompt, output = RECORDS[1][:10], RECORDS[1][10:]
    expected = score(tiny_base(), adapter(), tiny_index(), prompt, output)
    assert score(tiny_base(), adapter(), Index.open(tmp_path), prompt, output) == expected
    sharded = build_index(tiny_base(), adapter(), RECORDS, shards=3)
    assert score(tiny_base(), adapter(), sharded, prompt, output) == expected
    assert all(type(v) is int for v in (*expected.values, *expected.rows.norms, expected.query_norm))


def test_an_empty_output_is_scored_as_its_end() -> None:
    scores = score(tiny_base(), adapter(), tiny_index(), RECORDS[0], ())
    assert scores == score_example(tiny_base(), adapter(), tiny_index(), Example(RECORDS[0], (), ends=True))
    assert scores.query_norm > 0


def test_an_index_of_another_adapter_is_refused() -> None:
    with pytest.raises(WrongIndex, match="another"):
        score(tiny_base(), adapter(seed=10), tiny_index(), (1,), (2,))
    with pytest.raises(WrongIndex, match="shapes"):
        score_example(tiny_base(), adapter(rank=2), tiny_index(), Example((), (1, 2)))


def test_the_calibrated_floor_is_just_above_every_calibration_text() -> None:
    texts = [tuple(f"{i} sheep and {i * i} goats".encode()) for i in range(8)]
    floor = calibrate_floor(tiny_base(), adapter(), tiny_index(), texts)
    owners = [b"x"] * len(RECORDS)
    for text in texts:
        scores = score_example(tiny_base(), adapter(), tiny_index(), Example((), text))
        assert attribute(scores, owners, floor).unattributed == 10**9
    assert 0 < floor < 1_000_000
    with pytest.raises(ValueError, match="too few"):
        calibrate_floor(tiny_base(), adapter(), tiny_index(), texts[:7])
