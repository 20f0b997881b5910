from __future__ import annotations

import struct

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attribution import exact
from attribution.exact.bits import pow2
from attribution.exact.oracle import quantise_row
from attribution.exact.oracle_functions import (
    oracle_cos_sin,
    oracle_exp,
    oracle_fsum,
    oracle_log,
    oracle_sigmoid,
    oracle_sqrt,
    oracle_squares,
)
from tests.profiles import examples

LIMIT = struct.unpack("<f", struct.pack("<I", (227 << 23) | 0x7FFFFF))[0]
FLOATS = st.floats(min_value=-LIMIT, max_value=LIMIT, width=32, allow_nan=False) | st.sampled_from(
    [0.0, -0.0, 2.0**-149, -(2.0**-126), 2.0**-100, 64.0, -64.0, 8191.5, 8190.5, -8191.5, LIMIT, -LIMIT]
)


@st.composite
def matrices(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    m, k, n = draw(st.integers(0, 4)), draw(st.integers(0, 9)), draw(st.integers(0, 4))
    a = draw(st.lists(FLOATS, min_size=m * k, max_size=m * k))
    b = draw(st.lists(FLOATS, min_size=k * n, max_size=k * n))
    return torch.tensor(a, dtype=torch.float32).view(m, k), torch.tensor(b, dtype=torch.float32).view(k, n)


def equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


@settings(max_examples=examples(80))
@given(matrices())
def test_every_backend_is_the_oracle(pair: tuple[Tensor, Tensor]) -> None:
    truth = exact.oracle_matmul(*pair)
    for name in exact.BACKENDS:
        assert equal(exact.matmul(*pair, backend=name), truth)


@settings(max_examples=examples(80))
@given(st.lists(FLOATS, min_size=1, max_size=12))
def test_quantise_is_the_nearest_grid_point(values: list[float]) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    q, e = exact.quantise(x)
    integers, exponent = quantise_row(x.tolist())
    assert q.to(torch.int64).tolist() == integers
    assert int(e) == exponent
    assert float(q.abs().max()) <= 8192
    assert not bool((torch.signbit(q) & (q == 0)).any())


@settings(max_examples=examples(50))
@given(st.data(), st.lists(FLOATS, min_size=2, max_size=40))
def test_sums_ignore_order(data: st.DataObject, values: list[float]) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    order = torch.tensor(data.draw(st.permutations(range(len(values)))))
    assert torch.equal(exact.fsum(x), exact.fsum(x[order]))
    assert torch.equal(exact.sum_of_squares(x), exact.sum_of_squares(x[order]))


@settings(max_examples=examples(40))
@given(matrices(), st.integers(0, 9))
def test_integer_shards_of_the_contraction_sum_to_the_whole(pair: tuple[Tensor, Tensor], cut: int) -> None:
    a, b = pair
    (qa, ea), (qb, eb) = exact.quantise(a, 1), exact.quantise(b, 0)
    left, right = qa.to(torch.int64), qb.to(torch.int64)
    parts = left[:, :cut] @ right[:cut] + left[:, cut:] @ right[cut:]
    scaled = parts.double().float() * pow2(ea) * pow2(eb)
    assert equal(scaled + 0.0, exact.matmul(a, b))


@settings(max_examples=examples(60))
@given(st.lists(FLOATS, min_size=1, max_size=12))
def test_functions_and_sums_are_their_definition_in_plain_numbers(values: list[float]) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    numbers = x.tolist()
    assert exact.exp(x).tolist() == [oracle_exp(v) for v in numbers]
    assert exact.sigmoid(x).tolist() == [oracle_sigmoid(v) for v in numbers]
    assert exact.sqrt(x.abs()).tolist() == [oracle_sqrt(abs(v)) for v in numbers]
    assert float(exact.fsum(x)) == oracle_fsum(numbers)
    assert float(exact.sum_of_squares(x)) == oracle_squares(numbers)


@settings(max_examples=examples(60))
@given(st.lists(st.floats(min_value=2.0**-1022, max_value=2.0**1000), min_size=1, max_size=8))
def test_logarithms_and_angles_are_their_definition_in_plain_numbers(values: list[float]) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    assert exact.log(x).tolist() == [oracle_log(v) for v in values]
    angles = torch.tensor([v % 2.0**20 for v in values], dtype=torch.float64)
    cos, sin = exact.cos_sin(angles)
    assert list(zip(cos.tolist(), sin.tolist(), strict=True)) == [oracle_cos_sin(v) for v in angles.tolist()]
