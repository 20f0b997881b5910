"""Powers of two and exponents through bit patterns: exact on every device, no library call.

`ldexp`, `frexp` and `exp2` are avoided: they are slow, and some lose range on some devices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attribution.errors import NotRepresentable

# Biased exponents of a row maximum: 27 stands for everything below 2^-99 (zero and subnormal rows too);
# 227 is the last one accepted, so a row maximum is below 2^101.
BIASED_MIN = 27
BIASED_MAX = 227


def pow2(e: Tensor) -> Tensor:
    """2^e as float32 for an int32 tensor with -126 <= e <= 127."""
    return (e + 127).bitwise_left_shift_(23).view(torch.float32)


def pow2_64(e: Tensor) -> Tensor:
    """2^e as float64 for an integer tensor with -1022 <= e <= 1023."""
    return (e.to(torch.int64) + 1023).bitwise_left_shift_(52).view(torch.float64)


def magnitude_exponent(m: Tensor) -> Tensor:
    """Smallest int32 E >= -99 with m < 2^E, for float32 m >= 0 (the sign bit must be clear).

    Raises NotRepresentable when any m is infinite, NaN or at least 2^101.
    """
    biased = m.view(torch.int32).bitwise_right_shift(23)
    if biased.numel() and int(biased.max()) > BIASED_MAX:
        raise NotRepresentable("a row holds an infinity, a NaN or a magnitude of 2^101 or more")
    return biased.clamp_(min=BIASED_MIN).sub_(126)


def row_magnitude(x: Tensor, dim: int = -1) -> Tensor:
    """max |x| along `dim`, kept as a dimension of size 1; 0 where the dimension is empty. NaN propagates."""
    if x.shape[dim] == 0:
        shape = list(x.shape)
        shape[dim] = 1
        return torch.zeros(shape, dtype=x.dtype, device=x.device)
    return x.abs().amax(dim, keepdim=True)
