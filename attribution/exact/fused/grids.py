"""Quantisation inside kernels: the power of two of a row, 14-bit integers, and sums on a grid."""

from __future__ import annotations

from typing import Any

import numpy as np

from attribution.exact.fused.compiling import part
from attribution.exact.fused.vector import float_of, magnitude, nearest32, nearest64, times_power

LIMIT_BITS = np.int32(0x72000000)
"""Bits of 2^101: a magnitude of that or more, an infinity and a NaN have no block fixed-point form."""
_POWER_MIN_BITS = np.int32(0x0D800000)
_EXPONENT = np.int32(0x7F800000)
_TO_GRID = np.float32(2.0**-12)
_TO_SQUARES = np.float32(2.0**-19)
_TO_FSUM = 2.0**-29
_ONE = np.float32(1.0)
_HIGH, _LOW = np.float32(80.0), np.float32(-80.0)
_LOG2_E = np.float32(float.fromhex("0x1.715476p+0"))
_C0, _C1, _C2, _C3, _C4, _C5 = (
    np.float32(float.fromhex(c))
    for c in (
        "0x1p+0",
        "0x1.62e430p-1",
        "0x1.ebfa4cp-3",
        "0x1.c6afeep-5",
        "0x1.3cbf60p-7",
        "0x1.5ec866p-10",
    )
)


@part
def power(largest: Any) -> Any:
    """2^(E-1) of a row whose largest magnitude has these bits, below LIMIT_BITS."""
    bits = np.int32(largest & _EXPONENT)
    return float_of(max(bits, _POWER_MIN_BITS))


@part
def grid(largest: Any) -> Any:
    """2^e of `quantise`."""
    return power(largest) * _TO_GRID


@part
def exp(x: Any) -> Any:
    """`exp` of docs/exact-arithmetic.md: each line one rounding. A NaN gives any number."""
    t = _LOW if x < _LOW else x
    t = _HIGH if t > _HIGH else t
    t = t * _LOG2_E
    k = nearest32(t)
    t = t - k
    p = t * _C5
    p = (p + _C4) * t
    p = (p + _C3) * t
    p = (p + _C2) * t
    p = (p + _C1) * t
    return times_power(p + _C0, k)


@part
def largest_bits(x: Any) -> Any:
    """Bits of the largest magnitude of a row; 0 for an empty one."""
    top = np.int32(0)
    for j in range(x.size):
        top = max(top, magnitude(x[j]))
    return top


@part
def quantise_row(x: Any, q: Any) -> Any:
    """Write the integers of `quantise` of x (K) to int16 q, zeros beyond K; 2^e, or -1 for a row that has none."""
    top = largest_bits(x)
    if top >= LIMIT_BITS:
        return np.float32(-1.0)
    scale = grid(top)
    inverse = _ONE / scale
    for j in range(x.size):
        q[j] = np.int16(nearest32(x[j] * inverse))
    for j in range(x.size, q.size):
        q[j] = 0
    return scale


@part
def squares(x: Any) -> Any:
    """`sum_of_squares` of one row; -1 for a row that has none. Integers of 20 bits, so at most 2^53 for 2^13 of them."""
    top = largest_bits(x)
    if top >= LIMIT_BITS:
        return -1.0
    unit = power(top) * _TO_SQUARES
    inverse = _ONE / unit
    total = np.int64(0)
    for j in range(x.size):
        d = np.int64(np.int32(nearest32(x[j] * inverse)))
        total += d * d
    wide = np.float64(unit)
    return np.float64(total) * wide * wide


@part
def fsum(x: Any) -> Any:
    """`fsum` of one row; NaN for a row that has none. Integers below 2^30 and one more, of at most 2^23 terms."""
    top = largest_bits(x)
    if top >= LIMIT_BITS:
        return np.nan
    unit = np.float64(power(top)) * _TO_FSUM
    inverse = 1.0 / unit
    total = np.int64(0)
    for j in range(x.size):
        total += np.int64(np.int32(nearest64(np.float64(x[j]) * inverse)))
    return np.float64(total) * unit
