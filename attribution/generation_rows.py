"""One row at a time through narrow layers: the same numbers as `attribution.decoder`, in half as many calls.

Decoding feeds one token, and at widths of a few hundred a call of torch costs more than the arithmetic in it. So base and
adapter are read by one binary64 product, [W | A], and all of a group's B by another, block-diagonal one, whose zeros change no
exact sum. docs/exact-arithmetic.md defines the result; nothing here is another definition of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attribution.decoder import rms_norm, rotate, score_scale
from attribution.exact.backends import BACKENDS, chosen_backend, family_for
from attribution.exact.elementary import sigmoid
from attribution.exact.quantisation import to_grid, value64
from attribution.linear import Bound, Frozen, Lora
from attribution.model import Base

NUMBERS_MAX = 1 << 17
"""Weights of a group, at most: beyond, reading them in binary64 costs more than the calls saved (1 MiB of 8-byte numbers)."""


def narrow_rows_serve(base: Base) -> bool:
    """Whether every group of `base` is narrow, its home is the CPU, and binary64 is right there and not chosen against."""
    if base.device.type != "cpu" or "fp64" not in BACKENDS or chosen_backend() not in (None, "fp64"):
        return False
    if family_for(base.device) == "fused":
        return False
    return all(frozen.q.numel() <= NUMBERS_MAX for layer in base.layers for frozen in layer.groups)


class RowGroup:
    """One group's operands: `weights` float64 (K, N + R), its last R columns all modules' A; `up` float64 (R, N).

    R = modules * rank; 0 without an adapter.
    """

    def __init__(self, frozen: Frozen, lora: Lora | None) -> None:
        base = frozen.q.double().mul_(frozen.scale.double()[:, None])
        self.outs = base.shape[0]
        self.bias = frozen.bias
        self.lora = lora
        self.weights = (
            base.t().contiguous() if lora is None else torch.cat([base, lora.a_rows]).t().contiguous()
        )
        self.up = torch.zeros(self.weights.shape[1] - self.outs, self.outs, dtype=torch.float64)
        if lora is not None:
            for j, ((i, k), (first, last)) in enumerate(zip(lora.spans, lora.packed, strict=True)):
                self.up[j * lora.rank : (j + 1) * lora.rank, i:k] = lora.b_rows[:, first:last]

    def forward(self, x: Tensor) -> Tensor:
        """float32 (1, N) for x (1, K), as `attribution.linear.group_forward` gives it."""
        q, scale = to_grid(x)
        both = torch.mm(q.double(), self.weights).mul_(scale.double()).float()
        y = both[:, : self.outs]
        if self.bias is not None:
            y.add_(self.bias)
        if self.lora is not None:
            h = (both[:, self.outs :] * self.lora.scale).view(-1, self.lora.rank)
            y.add_(torch.mm(value64(h, 1).view(1, -1), self.up).float())
        return y


class NarrowRows:
    """A base and its adapter, for one row (1, hidden) at a time."""

    def __init__(self, base: Base, bound: Bound) -> None:
        self.base = base
        self.groups = [
            tuple(RowGroup(frozen, lora) for frozen, lora in zip(layer.groups, loras, strict=True))
            for layer, loras in zip(base.layers, bound, strict=True)
        ]

    def project(self, i: int, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """`attribution.decoder.project` of layer i: (1, H + 2 Hk, width)."""
        c, layer = self.base.config, self.base.layers[i]
        heads, turning = c.num_attention_heads, c.num_attention_heads + c.num_key_value_heads
        y, _ = rms_norm(x, layer.norms[0], self.base.eps)
        out = self.groups[i][0].forward(y).reshape(1, -1, c.head_dim)
        if layer.head_norms is not None:
            for weight, part in zip(layer.head_norms, (out[:, :heads], out[:, heads:turning]), strict=True):
                part.copy_(rms_norm(part.contiguous(), weight, self.base.eps)[0])
        out[:, :turning].copy_(rotate(out[:, :turning], cos, sin))
        out[:, :heads].mul_(score_scale(self.base))
        return out

    def feed_forward(self, i: int, x: Tensor) -> Tensor:
        """`attribution.decoder.feed_forward` of layer i."""
        y, _ = rms_norm(x, self.base.layers[i].norms[1], self.base.eps)
        wide = self.groups[i][2].forward(y)
        gate, up = (
            wide[:, : self.base.config.intermediate_size],
            wide[:, self.base.config.intermediate_size :],
        )
        return self.groups[i][3].forward((gate * sigmoid(gate.contiguous())).mul_(up))
