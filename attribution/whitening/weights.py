"""Weights: every turned coordinate is divided by the root of its own mean square over the records, damped."""

from __future__ import annotations

import torch
from torch import Tensor

from attribution import exact
from attribution.exact.elementary import divide_
from attribution.whitening.rounding import rounded

SQUARE_BITS = 18
SQUARED_MAX = 1 << 23
"""Integers that are squared lie in [-2^23, 2^23]."""
DAMPING = 0.1
"""Share of the factor's mean squared coordinate that is added to each coordinate's own."""


def squares(turned_gradient: Tensor) -> Tensor:
    """Sum over examples of squared turned coordinates, normalised before, on the grid 2^-18: int64 (wide, rank).

    A coordinate of 32 or more counts as 32: before it was turned each was below 1, so only a factor that is nearly one direction, and
    nearly as large everywhere as at its largest entry, has one. So every square is at most 2^46 and the sum over `RECORDS_MAX` examples below
    2^62.7: exact in int64. Sums of shards add.
    """
    p = (turned_gradient * float(1 << SQUARE_BITS)).round_().clamp_(-SQUARED_MAX, SQUARED_MAX).to(torch.int64)
    return p.mul_(p).sum(0)


def weights(sum_of_squares: Tensor) -> Tensor:
    """``1 / sqrt(l + 0.1 mean(l))`` per coordinate for l = int64 sums of `squares` (wide, rank); float32.

    The common factor (records, grid) is left in, for scores do not depend on it. All zero where l is zero throughout.
    """
    own = rounded(sum_of_squares)
    mean = divide_(exact.fsum(own.float().flatten()), float(own.numel()))
    damped = (own + mean * DAMPING).float()
    safe = torch.where(damped > 0.0, damped, 1.0)
    return torch.where(damped > 0.0, 1.0 / exact.sqrt(safe), 0.0).add_(0.0)
