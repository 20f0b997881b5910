"""Elementwise functions from correctly rounded operations only: + - * /, round, comparisons, bits.

docs/exact-arithmetic.md gives the coefficients in hexadecimal, the order of operations, clamps and errors.
No library transcendental is called anywhere: they differ between instruction sets and devices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attribution.errors import ShapeMismatch

_hex = float.fromhex

LOG2_E_32 = _hex("0x1.715476p+0")
EXP_LIMIT = 80.0
# 2^f on [-1/2, 1/2], binary32: c0 = 1, so that exp(0) = 1 exactly.
EXP2_32 = tuple(
    _hex(c)
    for c in (
        "0x1p+0",
        "0x1.62e430p-1",
        "0x1.ebfa4cp-3",
        "0x1.c6afeep-5",
        "0x1.3cbf60p-7",
        "0x1.5ec866p-10",
    )
)
LOG2_E_64 = _hex("0x1.71547652b82fep+0")
EXP2_64 = tuple(
    _hex(c)
    for c in (
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
    )
)
LN2_64 = _hex("0x1.62e42fefa39efp-1")
SQRT2_64 = _hex("0x1.6a09e667f3bcdp+0")
# 2 atanh(sqrt z) / sqrt z on [0, 0.02945].
LOG_64 = tuple(
    _hex(c)
    for c in (
        "0x1.0000000000000p+1",
        "0x1.55555555555aep-1",
        "0x1.999999997ad5dp-2",
        "0x1.249249452660dp-2",
        "0x1.c71c4ff0f204ep-3",
        "0x1.74669c92c89fbp-3",
        "0x1.399967faa88d3p-3",
        "0x1.2f511a9933f48p-3",
    )
)
TWO_OVER_PI = _hex("0x1.45f306dc9c883p-1")
# pi/2 in three parts: 31, 29 and 53 bits.
PI_2_PARTS = (_hex("0x1.921fb544p+0"), _hex("0x1.0b4611a0p-34"), _hex("0x1.898cc51701b84p-64"))
SIN_64 = tuple(
    _hex(c)
    for c in (
        "0x1.0000000000000p+0",
        "-0x1.5555555555543p-3",
        "0x1.111111110f3dcp-7",
        "-0x1.a01a019ba956dp-13",
        "0x1.71de3530aa14dp-19",
        "-0x1.ae5e37e850d20p-26",
        "0x1.5d87699eb6a31p-33",
    )
)
COS_64 = tuple(
    _hex(c)
    for c in (
        "0x1.0000000000000p+0",
        "-0x1.0000000000000p-1",
        "0x1.5555555555536p-5",
        "-0x1.6c16c16c13a05p-10",
        "0x1.a01a019b1e24dp-16",
        "-0x1.27e4f727f10b7p-22",
        "0x1.1ee96d0192650p-29",
        "-0x1.8f762711e61e0p-37",
    )
)
_EXP2_TENSORS = tuple(torch.tensor(c, dtype=torch.float32) for c in EXP2_32)
_LOG2_E = torch.tensor(LOG2_E_32, dtype=torch.float32)
_SHIFT = torch.tensor(23, dtype=torch.int32)
# Chunks of 128 KiB stay in the second-level cache through the twenty passes of exp.
_EXP_CHUNK = 1 << 15


def exp(x: Tensor) -> Tensor:
    """e^x, float32, x clamped to [-80, 80]; relative error below 2^-17.9, and 2^-21.8 near 0.

    NaN is not carried through: every caller's input was refused by `quantise` if it held one.
    """
    return exp_(x.contiguous().clone())


def exp_(x: Tensor) -> Tensor:
    """`exp` in place on a contiguous float32 tensor."""
    flat = x.view(-1)
    # An accelerator has no such cache, and each of its calls has a price.
    size = _EXP_CHUNK if x.device.type == "cpu" else max(1, flat.numel())
    for start in range(0, flat.numel(), size):
        t = flat[start : start + size]
        t.clamp_(-EXP_LIMIT, EXP_LIMIT).mul_(_LOG2_E)
        k = torch.round(t)
        t.sub_(k)
        p = torch.mul(t, _EXP2_TENSORS[5])
        for c in _EXP2_TENSORS[4:0:-1]:
            p.add_(c).mul_(t)
        p.add_(_EXP2_TENSORS[0])
        power = k.to(torch.int32).bitwise_left_shift_(_SHIFT)
        torch.add(p.view(torch.int32), power, out=t.view(torch.int32))
    return x


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x), float32, with the exponential's clamp."""
    return exp_(x.neg()).add_(1.0).reciprocal_()


