"""Block fixed point: a row of binary32 numbers as 14-bit integers with one exponent.

docs/exact-arithmetic.md, section "Quantise", is the specification.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from attribution.errors import ShapeMismatch
from attribution.exact.bits import exponent_of, power_of, row_magnitude, row_power

BITS = 14
Q_MAX = 1 << (BITS - 1)
_TO_GRID = 2.0 ** (2 - BITS)
_POWER_TO_GRID = torch.tensor(_TO_GRID, dtype=torch.float32)
# Up to so many numbers in one row, calls cost more than the arithmetic in them.
_SHORT = 1 << 14


def quantise(x: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    """Quantise float32 `x` along the contracted axis `dim`.

    Returns (q, e): q float32 integers of x's shape, |q| <= 8192, without negative zeros; e int32 of x's
    shape with size 1 at `dim`, -112 <= e <= 88. `q * 2^e` is x rounded half-even to the grid 2^e, where e is
    the smallest exponent with max|x| < 2^(e+13) (not below -112). Runs on the device of x.

    Raises NotRepresentable for infinities, NaN and magnitudes of 2^101 or more, ShapeMismatch for another
    dtype or for a tensor without dimensions.
    """
    if x.dtype != torch.float32 or x.dim() == 0:
        raise ShapeMismatch("quantise takes a float32 tensor of one dimension or more")
    q, scale = to_grid(x, dim)
    return q.add_(0.0), exponent_of(scale)


def to_grid(x: Tensor, dim: int = -1, nonnegative: bool = False) -> tuple[Tensor, Tensor]:
    """`quantise` without the checks of its arguments, as (q, 2^e float32); q may hold negative zeros."""
    if 0 < x.shape[dim] == x.numel() < _SHORT:
        m = row_magnitude(x, dim, nonnegative)
        power = power_of(float(m)) * _TO_GRID
        return torch.mul(x, 1.0 / power).round_(), torch.full_like(m, power)
    scale = row_power(x, dim, nonnegative).mul_(_POWER_TO_GRID)
    return torch.mul(x, scale.reciprocal()).round_(), scale


@dataclass(frozen=True)
class Block:
    """Rows quantised along their last axis: q float32 integers, scale = 2^e float32 (..., 1)."""

    q: Tensor
    scale: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Block:
        """Quantise x (..., K) along its last axis."""
        return cls(*to_grid(x))

    @property
    def value(self) -> Tensor:
        """Q * 2^e, float32: exact, for q has 14 bits and e is at least -112."""
        return self.q * self.scale

    @cached_property
    def q64(self) -> Tensor:
        """Q as float64."""
        return self.q.double()

    @cached_property
    def scale64(self) -> Tensor:
        """2^e, float64 (..., 1)."""
        return self.scale.double()


def value64(x: Tensor, dim: int) -> Tensor:
    """X quantised along `dim` and dequantised, float64 (exact)."""
    q, scale = to_grid(x, dim)
    return q.double().mul_(scale.double())
