"""Forward and backward passes over flattened tokens. Every row's bits are independent of the other rows.

The backward pass gives the gradient of the SUM of the tokens' losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attribution.attention import CausalMask, Sequences, attention, attention_backward
from attribution.errors import BadTokens, ContextTooLong
from attribution.exact.backends import fused_serves
from attribution.exact.elementary import divide_, exp_, log, sigmoid, sqrt
from attribution.exact.quantisation import Block
from attribution.exact.reductions import fsum, grid_sum, sum_of_squares
from attribution.linear import Bound, Frozen, Lora, NarrowBlock, Quantised, group_backward, group_forward
from attribution.model import Base

if TYPE_CHECKING:
    from attribution.exact.fused.steps import Attended

LOSS_BITS = 30
Visit = Callable[["Visited"], None]


@dataclass(frozen=True, slots=True)
class Visited:
    """What the backward pass knows of one adapted group, handed to the caller's visitor.

    x (rows, in) and dy (rows, out) with their quantised forms (dy's is that of dy scaled by the base rows' powers of
    two); u, h = s u, dh = B^T dy and s dh with the rank first, (modules * r, rows).
    """

    layer: int
    group: int
    frozen: Frozen
    lora: Lora
    x: Tensor
    x_block: Quantised
    u: Tensor
    h: Tensor
    dy: Tensor
    dy_block: Quantised
    dh: Tensor
    dh_scaled: Tensor


@dataclass(slots=True)
class LinearTape:
    """One group's input and adapter activations."""

    x: Tensor
    block: Quantised
    u: Tensor | None = None
    h: Tensor | None = None


@dataclass(slots=True)
class LayerTape:
    """One layer's activations."""

    norms: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    linears: list[LinearTape] = field(default_factory=list)
    attention: Sequences | Attended | None = None
    head_norms: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    wide: Tensor | None = None
    sigmoid: Tensor | None = None


@dataclass(slots=True)
class Tape:
    """Activations of one forward pass."""

    cos: Tensor
    sin: Tensor
    spans: list[tuple[int, int]]
    layers: list[LayerTape] = field(default_factory=list)
    norm: tuple[Tensor, Tensor] | None = None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """(y, (x_hat, inverse)): y = (x * inverse) * weight, inverse = 1 / fl32(sqrt(mean of squares + eps))."""
    if fused_serves(x):
        from attribution.exact.fused import steps

        return steps.rms_norm(x, weight, eps)
    mean = divide_(sum_of_squares(x), float(x.shape[-1])).add_(eps).float()
    inverse = sqrt(mean).reciprocal_()
    x_hat = x * inverse
    return x_hat * weight, (x_hat, inverse)


def rms_norm_backward(dy: Tensor, weight: Tensor, saved: tuple[Tensor, Tensor]) -> Tensor:
    """Dx = (dy w - x_hat mean(dy w x_hat)) * inverse."""
    if fused_serves(dy):
        from attribution.exact.fused import steps

        return steps.rms_norm_backward(dy, weight, saved)
    x_hat, inverse = saved
    u = dy * weight
    s = divide_(fsum(u * x_hat), float(u.shape[-1])).float()
    return u.sub_(x_hat * s).mul_(inverse)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of (rows, heads, width) by (rows, 1, width / 2), halves as in Hugging Face's Llama."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    out = torch.empty_like(x)
    torch.sub(a * cos, b * sin, out=out[..., :half])
    torch.add(b * cos, a * sin, out=out[..., half:])
    return out


def linear(frozen: Frozen, lora: Lora | None, x: Tensor, tape: LayerTape | None) -> Tensor:
    """One group's outputs for x (rows, in)."""
    if fused_serves(x):
        from attribution.exact.fused.layers import Rows

        rows = Rows.of(x)
        y, u, h = group_forward(frozen, lora, rows)
        if tape is not None:
            tape.linears.append(LinearTape(x, rows, u, h))
        return y
    block = Block.of(x)
    y, u, h = group_forward(frozen, lora, block)
    if tape is not None:
        tape.linears.append(LinearTape(x, NarrowBlock(block.q64, block.scale), u, h))
    return y


def feed_forward(
    base: Base, i: int, loras: tuple[Lora | None, ...], x: Tensor, tape: LayerTape | None
) -> Tensor:
    """down(silu(gate(y)) * up(y)), y the norm of x."""
    layer = base.layers[i]
    y, norm = rms_norm(x, layer.norms[1], base.eps)
    wide = linear(layer.groups[2], loras[2], y, tape)
    mixed, s = swiglu(wide)
    out = linear(layer.groups[3], loras[3], mixed, tape)
    if tape is not None:
        tape.norms.append(norm)
        tape.wide, tape.sigmoid = wide, s
    return out


