"""Causal attention with grouped queries, forward and backward, in exact arithmetic.

Sequences are flattened tokens everywhere else; here they are padded on the right, a few at a time, which
changes no bit: padded rows hold integer zeros, and padded or future probabilities are exact zeros.
docs/exact-arithmetic.md, "Attention", is the specification.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attribution.exact.bits import magnitude_exponent, pow2, pow2_64, row_magnitude
from attribution.exact.elementary import exp_
from attribution.exact.quantisation import BITS, Block, to_grid
from attribution.exact.reductions import fsum

# Scores of one padded group: small enough for a core's second-level cache, large enough to hide call overhead.
GROUP_SCORES_MAX = 1 << 16


@dataclass(frozen=True, slots=True)
class Group:
    """Consecutive sequences padded together: flat rows [start, stop), `batch` sequences of at most `length`.

    `place` maps a flat row (less `start`) to its padded row, or is None where nothing is padded. `bias` is 0 or
    -infinity and `keep` 1 or 0, float32, (batch or 1, 1, length, length).
    """

    start: int
    stop: int
    batch: int
    length: int
    place: Tensor | None
    bias: Tensor
    keep: Tensor

    def pad(self, x: Tensor) -> Tensor:
        """(rows, heads, width) to float64 (batch, heads, length, width), zeros in padded rows."""
        x = x[self.start : self.stop]
        if self.place is None:
            x = x.view(self.batch, self.length, *x.shape[1:])
        else:
            wide = torch.zeros(self.batch * self.length, *x.shape[1:], dtype=x.dtype, device=x.device)
            wide[self.place] = x
            x = wide.view(self.batch, self.length, *x.shape[1:])
        out = torch.empty(x.transpose(1, 2).shape, dtype=torch.float64, device=x.device)
        return out.copy_(x.transpose(1, 2))

    def unpad(self, x: Tensor, out: Tensor) -> None:
        """Inverse of `pad` for (batch, heads, length, width), into rows [start, stop) of (rows, heads, width)."""
        x = x.transpose(1, 2)
        if self.place is None:
            out[self.start : self.stop].view(self.batch, self.length, *x.shape[2:]).copy_(x)
        else:
            out[self.start : self.stop] = x.reshape(-1, *x.shape[2:])[self.place]


def make_groups(lengths: Sequence[int], heads: int, device: torch.device) -> list[Group]:
    """Split sequences, in order, into padded groups of at most GROUP_SCORES_MAX scores (or one sequence)."""
    out = []
    first, start = 0, 0
    while first < len(lengths):
        last, longest = first + 1, lengths[first]
        while last < len(lengths):
            longer = max(longest, lengths[last])
            if (last + 1 - first) * heads * longer * longer > GROUP_SCORES_MAX:
                break
            last, longest = last + 1, longer
        out.append(_group(lengths[first:last], longest, start, device))
        start += sum(lengths[first:last])
        first = last
    return out


def _group(lengths: Sequence[int], longest: int, start: int, device: torch.device) -> Group:
    index = torch.arange(longest, device=device)
    keep = (index[:, None] >= index[None, :])[None, None]
    place = None
    if any(n != longest for n in lengths):
        counts = torch.tensor(list(lengths), device=device)
        real = index[None, :] < counts[:, None]
        place = real.view(-1).nonzero()[:, 0]
        keep = keep & real[:, None, :, None]
    bias = torch.zeros(keep.shape, device=device).masked_fill_(~keep, float("-inf"))
    # A padded query row keeps one finite score, so that its (unused) row holds no NaN.
    bias[..., 0] = 0.0
    return Group(start, start + sum(lengths), len(lengths), longest, place, bias, keep.float())


@dataclass(frozen=True, slots=True)
class Saved:
    """What the backward pass of one group needs; all padded, heads of one key head side by side."""

    q: Tensor
    q_scale: Tensor
    k: Tensor
    k_scale: Tensor
    v: Tensor
    v_value: Tensor
    p: Tensor
    den: Tensor
    o: Tensor


def probabilities(scores: Tensor, bias: Tensor | None, keep: Tensor | None) -> Tensor:
    """Unnormalised exp(S - max S) in place on float32 scores; masked entries are exact zeros."""
    if bias is not None:
        scores.add_(bias)
    exp_(scores.sub_(scores.amax(-1, keepdim=True)))
    return scores if keep is None else scores.mul_(keep)


def weigh(p: Tensor, v: Tensor, v_scale: Tensor, wide: Tensor) -> tuple[Tensor, Tensor]:
    """(O, den) from p (B, M, T) float32, v (B, T, width) float64 integers, v_scale (B, 1, T) float32.

    `wide` is a float64 buffer of p's shape. Each key's power of two is folded into p before p is quantised along
    keys; den is the sum of p on the grid 2^-30; O = fl32(sum) / den.
    """
    den = wide.copy_(torch.mul(p, 2.0**30).round_()).sum(-1, keepdim=True).mul_(2.0**-30).float()
    den.clamp_(min=0.5)
    q, e = to_grid(p * v_scale)
    o = torch.bmm(wide.copy_(q), v).mul_(pow2_64(e)).float()
    return o.div_(den), den


def attend(
    q: Tensor, k: Tensor, v: Tensor, groups: list[Group], save: bool
) -> tuple[Tensor, list[Saved]]:
    """Outputs (rows, H, width) for q (rows, H, width), already scaled, k and v (rows, Hk, width), float32."""
    qb, kb, vb = Block.of(q), Block.of(k), Block.of(v)
    heads, width, kv = q.shape[1], q.shape[2], k.shape[1]
    out = torch.empty_like(q)
    saved = []
    for g in groups:
        n, t = g.batch * kv, g.length
        m = heads // kv * t
        qi, qs = g.pad(qb.q).view(n, m, width), g.pad(qb.scale).view(n, m, 1)
        ki, ks = g.pad(kb.q).view(n, t, width), g.pad(kb.scale).view(n, t, 1)
        vi, vs = g.pad(vb.q).view(n, t, width), g.pad(vb.scale).view(n, t, 1)
        wide = torch.bmm(qi * qs, (ki * ks).transpose(1, 2))
        p = probabilities(wide.float().view(g.batch, heads, t, t), g.bias, g.keep).view(n, m, t)
        o, den = weigh(p, vi, vs.transpose(1, 2).float(), wide)
        g.unpad(o.view(g.batch, heads, t, width), out)
        if save:
            saved.append(Saved(qi, qs.float(), ki, ks.transpose(1, 2).float(), vi, vi * vs, p, den, o))
    return out, saved


def attend_backward(
    do: Tensor, groups: list[Group], saved: list[Saved], kv: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients (dq for the scaled q, dk, dv) from do (rows, H, width), float32."""
    rows, heads, width = do.shape
    dq = torch.empty_like(do)
    dk = torch.empty(rows, kv, width, device=do.device)
    dv = torch.empty_like(dk)
    for g, s in zip(groups, saved, strict=True):
        n, t = g.batch * kv, g.length
        m = heads // kv * t
        grad = g.pad(do).view(n, m, width).float().div_(s.den)
        block = Block.of(grad)
        grad64, value64 = block.q64, block.q64 * block.scale64
        wide = torch.bmm(value64, s.v_value.transpose(1, 2))
        ds = wide.float().sub_(fsum(grad * s.o).float()).mul_(s.p)
        q, e = to_grid(ds * s.k_scale)
        g.unpad(torch.bmm(wide.copy_(q), s.k).mul_(pow2_64(e)).float().view(g.batch, heads, t, width), dq)
        g.unpad(_over_queries(ds.mul_(s.q_scale), s.q, wide).view(g.batch, kv, t, width), dk)
        g.unpad(_over_queries(s.p * block.scale, grad64, wide).view(g.batch, kv, t, width), dv)
    return dq, dk, dv


def _over_queries(x: Tensor, rows: Tensor, wide: Tensor) -> Tensor:
    """sum over queries of x (B, M, T) times rows (B, M, width) of float64 integers, rounded once: (B, T, width)."""
    e = magnitude_exponent(row_magnitude(x, 1)).sub_(BITS - 1)
    wide.copy_(x.mul_(pow2(-e)).round_())
    return torch.bmm(wide.transpose(1, 2), rows).mul_(pow2_64(e).transpose(1, 2)).float()
