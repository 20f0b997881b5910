"""Sums that do not depend on their order: every term is an integer on one grid."""

from __future__ import annotations

import torch
from torch import Tensor

from attribution.exact.bits import row_power

FSUM_BITS = 30
SQUARE_BITS = 20
# 2^13 squares of 20-bit integers fill binary64's 53 bits.
SQUARE_COUNT_MAX = 1 << 13
# Tensors without dimensions: see bits.py.
_TO_FSUM_GRID = torch.tensor(2.0 ** (1 - FSUM_BITS), dtype=torch.float64)
_TO_SQUARE_GRID = torch.tensor(2.0 ** (1 - SQUARE_BITS), dtype=torch.float32)
_TWO_30 = torch.tensor(2.0**30, dtype=torch.float32)
_TWO_M30 = torch.tensor(2.0**-30, dtype=torch.float64)


def fsum(x: Tensor) -> Tensor:
    """Sum of float32 rows along the last axis (kept), as float64.

    Each term is rounded half-even to 2^(E-30), E the smallest exponent (at least -99) with max|x| < 2^E; then the
    integers are summed exactly, for at most 2^23 terms. Raises NotRepresentable as `quantise` does.
    """
    grid = row_power(x).double().mul_(_TO_FSUM_GRID)
    return x.double().mul_(grid.reciprocal()).round_().sum(-1, keepdim=True).mul_(grid)


def sum_of_squares(x: Tensor) -> Tensor:
    """Sum of squares of float32 rows along the last axis (kept), as float64.

    Terms are rounded to 20 bits below the row's exponent first; exact for at most 8192 terms.
    """
    grid = row_power(x).mul_(_TO_SQUARE_GRID)
    d = round_to(x, grid)
    grid64 = grid.double()
    return d.mul_(d).sum(-1, keepdim=True).mul_(grid64).mul_(grid64)


def round_to(x: Tensor, grid: Tensor) -> Tensor:
    """X / grid rounded half-even to integers of at most 24 bits, as float64; grid holds powers of two."""
    return (x * grid.reciprocal()).round_().double()


def grid_sum(p: Tensor, wide: Tensor | None = None) -> Tensor:
    """Sum of float32 numbers in [0, 2] along the last axis (kept), each on the fixed grid 2^-30, as float64.

    `wide` is a float64 buffer of p's shape to use.
    """
    if wide is not None:
        return wide.copy_((p * _TWO_30).round_()).sum(-1, keepdim=True).mul_(_TWO_M30)
    return (p * _TWO_30).round_().double().sum(-1, keepdim=True).mul_(_TWO_M30)
