"""Sketched rows: the integers of the definition, whatever they are batched with, and inner products that survive."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution import exact
from attribution.signs import rounded_shift, scan
from attribution.sketch import (
    GOLDEN,
    WIDTH_MIN,
    WIDTH_SMALL,
    sketch_query,
    sketch_rows,
    sketched,
)
from attribution.whitening import FactorShape
from tests.profiles import examples

MASK = 2**64 - 1


def mix(z: int) -> int:
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def plain_sums(q: list[int], width: int) -> list[int]:
    """The definition, in plain integers."""
    sums = [0] * width
    for c, value in enumerate(q):
        z = mix((c + 1) * GOLDEN & MASK)
        sums[z >> 64 - (width.bit_length() - 1)] += value * (1 - 2 * (z & 1))
    return sums


def whitened(seed: int, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, wide, 4, generator=generator) for wide in (70, 129, 3)]


def test_the_first_places_of_splitmix64_are_its_published_numbers() -> None:
    assert mix(GOLDEN) == 0xE220A8397B1DCDAF
    assert mix(2 * GOLDEN & MASK) == 0x6E789E6AA1B965F4


@settings(max_examples=examples(10))
@given(st.integers(0, 10**6), st.sampled_from([WIDTH_MIN, 2 * WIDTH_MIN]))
def test_sums_are_those_of_the_definition_and_of_no_other_example(seed: int, width: int) -> None:
    parts = whitened(seed, 3)
    sums = sketched(parts, width)
    for i in range(3):
        alone = [x[i : i + 1] for x in parts]
        q = exact.quantise(torch.cat([x.flatten(1) for x in alone], 1))[0][0].to(torch.int64).tolist()
        assert sums[i].tolist() == plain_sums(q, width)
        assert sketched(alone, width)[0].tolist() == sums[i].tolist()


@settings(max_examples=examples(60))
@given(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=9), st.integers(0, 30))
def test_shifts_round_half_to_even(values: list[int], shift: int) -> None:
    expected = [round(Fraction(value, 1 << shift)) for value in values]
    assert rounded_shift(np.array(values, np.int64), shift).tolist() == expected


@pytest.mark.parametrize("bits", [2, 4, 14])
@pytest.mark.parametrize("largest", [0, 1, 3, 8191, 8192, 2**37])
def test_a_query_has_its_bits_and_no_more(bits: int, largest: int) -> None:
    sums = np.array([largest, -largest, largest // 2, 1, 0], np.int64)
    query, norm = sketch_query(sums, bits)
    assert int(np.abs(query).max()) <= 2 ** (bits - 1)
    assert norm == sum(int(p) ** 2 for p in query)
    if largest >= 2 ** (bits - 1):
        assert int(np.abs(query).max()) >= 2 ** (bits - 2)
    else:
        assert query.tolist() == sums.tolist()


def test_rows_are_scanned_like_any_others_and_find_themselves() -> None:
    sums = sketched(whitened(7, 12), WIDTH_MIN)
    rows, shape = sketch_rows(sums), FactorShape("sketch", WIDTH_MIN, 1)
    query, norm = sketch_query(sums[5])
    scores = scan(query, rows, np.ones((12, 1), np.uint32), [shape])
    plain = [sum(int(p) if y >= 0 else -int(p) for p, y in zip(query, row, strict=True)) for row in sums]
    assert scores == plain
    assert max(range(12), key=lambda i: scores[i]) == 5
    assert 5 * scores[5] ** 2 > 2 * WIDTH_MIN * norm


def test_cosines_of_coordinates_survive_within_the_noise_of_the_width() -> None:
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(1, 20_000, 4, generator=generator)
    b = 0.6 * a + 0.8 * torch.randn(1, 20_000, 4, generator=generator)
    x, y = (sketched([v], WIDTH_SMALL)[0].astype(float) for v in (a, b))
    cosine = float(x @ y / np.sqrt((x @ x) * (y @ y)))
    assert abs(cosine - 0.6) < 6 / WIDTH_SMALL**0.5


@pytest.mark.parametrize("width", [0, 1, 256, 513, 1 << 17])
def test_other_widths_are_refused(width: int) -> None:
    with pytest.raises(ValueError, match="sketch"):
        sketched(whitened(0, 1), width)


@pytest.mark.parametrize("bits", [1, 15])
def test_other_queries_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="bits"):
        sketch_query(np.zeros(4, np.int64), bits)
    with pytest.raises(ValueError, match="one example"):
        sketch_query(np.zeros((2, 4), np.int64))
