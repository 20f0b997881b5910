"""Reproducible whitening of LoRA gradients: bases and weights as a pure function of the records.

This is eigenvalue-corrected Kronecker factoring (EK-FAC: George et al. 2018, arXiv 1806.03884; for influence: Grosse
et al. 2023, arXiv 2308.03296) on LoRA's own factors, in exact arithmetic. A LoRA module ``y = W x + s B (A x)`` gives
an example two gradients, each summed over its tokens, and each the product of a wide and a narrow side::

    factor "B":  dB   = sum_t dz_t (A x_t)^T      wide = outputs, narrow = rank
    factor "A":  dA^T = sum_t x_t (B^T dz_t)^T    wide = inputs,  narrow = rank

`factor_gradients` gives them as (examples, wide, rank). The narrow side is rotated by the eigenvectors of its second
moment over the records, found by a fixed number of parallel Jacobi sweeps (`eigenvectors`); every rotated coordinate
is then divided by the root of its own mean square over the records, damped (`weights`). The wide side is not rotated:
its coordinates are whitened one by one by the same division.

Nothing depends on order, shards or devices: sums over tokens, coordinates and records are integer sums, the rest is
elementwise arithmetic rounded once (docs/attribution.md, "Whitening", states every grid and bound).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attribution import exact
from attribution.exact.bits import pow2
from attribution.exact.elementary import divide_

if TYPE_CHECKING:
    from attribution.gradients import FactorBatch

JACOBI_SWEEPS = 10
JACOBI_WIDTH_MAX = 64
"""Above this rank the narrow side, too, is only whitened by its diagonal (the basis is the identity)."""

RECORDS_MAX = 100_000
"""Records that one index may have: the sums of `squares` are exact in int64 for that many (see there)."""
MOMENT_EXAMPLES_MAX = 1 << 12
"""Examples of one call of `narrow_moments`, whose sum is then exact in binary64."""
WIDE_MAX = 1 << 15
RANK_MAX = 1 << 8
GRID_BITS = 13
SQUARE_BITS = 20
DAMPING = 0.1
"""Share of the factor's mean squared coordinate that is added to each coordinate's own."""


@dataclass(frozen=True, slots=True)
class FactorShape:
    """Name ("<module>.B" or "<module>.A") and shape of one gradient factor."""

    name: str
    wide: int
    rank: int

    @property
    def coordinates(self) -> int:
        """Number of entries, wide * rank."""
        return self.wide * self.rank


def factor_shapes(batch: FactorBatch) -> tuple[FactorShape, ...]:
    """Two factors per module, in the module's order: "B" (outputs x rank), then "A" (inputs x rank)."""
    shapes = []
    for module in batch.modules:
        shapes.append(FactorShape(f"{module.name}.B", module.dz.shape[1], module.u.shape[1]))
        shapes.append(FactorShape(f"{module.name}.A", module.x.shape[1], module.dh.shape[1]))
    return tuple(shapes)


def factor_gradients(batch: FactorBatch) -> list[Tensor]:
    """Per factor the gradients of every example, float32 (examples, wide, rank), on the batch's device.

    Each is `exact.matmul` of the example's own tokens: both sides quantised along tokens to 14 bits, the integer
    products summed exactly, one rounding. Examples are padded with zero tokens, which change neither.
    """
    gather, mask = _padding(batch.spans, batch.modules[0].x.device)
    gradients = []
    for module in batch.modules:
        sides = (module.dz, module.u, module.x, module.dh)
        q, scale = _quantised_tokens(torch.cat(sides, 1), gather, mask)
        widths = [side.shape[1] for side in sides]
        dz, u, x, dh = zip(torch.split(q, widths, 2), torch.split(scale, widths, 2), strict=True)
        gradients.append(_token_product(dz, u))
        gradients.append(_token_product(x, dh))
    return gradients


