"""Whitening: Jacobi finds eigenvectors, reproducibly; products are the exact ones; weights are what the text says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution import exact
from attribution.gradients import FactorBatch, ModuleFactors
from attribution.whitening import (
    JACOBI_WIDTH_MAX,
    MOMENT_EXAMPLES_MAX,
    eigenvectors,
    factor_gradients,
    factor_shapes,
    narrow_moments,
    normalised,
    rotated,
    squares,
    tournament,
    weights,
)
from tests.profiles import examples


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


def test_rotation_is_the_exact_product_with_the_basis() -> None:
    gradients = factor_gradients(random_batch(3, [4, 2, 5]))
    bases = eigenvectors(torch.stack([narrow_moments(g) for g in gradients]))
    for g, b, r in zip(gradients, bases, rotated(gradients, list(bases)), strict=True):
        assert r.equal(exact.matmul(g.reshape(-1, 4), b).view(g.shape))


def test_normalised_examples_have_their_largest_entry_between_a_half_and_one() -> None:
    gradients = factor_gradients(random_batch(4, [3, 3, 6]))
    gradients = [torch.cat([g, torch.zeros_like(g[:1])]) for g in gradients]
    largest = torch.stack([g.flatten(1).abs().amax(1) for g in normalised(gradients)]).amax(0)
    assert bool(((largest[:3] >= 0.5) & (largest[:3] < 1.0)).all())
    assert largest[3] == 0.0


def test_moments_and_squares_of_shards_add_up_to_the_whole() -> None:
    gradients = normalised(factor_gradients(random_batch(5, [3, 1, 4, 2])))
    for g in gradients:
        assert narrow_moments(g).equal(narrow_moments(g[:1]) + narrow_moments(g[1:]))
        assert squares(g).equal(squares(g[:3]) + squares(g[3:]))


def test_moments_are_integers_that_may_pass_binary64() -> None:
    moment = narrow_moments(torch.ones(MOMENT_EXAMPLES_MAX, 1, 1))
    assert moment.dtype == torch.int64
    assert int(moment) == MOMENT_EXAMPLES_MAX * 2**24
    assert int(moment * 2**20 + 1) == MOMENT_EXAMPLES_MAX * 2**44 + 1  # odd, and beyond 2^53
    with pytest.raises(ValueError, match="4097 examples"):
        narrow_moments(torch.ones(MOMENT_EXAMPLES_MAX + 1, 1, 1))


def test_integers_are_rounded_to_binary64_before_they_are_rotated() -> None:
    small, large = spread_matrix(5, 1).to(torch.int64), spread_matrix(5, 1).to(torch.int64) * 2**30 + 1
    assert eigenvectors(small).equal(eigenvectors(small.double()))
    nearest = torch.tensor([[float(int(x)) for x in row] for row in large], dtype=torch.float64)
    assert eigenvectors(large).equal(eigenvectors(nearest))


def test_weights_are_the_damped_inverse_root_mean_square() -> None:
    sums = torch.tensor([[0, 1 << 20], [1 << 30, 1 << 44]], dtype=torch.int64)
    expected = (sums.double() + 0.1 * sums.double().mean()) ** -0.5
    np.testing.assert_allclose(weights(sums).double().numpy(), expected.numpy(), rtol=1e-6)
    assert weights(torch.zeros(2, 3, dtype=torch.int64)).equal(torch.zeros(2, 3))