def sqrt(x: Tensor) -> Tensor:
    """Correctly rounded binary32 square root of x >= 0.

    The binary64 root of a binary32 number is never close enough to a tie for its own last-place error (some
    vector libraries have one) to change the binary32 result; a binary32 library root can be wrong.
    """
    if x.dtype != torch.float32:
        raise ShapeMismatch("sqrt takes float32")
    return torch.sqrt(x.double()).float()


def log(x: Tensor) -> Tensor:
    """Natural logarithm of positive normal float64 (or float32) numbers, as float64; error about 2^-50."""
    bits = x.double().view(torch.int64)
    k = (bits >> 52) - 1023
    m = ((bits & 0xFFFFFFFFFFFFF) | 0x3FF0000000000000).view(torch.float64)
    large = m > SQRT2_64
    m = torch.where(large, m * 0.5, m)
    k = (k + large.to(torch.int64)).double()
    s = (m - 1.0) / (m + 1.0)
    return _horner(LOG_64, s * s).mul_(s).add_(k.mul_(LN2_64))


def exp64(x: Tensor) -> Tensor:
    """e^x for float64, |x| <= 700; error about 2^-45 |x| relative. For tables, not for hot paths."""
    t = x * LOG2_E_64
    k = torch.round(t)
    p = _horner(EXP2_64, t - k)
    return (p.view(torch.int64) + (k.to(torch.int64) << 52)).view(torch.float64)


def cos_sin(angle: Tensor) -> tuple[Tensor, Tensor]:
    """(cos, sin) of float64 angles, |angle| < 2^20, as float64; absolute error below 2^-45."""
    k = torch.round(angle * TWO_OVER_PI)
    r = angle
    for part in PI_2_PARTS:
        r = r - k * part
    z = r * r
    s, c = _horner(SIN_64, z).mul_(r), _horner(COS_64, z)
    quadrant = k.to(torch.int64) & 3
    swap = (quadrant & 1) == 1
    cos, sin = torch.where(swap, s, c), torch.where(swap, c, s)
    cos = torch.where((quadrant == 1) | (quadrant == 2), -cos, cos)
    sin = torch.where(quadrant >= 2, -sin, sin)
    return cos, sin


def divide_(x: Tensor, divisor: float) -> Tensor:
    """X / divisor in place, correctly rounded, the divisor rounded to x's dtype first.

    The divisor becomes a tensor of one dimension: CUDA divides by a plain number through its reciprocal.
    """
    return x.div_(torch.full((1,), divisor, dtype=x.dtype, device=x.device))


def argmax(x: Tensor) -> Tensor:
    """Index (int64) of the largest entry along the last axis; among equal ones the lowest index.

    A library argmax may return any of the tied indices. Empty axes are refused by the reduction below.
    """
    index = torch.arange(x.shape[-1], dtype=torch.int64, device=x.device)
    tied = x == x.amax(-1, keepdim=True)
    return torch.where(tied, index, x.shape[-1]).amin(-1)


def _horner(coefficients: tuple[float, ...], z: Tensor) -> Tensor:
    p = z * coefficients[-1]
    for c in coefficients[-2:0:-1]:
        p.add_(c).mul_(z)
    return p.add_(coefficients[0])
