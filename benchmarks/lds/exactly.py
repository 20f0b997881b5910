"""A prototype of the better method in exact arithmetic: the same integers on every machine.

What is new beside the shipped engine (docs/attribution.md, "Linear datamodelling score"): gradients are summed over several
states of the adapter, the wide side is turned, too, coordinates are weighed by their consistency. Sums run over integers, or in
binary64 elementwise in a written order; no library's factorisation or product of floats is used.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attribution import exact
from attribution.adapter import Adapter
from attribution.exact.bits import pow2
from attribution.exact.elementary import divide_
from attribution.gradients import Example, factors
from attribution.merkle import DIGEST_BYTES
from attribution.model import Base
from attribution.signs import (
    integer_query,
    integer_scales,
    mean_magnitudes,
    pack_signs,
    row_norms,
    scan,
    sign_bytes,
)
from attribution.whitening import (
    FactorShape,
    eigenvectors,
    factor_gradients,
    factor_shapes,
    narrow_moments,
    normalised,
    rotated,
    squares,
)
from benchmarks.lds.network import as_adapter
from benchmarks.lds.ours import FEW, MIDDLE, mean_of_run
from benchmarks.lds.work import Scored, Work

WIDE_ROTATED_MAX = 512
"""Above this width the wide side is not turned (the basis is the identity), as the narrow one above its own limit."""
JITTER_EXPONENT = -10
RECORDS_AT_ONCE = 16
DAMPING = 0.1
EXACT = "3 states, consistent, triangular; query at the mean adapter (exact)"


@dataclass(frozen=True)
class Bases:
    """Of every factor kept: its place among all, its narrow (r, r) and wide (w, w) basis, weights (w, r), its shape."""

    chosen: tuple[int, ...]
    narrow: list[Tensor]
    wide: list[Tensor]
    weights: list[Tensor]
    shapes: tuple[FactorShape, ...]


def per_state(
    base: Base, adapters: Sequence[Adapter], ids: Sequence[Sequence[int]], chosen: Sequence[int]
) -> list[list[Tensor]]:
    """Gradients (examples, wide, rank) of the chosen factors at every state, as the engine defines them."""
    examples = [Example((), tuple(row)) for row in ids]
    out = []
    for adapter in adapters:
        found = factor_gradients(factors(base, adapter, examples))
        out.append([found[f] for f in chosen])
    return out


def summed(states: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Sum over the states in their order, one rounding each: the average but for a factor that nothing depends on."""
    total = [g + 0.0 for g in states[0]]
    for state in states[1:]:
        total = [a + b for a, b in zip(total, state, strict=True)]
    return total


def wide_moments(gradient: Tensor) -> Tensor:
    """Second moment of the wide side over examples and narrow coordinates: float64 integers (wide, wide).

    As `narrow_moments`: each example's factor is one row of 14-bit integers, so products are at most 2^26 and, with a rank of at most 2^8
    and 2^12 records, sums at most 2^46: exact in binary64 in any order.
    """
    q = exact.quantise(gradient.flatten(1))[0].double().view(gradient.shape)
    tall = q.transpose(0, 1).flatten(1)
    return tall @ tall.T


def cholesky(a: Tensor) -> Tensor:
    """Lower factor (..., n, n) of positive matrices in binary64, right-looking, elementwise; roots are binary32's.

    Column j is divided by s = sqrt32(fl32(a_jj)); then a_ik <- a_ik - l_ij l_kj, product and difference rounded once each. A
    pivot below 2^-20 is taken as 2^-20.
    """
    a = a.clone()
    n = a.shape[-1]
    lower = torch.zeros_like(a)
    for j in range(n):
        root = exact.sqrt(a[..., j, j].clamp_min(2.0**-20).float()).double()
        column = a[..., j:, j] / root[..., None]
        column[..., 0] = root
        lower[..., j:, j] = column
        a[..., j:, j:] -= column[..., :, None] * column[..., None, :]
    return lower


