"""Each backend against the integer oracle where kernels go wrong: limb edges, chunk edges, signs, the ends of the range."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from attribution import exact
from attribution.exact import products
from attribution.exact.backends import function_cases
from attribution.exact.bits import row_power
from attribution.exact.oracle import float32_bits, float32_of
from attribution.exact.oracle_functions import oracle_exp, oracle_log, oracle_sigmoid, oracle_sqrt
from attribution.exact.quantisation import Block
from attribution.exact.random import uniform_integers
from attribution.linear import FP32_L1_MAX, WEIGHT_E_MAX, WEIGHT_E_MIN, Frozen
from tests.unit.attribution.test_exact_backends import bits, full_range

TOP = float(np.nextafter(np.float32(2.0**101), np.float32(0.0)))
TINY = 2.0**-149
# Both limbs at every end: h in {-64, -63, 0, 63, 64}, l in {-64, -1, 0, 1, 63, 64}; and ties between two limbs.
LIMB_EDGES = sorted({128 * h + low for h in (-64, -63, 0, 63, 64) for low in (-64, -63, -1, 0, 1, 63, 64)})
LIMB_EDGES = [q for q in LIMB_EDGES if abs(q) <= 8191]
# 128 * 63 + 63: both limbs odd and large, so that a sum of products of limbs soon needs more than 24 bits.
ODD = 8127.0


@pytest.fixture(autouse=True)
def _default_backend() -> Iterator[None]:
    yield
    exact.set_backend(None)


def agree(backend: str, a: Tensor, b: Tensor) -> None:
    assert bits(exact.matmul(a, b, backend=backend)) == bits(exact.oracle_matmul(a, b))


def test_limbs_stay_where_sixteen_bit_kernels_are_exact() -> None:
    q = torch.arange(-8192.0, 8193.0)
    h, low = products.limbs(q)
    assert torch.equal(128 * h + low, q)
    assert float(h.abs().max()) == float(low.abs().max()) == 64.0


@pytest.mark.parametrize("backend", exact.BACKENDS)
def test_every_pair_of_limb_edges_multiplies_exactly(backend: str) -> None:
    edges = torch.tensor(LIMB_EDGES, dtype=torch.float32)
    # An 8191 in each row fixes its grid at 1, so that the edges are the integers themselves.
    left = torch.stack([edges, torch.full_like(edges, 8191.0)], 1)
    agree(backend, left, left.t().contiguous())
    long = edges.repeat(5)[None]
    agree(backend, long, long.flip(1).t().contiguous())


@pytest.mark.parametrize("backend", exact.BACKENDS)
@pytest.mark.parametrize("chunk", [products.FP32_K_MAX, 2 * products.FP32_K_MAX, products.INT8_K_MAX])
@pytest.mark.parametrize("step", [-1, 0, 1])
def test_inner_widths_around_every_chunk_are_exact(backend: str, chunk: int, step: int) -> None:
    row = torch.full((1, chunk + step), ODD)
    row[0, ::7] = -8191.0
    agree(backend, row, torch.full((chunk + step, 1), ODD))


@pytest.mark.parametrize("backend", exact.BACKENDS)
def test_sums_of_one_sign_at_full_range_beyond_int32_are_exact(backend: str) -> None:
    """2^19 products of limbs at 64 * 64 are 2^31, which int32 does not hold."""
    row = torch.full((1, 1 << 19), 8191.0)
    expected = float32_of(Fraction((1 << 19) * 8191 * 8191))
    assert exact.matmul(row, row.t().contiguous(), backend=backend).tolist() == [[expected]]


def test_sums_of_small_limbs_longer_than_binary32_holds_are_exact() -> None:
    """63 * 63 is odd: 4228 of them pass 2^24, where binary32 holds even numbers only, and 8191 of them end on an odd one."""
    row = torch.full((1, 2 * products.FP32_K_MAX), 0.0)
    row[0, :8191] = ODD
    row[0, 8191] = 8191.0
    agree("fp32", row, row.t().contiguous())
    limb = torch.full((1, 8191), 63.0)
    exactly = products.product_fp32(limb, limb.t().contiguous())
    assert exactly.tolist() == [[63.0 * 63.0 * 8191.0]]


@pytest.mark.parametrize("backend", exact.BACKENDS)
def test_sums_of_one_sign_are_rounded_once(backend: str) -> None:
    """Combining limbs in binary32 gets a quarter of these wrong; numbers of both signs would hide it."""
    a, b = full_range("left", 8, 512).abs() + 1.0, full_range("right", 512, 8).abs() + 1.0
    agree(backend, a.clamp(max=8191.0), b.clamp(max=8191.0))


def test_every_piece_of_a_longer_sum_is_its_own_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the limit a product in one piece would be rounded on the way; no piece may be longer than the limit."""
    widths: list[int] = []

    def watched(qa: Tensor, qb: Tensor) -> Tensor:
        widths.append(qa.shape[1])
        return products.product_fp64(qa, qb)

    monkeypatch.setattr(products, "FP64_K_MAX", 100)
    monkeypatch.setitem(products.PRODUCTS, "fp64", ("cpu", watched))
    a, b = full_range("left", 2, 250), full_range("right", 250, 2)
    agree("fp64", a, b)
    assert widths == [100, 100, 50]


