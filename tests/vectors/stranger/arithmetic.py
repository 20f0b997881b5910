"""The few operations that everything else is made of (docs/exact-arithmetic.md, sections 1 to 5).

A Python float is a binary64 number and each operation on it rounds once. A binary32 operation is the binary64 one rounded again: for
+ - * / and the root of binary32 numbers that equals one rounding, since 53 >= 2 * 24 + 2. Python's ``round`` rounds half to even, and its integers
have no bound. Adding 0.0 turns a negative zero into a positive one.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from operator import mul

Vector = list[float]
Matrix = list[Vector]

GRID_BITS = 13
"""|q| <= 2^13: with the sign 14 bits."""
SUM_BITS = 30
EXPONENT_MIN = -99
MAGNITUDE_LIMIT = 2.0**101
_BINARY32 = struct.Struct("<f")


class NotRepresentable(ValueError):
    """An infinity, a NaN or a magnitude of 2^101 or more: the computation has no result."""


def fl32(x: float) -> float:
    """The binary32 number nearest to a binary64 number, ties to even."""
    value: float = _BINARY32.unpack(_BINARY32.pack(x))[0]
    return value


def sqrt32(x: float) -> float:
    """Correctly rounded binary32 root of a binary32 number."""
    return fl32(math.sqrt(x))


def exponent(row: Iterable[float]) -> int:
    """E(max |x|): the smallest integer E >= -99 with every |x| < 2^E."""
    largest = max(map(abs, row), default=0.0)
    if not largest < MAGNITUDE_LIMIT:
        raise NotRepresentable(f"a row holds {largest}")
    # frexp: largest = f 2^E with 1/2 <= f < 1, and E = 0 for zero.
    return max(EXPONENT_MIN, math.frexp(largest)[1]) if largest else EXPONENT_MIN


def quantise(row: Sequence[float]) -> tuple[list[int], int]:
    """(q, e): the row as integers of 14 bits, x = q 2^e, with one exponent."""
    e = exponent(row) - GRID_BITS
    return [round(math.ldexp(x, -e)) for x in row], e


def matmul(a: Matrix, b: Matrix) -> Matrix:
    """(fl32(sum_k qa qb) 2^ea) 2^eb: A by row, B by column, the sum in integers, one rounding, two powers of two."""
    rows, columns = [quantise(row) for row in a], [quantise(column) for column in transposed(b)]
    return [
        [fl32(fl32(fl32(float(dot(qa, qb))) * 2.0**ea) * 2.0**eb) + 0.0 for qb, eb in columns]
        for qa, ea in rows
    ]


def dot(one: Sequence[int], other: Sequence[int]) -> int:
    """Sum of products of integers."""
    return sum(map(mul, one, other))


def fsum(row: Sequence[float]) -> float:
    """Sum of binary32 numbers on the grid 2^(E - 30), binary64."""
    e = exponent(row) - SUM_BITS
    return math.ldexp(float(sum(round(math.ldexp(x, -e)) for x in row)), e)


def transposed(matrix: Matrix) -> Matrix:
    """Rows as columns."""
    return [list(column) for column in zip(*matrix, strict=True)]