def inverse(lower: Tensor) -> Tensor:
    """Inverse of lower triangular matrices by forward substitution, elementwise in binary64."""
    n = lower.shape[-1]
    out = torch.eye(n, dtype=torch.float64).expand_as(lower).clone()
    for j in range(n):
        out[..., j, : j + 1] = out[..., j, : j + 1] / lower[..., j, j, None]
        out[..., j + 1 :, : j + 1] -= lower[..., j + 1 :, j, None] * out[..., j, None, : j + 1]
    return out


def transposed_product(a: Tensor, b: Tensor) -> Tensor:
    """a^T b of lower triangular matrices: outer products of their rows added in order, elementwise in binary64."""
    total = torch.zeros_like(a)
    for j in range(a.shape[-1]):
        total[..., : j + 1, : j + 1] += a[..., j, : j + 1, None] * b[..., j, None, : j + 1]
    return total


def wide_bases(moments: Tensor) -> Tensor:
    """Nearly the eigenvectors of moments, as rows: float32 (..., wide, wide); two steps of the Cholesky (LR) iteration.

    Coordinates in descending order of the diagonal (ties by place); the matrix scaled by the power of two that brings its largest entry
    into [1/2, 1), plus 2^-10 of its mean diagonal. The result is L2^T L1^-1 with C = L1 L1^T, L1^T L1 = L2 L2^T.
    """
    n = moments.shape[-1]
    if n > WIDE_ROTATED_MAX:
        return torch.eye(n).expand_as(moments).clone()
    diagonal = torch.diagonal(moments, dim1=-2, dim2=-1)
    order = torch.argsort(diagonal, dim=-1, descending=True, stable=True)
    c = torch.gather(moments, -2, order[..., :, None].expand_as(moments))
    c = torch.gather(c, -1, order[..., None, :].expand_as(moments))
    # Integers below 2^53; their power of two is that of the largest, on the diagonal.
    largest = torch.gather(diagonal, -1, order[..., :1])
    exponent = np.frexp(torch.where(largest > 0, largest, 1.0).numpy())[1]
    unit = torch.from_numpy(np.ldexp(1.0, -exponent))
    c = c * unit[..., None]
    total = torch.zeros_like(unit[..., 0])
    for j in range(n):
        total = total + c[..., j, j]
    jitter = total * 2.0**JITTER_EXPONENT / n
    c = c + torch.eye(n, dtype=torch.float64) * jitter[..., None, None]
    first = cholesky(c)
    second = cholesky(transposed_product(first, first))
    turned = transposed_product(second, inverse(first))
    # A permutation of columns: gather, no arithmetic.
    back = torch.argsort(order, dim=-1, stable=True)
    return torch.gather(turned, -1, back[..., None, :].expand_as(turned)).float() + 0.0


def turned(gradients: Sequence[Tensor], narrow: Sequence[Tensor], wide: Sequence[Tensor]) -> list[Tensor]:
    """Both sides turned: `rotated` on the narrow one, then integer products of 14-bit numbers along the wide one."""
    out = []
    for g, basis in zip(rotated(gradients, narrow), wide, strict=True):
        q, e = exact.quantise(g, 1)
        qb, eb = exact.quantise(basis)
        # At most 2^26 * 2^15 wide: exact in binary64.
        product = torch.matmul(qb.double(), q.double()).float()
        out.append((product * pow2(e) * pow2(eb)).add_(0.0))
    return out


def weigh(moment: Tensor, single: Tensor, states: int) -> Tensor:
    """Weights (wide, rank) from integer sums of squares: of the summed gradients, and of the states' own, both on one grid.

    fl(1 / sqrt32(m + 0.1 mean m)) times fl(m / (k s)), k states: whitening, and the part of the coordinate that the states agree on.
    """
    own, apart = (torch.from_numpy(x.numpy().astype("float64")) for x in (moment, single))
    mean = divide_(exact.fsum(own.float().flatten()), float(own.numel()))
    damped = (own + mean * DAMPING).float()
    white = torch.where(damped > 0, 1.0 / exact.sqrt(torch.where(damped > 0, damped, 1.0)), 0.0)
    below = (apart * float(states)).float()
    agreed = torch.where(below > 0, own.float() / torch.where(below > 0, below, 1.0), 0.0)
    return white * agreed + 0.0