@pytest.mark.parametrize("step", [-1, 0, 1])
@pytest.mark.parametrize("backend", exact.BACKENDS)
def test_the_split_of_longer_sums_is_exact_around_its_edge(
    monkeypatch: pytest.MonkeyPatch, backend: str, step: int
) -> None:
    """Binary64's own limit is at 2^26, too long to try; the split is the same at 300."""
    monkeypatch.setattr(products, "FP64_K_MAX", 300)
    a, b = full_range("left", 2, 600 + step), full_range("right", 600 + step, 3)
    agree(backend, a, b)


@pytest.mark.parametrize("backend", exact.BACKENDS)
def test_the_ends_of_the_range_and_both_zeros(backend: str) -> None:
    values = [0.0, -0.0, TINY, -TINY, 2.0**-126, 2.0**-100, -(2.0**-99), 1.0, TOP, -TOP, 2.0**100]
    rows = torch.tensor(list(itertools.product(values, repeat=2)))
    columns = torch.tensor([[v, w] for v, w in zip(values, values[::-1], strict=True)]).t().contiguous()
    got = exact.matmul(rows, columns, backend=backend)
    assert bits(got) == bits(exact.oracle_matmul(rows, columns))
    assert not bool((torch.signbit(got) & (got == 0)).any())
    assert bool(got.isinf().any())  # the product of two huge numbers overflows, in the definition too


@pytest.mark.parametrize("backend", exact.BACKENDS)
def test_products_that_underflow_are_rounded_once_by_each_power_of_two(backend: str) -> None:
    """The definition multiplies by 2^ea and then by 2^eb: subnormal results are rounded there and nowhere else."""
    odd = torch.tensor([[3.0, 1.0], [8191.0, 5.0], [-8189.0, 7.0]])
    for left, right in ((-75, -68), (-99, -30), (-60, -89), (-99, -99)):
        agree(backend, odd * 2.0**left, odd.t().contiguous() * 2.0**right)


@pytest.mark.parametrize("backend", exact.BACKENDS)
@pytest.mark.parametrize("seed", range(6))
def test_random_shapes_with_rows_of_every_size_are_exact(backend: str, seed: int) -> None:
    m, k, n = (1 + int(v) for v in uniform_integers(seed, "shape", 3, 40))
    powers = uniform_integers(seed, "powers", m + n, 186) - 112.0
    a, b = full_range(f"a{seed}", m, k), full_range(f"b{seed}", k, n)
    a = (a.double() * torch.from_numpy(2.0 ** powers[:m])[:, None]).float()
    b = (b.double() * torch.from_numpy(2.0 ** powers[m:])[None]).float()
    a[uniform_integers(seed, "zero", 1, m)] = -0.0
    agree(backend, a, b)


@pytest.mark.parametrize("backend", exact.BACKENDS)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 2.0**101, -(2.0**101), 2.0**127])
def test_numbers_without_a_form_are_refused_on_either_side_in_any_place(backend: str, value: float) -> None:
    for place in (0, 5, 8):
        bad = full_range("bad", 3, 9)
        bad[1, place] = value
        fine = full_range("fine", 9, 2)
        with pytest.raises(exact.NotRepresentable):
            exact.matmul(bad, fine, backend=backend)
        with pytest.raises(exact.NotRepresentable):
            exact.matmul(fine.t().contiguous(), bad.t().contiguous(), backend=backend)


