"""The functions by their definition in plain Python numbers: no tensor, no library function but the binary64 root.

Python's floats are binary64 and each of its operations rounds once. A binary32 operation is the binary64 one rounded
again: for + - * / and the root of binary32 numbers that is the same as rounding once, for 53 >= 2 * 24 + 2 (Figueroa
1995, "When is double rounding innocuous?"). The coefficients are those of docs/exact-arithmetic.md, section 5.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from fractions import Fraction

from attribution.errors import NotRepresentable
from attribution.exact.elementary import (
    COS_64,
    EXP2_32,
    EXP_LIMIT,
    LN2_64,
    LOG2_E_32,
    LOG_64,
    PI_2_PARTS,
    SIN_64,
    SQRT2_64,
    TWO_OVER_PI,
)
from attribution.exact.reductions import FSUM_BITS, SQUARE_BITS

_E_MIN = -99


def rounded(x: float) -> float:
    """Binary32 nearest to a binary64 number, ties to even."""
    value: float = struct.unpack("<f", struct.pack("<f", x))[0]
    return value


def oracle_exp(x: float) -> float:
    """`exp` of a binary32 number."""
    t = rounded(min(max(x, -EXP_LIMIT), EXP_LIMIT) * LOG2_E_32)
    k = round(t)
    t = rounded(t - k)
    p = rounded(t * EXP2_32[-1])
    for c in EXP2_32[-2:0:-1]:
        p = rounded(rounded(p + c) * t)
    return math.ldexp(rounded(p + EXP2_32[0]), k)


def oracle_sigmoid(x: float) -> float:
    """`sigmoid` of a binary32 number."""
    return rounded(1.0 / rounded(oracle_exp(-x) + 1.0))


def oracle_sqrt(x: float) -> float:
    """Correctly rounded binary32 root of a binary32 number, from integers alone."""
    numerator, denominator = x.as_integer_ratio()
    # 2^300 keeps more than 100 bits of the root of the smallest subnormal number.
    root = math.isqrt((numerator << 600) // denominator)
    return rounded(math.ldexp(root >> max(0, root.bit_length() - 53), max(0, root.bit_length() - 53) - 300))


def oracle_log(x: float) -> float:
    """`log` of a positive normal binary64 number."""
    mantissa, exponent = math.frexp(x)
    m, k = mantissa * 2.0, exponent - 1
    if m > SQRT2_64:
        m, k = m * 0.5, k + 1
    s = (m - 1.0) / (m + 1.0)
    return _horner(LOG_64, s * s) * s + k * LN2_64


def oracle_cos_sin(angle: float) -> tuple[float, float]:
    """`cos_sin` of a binary64 angle."""
    k = round(angle * TWO_OVER_PI)
    r = angle
    for part in PI_2_PARTS:
        r = r - k * part
    z = r * r
    s, c = _horner(SIN_64, z) * r, _horner(COS_64, z)
    return ((c, s), (-s, c), (-c, -s), (s, -c))[k % 4]


def oracle_fsum(row: Sequence[float]) -> float:
    """`fsum` of one row of binary32 numbers."""
    grid = Fraction(2) ** (_exponent(row) - FSUM_BITS)
    return float(sum(round(Fraction(v) / grid) for v in row) * grid)


def oracle_squares(row: Sequence[float]) -> float:
    """`sum_of_squares` of one row of binary32 numbers."""
    grid = Fraction(2) ** (_exponent(row) - SQUARE_BITS)
    return float(sum(round(Fraction(v) / grid) ** 2 for v in row) * grid * grid)


def _exponent(row: Sequence[float]) -> int:
    """E of the row: the smallest integer, at least -99, with every |v| < 2^E."""
    largest = max((abs(v) for v in row), default=0.0)
    if not largest < 2.0**101:
        raise NotRepresentable("a row holds an infinity, a NaN or a magnitude of 2^101 or more")
    return max(_E_MIN, math.frexp(largest)[1]) if largest else _E_MIN


def _horner(coefficients: Sequence[float], z: float) -> float:
    p = z * coefficients[-1]
    for c in coefficients[-2:0:-1]:
        p = (p + c) * z
    return p + coefficients[0]
