"""Powers of two and row exponents through bit patterns: exact on every device, no library call.

`ldexp`, `frexp` and `exp2` are avoided: they are slow, and some lose range on some devices.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attribution.errors import NotRepresentable

# A row's power P = 2^(E-1) with max|x| < 2^E: at least 2^-100, which stands for every smaller row (zero and
# subnormal ones too), and at most 2^100.
POWER_MIN = 2.0**-100
MAGNITUDE_LIMIT = 2.0**101
# Constants as tensors without dimensions, which every device accepts: a Python number costs a conversion a call.
_EXPONENT_FIELD = torch.tensor(0x7F800000, dtype=torch.int32)
_POWER_MIN = torch.tensor(POWER_MIN, dtype=torch.float32)
# Above this many numbers two reading passes are cheaper than one that writes.
_LARGE = 1 << 14


def pow2(e: Tensor) -> Tensor:
    """2^e as float32 for an int32 tensor with -126 <= e <= 127."""
    return (e + 127).bitwise_left_shift_(23).view(torch.float32)


def exponent_of(power: Tensor) -> Tensor:
    """int32 e of normal float32 powers of two 2^e."""
    return power.view(torch.int32).bitwise_right_shift(23).sub_(127)


def row_magnitude(x: Tensor, dim: int = -1, nonnegative: bool = False) -> Tensor:
    """Max |x| along `dim`, kept as a dimension of size 1; 0 where the dimension is empty. NaN propagates.

    `nonnegative` says that no entry is below zero, which saves a pass. The sign bit of a zero result is unspecified.
    """
    if x.shape[dim] == 0:
        shape = list(x.shape)
        shape[dim] = 1
        return torch.zeros(shape, dtype=x.dtype, device=x.device)
    if nonnegative:
        return x.amax(dim, keepdim=True)
    if x.numel() < _LARGE:
        return x.abs().amax(dim, keepdim=True)
    return torch.maximum(x.amax(dim, keepdim=True), x.amin(dim, keepdim=True).neg_())


def row_power(x: Tensor, dim: int = -1, nonnegative: bool = False) -> Tensor:
    """P = 2^(E-1), float32, for the smallest E >= -99 with max|x| < 2^E along `dim` (kept as size 1).

    Raises NotRepresentable when the maximum is infinite, NaN or at least 2^101.
    """
    m = row_magnitude(x, dim, nonnegative)
    if m.numel() == 1:
        return torch.full_like(m, power_of(float(m)))
    if m.numel() and not float(m.amax()) < MAGNITUDE_LIMIT:
        raise NotRepresentable("a row holds an infinity, a NaN or a magnitude of 2^101 or more")
    power = torch.bitwise_and(m.view(torch.int32), _EXPONENT_FIELD).view(torch.float32)
    return torch.maximum(power, _POWER_MIN, out=power)


def power_of(m: float) -> float:
    """`row_power` of one row whose largest magnitude is m: in plain numbers, which cost less than calls on one number.

    Raises NotRepresentable likewise.
    """
    if not m < MAGNITUDE_LIMIT:
        raise NotRepresentable("a row holds an infinity, a NaN or a magnitude of 2^101 or more")
    # m = f * 2^k with 1/2 <= f < 1, so its leading power of two is 2^(k - 1); zero has none.
    return max(POWER_MIN, math.ldexp(1.0, math.frexp(m)[1] - 1)) if m else POWER_MIN