def build(
    base: Base, adapters: Sequence[Adapter], records: Sequence[Sequence[int]], without: Sequence[str]
) -> tuple[Bases, list[Tensor]]:
    """Bases and weights, and the whitened coordinates of every record. Integers are summed, so shards and order are free."""
    first = factor_shapes(factors(base, adapters[0], [Example((), tuple(records[0]))]))
    chosen = tuple(f for f, s in enumerate(first) if s.name.split(".")[-2] not in without)
    shapes = tuple(first[f] for f in chosen)
    kept = list[list[list[Tensor]]]()
    narrow = list[Tensor]()
    wide = list[Tensor]()
    for at in range(0, len(records), RECORDS_AT_ONCE):
        states = per_state(base, adapters, records[at : at + RECORDS_AT_ONCE], chosen)
        kept.append(states)
        total = summed(states)
        narrow = _added(narrow, [narrow_moments(g) for g in total])
        wide = _added(wide, [wide_moments(g) for g in total])
    bases = list(eigenvectors(torch.stack(narrow)))
    tops = [torch.zeros(0)] * len(wide)
    for width in {len(m) for m in wide}:
        same = [f for f, m in enumerate(wide) if len(m) == width]
        for f, basis in zip(same, wide_bases(torch.stack([wide[f] for f in same])), strict=True):
            tops[f] = basis
    moment, single, parts = list[Tensor](), list[Tensor](), list[list[Tensor]]()
    for states in kept:
        total = summed(states)
        factor = _powers(total)
        parts.append(turned([g * factor for g in total], bases, tops))
        moment = _added(moment, [squares(h) for h in parts[-1]])
        for state in states:
            single = _added(single, [squares(h) for h in turned([g * factor for g in state], bases, tops)])
    found = [weigh(m, s, len(adapters)) for m, s in zip(moment, single, strict=True)]
    rows = [torch.cat([p[f] for p in parts]) * w for f, w in enumerate(found)]
    return Bases(chosen, bases, tops, found, shapes), rows


def ask(base: Base, adapters: Sequence[Adapter], bases: Bases, ids: Sequence[int]) -> list[Tensor]:
    """A query's whitened coordinates, its gradient summed over these adapters (one: the mean adapter of the run)."""
    total = normalised(summed(per_state(base, adapters, [ids], bases.chosen)))
    return [h * w for h, w in zip(turned(total, bases.narrow, bases.wide), bases.weights, strict=True)]


def _powers(gradients: Sequence[Tensor]) -> Tensor:
    """The powers of two (examples, 1, 1) of `normalised`, to scale the states' own gradients alike."""
    largest = torch.stack([g.flatten(1).abs().amax(1) for g in gradients], 1)
    return pow2(-(exact.quantise(largest)[1] + 13))[:, :, None]


def _added(sums: list[Tensor], more: Sequence[Tensor]) -> list[Tensor]:
    return [a + b for a, b in zip(sums, more, strict=True)] if sums else list(more)


def exactly(work: Work) -> Scored:
    """The prototype's scores: signs of every coordinate, integer queries, `attribution.signs.scan`."""
    adapters = [as_adapter(work.network, work.checkpoints[k].state) for k in MIDDLE]
    mean = as_adapter(work.network, mean_of_run(work))
    started = time.process_time()
    bases, rows = build(work.base, adapters, work.records, FEW)
    signs = np.concatenate([pack_signs(x) for x in rows], axis=1)
    scales = integer_scales(mean_magnitudes(rows), bases.shapes)
    built = time.process_time() - started
    norms = np.sqrt(np.array(row_norms(scales, bases.shapes), np.float64))
    started = time.process_time()
    scores, cosines = [], []
    for ids in work.asked:
        query, norm = integer_query(ask(work.base, [mean], bases, ids))
        scores.append(
            np.array(scan(query, signs, scales, bases.shapes), np.float64) / np.where(norms > 0, norms, 1)
        )
        cosines.append(scores[-1] / max(1.0, float(norm)) ** 0.5)
    asked = (time.process_time() - started) / len(scores)
    size = DIGEST_BYTES + sum(4 + sign_bytes(s) for s in bases.shapes)
    return Scored(
        EXACT,
        np.array(scores),
        size,
        built,
        1000 * asked,
        cosines=np.array(cosines),
    )
