"""The narrow side's basis: eigenvectors by a fixed number of parallel Jacobi sweeps."""

from __future__ import annotations

import torch
from torch import Tensor

from attribution import exact

JACOBI_SWEEPS = 10
JACOBI_WIDTH_MAX = 64
"""Above this rank the narrow side is not turned (the basis is the identity)."""


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
    """Eigenvectors as columns, float32 (..., width, width), of symmetric float64 matrices of the same shape.

    `JACOBI_SWEEPS` round-robin sweeps (Brent and Luk 1985) of plane rotations in elementwise binary64, always all of
    them: no convergence test, no sorting, no library, so that degenerate spaces and signs are the same everywhere.
    Wider than `JACOBI_WIDTH_MAX`: the identity. Raises `ValueError` for other shapes or dtypes.
    """
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