def _padding(spans: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Row numbers (examples, longest) into the concatenated tokens, and a 0/1 mask of real tokens (..., 1)."""
    longest = max(stop - start for start, stop in spans)
    starts = torch.tensor([start for start, _ in spans], device=device)[:, None]
    lengths = torch.tensor([stop - start for start, stop in spans], device=device)[:, None]
    steps = torch.arange(longest, device=device)[None]
    real = steps < lengths
    return torch.where(real, starts + steps, starts), real[:, :, None].to(torch.float32)


def _quantised_tokens(side: Tensor, gather: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Integers as float64 (examples, tokens, width) and powers of two float32 (examples, 1, width)."""
    q, e = exact.quantise(side[gather] * mask, 1)
    return q.double(), pow2(e)


def _token_product(wide: tuple[Tensor, Tensor], narrow: tuple[Tensor, Tensor]) -> Tensor:
    """fl32(sum over tokens) * 2^e_wide * 2^e_narrow; |sum| <= tokens * 2^26 < 2^53."""
    product = torch.bmm(wide[0].transpose(1, 2), narrow[0]).float()
    return product.mul_(wide[1].transpose(1, 2)).mul_(narrow[1])


def normalised(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Every example scaled by the power of two that brings its largest entry over all factors into [1/2, 1).

    So no example's size decides anything below, and all grids are fixed ones. An all-zero example stays zero.
    """
    largest = torch.stack([g.flatten(1).abs().amax(1) for g in gradients], 1)
    # `quantise` finds the smallest e with every entry below 2^(e + 13).
    scale = pow2(-(exact.quantise(largest)[1] + GRID_BITS))[:, :, None]
    return [g * scale for g in gradients]


def narrow_moments(gradient: Tensor) -> Tensor:
    """Second moment of the narrow side over examples and wide coordinates: int64 (rank, rank).

    Each example's factor is quantised as one row (14 bits, so its size does not matter): at most 2^26 a product, summed over
    `WIDE_MAX` coordinates and `MOMENT_EXAMPLES_MAX` examples: at most 2^53, exact in binary64. Parts are added as
    int64: at most 2^58 for `RECORDS_MAX` examples. Raises ``ValueError`` on more examples at once.
    """
    if len(gradient) > MOMENT_EXAMPLES_MAX:
        raise ValueError(f"moments of {len(gradient)} examples at once; at most {MOMENT_EXAMPLES_MAX}")
    q = exact.quantise(gradient.flatten(1))[0].double().view(-1, gradient.shape[2])
    return (q.T @ q).to(torch.int64)


def tournament(width: int) -> list[tuple[list[int], list[int]]]:
    """Rounds of disjoint index pairs that meet every pair once (circle method); odd widths have one bye a round."""
    players = list(range(width + width % 2))
    rounds = []
    for _ in range(len(players) - 1):
        half = len(players) // 2
        pairs = zip(players[:half], reversed(players[half:]), strict=True)
        met = sorted((min(p, q), max(p, q)) for p, q in pairs if max(p, q) < width)
        rounds.append(([p for p, _ in met], [q for _, q in met]))
        players = [players[0], players[-1], *players[1:-1]]
    return rounds


def eigenvectors(moments: Tensor) -> Tensor:
    """Eigenvectors as columns, float32 (..., width, width), of symmetric float64 or int64 matrices of the same shape.

    Integers are rounded to binary64 once, which changes none up to 2^53: no moment of up to 4,096 records.
    `JACOBI_SWEEPS` round-robin sweeps (Brent and Luk 1985) of plane rotations in elementwise binary64, always all of
    them: no convergence test, no sorting, no library, so that degenerate spaces and signs are the same everywhere.
    Wider than `JACOBI_WIDTH_MAX`: the identity. Raises `ValueError` for other shapes or dtypes.
    """
    if moments.dtype == torch.int64:
        moments = _rounded(moments)
    if moments.dtype != torch.float64 or moments.dim() < 2 or moments.shape[-1] != moments.shape[-2]:
        raise ValueError("eigenvectors takes square float64 matrices")
    width = moments.shape[-1]
    a = moments.reshape(-1, width, width).clone()
    v = torch.eye(width, dtype=torch.float64, device=a.device).expand_as(a).clone()
    if 1 < width <= JACOBI_WIDTH_MAX:
        schedule = [
            (torch.tensor(p, device=a.device), torch.tensor(q, device=a.device)) for p, q in tournament(width)
        ]
        for _ in range(JACOBI_SWEEPS):
            for p, q in schedule:
                _rotate_planes(a, v, p, q)
    return v.float().add_(0.0).reshape(moments.shape)


def _rotate_planes(a: Tensor, v: Tensor, p: Tensor, q: Tensor) -> None:
    """One round: annihilate a[p, q] for disjoint pairs, in place, and apply the same rotations to v's columns."""
    c, s = _angles(a[:, p, p], a[:, q, q], a[:, p, q])
    for matrix, rows in ((a, True), (a, False), (v, False)):
        cc, ss = (c[:, :, None], s[:, :, None]) if rows else (c[:, None], s[:, None])
        x, y = (matrix[:, p], matrix[:, q]) if rows else (matrix[:, :, p], matrix[:, :, q])
        new_x, new_y = cc * x - ss * y, ss * x + cc * y
        if rows:
            matrix[:, p], matrix[:, q] = new_x, new_y
        else:
            matrix[:, :, p], matrix[:, :, q] = new_x, new_y


def _angles(app: Tensor, aqq: Tensor, apq: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the smaller rotation that annihilates apq (Golub and Van Loan, section 8.5.2).

    Only the binary32 square root is reproducible, so the angle is right to 24 bits, which later sweeps repair; the
    cosine is refined by two Newton steps in binary64, so that rotations are orthogonal to about 2^-52.
    """
    gap, twice = aqq - app, apq * 2.0
    scale = torch.maximum(gap.abs(), twice.abs())
    idle = scale == 0.0
    scale = torch.where(idle, 1.0, scale)
    gap, twice = gap / scale, twice / scale
    root = exact.sqrt((gap * gap + twice * twice).float()).double()
    denominator = gap.abs() + root
    t = twice / torch.where(idle, 1.0, denominator)
    t = torch.where(gap < 0.0, -t, t)
    square = t * t + 1.0
    c = 1.0 / exact.sqrt(square.float()).double()
    for _ in range(2):
        c = c * (1.5 - square * 0.5 * (c * c))
    return c, t * c


def rotated(gradients: Sequence[Tensor], bases: Sequence[Tensor]) -> list[Tensor]:
    """Every factor (examples, wide, rank) times its basis (rank, rank), as `exact.matmul` defines; same shapes.

    Rows of all factors are quantised together, which changes nothing: a row's exponent is its own. Ranks may differ
    between factors only in principle (an adapter has one); then each factor goes alone.
    """
    if len({g.shape[2] for g in gradients}) > 1:
        return [rotated([g], [b])[0] for g, b in zip(gradients, bases, strict=True)]
    rank, sizes = gradients[0].shape[2], [g.shape[0] * g.shape[1] for g in gradients]
    q, e = exact.quantise(torch.cat([g.reshape(-1, rank) for g in gradients]))
    scales = torch.split(pow2(e), sizes)
    out = []
    for part, scale, basis, g in zip(torch.split(q.double(), sizes), scales, bases, gradients, strict=True):
        qb, eb = exact.quantise(basis, 0)
        product = torch.mm(part, qb.double()).float().mul_(scale).mul_(pow2(eb))
        out.append(product.add_(0.0).view(g.shape))
    return out


def squares(rotated_gradient: Tensor) -> Tensor:
    """Sum over examples of squared normalised rotated coordinates on the grid 2^-20: int64 (wide, rank).

    A normalised entry is below 1. Up to a rank of `JACOBI_WIDTH_MAX` = 64 a rotated one is therefore at most 8 (1 + 2^-9): Cauchy
    and Schwarz, and 64 entries of a basis vector that are each up to 2^-13 off in their 14-bit form. Above that rank the basis is
    the identity and the bound 1. On the grid that is 2^23 (1 + 2^-9), its square 2^46 (1 + 2^-7), and the sum over
    `RECORDS_MAX` examples below 2^62.7: exact in int64. Sums of shards add.
    """
    p = (rotated_gradient * float(1 << SQUARE_BITS)).round_().to(torch.int64)
    return p.mul_(p).sum(0)


def weights(sum_of_squares: Tensor) -> Tensor:
    """``1 / sqrt(l + 0.1 mean(l))`` per coordinate for l = int64 sums of `squares` (wide, rank); float32.

    The common factor (records, grid) is left in, for scores do not depend on it. All zero where l is zero throughout.
    """
    own = _rounded(sum_of_squares)
    mean = divide_(exact.fsum(own.float().flatten()), float(own.numel()))
    damped = (own + mean * DAMPING).float()
    safe = torch.where(damped > 0.0, damped, 1.0)
    return torch.where(damped > 0.0, 1.0 / exact.sqrt(safe), 0.0).add_(0.0)


def _rounded(integers: Tensor) -> Tensor:
    """Int64 to binary64, rounded once: numpy's conversion is C's; a tensor's cast need not be that."""
    return torch.from_numpy(integers.cpu().numpy().astype("float64")).to(integers.device)