@pytest.mark.parametrize("size", [9, 1 << 15])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, -(2.0**101)])
def test_the_two_ways_of_finding_a_rows_maximum_refuse_the_same(size: int, value: float) -> None:
    x = torch.zeros(2, size)
    x[1, size // 2] = value
    for function in (exact.quantise, exact.fsum, exact.sum_of_squares, row_power):
        with pytest.raises(exact.NotRepresentable):
            function(x)
    x[1, size // 2] = -TOP
    assert row_power(x).flatten().tolist() == [2.0**-100, 2.0**100]


@pytest.mark.parametrize("columns", [FP32_L1_MAX // 64 + step for step in (-1, 0, 1)] + [65, 1000])
@pytest.mark.parametrize("backend", exact.BACKENDS)
def test_frozen_products_are_exact_around_the_bound_on_their_weights(backend: str, columns: int) -> None:
    """All weights at 64 and of one sign reach the bound on a binary32 part's L1 norm exactly at 32 of them."""
    exact.set_backend(backend)
    q = torch.full((columns, columns), 64, dtype=torch.int8)
    q[1::3] = 63
    q[::5, ::2] = -64
    e = (torch.arange(columns) % (WEIGHT_E_MAX - WEIGHT_E_MIN + 1) + WEIGHT_E_MIN).to(torch.int32)
    rows = torch.stack(
        [
            torch.full((columns,), 8191.0),
            torch.full((columns,), -ODD * 2.0**-112),
            torch.full((columns,), ODD * 2.0**87),
        ]
    )
    frozen, x = Frozen(q, e), Block.of(rows)
    wide = x.q.to(torch.int64) @ q.t().to(torch.int64)
    for i, row in enumerate(wide.tolist()):
        found = frozen.forward(Block(x.q[i : i + 1], x.scale[i : i + 1]))[0] + 0.0
        scale = math.log2(float(x.scale[i]))
        assert bits(found) == [_bits_of(s, int(scale) + int(w)) for s, w in zip(row, e, strict=True)]
    back = frozen.backward(x) + 0.0
    wide = x.q.to(torch.int64) @ q.to(torch.int64)
    scales = [int(math.log2(float(s))) for s in x.scale.flatten()]
    assert bits(back) == [_bits_of(int(s), scales[i]) for i, row in enumerate(wide.tolist()) for s in row]


def _bits_of(integer: int, exponent: int) -> int:
    return float32_bits(float32_of(Fraction(integer) * Fraction(2) ** exponent))


def test_every_function_is_its_definition_in_plain_numbers() -> None:
    for name, function, arguments, truth in function_cases():
        assert function(arguments).double().tolist() == truth, name


def test_functions_are_their_definition_over_their_whole_range() -> None:
    x = torch.from_numpy(np.concatenate([np.linspace(-90, 90, 4001), np.geomspace(1e-38, 1e-3, 500)])).float()
    for function, oracle in ((exact.exp, oracle_exp), (exact.sigmoid, oracle_sigmoid)):
        assert function(x).tolist() == [oracle(v) for v in x.tolist()]
    y = torch.from_numpy(uniform_integers(4, "patterns", 4000, 0x7F800000).astype(np.int32)).view(
        torch.float32
    )
    assert exact.sqrt(y).tolist() == [oracle_sqrt(v) for v in y.tolist()]
    normal = y[y >= 2.0**-126]
    assert exact.log(normal).tolist() == [oracle_log(v) for v in normal.tolist()]


def test_the_oracles_bits_are_those_of_the_format() -> None:
    patterns = uniform_integers(5, "patterns", 2000, 0x7F800001).astype(np.int32)
    values = patterns.view(np.float32).astype(float)
    assert [float32_bits(v) for v in values] == patterns.tolist()
    assert [float32_bits(-v) & 0xFFFFFFFF for v in values if v] == [
        p | 1 << 31 for p in patterns.tolist() if p
    ]
    assert float32_bits(-0.0) == 0


def test_the_start_up_check_sees_a_machine_that_flushes_subnormal_numbers() -> None:
    """The mode is the thread's: a library built with -ffast-math sets it for whoever loads it."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        reports = exact.selfcheck(exact.BACKENDS, strict=False)
    finally:
        torch.set_flush_denormal(False)
    assert {r.failed_case for r in reports} == {"underflow"}
    assert {r.failed_case for r in exact.selfcheck(exact.BACKENDS, strict=False)} == {None}
