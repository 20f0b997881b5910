"""Causal attention with grouped queries, forward and backward: `attention` and `attention_backward` for all sequences.

docs/exact-arithmetic.md, "Attention", is the specification. Products are in binary64, where sums of products of
14-bit integers are exact; narrow operands come first (V^T P^T rather than P V), which is faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attribution.exact.backends import fused_serves
from attribution.exact.elementary import exp_
from attribution.exact.quantisation import Block, to_grid
from attribution.exact.reductions import fsum, grid_sum

if TYPE_CHECKING:
    from attribution.exact.fused.steps import Attended


@dataclass(frozen=True, slots=True)
class Heads:
    """Queries, keys and values of one sequence, heads first: `q64` float64 integers (H + 2 Hk, T, width).

    `scale` float32 and `value` float64 (the dequantised numbers) go with it; queries come first, then keys.
    """

    q64: Tensor
    scale: Tensor
    value: Tensor


@dataclass(frozen=True, slots=True)
class Saved:
    """What the backward pass of one sequence needs: p (Hk, M, T), heads, whose `value` is the values' part only, and what is hidden (T, T)."""

    heads: Heads
    p: Tensor
    hidden: Tensor


@dataclass(frozen=True, slots=True)
class CausalMask:
    """`hidden`, whether a key is later than its query, and `keep`, float32 1 or 0; (T, T) for the longest sequence, shorter ones take a corner."""

    hidden: Tensor
    keep: Tensor

    @classmethod
    def of(cls, length: int, device: torch.device) -> CausalMask:
        """Mask of `length` positions."""
        keep = torch.ones(length, length, device=device).tril_()
        return cls(keep == 0.0, keep)


def probabilities(scores: Tensor, hidden: Tensor | None, keep: Tensor | None) -> Tensor:
    """Unnormalised exp(S - max S) in place on float32 scores; masked entries are exact zeros.

    They are overwritten, not added to: a score beyond binary32 that no query may see must not refuse the row.
    """
    if hidden is not None:
        scores.masked_fill_(hidden, float("-inf"))
    exp_(scores.sub_(scores.amax(-1, keepdim=True)))
    return scores if keep is None else scores.mul_(keep)


def weigh(p: Tensor, v: Tensor, v_scale: Tensor, wide: Tensor) -> tuple[Tensor, Tensor]:
    """(o, den): o (B, M, width) from p (B, M, T) float32, v (B, T, width) float64 integers, v_scale (B, 1, T).

    `wide` is a float64 buffer of p's shape. Each key's power of two is folded into p before p is quantised along
    keys; den is the sum of p on the grid 2^-30; o = fl32(sum) / den.
    """
    den = grid_sum(p, wide).float()
    q, scale = to_grid(p * v_scale, nonnegative=True)
    o = torch.bmm(v.transpose(1, 2), wide.copy_(q).transpose(1, 2)).transpose(1, 2)
    out = torch.empty(o.shape, dtype=torch.float32, device=p.device)
    return out.copy_(o.mul_(scale.double())).div_(den), den


def heads_first(block: Block) -> Heads:
    """(T, heads, width) quantised rows, heads first."""
    q = block.q.transpose(0, 1)
    q64 = torch.empty(q.shape, dtype=torch.float64, device=q.device).copy_(q)
    scale = block.scale.transpose(0, 1).contiguous()
    return Heads(q64, scale, q64 * scale.double())


def attend(
    qkv: Block, heads: int, kv: int, mask: CausalMask, out: Tensor, den_out: Tensor, save: bool
) -> Saved | None:
    """Write outputs (T, H, width) and denominators (T, H, 1) for the quantised rows qkv (T, H + 2 Hk, width).

    Queries are already scaled.
    """
    t, _, width = qkv.q.shape
    h = heads_first(qkv)
    m = heads // kv * t
    wide = torch.bmm(h.value[:heads].view(kv, m, width), h.value[heads : heads + kv].transpose(1, 2))
    scores = wide.float().view(heads, t, t)
    p = probabilities(scores, mask.hidden[:t, :t], mask.keep[:t, :t]).view(kv, m, t)
    o, den = weigh(p, h.q64[heads + kv :], h.scale[heads + kv :].transpose(1, 2), wide)
    out.copy_(o.view(heads, t, width).transpose(0, 1))
    den_out.copy_(den.view(heads, t, 1).transpose(0, 1))
    return Saved(Heads(h.q64, h.scale, h.value[heads + kv :]), p, mask.hidden[:t, :t]) if save else None


