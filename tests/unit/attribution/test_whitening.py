"""Whitening: bases are found reproducibly; products are the exact ones; weights are what the text says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution import exact
from attribution.adapter import Adapter
from attribution.gradients import Example, FactorBatch, ModuleFactors, factors
from attribution.whitening import (
    MOMENT_EXAMPLES_MAX,
    RANK_MAX,
    RECORDS_MAX,
    WIDE_MAX,
    FactorShape,
    Turning,
    bases_of,
    example_gradients,
    factor_gradients,
    factor_shapes,
    flat_bases,
    moments,
    normalised,
    split_bases,
    squares,
    weights,
)
from attribution.whitening.gradients import STRENGTH
from attribution.whitening.narrow import JACOBI_WIDTH_MAX, eigenvectors, tournament
from attribution.whitening.weights import SQUARE_BITS, SQUARED_MAX
from attribution.whitening.wide import JITTER_EXPONENT, PIVOT_MIN, WIDE_TURNED_MAX, wide_bases
from tests.profiles import examples
from tests.unit.attribution.index_cases import RECORDS, adapter, tiny_base


def spread_matrix(width: int, seed: int) -> torch.Tensor:
    """A symmetric matrix of integers with well separated eigenvalues 1, 2, ..., width (times 2^20)."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.standard_normal((width, width)))
    m = q @ np.diag(np.arange(1.0, width + 1)) @ q.T
    return torch.from_numpy(np.rint((m + m.T) / 2 * 2**20))


@pytest.mark.parametrize("width", [2, 3, 8, 16, 33])
def test_jacobi_agrees_with_a_library_eigensolver(width: int) -> None:
    m = spread_matrix(width, width)
    v = eigenvectors(m).double()
    assert (v.T @ v - torch.eye(width)).abs().max() < 1e-6
    diagonal = v.T @ m @ v
    off = diagonal - torch.diag(diagonal.diagonal())
    assert off.abs().max() < 1e-5 * m.abs().max()
    values, library = np.linalg.eigh(m.numpy())
    order = np.argsort(diagonal.diagonal().numpy())
    np.testing.assert_allclose(diagonal.diagonal().numpy()[order], values, rtol=1e-6)
    overlap = np.abs(np.sum(v.numpy()[:, order] * library, axis=0))
    np.testing.assert_allclose(overlap, 1.0, atol=1e-5)


