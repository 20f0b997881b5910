"""Sums that do not depend on their order: every term is an integer on one grid."""

from __future__ import annotations

import torch
from torch import Tensor

from attribution.exact.bits import magnitude_exponent, pow2, pow2_64, row_magnitude

FSUM_BITS = 30
SQUARE_BITS = 20
# 2^13 squares of 20-bit integers fill binary64's 53 bits.
SQUARE_COUNT_MAX = 1 << 13


def fsum(x: Tensor) -> Tensor:
    """Sum of float32 rows along the last axis (kept), as float64.

    Each term is rounded half-even to 2^(E-30), E the smallest exponent (at least -99) with max|x| < 2^E; then the
    integers are summed exactly, for at most 2^23 terms.
    """
    e = magnitude_exponent(row_magnitude(x))
    d = x.double().mul_(pow2_64(FSUM_BITS - e)).round_()
    return d.sum(-1, keepdim=True).mul_(pow2_64(e - FSUM_BITS))


def sum_of_squares(x: Tensor) -> Tensor:
    """Sum of squares of float32 rows along the last axis (kept), as float64.

    Terms are rounded to 20 bits below the row's exponent first; exact for at most 8192 terms.
    """
    e = magnitude_exponent(row_magnitude(x))
    d = torch.mul(x, pow2(SQUARE_BITS - e)).round_().double()
    return d.mul_(d).sum(-1, keepdim=True).mul_(pow2_64(2 * (e - SQUARE_BITS)))


def grid_sum(p: Tensor) -> Tensor:
    """Sum of float32 numbers in [0, 2] along the last axis (kept), each on the fixed grid 2^-30, as float64."""
    return (p * 2.0**30).round_().double().sum(-1, keepdim=True).mul_(2.0**-30)
