"""The definition of truth: products in plain Python integers, with no tensor arithmetic at all.

Slow on purpose. Every backend is held against it, extremes included.
"""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import torch
from torch import Tensor

from attribution.errors import NotRepresentable, ShapeMismatch

_E_MIN = -112


def round_half_even(x: Fraction) -> int:
    """Nearest integer, ties to even."""
    return round(x)


def float32_of(x: Fraction) -> float:
    """X rounded once to binary32, ties to even, subnormals kept, overflow to infinity."""
    if x == 0:
        return 0.0
    magnitude = abs(x)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if magnitude < Fraction(2) ** exponent:
        exponent -= 1
    ulp = max(exponent - 23, -149)
    scaled = round_half_even(magnitude / Fraction(2) ** ulp)
    if scaled * Fraction(2) ** ulp >= Fraction(2) ** 128:
        return math.copysign(math.inf, x)
    return math.copysign(math.ldexp(scaled, ulp), x)


def quantise_row(row: list[float]) -> tuple[list[int], int]:
    """(integers, exponent) of one row, by the definition."""
    if not all(math.isfinite(v) and abs(v) < 2.0**101 for v in row):
        raise NotRepresentable("a row holds an infinity, a NaN or a magnitude of 2^101 or more")
    largest = max((abs(v) for v in row), default=0.0)
    e = _E_MIN
    while largest >= math.ldexp(1.0, e + 13):
        e += 1
    return [_grid_integer(v, e) for v in row], e


def _grid_integer(v: float, e: int) -> int:
    """V / 2^e rounded half to even, in integers."""
    numerator, denominator = v.as_integer_ratio()
    if e < 0:
        numerator <<= -e
    else:
        denominator <<= e
    whole, rest = divmod(numerator, denominator)
    return whole + (2 * rest > denominator or (2 * rest == denominator and whole % 2 == 1))


def oracle_matmul(a: Tensor, b: Tensor) -> Tensor:
    """`matmul(a, b)` by its definition, in integers and fractions. Any device; the result is on the CPU."""
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0]:
        raise ShapeMismatch(f"cannot multiply {tuple(a.shape)} by {tuple(b.shape)}")
    rows = [quantise_row(_floats(row)) for row in a.detach().cpu()]
    columns = [quantise_row(_floats(column)) for column in b.detach().cpu().t()]
    out = torch.zeros(a.shape[0], b.shape[1], dtype=torch.int32)
    for i, (qa, ea) in enumerate(rows):
        for j, (qb, eb) in enumerate(columns):
            total = sum(x * y for x, y in zip(qa, qb, strict=True))
            value = float32_of(Fraction(total))
            for e in (ea, eb):
                value = value if math.isinf(value) else float32_of(Fraction(value) * Fraction(2) ** e)
            out[i, j] = float32_bits(value)
    return out.view(torch.float32)


def float32_bits(value: float) -> int:
    """Bit pattern, as a signed 32-bit integer, of a binary32 number; zeros lose their sign.

    Made from integers: a conversion by the processor would itself flush a subnormal number where the machine does so,
    and the oracle would agree with the fault that it is there to find.
    """
    if math.isinf(value):
        bits = 0xFF << 23
    else:
        # A multiple of 2^-149; below 2^24 of them, the count itself is the bit pattern.
        count = int(math.ldexp(abs(value), 149))
        shift = max(0, count.bit_length() - 24)
        bits = (shift << 23) + (count >> shift)
    return bits - (1 << 31) if value < 0.0 else bits


def _floats(row: Tensor) -> list[float]:
    return [struct.unpack("<f", struct.pack("<f", v))[0] if math.isfinite(v) else v for v in row.tolist()]
