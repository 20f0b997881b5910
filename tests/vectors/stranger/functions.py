"""Functions and the other sums (docs/exact-arithmetic.md, sections 4 and 5), with the page's coefficients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tests.vectors.stranger.arithmetic import exponent, fl32

SQUARE_BITS, UNIT_BITS = 20, 30
EXP_LIMIT = 80.0

_hex = float.fromhex
LOG2_E_32, LOG2_E_64, LN2_64, SQRT2_64, TWO_OVER_PI = map(
    _hex,
    (
        "0x1.715476p+0",
        "0x1.71547652b82fep+0",
        "0x1.62e42fefa39efp-1",
        "0x1.6a09e667f3bcdp+0",
        "0x1.45f306dc9c883p-1",
    ),
)
PI_2_PARTS = tuple(map(_hex, ("0x1.921fb544p+0", "0x1.0b4611a0p-34", "0x1.898cc51701b84p-64")))
EXP_32 = tuple(
    map(
        _hex,
        ["0x1p+0", "0x1.62e430p-1", "0x1.ebfa4cp-3", "0x1.c6afeep-5", "0x1.3cbf60p-7", "0x1.5ec866p-10"],
    )
)
LOG_64 = tuple(
    map(
        _hex,
        [
            "0x1.0000000000000p+1",
            "0x1.55555555555aep-1",
            "0x1.999999997ad5dp-2",
            "0x1.249249452660dp-2",
            "0x1.c71c4ff0f204ep-3",
            "0x1.74669c92c89fbp-3",
            "0x1.399967faa88d3p-3",
            "0x1.2f511a9933f48p-3",
        ],
    )
)
EXP_64 = tuple(
    map(
        _hex,
        [
            "0x1p+0",
            "0x1.62e42fefa39efp-1",
            "0x1.ebfbdff82c58fp-3",
            "0x1.c6b08d704a0c6p-5",
            "0x1.3b2ab6fba4e79p-7",
            "0x1.5d87fe78a3f9cp-10",
            "0x1.430912f86b7dbp-13",
            "0x1.ffcbfc6da6ed1p-17",
            "0x1.62c02242b879cp-20",
            "0x1.b524ebd13a55fp-24",
            "0x1.e4cf10dec0f59p-28",
            "0x1.e9ec1fcb69a7fp-32",
            "0x1.c4a29324a1038p-36",
        ],
    )
)
SIN_64 = tuple(
    map(
        _hex,
        [
            "0x1.0000000000000p+0",
            "-0x1.5555555555543p-3",
            "0x1.111111110f3dcp-7",
            "-0x1.a01a019ba956dp-13",
            "0x1.71de3530aa14dp-19",
            "-0x1.ae5e37e850d20p-26",
            "0x1.5d87699eb6a31p-33",
        ],
    )
)
COS_64 = tuple(
    map(
        _hex,
        [
            "0x1.0000000000000p+0",
            "-0x1.0000000000000p-1",
            "0x1.5555555555536p-5",
            "-0x1.6c16c16c13a05p-10",
            "0x1.a01a019b1e24dp-16",
            "-0x1.27e4f727f10b7p-22",
            "0x1.1ee96d0192650p-29",
            "-0x1.8f762711e61e0p-37",
        ],
    )
)


def exp(x: float) -> float:
    """e^x in binary32."""
    t = fl32(min(max(x, -EXP_LIMIT), EXP_LIMIT) * LOG2_E_32)
    k = round(t)
    return math.ldexp(_horner(EXP_32, fl32(t - k), fl32), k)


def sigmoid(x: float) -> float:
    """1 / (exp(-x) + 1) in binary32."""
    return fl32(1.0 / fl32(exp(-x) + 1.0))


def log(x: float) -> float:
    """Natural logarithm in binary64."""
    half, k = math.frexp(x)  # x = half 2^k with 1/2 <= half < 1
    m, k = half * 2.0, k - 1
    if m > SQRT2_64:
        m, k = m * 0.5, k + 1
    s = (m - 1.0) / (m + 1.0)
    return _horner(LOG_64, s * s) * s + k * LN2_64


def exp64(x: float) -> float:
    """e^x in binary64."""
    t = x * LOG2_E_64
    k = round(t)
    return math.ldexp(_horner(EXP_64, t - k), k)


def cos_sin(angle: float) -> tuple[float, float]:
    """Cosine and sine in binary64."""
    k = round(angle * TWO_OVER_PI)
    r = angle
    for part in PI_2_PARTS:
        r = r - k * part
    z = r * r
    s, c = _horner(SIN_64, z) * r, _horner(COS_64, z)
    return ((c, s), (-s, c), (-c, -s), (s, -c))[k % 4]


def squares(row: Sequence[float]) -> float:
    """Sum of squares of binary32 numbers, each rounded to 2^(E - 20) first."""
    e = exponent(row) - SQUARE_BITS
    total = sum(round(math.ldexp(x, -e)) ** 2 for x in row)
    return math.ldexp(float(total), 2 * e)


def unit_sum(row: Sequence[float]) -> float:
    """Sum of numbers in [0, 2] on the grid 2^-30."""
    return math.ldexp(float(sum(round(math.ldexp(x, UNIT_BITS)) for x in row)), -UNIT_BITS)


def _horner(coefficients: Sequence[float], t: float, fl: Callable[[float], float] = lambda x: x) -> float:
    """From the highest coefficient: p = (p t) + c, each of the two operations rounded by ``fl``."""
    p = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        p = fl(fl(p * t) + c)
    return p
