"""Greedy generation with cached keys and values: bit for bit what running the whole text at once would give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attribution.adapter import Adapter
from attribution.attention import Heads, heads_first, probabilities, weigh
from attribution.decoder import (
    check_ids,
    feed_forward,
    forward,
    head,
    linear,
    no_adapter,
    project,
    rms_norm,
)
from attribution.errors import ContextTooLong
from attribution.exact.backends import family_for
from attribution.exact.elementary import argmax
from attribution.exact.quantisation import Block
from attribution.generation_rows import NarrowRows, narrow_rows_serve
from attribution.linear import Bound
from attribution.model import Base

if TYPE_CHECKING:
    from attribution.exact.fused.steps import Cache


class LayerCache:
    """One layer's keys (dequantised), values (integers) and the values' scales, preallocated for n positions."""

    def __init__(self, kv: int, width: int, tokens_max: int, device: torch.device) -> None:
        self.keys = torch.zeros(kv, tokens_max, width, dtype=torch.float64, device=device)
        self.values = torch.zeros_like(self.keys)
        self.scales = torch.zeros(kv, 1, tokens_max, device=device)

    def attend(self, x: Tensor, heads: int, start: int) -> Tensor:
        """Append projected x (rows, H + 2 Hk, width) at position `start`; outputs (rows, H * width) over all positions up to each."""
        new = heads_first(Block.of(x))
        self.write(new, self.keys.shape[0], start, start + x.shape[0])
        return _attend_cached(new, heads, self, start)

    def write(self, heads: Heads, kv: int, start: int, stop: int) -> None:
        """Store the keys and values of positions start..stop out of quantised (H + 2 Hk, rows, width)."""
        self.keys[:, start:stop] = heads.value[-2 * kv : -kv]
        self.values[:, start:stop] = heads.q64[-kv:]
        self.scales[:, 0, start:stop] = heads.scale[-kv:, :, 0]


def cache_of(kv: int, width: int, tokens_max: int, device: torch.device) -> LayerCache | Cache:
    """One layer's cache for `tokens_max` positions of `kv` key heads, in the form of the way in force on `device`."""
    if family_for(device) != "fused":
        return LayerCache(kv, width, tokens_max, device)
    from attribution.exact.fused.steps import Cache

    return Cache(kv, width, tokens_max)


class Session:
    """One sequence being extended: `extend` feeds tokens and returns the logits of the last one."""

    def __init__(self, base: Base, bound: Bound, tokens_max: int) -> None:
        self.base = base
        self.bound = bound
        self.tokens_max = min(tokens_max, base.config.max_position_embeddings)
        self.length = 0
        self._narrow: NarrowRows | None = None
        c = base.config
        kept = (c.num_key_value_heads, c.head_dim, self.tokens_max, base.device)
        self.caches = [cache_of(*kept) for _ in base.layers]

    def extend(self, ids: Sequence[int]) -> Tensor:
        """Feed ids (at least one) and return logits (vocab,) after the last. Raises ContextTooLong, BadTokens."""
        check_ids(self.base, [ids])
        base, rows = self.base, len(ids)
        narrow = self._narrow_rows() if rows == 1 else None
        start, stop = self.length, self.length + rows
        if stop > self.tokens_max:
            raise ContextTooLong(stop, self.tokens_max)
        cos, sin = base.rope[0][start:stop], base.rope[1][start:stop]
        x = base.embedding[torch.tensor(list(ids), dtype=torch.int64, device=base.device)]
        for i, layer in enumerate(base.layers):
            if narrow is not None:
                qkv = narrow.project(i, x, cos, sin)
            else:
                qkv = project(base, i, self.bound[i], x, cos, sin, None)
            o = self.caches[i].attend(qkv, base.config.num_attention_heads, start)
            if narrow is not None:
                x = x + narrow.groups[i][1].forward(o)
                x = x + narrow.feed_forward(i, x)
            else:
                x = x + linear(layer.groups[1], self.bound[i][1], o, None)
                x = x + feed_forward(base, i, self.bound[i], x, None)
        self.length = stop
        y, _ = rms_norm(x[-1:], base.tensors["model.norm.weight"], base.eps)
        return head(base, y)[0].add_(0.0)

    def _narrow_rows(self) -> NarrowRows | None:
        """The operands for one row at a time, made when the first one comes; None where they do not serve."""
        if not narrow_rows_serve(self.base):
            return None
        if self._narrow is None:
            self._narrow = NarrowRows(self.base, self.bound)
        return self._narrow


def _attend_cached(new: Heads, heads: int, cache: LayerCache, start: int) -> Tensor:
    """(rows, H * width): queries at positions start.. over everything cached up to each."""
    _, rows, width = new.q64.shape
    kv, stop = cache.keys.shape[0], start + rows
    q = new.value[:heads].view(kv, heads // kv * rows, width)
    wide = torch.bmm(q, cache.keys[:, :stop].transpose(1, 2))
    hidden = keep = None
    if rows > 1:
        position = torch.arange(stop, device=q.device)
        visible = position[None, :] <= position[start:, None]
        hidden = ~visible
        keep = visible.float()
    p = probabilities(wide.float().view(heads, rows, stop), hidden, keep).view(wide.shape)
    o, _ = weigh(p, cache.values[:, :stop], cache.scales[:, :, :stop], wide)
    return o.view(heads, rows, width).transpose(0, 1).reshape(rows, heads * width)


def generate(
    base: Base, adapter: Adapter | None, prompt_ids: Sequence[int], new_tokens_max: int
) -> list[int]:
    """Greedy continuation of BOS + prompt_ids: at most new_tokens_max ids, without the EOS that may end it.

    The likeliest token is taken, the lowest id among equals. Raises ContextTooLong if BOS + prompt + new_tokens_max
    exceeds the model's positions, BadTokens, BadAdapter.
    """
    c = base.config
    prompt = [c.bos_token_id, *prompt_ids]
    # The last new token is never fed back, so it needs no position.
    needed = len(prompt) + max(0, new_tokens_max - 1)
    if needed > c.max_position_embeddings:
        raise ContextTooLong(needed, c.max_position_embeddings)
    check_ids(base, [prompt])
    session = Session(base, adapter.bound_to(base) if adapter else no_adapter(base), needed)
    out: list[int] = []
    feed = prompt
    while len(out) < new_tokens_max:
        token = int(argmax(session.extend(feed)))
        if token == c.eos_token_id:
            break
        out.append(token)
        feed = [token]
    return out


def logits(base: Base, adapter: Adapter | None, ids: Sequence[int]) -> Tensor:
    """Logits (len(ids), vocab), float32, no negative zeros, after each of `ids` (BOS is NOT added)."""
    check_ids(base, [ids])
    bound = adapter.bound_to(base) if adapter else no_adapter(base)
    hidden, _ = forward(base, bound, [ids], save=False)
    return head(base, hidden).add_(0.0)