def swiglu(wide: Tensor) -> tuple[Tensor, Tensor]:
    """(silu(gate) * up, sigmoid(gate)), both (rows, f), of wide (rows, 2 f), gate first."""
    if fused_serves(wide):
        from attribution.exact.fused import steps

        return steps.swiglu(wide)
    f = wide.shape[1] // 2
    gate, up = wide[:, :f], wide[:, f:]
    s = sigmoid(gate.contiguous())
    return (gate * s).mul_(up), s


def project(
    base: Base,
    i: int,
    loras: tuple[Lora | None, ...],
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    tape: LayerTape | None,
) -> Tensor:
    """Layer i's queries (scaled by fl32(width^-1/2)), keys and values: (rows, H + 2 Hk, width)."""
    c, layer = base.config, base.layers[i]
    y, norm = rms_norm(x, layer.norms[0], base.eps)
    wide = linear(layer.groups[0], loras[0], y, tape)
    out = wide.view(-1, c.num_attention_heads + 2 * c.num_key_value_heads, c.head_dim)
    turned = out[:, : c.num_attention_heads + c.num_key_value_heads]
    if layer.head_norms is not None:
        for weight, part in zip(layer.head_norms, _queries_and_keys(base, out), strict=True):
            normed, saved = rms_norm(part.contiguous(), weight, base.eps)
            part.copy_(normed)
            if tape is not None:
                tape.head_norms.append(saved)
    if fused_serves(out):
        from attribution.exact.fused import steps

        steps.turn(out, cos, sin, turned.shape[1], c.num_attention_heads, score_scale(base))
    else:
        turned.copy_(rotate(turned, cos, sin))
        out[:, : c.num_attention_heads].mul_(score_scale(base))
    if tape is not None:
        tape.norms.append(norm)
    return out


def _queries_and_keys(base: Base, x: Tensor) -> tuple[Tensor, Tensor]:
    """The parts (rows, H, width) and (rows, Hk, width) of x (rows, H + 2 Hk, width), as views."""
    heads, kv = base.config.num_attention_heads, base.config.num_key_value_heads
    return x[:, :heads], x[:, heads : heads + kv]


def score_scale(base: Base) -> float:
    """1 / sqrt(width), a correctly rounded binary64 number that binary32 multiplication rounds once more."""
    return 1.0 / math.sqrt(base.config.head_dim)


def no_adapter(base: Base) -> Bound:
    """What `adapter.bind` gives for no adapter at all."""
    return [(None, None, None, None)] * base.config.num_hidden_layers


def check_ids(base: Base, sequences: Sequence[Sequence[int]]) -> None:
    """Raise BadTokens or ContextTooLong for sequences that cannot be run."""
    limit, vocabulary = base.config.max_position_embeddings, base.config.vocab_size
    if not sequences:
        raise BadTokens("no sequences")
    for ids in sequences:
        if not ids:
            raise BadTokens("an empty sequence")
        if len(ids) > limit:
            raise ContextTooLong(len(ids), limit)
        if not all(type(t) is int and 0 <= t < vocabulary for t in ids):
            raise BadTokens("a token id is outside the vocabulary")


def forward(base: Base, bound: Bound, sequences: Sequence[Sequence[int]], save: bool) -> tuple[Tensor, Tape]:
    """Final normed hidden states (rows, hidden) of the flattened sequences, and the tape (filled if `save`)."""
    device = base.device
    lengths = [len(ids) for ids in sequences]
    spans, row = [], 0
    for n in lengths:
        spans.append((row, row + n))
        row += n
    ids = torch.tensor([t for s in sequences for t in s], dtype=torch.int64, device=device)
    position = torch.cat([torch.arange(n, device=device) for n in lengths])
    mask = None if fused_serves(base.embedding) else CausalMask.of(max(lengths), device)
    heads = base.config.num_attention_heads
    tape = Tape(base.rope[0][position], base.rope[1][position], spans)
    x = base.embedding[ids]
    for i, layer in enumerate(base.layers):
        record = LayerTape() if save else None
        qkv = project(base, i, bound[i], x, tape.cos, tape.sin, record)
        o, kept = attention(qkv, heads, spans, save, mask)
        x = x + linear(layer.groups[1], bound[i][1], o.view(row, -1), record)
        x = x + feed_forward(base, i, bound[i], x, record)
        if record is not None:
            record.attention = kept
            tape.layers.append(record)
    y, tape.norm = rms_norm(x, base.tensors["model.norm.weight"], base.eps)
    return y, tape


def head(base: Base, hidden: Tensor) -> Tensor:
    """Logits (rows, vocab), float32."""
    return linear(base.head, None, hidden, None)