def test_jacobi_bits_are_pinned_and_do_not_depend_on_the_batch_or_threads() -> None:
    matrices = torch.stack([spread_matrix(16, seed) for seed in range(5)])
    together = eigenvectors(matrices)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        alone = torch.stack([eigenvectors(m) for m in matrices])
    finally:
        torch.set_num_threads(threads)
    assert together.view(torch.int32).equal(alone.view(torch.int32))
    hilbert = torch.tensor(
        [[float(2**30 // (i + j + 1)) for j in range(8)] for i in range(8)], dtype=torch.float64
    )
    digest = blake3(eigenvectors(hilbert).numpy().tobytes()).hexdigest()
    assert digest == "a8bfcea142fe3642ea8cd73653f6ac3d3dde6dfc9ce5680caafde8d89d91fffc"


def test_degenerate_matrices_keep_the_identity() -> None:
    for m in (torch.zeros(6, 6), torch.eye(6) * 3.0):
        assert eigenvectors(m.double()).equal(torch.eye(6))
    wide = spread_matrix(JACOBI_WIDTH_MAX + 1, 0)
    assert eigenvectors(wide).equal(torch.eye(JACOBI_WIDTH_MAX + 1))
    with pytest.raises(ValueError, match="square float64"):
        eigenvectors(torch.zeros(3, 4))


@given(st.integers(2, 40))
def test_every_pair_meets_once_a_sweep_and_rounds_are_disjoint(width: int) -> None:
    met = list[tuple[int, int]]()
    for p, q in tournament(width):
        assert len({*p, *q}) == len(p) + len(q)
        met.extend(zip(p, q, strict=True))
    assert sorted(met) == [(i, j) for i in range(width) for j in range(i + 1, width)]


def random_batch(seed: int, lengths: list[int]) -> FactorBatch:
    rows = sum(lengths)
    generator = torch.Generator().manual_seed(seed)

    def side(width: int) -> torch.Tensor:
        return torch.randn(rows, width, generator=generator) * 2.0 ** torch.randint(
            -9, 9, (rows, 1), generator=generator
        )

    modules = tuple(ModuleFactors(f"m{i}", side(6 + i), side(4), side(9), side(4)) for i in range(2))
    stops = np.cumsum(lengths).tolist()
    spans = tuple((stop - n, stop) for stop, n in zip(stops, lengths, strict=True))
    return FactorBatch(modules, spans, (0,) * len(lengths), 2.0)


@settings(max_examples=examples(20))
@given(st.integers(0, 10**6), st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_gradients_are_the_exact_product_of_each_examples_own_tokens(seed: int, lengths: list[int]) -> None:
    batch = random_batch(seed, lengths)
    gradients = factor_gradients(batch)
    shapes = factor_shapes(batch)
    assert [tuple(g.shape[1:]) for g in gradients] == [(s.wide, s.rank) for s in shapes]
    for i, (start, stop) in enumerate(batch.spans):
        for k, m in enumerate(batch.modules):
            assert gradients[2 * k][i].equal(exact.matmul(m.dz[start:stop].T.contiguous(), m.u[start:stop]))
            assert gradients[2 * k + 1][i].equal(
                exact.matmul(m.x[start:stop].T.contiguous(), m.dh[start:stop])
            )


def test_turning_is_the_exact_product_with_both_bases() -> None:
    batch = random_batch(3, [4, 2, 5])
    gradients, shapes = factor_gradients(batch), factor_shapes(batch)
    bases = bases_of([moments(g) for g in gradients], shapes)
    for g, b, found in zip(gradients, bases, Turning(bases, shapes).turned(gradients), strict=True):
        assert b.wide is not None
        once = exact.matmul(g.reshape(-1, 4), b.narrow).view(g.shape)
        for i, example in enumerate(once):
            assert found[i].equal(exact.matmul(b.wide, example))


def test_how_many_factors_are_taken_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = random_batch(8, [3, 1, 4])
    gradients, shapes = factor_gradients(batch), factor_shapes(batch)
    bases = bases_of([moments(g) for g in gradients], shapes)
    expected = Turning(bases, shapes).turned(gradients)
    for room in (1, 200):
        monkeypatch.setattr("attribution.whitening.bases._QUANTISED_AT_ONCE", room)
        turning = Turning(bases, shapes)
        monkeypatch.setattr("attribution.whitening.gradients._NUMBERS_AT_ONCE", room)
        monkeypatch.setattr("attribution.whitening.bases._NUMBERS_AT_ONCE", room)
        assert all(a.equal(b) for a, b in zip(factor_gradients(batch), gradients, strict=True))
        assert all(a.equal(b) for a, b in zip(turning.turned(gradients), expected, strict=True))


def test_bases_lie_in_their_file_as_they_are() -> None:
    batch = random_batch(6, [2, 3])
    gradients, shapes = factor_gradients(batch), factor_shapes(batch)
    bases = bases_of([moments(g) for g in gradients], shapes)
    again = split_bases(flat_bases(bases), shapes, torch.device("cpu"))
    for b, a in zip(bases, again, strict=True):
        assert a.wide is not None
        assert b.wide is not None
        assert a.narrow.equal(b.narrow)
        assert a.wide.equal(b.wide)


def positive(width: int, seed: int) -> torch.Tensor:
    """Moments of integers whose directions differ much in size."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(width, 3 * width, generator=generator) * torch.logspace(0, -2, width)[:, None]
    whole = (rows[torch.randperm(width, generator=generator)] * 2**12).round().double()
    return whole @ whole.T


@pytest.mark.parametrize("width", [1, 2, 7, 33, 128])
def test_the_wide_basis_turns_a_moment_towards_its_diagonal_largest_first(width: int) -> None:
    m = positive(width, width)
    basis = wide_bases(m).double()
    assert (basis @ basis.T - torch.eye(width)).abs().max() < 1e-6
    after = basis @ m @ basis.T

    def off(x: torch.Tensor) -> float:
        return float((x - torch.diag(x.diagonal())).norm() / x.norm())

    assert off(after) <= 0.6 * off(m)
    assert after.diagonal()[0] >= 0.8 * torch.linalg.eigvalsh(m)[-1]


def in_plain_numbers(moment: list[list[float]]) -> list[list[float]]:
    """`wide_bases` of one matrix, number by number, as docs/attribution.md has it."""
    n = len(moment)
    order = sorted(range(n), key=lambda i: (-moment[i][i], i))
    largest = moment[order[0]][order[0]]
    unit = 2.0 ** -math.frexp(largest)[1] if largest > 0 else 2.0**-1
    c = [[moment[i][j] * unit for j in order] for i in order]
    total = 0.0
    for i in range(n):
        total += c[i][i]
    for i in range(n):
        c[i][i] += total * 2.0**JITTER_EXPONENT / n

    def chol(a: list[list[float]]) -> list[list[float]]:
        a, low = [row[:] for row in a], [[0.0] * n for _ in range(n)]
        for j in range(n):
            root = float(np.sqrt(np.float32(max(a[j][j], PIVOT_MIN))))
            low[j][j] = root
            for i in range(j + 1, n):
                low[i][j] = a[i][j] / root
            for i in range(j + 1, n):
                for k in range(j + 1, n):
                    a[i][k] -= low[i][j] * low[k][j]
        return low

    def product(a: list[list[float]], b: list[list[float]]) -> list[list[float]]:
        out = [[0.0] * n for _ in range(n)]
        for j in range(n):
            for i in range(j + 1):
                for k in range(j + 1):
                    out[i][k] += a[j][i] * b[j][k]
        return out

    first = chol(c)
    second = chol(product(first, first))
    inverse = [[float(i == k) for k in range(n)] for i in range(n)]
    for j in range(n):
        for k in range(j + 1):
            inverse[j][k] /= first[j][j]
        for i in range(j + 1, n):
            for k in range(j + 1):
                inverse[i][k] -= first[i][j] * inverse[j][k]
    found, out = product(second, inverse), [[0.0] * n for _ in range(n)]
    for k, place in enumerate(order):
        for i in range(n):
            out[i][place] = float(np.float32(found[i][k]))
    return out


@settings(max_examples=examples(30))
@given(st.integers(1, 9), st.integers(0, 10**6))
def test_the_wide_basis_is_what_the_text_says_number_by_number(width: int, seed: int) -> None:
    m = positive(width, seed)
    assert wide_bases(m).equal(torch.tensor(in_plain_numbers(m.tolist()), dtype=torch.float32))


def test_wide_bits_are_pinned_and_do_not_depend_on_the_batch_or_threads() -> None:
    matrices = torch.stack([positive(24, seed) for seed in range(5)])
    together = wide_bases(matrices)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        alone = torch.stack([wide_bases(m) for m in matrices])
    finally:
        torch.set_num_threads(threads)
    assert together.view(torch.int32).equal(alone.view(torch.int32))
    hilbert = torch.tensor(
        [[float(2**30 // (i + j + 1)) for j in range(8)] for i in range(8)], dtype=torch.float64
    )
    digest = blake3(wide_bases(hilbert).numpy().tobytes()).hexdigest()
    assert digest == "f157f55ceb0c8baa4f4c062c73102c0f23d552e07312bdcda1d8201efe7a6ddc"


def test_moments_without_a_direction_turn_nothing() -> None:
    assert wide_bases(torch.zeros(5, 5, dtype=torch.float64)).equal(torch.eye(5))
    assert wide_bases(torch.eye(5, dtype=torch.float64) * 9.0).allclose(torch.eye(5))
    # One direction alone: all others are as good as each other, and what comes out is still orthonormal.
    line = torch.ones(5, 5, dtype=torch.float64) * 2.0**40
    basis = wide_bases(line).double()
    assert (basis @ basis.T - torch.eye(5)).abs().max() < 1e-5
    assert basis[0].abs().allclose(torch.full((5,), 5**-0.5, dtype=torch.float64), atol=1e-3)


def test_a_side_too_wide_is_not_turned() -> None:
    shape = FactorShape("x", WIDE_TURNED_MAX + 1, 2)
    gradient = torch.randn(2, *(shape.wide, shape.rank), generator=torch.Generator().manual_seed(0))
    found = moments(gradient)
    assert found.numel() == 4
    (basis,) = bases_of([found], [shape])
    assert basis.wide is None
    (result,) = Turning([basis], [shape]).turned([gradient])
    assert result.equal(exact.matmul(gradient.reshape(-1, 2), basis.narrow).view(gradient.shape))


def test_gradients_are_taken_on_the_way_and_not_of_queries_and_keys() -> None:
    example = Example((), RECORDS[0])
    shapes, found = example_gradients(tiny_base(), adapter(), [example])
    kinds = {shape.name.split(".")[-2] for shape in shapes}
    assert kinds == {"v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    weaker = factors(tiny_base(), adapter().weakened(STRENGTH), [example])
    assert all(a.equal(b) for a, b in zip(found, factor_gradients(weaker), strict=True))
    end = factor_gradients(factors(tiny_base(), adapter(), [example]))
    assert not found[0].equal(end[0])


def test_an_adapter_of_queries_and_keys_alone_is_taken_as_it_is() -> None:
    whole = adapter()
    few = Adapter(
        whole.rank, whole.alpha, tuple(m for m in whole.modules if m.name.endswith(("q_proj", "k_proj")))
    )
    shapes, found = example_gradients(tiny_base(), few, [Example((), RECORDS[0])])
    assert len(shapes) == len(found) == 2 * len(few.modules)


def test_normalised_examples_have_their_largest_entry_between_a_half_and_one() -> None:
    gradients = factor_gradients(random_batch(4, [3, 3, 6]))
    gradients = [torch.cat([g, torch.zeros_like(g[:1])]) for g in gradients]
    largest = torch.stack([g.flatten(1).abs().amax(1) for g in normalised(gradients)]).amax(0)
    assert bool(((largest[:3] >= 0.5) & (largest[:3] < 1.0)).all())
    assert largest[3] == 0.0


def test_moments_and_squares_of_shards_add_up_to_the_whole() -> None:
    gradients = normalised(factor_gradients(random_batch(5, [3, 1, 4, 2])))
    for g in gradients:
        assert moments(g).equal(moments(g[:1]) + moments(g[1:]))
        assert squares(g).equal(squares(g[:3]) + squares(g[3:]))


def test_moments_are_integers_that_may_pass_binary64() -> None:
    narrow, wide = moments(torch.ones(MOMENT_EXAMPLES_MAX, 1, 1)).tolist()
    assert narrow == wide == MOMENT_EXAMPLES_MAX * 2**24
    moment = moments(torch.ones(MOMENT_EXAMPLES_MAX, 1, 1))
    assert moment.dtype == torch.int64
    assert int(moment[0] * 2**20 + 1) == MOMENT_EXAMPLES_MAX * 2**44 + 1  # odd, and beyond 2^53
    with pytest.raises(ValueError, match="4097 examples"):
        moments(torch.ones(MOMENT_EXAMPLES_MAX + 1, 1, 1))


def test_integers_are_rounded_to_binary64_before_they_are_turned() -> None:
    shape, large = FactorShape("x", 1, 5), spread_matrix(5, 1).to(torch.int64) * 2**30 + 1
    (basis,) = bases_of([torch.cat([large.flatten(), torch.tensor([1])])], [shape])
    nearest = torch.tensor([[float(int(x)) for x in row] for row in large], dtype=torch.float64)
    assert basis.narrow.equal(eigenvectors(nearest))


def test_sums_of_the_largest_index_stay_within_their_integers() -> None:
    """What `moments` and `squares` say of their bounds."""
    assert 2**26 * max(WIDE_MAX, RANK_MAX) * RECORDS_MAX < 2**63
    assert 2**26 * max(WIDE_MAX, RANK_MAX) * MOMENT_EXAMPLES_MAX <= 2**53
    assert SQUARED_MAX**2 * RECORDS_MAX < 2**63


def test_a_coordinate_beyond_the_grid_counts_as_its_end() -> None:
    end = SQUARED_MAX / 2**SQUARE_BITS
    found = squares(torch.tensor([[[end * 5], [-end * 5], [end], [1.0]]]))
    assert found.flatten().tolist() == [SQUARED_MAX**2] * 3 + [2 ** (2 * SQUARE_BITS)]


def test_weights_are_the_damped_inverse_root_mean_square() -> None:
    sums = torch.tensor([[0, 1 << 20], [1 << 30, 1 << 44]], dtype=torch.int64)
    expected = (sums.double() + 0.1 * sums.double().mean()) ** -0.5
    np.testing.assert_allclose(weights(sums).double().numpy(), expected.numpy(), rtol=1e-6)
    assert weights(torch.zeros(2, 3, dtype=torch.int64)).equal(torch.zeros(2, 3))
