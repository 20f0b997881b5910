"""The kernels of attention and of what lies between products, on tensors: each gives the bits of its torch counterpart.

Everything here raises NotRepresentable where the counterpart does. Tensors are on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribution.exact.fused import attention, elementwise
from attribution.exact.fused.layers import array, require
from attribution.exact.fused.vector import COLUMNS

Array = NDArray[Any]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """`attribution.decoder.rms_norm` of x (M, d)."""
    rows = x.view(-1, x.shape[-1])
    y, x_hat, inverse = torch.empty_like(rows), torch.empty_like(rows), torch.empty(rows.shape[0], 1)
    done = elementwise.norm(array(rows), array(weight), eps, y.numpy(), x_hat.numpy(), inverse.numpy())
    require(done)
    shape = (*x.shape[:-1], 1)
    return y.view(x.shape), (x_hat.view(x.shape), inverse.view(shape))


def rms_norm_backward(dy: Tensor, weight: Tensor, saved: tuple[Tensor, Tensor]) -> Tensor:
    """`attribution.decoder.rms_norm_backward`."""
    x_hat, inverse = (array(part.reshape(-1, part.shape[-1])) for part in saved)
    rows = array(dy.reshape(-1, dy.shape[-1]))
    out = torch.empty(rows.shape)
    require(elementwise.norm_backward(rows, array(weight), x_hat, inverse, out.numpy()))
    return out.view(dy.shape)


def turn(x: Tensor, cos: Tensor, sin: Tensor, turning: int, heads: int, factor: float) -> None:
    """Rotate queries and keys of x (rows, heads, width) in place, then multiply the first `heads` by `factor`."""
    elementwise.turn(
        x.numpy(), array(cos), array(sin), turning, np.float32(1.0), heads, np.float32(factor), False
    )


def turn_back(x: Tensor, cos: Tensor, sin: Tensor, turning: int, heads: int, factor: float) -> None:
    """The gradient of `turn`, in place."""
    elementwise.turn(
        x.numpy(), array(cos), array(sin), turning, np.float32(-1.0), heads, np.float32(factor), True
    )


def swiglu(wide: Tensor) -> tuple[Tensor, Tensor]:
    """(silu(gate) * up, sigmoid(gate)) of wide (M, 2 f), gate first."""
    s = torch.empty(wide.shape[0], wide.shape[1] // 2)
    out = torch.empty_like(s)
    elementwise.swiglu(array(wide), s.numpy(), out.numpy())
    return out, s


def swiglu_backward(dm: Tensor, wide: Tensor, s: Tensor) -> Tensor:
    """Gradient by wide (M, 2 f)."""
    out = torch.empty(wide.shape)
    elementwise.swiglu_backward(array(dm), array(wide), array(s), out.numpy())
    return out


def probabilities(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(p, top float32, den float64), the last two (M, 1), of logits (M, V)."""
    p, top = torch.empty(logits.shape), torch.empty(logits.shape[0], 1)
    den = torch.empty(logits.shape[0], 1, dtype=torch.float64)
    elementwise.probabilities(array(logits), p.numpy(), top.numpy(), den.numpy())
    return p, top, den


@dataclass(frozen=True, slots=True)
class Attended:
    """What the backward pass of all sequences needs: quantised heads, spans, probabilities, outputs and denominators."""

    qkv: Array
    scale: Array
    spans: Array
    p: Array
    o: Array
    den: Array


def quantise_heads(x: Tensor) -> tuple[Array, Array]:
    """Int16 (rows, heads, width) and float32 (rows, heads) of x (rows, heads, width)."""
    q, scale = np.empty(x.shape, np.int16), np.empty(x.shape[:2], np.float32)
    require(elementwise.quantise_heads(array(x), q, scale))
    return q, scale


def attend(x: Tensor, heads: int, spans: Sequence[tuple[int, int]], save: bool) -> tuple[Tensor, Attended]:
    """(outputs (rows, H, width), what `attend_backward` needs if `save`) for projected x (rows, H + 2 Hk, width)."""
    q, scale = quantise_heads(x)
    o, den = np.empty((x.shape[0], heads, x.shape[2]), np.float32), np.empty((x.shape[0], heads), np.float32)
    where = np.array(spans, np.int64)
    longest = max(j - i for i, j in spans)
    reach = COLUMNS * -(-longest // COLUMNS)
    p = np.empty((heads * x.shape[0] if save else 0, reach), np.float32)
    require(attention.attend(q, scale, heads, where, o, den, p))
    return torch.from_numpy(o), Attended(q, scale, where, p, o, den)


def attend_backward(do: Tensor, saved: Attended) -> Tensor:
    """Gradients (rows, H + 2 Hk, width) from those of the outputs (rows, H, width)."""
    rows, heads, _ = do.shape
    g, scale = np.empty(do.shape, np.int16), np.empty((rows, heads), np.float32)
    dots = np.empty((rows, heads), np.float32)
    require(attention.output_gradient(array(do), saved.den, saved.o, g, scale, dots))
    out = torch.empty(saved.qkv.shape)
    done = attention.attend_backward(
        saved.qkv, saved.scale, heads, saved.spans, saved.p, g, scale, dots, out.numpy()
    )
    require(done)
    return out


class Cache:
    """One layer's keys and values in kernels' form, for at most `tokens_max` positions."""

    def __init__(self, kv: int, width: int, tokens_max: int) -> None:
        panels = -(-tokens_max // COLUMNS)
        positions = panels * COLUMNS
        self.keys = np.zeros((kv, panels, width // 2, COLUMNS), np.int32)
        self.values = np.zeros((kv, -(-width // COLUMNS), positions // 2, COLUMNS), np.int32)
        self.k_scale = np.zeros((kv, positions), np.float64)
        self.v_scale = np.zeros((kv, positions), np.float32)

    def attend(self, x: Tensor, heads: int, start: int) -> Tensor:
        """Append projected x (rows, H + 2 Hk, width) at position `start`; outputs (rows, H * width) over all positions up to each."""
        q, scale = quantise_heads(x)
        o = np.empty((x.shape[0], heads, x.shape[2]), np.float32)
        done = attention.attend_cached(
            q, scale, heads, start, self.keys, self.k_scale, self.values, self.v_scale, o
        )
        require(done)
        return torch.from_numpy(o).view(x.shape[0], -1)


def norm_squares(gradient: Tensor) -> tuple[float, int]:
    """(2^(E-20), exact sum of squares of a flat gradient's integers of 20 bits)."""
    sums = np.empty(max(1, -(-gradient.numel() // elementwise.SQUARES_AT_ONCE)), np.int64)
    unit = float(elementwise.norm_squares(array(gradient), sums))
    require(unit > 0)
    return unit, sum(int(n) for n in sums)


def adamw(parameters: Tensor, gradient: Tensor, m: Tensor, v: Tensor, factors: Sequence[float]) -> None:
    """One step of AdamW in place; factors as in the kernel, each rounded to binary32 here."""
    elementwise.adamw(
        parameters.numpy(), array(gradient), m.numpy(), v.numpy(), np.array(factors, np.float32)
    )