@dataclass(frozen=True, slots=True)
class Loss:
    """Per-token losses as integers on the grid 2^-30 (int64), and the gradient of their sum by the logits."""

    tokens: Tensor
    gradient: Tensor


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Loss:
    """Negative log-likelihood of targets (rows); rows whose `weights` (float32, 0 or 1) are 0 count for nothing."""
    rows = torch.arange(logits.shape[0], device=logits.device)
    p, top, den = _probabilities(logits)
    chosen = logits[rows, targets].double()
    loss = (log(den)[:, 0] + top[:, 0].double() - chosen).mul_(2.0**LOSS_BITS).round_().to(torch.int64)
    p[rows, targets] -= 1.0
    if weights is not None:
        p.mul_(weights[:, None])
        loss = loss * weights.to(torch.int64)
    return Loss(loss, p)


def _probabilities(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(p, top, den): p = exp(logits - top) / fl32(den) (rows, vocab), den float64; the last two (rows, 1)."""
    if fused_serves(logits):
        from attribution.exact.fused import steps

        return steps.probabilities(logits)
    top = logits.amax(-1, keepdim=True)
    p = exp_(logits - top)
    den = grid_sum(p)
    return p.div_(den.float()), top, den


def backward(base: Base, bound: Bound, tape: Tape, dlogits: Tensor, visit: Visit) -> None:
    """Back-propagate dlogits (rows, vocab); `visit` sees each adapted group, last layer first."""
    c = base.config
    norm_weight = base.tensors["model.norm.weight"]
    if tape.norm is None:
        raise BadTokens("the forward pass was not saved")
    dx = group_backward(base.head, None, dlogits).dx
    dx = rms_norm_backward(dx, norm_weight, tape.norm)
    heads, kv = c.num_attention_heads, c.num_key_value_heads
    for i in range(c.num_hidden_layers - 1, -1, -1):
        layer, record = base.layers[i], tape.layers[i]
        dx = dx + _feed_forward_backward(base, i, bound, record, dx, visit)
        do = linear_backward(base, i, 1, bound, record.linears[1], dx, visit).view(-1, heads, c.head_dim)
        if record.attention is None:
            raise BadTokens("the forward pass was not saved")
        dy = attention_backward(do, record.attention)
        if fused_serves(dy):
            from attribution.exact.fused import steps

            steps.turn_back(dy, tape.cos, tape.sin, heads + kv, heads, score_scale(base))
        else:
            dy[:, :heads].mul_(score_scale(base))
            dy[:, : heads + kv] = rotate(dy[:, : heads + kv], tape.cos, -tape.sin)
        if layer.head_norms is not None:
            parts = _queries_and_keys(base, dy)
            for weight, part, kept in zip(layer.head_norms, parts, record.head_norms, strict=True):
                part.copy_(rms_norm_backward(part.contiguous(), weight, kept))
        dy = linear_backward(base, i, 0, bound, record.linears[0], dy.view(dx.shape[0], -1), visit)
        if i > 0:
            dx = dx + rms_norm_backward(dy, layer.norms[0], record.norms[0])


def _feed_forward_backward(
    base: Base, i: int, bound: Bound, record: LayerTape, dx: Tensor, visit: Visit
) -> Tensor:
    wide, s = record.wide, record.sigmoid
    if wide is None or s is None:
        raise BadTokens("the forward pass was not saved")
    dm = linear_backward(base, i, 3, bound, record.linears[3], dx, visit)
    dy = swiglu_backward(dm, wide, s)
    dy = linear_backward(base, i, 2, bound, record.linears[2], dy, visit)
    return rms_norm_backward(dy, base.layers[i].norms[1], record.norms[1])


def swiglu_backward(dm: Tensor, wide: Tensor, s: Tensor) -> Tensor:
    """Gradient (rows, 2 f) of `swiglu` by wide, from that of its output and the sigmoid s."""
    if fused_serves(dm):
        from attribution.exact.fused import steps

        return steps.swiglu_backward(dm, wide, s)
    f = wide.shape[1] // 2
    gate, up = wide[:, :f], wide[:, f:]
    dy = torch.empty(wide.shape, device=dm.device)
    # silu' = s (1 + gate (1 - s))
    slope = torch.sub(1.0, s).mul_(gate).add_(1.0).mul_(s)
    torch.mul(dm * up, slope, out=dy[:, :f])
    torch.mul(dm, gate * s, out=dy[:, f:])
    return dy


def linear_backward(
    base: Base, i: int, group: int, bound: Bound, tape: LinearTape, dy: Tensor, visit: Visit
) -> Tensor:
    """Gradient by the group's input from dy (rows, out); adapted groups are shown to `visit`."""
    frozen, lora = base.layers[i].groups[group], bound[i][group]
    g = group_backward(frozen, lora, dy)
    if lora is not None:
        if tape.u is None or tape.h is None or g.dh is None or g.dh_scaled is None:
            raise BadTokens("the forward pass was not saved")
        seen = Visited(
            i, group, frozen, lora, tape.x, tape.block, tape.u, tape.h, dy, g.dy, g.dh, g.dh_scaled
        )
        visit(seen)
    return g.dx
