"""What happens between products, row by row in one pass: normalisation, rotation, SwiGLU, the loss's gradient, AdamW."""

from __future__ import annotations

from typing import Any

import numpy as np

from attribution.exact.fused.compiling import kernel
from attribution.exact.fused.grids import LIMIT_BITS, exp, fsum, largest_bits, power, quantise_row, squares
from attribution.exact.fused.vector import disorder, nearest32, order

_ONE = np.float32(1.0)
_TWO_30 = np.float32(2.0**30)
_TO_SQUARES = np.float32(2.0**-19)
SQUARES_AT_ONCE = 1 << 20
"""Squares of 20-bit integers whose sum stays within int64."""


@kernel
def norm(x: Any, weight: Any, eps: Any, y: Any, x_hat: Any, inverse: Any) -> Any:
    """RMSNorm of x (M, d): y, x_hat (M, d) and inverse (M, 1). False where a row is refused."""
    for i in range(x.shape[0]):
        total = squares(x[i])
        if total < 0:
            return False
        mean = np.float32(total / np.float64(x.shape[1]) + eps)
        unit = _ONE / np.float32(np.sqrt(np.float64(mean)))
        inverse[i, 0] = unit
        for j in range(x.shape[1]):
            x_hat[i, j] = x[i, j] * unit
            y[i, j] = x_hat[i, j] * weight[j]
    return True


@kernel
def norm_backward(dy: Any, weight: Any, x_hat: Any, inverse: Any, out: Any) -> Any:
    """Gradient of `norm` by x. False where a row is refused."""
    row, product = np.empty(dy.shape[1], np.float32), np.empty(dy.shape[1], np.float32)
    for i in range(dy.shape[0]):
        for j in range(row.size):
            row[j] = dy[i, j] * weight[j]
            product[j] = row[j] * x_hat[i, j]
        total = fsum(product)
        if np.isnan(total):
            return False
        mean = np.float32(total / np.float64(row.size))
        for j in range(row.size):
            out[i, j] = (row[j] - x_hat[i, j] * mean) * inverse[i, 0]
    return True


@kernel
def turn(x: Any, cos: Any, sin: Any, turning: Any, sign: Any, heads: Any, factor: Any, before: Any) -> Any:
    """Rotate the first `turning` heads of x (rows, heads, width) in place, the sine times `sign` (1 or -1); cos, sin (rows, 1, width / 2).

    The first `heads` are multiplied by `factor`, before the rotation or after it.
    """
    half = x.shape[2] // 2
    for i in range(x.shape[0]):
        for h in range(turning):
            for j in range(half):
                a, b = x[i, h, j], x[i, h, half + j]
                if before and h < heads:
                    a, b = a * factor, b * factor
                c, s = cos[i, 0, j], sin[i, 0, j] * sign
                first, second = a * c - b * s, b * c + a * s
                if not before and h < heads:
                    first, second = first * factor, second * factor
                x[i, h, j], x[i, h, half + j] = first, second


@kernel
def quantise_heads(x: Any, q: Any, scale: Any) -> Any:
    """X (rows, heads, width) to int16 q and float32 scale (rows, heads). False where a row is refused."""
    for i in range(x.shape[0]):
        for h in range(x.shape[1]):
            unit = quantise_row(x[i, h], q[i, h])
            if unit < 0:
                return False
            scale[i, h] = unit
    return True


@kernel
def swiglu(wide: Any, s: Any, out: Any) -> Any:
    """silu(gate) * up of wide (M, 2 f): the gate's sigmoid s and out, both (M, f)."""
    f = s.shape[1]
    for i in range(wide.shape[0]):
        for j in range(f):
            s[i, j] = _ONE / (exp(-wide[i, j]) + _ONE)
        for j in range(f):
            out[i, j] = (wide[i, j] * s[i, j]) * wide[i, f + j]


@kernel
def swiglu_backward(dm: Any, wide: Any, s: Any, out: Any) -> Any:
    """Gradients by gate and up, side by side in out (M, 2 f)."""
    f = s.shape[1]
    for i in range(wide.shape[0]):
        for j in range(f):
            gate, up = wide[i, j], wide[i, f + j]
            slope = (((_ONE - s[i, j]) * gate) + _ONE) * s[i, j]
            out[i, j] = (dm[i, j] * up) * slope
            out[i, f + j] = dm[i, j] * (gate * s[i, j])


@kernel
def probabilities(logits: Any, p: Any, top: Any, den: Any) -> Any:
    """P (M, V) = exp(logits - top) / fl32(den), with top (M, 1) float32 and den (M, 1) binary64, the sum on the grid 2^-30."""
    for i in range(logits.shape[0]):
        largest = order(logits[i, 0])
        for j in range(logits.shape[1]):
            largest = max(largest, order(logits[i, j]))
        highest, total = disorder(largest), np.int64(0)
        for j in range(logits.shape[1]):
            p[i, j] = exp(logits[i, j] - highest)
        for j in range(logits.shape[1]):
            total += np.int64(np.int32(nearest32(p[i, j] * _TWO_30)))
        top[i, 0], den[i, 0] = highest, np.float64(total) * 2.0**-30
        divisor = np.float32(den[i, 0])
        for j in range(logits.shape[1]):
            p[i, j] = p[i, j] / divisor


@kernel
def norm_squares(gradient: Any, sums: Any) -> Any:
    """2^(E-20) of a flat gradient, and the exact sums of squares of its integers, SQUARES_AT_ONCE at a time; -1 if refused."""
    top = largest_bits(gradient)
    if top >= LIMIT_BITS:
        return np.float32(-1.0)
    unit = power(top) * _TO_SQUARES
    inverse = _ONE / unit
    for i in range(sums.size):
        total = np.int64(0)
        for j in range(i * SQUARES_AT_ONCE, min(gradient.size, (i + 1) * SQUARES_AT_ONCE)):
            d = np.int64(np.int32(nearest32(gradient[j] * inverse)))
            total += d * d
        sums[i] = total
    return unit


@kernel
def adamw(parameters: Any, gradient: Any, m: Any, v: Any, factors: Any) -> Any:
    """One step in place on flat binary32 vectors; factors: b1, 1 - b1, b2, 1 - b2, 1 - b1^t, 1 - b2^t, eps, decay, rate, binary32.

    decay is 1 - rate * weight decay, and 1 where there is none, which changes no number.
    """
    b1, c1, b2, c2 = factors[0], factors[1], factors[2], factors[3]
    d1, d2, eps, decay, rate = factors[4], factors[5], factors[6], factors[7], factors[8]
    for i in range(parameters.size):
        g = gradient[i]
        m[i] = m[i] * b1 + g * c1
        v[i] = v[i] * b2 + (g * g) * c2
        root = np.float32(np.sqrt(np.float64(v[i] / d2))) + eps
        parameters[i] = parameters[i] * decay - ((m[i] / d1) / root) * rate
