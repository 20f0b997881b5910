"""The fused kernels give the bits of the torch paths, at every size and at the ends of the range, and refuse what those refuse."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attribution import exact
from attribution.attention import attention, attention_backward
from attribution.decoder import cross_entropy, rms_norm, rms_norm_backward, swiglu, swiglu_backward
from attribution.exact.quantisation import Block
from attribution.exact.random import uniform_integers
from attribution.generation import cache_of
from attribution.gradients import FactorBatch, ModuleFactors
from attribution.linear import Frozen, Lora, NarrowBlock, contract, group_backward, group_forward
from attribution.recipe import Recipe
from attribution.training import AdamW, clip
from attribution.whitening import Bases, FactorShape, Turning, moments
from attribution.whitening.gradients import factor_gradients
from tests.profiles import examples
from tests.unit.attribution.fused_cases import (
    EVERYDAY,
    POWERS,
    agree,
    drawn,
    needs_kernels,
    outcome,
    same,
    scaled,
)

SEEDS = st.integers(0, 1 << 20)


def frozen(seed: int, outs: int, width: int, bits: int, biased: bool) -> Frozen:
    top = 1 << (bits - 1)
    q = torch.from_numpy(uniform_integers(seed, "weights", outs * width, 2 * top + 1) - top).view(outs, width)
    e = torch.from_numpy(uniform_integers(seed, "exponents", outs, 7) - 6).to(torch.int32)
    return Frozen(
        q.to(torch.int8 if bits == 7 else torch.int16), e, drawn(seed, "bias", outs) if biased else None
    )


def group(weights: Frozen, lora: Lora | None, x: Tensor, dy: Tensor) -> list[Tensor]:
    block = Block.of(x)
    y, u, h = group_forward(weights, lora, block)
    g = group_backward(weights, lora, dy)
    parts = [weights.forward(block), weights.backward(Block.of(dy)), y, g.dx]
    if lora is not None and u is not None and h is not None and g.dh is not None and g.dh_scaled is not None:
        kept = NarrowBlock(block.q64, block.scale)
        parts += [u, h, g.dh, g.dh_scaled, *contract(lora, kept, h, g.dy, g.dh_scaled)]
    return parts


@st.composite
def adapted(draw: st.DrawFn) -> tuple[list[tuple[int, int]], int]:
    """Spans of adapted modules, in order and apart, and how many outputs there are."""
    edges = sorted(draw(st.sets(st.integers(0, 70), min_size=2, max_size=6)))
    pairs = list(zip(edges[::2], edges[1::2], strict=False))
    return pairs, max(edges) + draw(st.integers(0, 5))


@needs_kernels
@settings(max_examples=examples(60))
@given(
    SEEDS,
    st.integers(1, 20),
    st.integers(1, 75),
    adapted(),
    st.integers(1, 40),
    st.sampled_from([7, 14]),
    st.booleans(),
    POWERS,
    POWERS,
)
def test_a_group_of_layers_is_the_same_both_ways(
    seed: int,
    rows: int,
    width: int,
    places: tuple[list[tuple[int, int]], int],
    rank: int,
    bits: int,
    biased: bool,
    powers: list[int],
    back: list[int],
) -> None:
    spans, outs = places
    x, dy = scaled(drawn(seed, "x", rows, width), powers), scaled(drawn(seed, "dy", rows, outs), back)

    def compute() -> list[Tensor]:
        weights = frozen(seed, outs, width, bits, biased)
        a = scaled(drawn(seed, "a", rank * len(spans), width), [0, -3, 5])
        b = scaled(drawn(seed, "b", rank, sum(j - i for i, j in spans)), [1, -4])
        return group(weights, Lora(a, b, spans, 1.5, weights), x, dy)

    assert agree(compute)


@needs_kernels
@pytest.mark.parametrize("width", [4094, 4095, 4096, 9000])
@pytest.mark.parametrize("bits", [7, 14])
def test_sums_of_one_sign_beyond_int32_are_exact(width: int, bits: int) -> None:
    top = 1 << (bits - 1)
    q = torch.full((3, width), top, dtype=torch.int8 if bits == 7 else torch.int16)
    q[1] = -top

    def compute() -> list[Tensor]:
        weights = Frozen(q, torch.zeros(3, dtype=torch.int32))
        # One below a power of two rounds up to it: integers of 8192, the largest there are.
        x = torch.full((2, width), math.nextafter(1.0, 0.0), dtype=torch.float64).float()
        return [weights.forward(Block.of(torch.full((2, width), 0.99999994))), weights.forward(Block.of(x))]

    assert agree(compute)


@needs_kernels
@pytest.mark.parametrize("rank", [30, 31, 40])
def test_low_rank_sums_of_one_sign_beyond_int32_are_exact(rank: int) -> None:
    below = 0.99999994

    def compute() -> list[Tensor]:
        weights = frozen(0, 32, 16, 7, False)
        # One below a power of two rounds up to it: integers of 8192, the largest there are. Sixteen and thirty-two of them give a power of
        # two again, which the scale takes below it once more.
        lora = Lora(torch.full((rank, 16), below), torch.full((rank, 32), below), [(0, 32)], below, weights)
        return group(weights, lora, torch.full((3, 16), below), torch.full((3, 32), below))

    assert agree(compute)


@needs_kernels
@settings(max_examples=examples(40))
@given(
    SEEDS,
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.sampled_from([(1, 1), (2, 1), (3, 3), (4, 2)]),
    st.integers(1, 20),
    EVERYDAY | POWERS,
    EVERYDAY | POWERS,
)
def test_attention_is_the_same_both_ways(
    seed: int, lengths: list[int], shape: tuple[int, int], half: int, powers: list[int], back: list[int]
) -> None:
    (heads, kv), rows = shape, sum(lengths)
    spans = [(sum(lengths[:i]), sum(lengths[: i + 1])) for i in range(len(lengths))]
    x = scaled(drawn(seed, "qkv", rows, heads + 2 * kv, 2 * half), powers)
    do = scaled(drawn(seed, "do", rows, heads, 2 * half), back)

    def forward() -> list[Tensor]:
        return [attention(x, heads, spans, False)[0]]

    def both() -> list[Tensor]:
        o, kept = attention(x, heads, spans, True)
        return [o, attention_backward(do, kept)]

    def cached() -> list[Tensor]:
        cache, n = cache_of(kv, 2 * half, lengths[0], x.device), lengths[0]
        cuts = sorted({0, n // 3, min(n, n // 3 + 1), n})
        return [cache.attend(x[i:j].contiguous(), heads, i) for i, j in pairwise(cuts)]

    assert agree(forward)
    assert agree(both)
    assert agree(cached)


@needs_kernels
@settings(max_examples=examples(40))
@given(
    SEEDS,
    st.lists(st.integers(1, 70), min_size=1, max_size=3),
    st.integers(1, 40),
    st.integers(1, 9),
    EVERYDAY | POWERS,
    EVERYDAY | POWERS,
)
def test_gradients_of_examples_are_the_same_both_ways(
    seed: int, lengths: list[int], width: int, rank: int, powers: list[int], back: list[int]
) -> None:
    rows = sum(lengths)
    spans = tuple((sum(lengths[:i]), sum(lengths[: i + 1])) for i in range(len(lengths)))

    def side(label: str, columns: int, exponents: list[int]) -> Tensor:
        return scaled(drawn(seed, label, columns, rows), exponents).t().contiguous()

    x, u = side("x", width, powers), side("u", rank, back)
    dz, dh = side("dz", width + 3, back), side("dh", rank, powers)
    batch = FactorBatch((ModuleFactors("module", x, u, dz, dh),), spans, (0,) * len(spans), 1.0)
    assert agree(lambda: factor_gradients(batch))


@needs_kernels
@settings(max_examples=examples(40))
@given(
    SEEDS,
    st.integers(1, 4),
    st.lists(st.integers(1, 50), min_size=1, max_size=3),
    st.integers(1, 40),
    st.booleans(),
    EVERYDAY | POWERS,
    EVERYDAY | POWERS,
)
def test_turning_is_the_same_both_ways(
    seed: int, count: int, widths: list[int], rank: int, both: bool, powers: list[int], back: list[int]
) -> None:
    shapes = [FactorShape(f"f{i}", wide, rank) for i, wide in enumerate(widths)]
    gradients = [
        scaled(drawn(seed, f"g{i}", count * wide, rank), powers).view(count, wide, rank)
        for i, wide in enumerate(widths)
    ]

    def compute() -> list[Tensor]:
        narrow = [scaled(drawn(seed, f"n{i}", rank, rank), back) for i in range(len(widths))]
        sides = [scaled(drawn(seed, f"w{i}", wide, wide), back) for i, wide in enumerate(widths)]
        bases = [Bases(n, w if both else None) for n, w in zip(narrow, sides, strict=True)]
        return Turning(bases, shapes).turned(gradients)

    assert agree(compute)
    assert agree(lambda: [moments(g) for g in gradients])


@needs_kernels
@settings(max_examples=examples(60))
@given(SEEDS, st.integers(1, 9), st.integers(1, 60), POWERS, POWERS)
def test_what_lies_between_products_is_the_same_both_ways(
    seed: int, rows: int, width: int, powers: list[int], back: list[int]
) -> None:
    x, dy = scaled(drawn(seed, "x", rows, width), powers), scaled(drawn(seed, "dy", rows, width), back)
    wide, weight = scaled(drawn(seed, "wide", rows, 2 * width), powers), drawn(seed, "weight", width)

    def norms() -> list[Tensor]:
        y, saved = rms_norm(x, weight, 1e-5)
        return [y, *saved, rms_norm_backward(dy, weight, saved)]

    def mixing() -> list[Tensor]:
        out, s = swiglu(wide)
        return [out, s, swiglu_backward(dy, wide, s)]

    def loss() -> list[Tensor]:
        found = cross_entropy(scaled(x, [-3]).clamp(-1e6, 1e6), torch.arange(rows) % width, None)
        return [found.tokens, found.gradient]

    assert agree(norms)
    if max(powers) < 100:
        # Beyond, a gate may be infinite, and no product took it.
        assert agree(mixing)
    assert agree(loss)


@needs_kernels
@settings(max_examples=examples(30))
@given(SEEDS, st.integers(1, 300), POWERS, st.sampled_from([0, 10_000]))
def test_a_step_of_the_optimiser_is_the_same_both_ways(
    seed: int, size: int, powers: list[int], decay: int
) -> None:
    gradient = scaled(drawn(seed, "gradient", size, 1), powers).view(-1)

    def compute() -> list[Tensor]:
        p, g = drawn(seed, "parameters", size), gradient.clone()
        adamw = AdamW(Recipe(weight_decay_micro=decay), p)
        for _ in range(3):
            clip(g, 500_000)
            adamw.step(p, g, 3e-4)
        return [p, g, adamw.m, adamw.v]

    assert agree(compute)


@needs_kernels
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 2.0**101, -(2.0**101)])
@pytest.mark.parametrize("place", [0, 7, 8])
def test_one_number_without_a_form_refuses_its_row_in_every_kernel(value: float, place: int) -> None:
    x = drawn(0, "x", 3, 8, 6)
    x.view(-1)[place] = value
    flat, weight, weights = x.view(3, 48), torch.ones(48), frozen(0, 48, 48, 7, False)
    one = drawn(0, "one", 3, 8, 6)

    def backward() -> list[Tensor]:
        _, kept = attention(one, 4, [(0, 3)], True)
        return [attention_backward(x[:, :4].contiguous(), kept)]

    def norm_backward() -> list[Tensor]:
        _, saved = rms_norm(one.view(3, 48), weight, 1e-5)
        return [rms_norm_backward(flat, weight, saved)]

    for compute in (lambda: [rms_norm(flat, weight, 1e-5)[0]], lambda: [attention(x, 4, [(0, 3)], False)[0]]):
        assert outcome("fused", compute) == "NotRepresentable"
        assert agree(compute)
    for compute in (lambda: [group_backward(weights, None, flat * 128.0).dx], backward, norm_backward):
        assert agree(compute)


@pytest.mark.parametrize("backend", exact.BACKENDS)
def test_a_score_beyond_binary32_that_no_query_may_see_refuses_nothing(backend: str) -> None:
    """Key 1 times query 0 overflows; decoding never multiplies them, so running the whole text must not mind."""
    x = drawn(0, "hidden", 3, 3, 4)
    x[0, 0], x[1, 1], x[1, 0], x[2, 0] = 2.0**90, 2.0**90, 0.0, 0.0
    exact.set_backend(backend)
    try:
        whole, kept = attention(x, 1, [(0, 3)], True)
        cache = cache_of(1, 4, 3, x.device)
        steps = [cache.attend(x[i : i + 1].contiguous(), 1, i) for i in range(3)]
        assert same(whole.view(3, 4), torch.cat(steps))
        # Likewise value 1 times the gradient of output 0.
        x[1, 2] = 2.0**90
        _, kept = attention(x, 1, [(0, 3)], True)
        do = torch.zeros(3, 1, 4)
        do[0] = 2.0**90
        assert bool(attention_backward(do, kept).isfinite().all())
    finally:
        exact.set_backend(None)


@needs_kernels
def test_the_kernels_are_the_default_and_any_other_backend_is_the_torch_path() -> None:
    from attribution.exact.backends import family_for

    assert family_for(torch.device("cpu")) == "fused"
    for name in exact.BACKENDS:
        exact.set_backend(name)
        assert family_for(torch.device("cpu")) == name
    exact.set_backend(None)
