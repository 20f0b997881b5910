"""The engine's mathematics in floating-point torch, for ratios of time: the model, per-example factors, a step, decoding.

Weights are the base's own numbers; products, attention and normalisation are torch's fastest calls for them. Sequences of one batch
have one length, so that nothing is padded. Gradients come from autograd.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from attribution.adapter import Adapter
from attribution.model import Base, module_name, weight_shapes

Cache = list[tuple[Tensor, Tensor]]


@dataclass
class Module:
    """One adapted linear layer: y = W x + s B (A x)."""

    w: Tensor
    a: Tensor
    b: Tensor
    scale: float

    def forward(self, x: Tensor, tape: list[Captured] | None) -> Tensor:
        u = functional.linear(x, self.a)
        y = torch.add(functional.linear(x, self.w), functional.linear(u, self.b), alpha=self.scale)
        if tape is not None:
            tape.append(Captured(self, x, u, y))
        return y


@dataclass
class Captured:
    """What a module saw in one forward pass."""

    module: Module
    x: Tensor
    u: Tensor
    y: Tensor


class Floating:
    """A base and an adapter on every module, as floating-point numbers of `dtype` on one device."""

    def __init__(self, base: Base, adapter: Adapter, dtype: torch.dtype = torch.float32) -> None:
        c = self.config = base.config
        self.device, self.dtype, self.eps = base.device, dtype, base.eps
        weights = {
            name: (base.tensors[f"{name}.q"].float() * 2.0 ** base.tensors[f"{name}.e"].float()[:, None]).to(
                dtype
            )
            for name in weight_shapes(c)
        }
        self.embedding = weights["model.embed_tokens"]
        self.head = weights["model.embed_tokens" if c.tie_word_embeddings else "lm_head"]
        self.norm = base.tensors["model.norm.weight"].to(dtype)
        self.norms = [
            tuple(
                base.tensors[f"model.layers.{i}.{part}_layernorm.weight"].to(dtype)
                for part in ("input", "post_attention")
            )
            for i in range(c.num_hidden_layers)
        ]
        self.modules = {
            m.name: Module(weights[m.name], m.a.to(dtype).clone(), m.b.to(dtype).clone(), adapter.scale)
            for m in adapter.modules
        }
        self.order = [m.name for m in adapter.modules]
        half = base.rope[0][:, 0], base.rope[1][:, 0]
        self.cos, self.sin = (torch.cat([part, part], -1).to(dtype) for part in half)

    def parameters(self) -> list[Tensor]:
        """The adapter's factors, in model order."""
        return [factor for name in self.order for factor in (self.modules[name].a, self.modules[name].b)]

    def embed(self, ids: Tensor) -> Tensor:
        """(batch, length, hidden)."""
        return functional.embedding(ids, self.embedding)

    def logits(self, x: Tensor, tape: list[Captured] | None = None, cache: Cache | None = None) -> Tensor:
        """Logits (batch, length, vocab) for embedded tokens; with a cache, they follow those that it holds."""
        start = cache[0][0].shape[2] if cache else 0
        cos, sin = self.cos[start : start + x.shape[1]], self.sin[start : start + x.shape[1]]
        for i, (first, second) in enumerate(self.norms):
            x = x + self._attention(i, self._normed(x, first), cos, sin, tape, cache)
            y = self._normed(x, second)
            gate, up = self._module(i, "gate_proj", y, tape), self._module(i, "up_proj", y, tape)
            x = x + self._module(i, "down_proj", functional.silu(gate) * up, tape)
        return functional.linear(self._normed(x, self.norm), self.head)

    def _attention(
        self,
        i: int,
        y: Tensor,
        cos: Tensor,
        sin: Tensor,
        tape: list[Captured] | None,
        cache: Cache | None,
    ) -> Tensor:
        c, (batch, length, _) = self.config, y.shape
        parts = []
        for name, heads in (
            ("q_proj", c.num_attention_heads),
            ("k_proj", c.num_key_value_heads),
            ("v_proj", c.num_key_value_heads),
        ):
            parts.append(
                self._module(i, name, y, tape).view(batch, length, heads, c.head_dim).transpose(1, 2)
            )
        q, k, v = _rotated(parts[0], cos, sin), _rotated(parts[1], cos, sin), parts[2]
        if cache is not None:
            if len(cache) > i:
                k, v = torch.cat([cache[i][0], k], 2), torch.cat([cache[i][1], v], 2)
                cache[i] = (k, v)
            else:
                cache.append((k, v))
        shared = c.num_attention_heads != c.num_key_value_heads
        o = functional.scaled_dot_product_attention(q, k, v, is_causal=length > 1, enable_gqa=shared)
        return self._module(i, "o_proj", o.transpose(1, 2).reshape(batch, length, -1), tape)

    def _module(self, i: int, projection: str, x: Tensor, tape: list[Captured] | None) -> Tensor:
        return self.modules[module_name(i, projection)].forward(x, tape)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), weight, self.eps)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def summed_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of the tokens' losses."""
    return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")


def factors(model: Floating, tokens: Tensor) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """(x, u, dz, dh) of every module in model order, rows flattened: what `attribution.gradients.factors` gives.

    `tokens` (batch, length + 1) hold BOS and EOS.
    """
    tape: list[Captured] = []
    with torch.enable_grad():
        x = model.embed(tokens[:, :-1]).requires_grad_()
        loss = summed_loss(model.logits(x, tape), tokens[:, 1:])
        gradients = torch.autograd.grad(loss, [seen.y for seen in tape])
    out = {}
    for seen, dz in zip(tape, gradients, strict=True):
        flat = dz.flatten(0, 1)
        x, u = seen.x.detach().flatten(0, 1), seen.u.detach().flatten(0, 1)
        out[id(seen.module)] = (x, u, flat, flat @ seen.module.b)
    return [out[id(model.modules[name])] for name in model.order]


def optimiser(model: Floating, rate: float, decay: float) -> torch.optim.AdamW:
    """AdamW over the adapter, all factors in one call of torch's fused kernel."""
    for factor in model.parameters():
        factor.requires_grad_()
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, fused=True)


def train_step(model: Floating, adamw: torch.optim.AdamW, tokens: Tensor, clip: float) -> None:
    """One step on the mean token loss of a batch (batch, length + 1), its gradient clipped to the norm `clip`."""
    with torch.enable_grad():
        loss = summed_loss(model.logits(model.embed(tokens[:, :-1])), tokens[:, 1:]) / tokens[:, 1:].numel()
        loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    adamw.step()
    adamw.zero_grad()


def decode(model: Floating, prompt: Sequence[int], new_tokens: int) -> list[int]:
    """Greedy continuation by `new_tokens` ids, keys and values cached; it does not stop at EOS."""
    cache: Cache = []
    feed, out = list(prompt), list[int]()
    while len(out) < new_tokens:
        x = model.embed(torch.tensor([feed], device=model.device))
        token = int(model.logits(x, None, cache)[0, -1].argmax())
        out.append(token)
        feed = [token]
    return out