def attend_backward(g: Heads, dots: Tensor, saved: Saved, heads: int, kv: int, out: Tensor) -> None:
    """Write gradients (T, H + 2 Hk, width) of the scaled queries, keys and values of one sequence.

    g holds the quantised dO / den (H, T, width) and dots (H, T, 1) its products with O.
    """
    t, width = g.q64.shape[1:]
    h, p, m = saved.heads, saved.p, heads // kv * t
    wide = torch.bmm(g.value.view(kv, m, width), h.value.transpose(1, 2))
    ds = wide.float().sub_(dots.view(kv, m, 1)).mul_(p)
    # Beyond binary32 times the zero of a hidden key would be NaN.
    ds.view(heads, t, t).masked_fill_(saved.hidden, 0.0)
    q, scale = to_grid(ds * h.scale[heads : heads + kv].transpose(1, 2))
    keys = h.q64[heads : heads + kv].transpose(1, 2)
    dq = torch.bmm(keys, wide.copy_(q).transpose(1, 2)).mul_(scale.double().transpose(1, 2))
    out[:, :heads].view(t, kv, heads // kv, width).copy_(
        dq.view(kv, width, heads // kv, t).permute(3, 0, 2, 1)
    )
    dk = _over_queries(ds.mul_(h.scale[:heads].view(kv, m, 1)), h.q64[:heads].view(kv, m, width), wide)
    out[:, heads : heads + kv] = dk.permute(2, 0, 1)
    dv = _over_queries(p * g.scale.view(kv, m, 1), g.q64.view(kv, m, width), wide, nonnegative=True)
    out[:, heads + kv :] = dv.permute(2, 0, 1)


def _over_queries(x: Tensor, rows: Tensor, wide: Tensor, nonnegative: bool = False) -> Tensor:
    """Exact sum over queries of rows (B, M, width), float64 integers, times x (B, M, T): float64 (B, width, T)."""
    q, scale = to_grid(x, 1, nonnegative)
    return torch.bmm(rows.transpose(1, 2), wide.copy_(q)).mul_(scale.double())


@dataclass(frozen=True, slots=True)
class Sequences:
    """What the backward pass of several sequences needs: their spans of rows, `Saved` each, outputs (rows, H, width), den (rows, H, 1)."""

    spans: Sequence[tuple[int, int]]
    saved: list[Saved]
    o: Tensor
    den: Tensor


def attention(
    x: Tensor, heads: int, spans: Sequence[tuple[int, int]], save: bool, mask: CausalMask | None = None
) -> tuple[Tensor, Sequences | Attended]:
    """(outputs (rows, H, width), what `attention_backward` needs if `save`) for projected x (rows, H + 2 Hk, width).

    `mask` is for the longest sequence; without it one is made where one is needed.
    """
    if fused_serves(x):
        from attribution.exact.fused import steps

        return steps.attend(x, heads, spans, save)
    if mask is None:
        mask = CausalMask.of(max(j - i for i, j in spans), x.device)
    kv, block, saved = (x.shape[1] - heads) // 2, Block.of(x), list[Saved]()
    o = torch.empty(x.shape[0], heads, x.shape[2], device=x.device)
    den = torch.empty(x.shape[0], heads, 1, device=x.device)
    for i, j in spans:
        kept = attend(Block(block.q[i:j], block.scale[i:j]), heads, kv, mask, o[i:j], den[i:j], save)
        if kept is not None:
            saved.append(kept)
    return o, Sequences(spans, saved, o, den)


def attention_backward(do: Tensor, kept: Sequences | Attended) -> Tensor:
    """(rows, H + 2 Hk, width): gradients of the scaled, rotated queries, of keys and of values, from those of the outputs."""
    if not isinstance(kept, Sequences):
        from attribution.exact.fused import steps

        return steps.attend_backward(do, kept)
    heads = do.shape[1]
    block = Block.of(do / kept.den)
    dots = fsum(block.value * kept.o).float()
    kv = kept.saved[0].heads.q64.shape[0] - heads >> 1
    dy = torch.empty(do.shape[0], heads + 2 * kv, do.shape[2], device=do.device)
    for (i, j), saved in zip(kept.spans, kept.saved, strict=True):
        g = heads_first(Block(block.q[i:j], block.scale[i:j]))
        attend_backward(g, dots[i:j].transpose(0, 1).contiguous(), saved, heads, kv, dy[i:j])
    return dy
