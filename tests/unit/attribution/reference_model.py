"""The same decoder in float64 with autograd, for agreement within the quantisation error."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attribution.adapter import Adapter
from attribution.model import Base, module_name
from tests.unit.attribution.model_cases import dequantised

Factors = dict[str, tuple[Tensor, Tensor]]


class Reference:
    """Weights dequantised to float64; the adapter's factors require gradients."""

    def __init__(self, base: Base, adapter: Adapter) -> None:
        self.config = base.config
        self.weights = {name: w.double() for name, w in dequantised(base).items()}
        self.scale = adapter.alpha / adapter.rank
        self.factors: Factors = {
            m.name: (m.a.double().requires_grad_(), m.b.double().requires_grad_()) for m in adapter.modules
        }

    def linear(self, layer: int, projection: str, x: Tensor) -> Tensor:
        name = module_name(layer, projection)
        y = x @ self.weights[f"{name}.weight"].t()
        if name in self.factors:
            a, b = self.factors[name]
            y = y + self.scale * ((x @ a.t()) @ b.t())
        return y

    def norm(self, name: str, x: Tensor) -> Tensor:
        mean = x.square().mean(-1, keepdim=True)
        return x * torch.rsqrt(mean + float(self.config.rms_norm_eps)) * self.weights[name].double()

    def logits(self, ids: Sequence[int]) -> Tensor:
        c = self.config
        n, width, half = len(ids), c.head_dim, c.head_dim // 2
        frequency = float(c.rope_theta) ** (-torch.arange(half, dtype=torch.float64) * 2 / width)
        angle = torch.arange(n, dtype=torch.float64)[:, None] * frequency
        cos, sin = angle.cos(), angle.sin()

        def turn(x: Tensor) -> Tensor:
            a, b = x[..., :half], x[..., half:]
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

        x = self.weights["model.embed_tokens.weight"][torch.tensor(list(ids))]
        for i in range(c.num_hidden_layers):
            y = self.norm(f"model.layers.{i}.input_layernorm.weight", x)
            q, k, v = (
                self.linear(i, p, y).view(n, -1, width).transpose(0, 1)
                for p in ("q_proj", "k_proj", "v_proj")
            )
            share = c.num_attention_heads // c.num_key_value_heads
            k, v = turn(k).repeat_interleave(share, 0), v.repeat_interleave(share, 0)
            scores = turn(q) @ k.transpose(1, 2) / width**0.5
            scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), float("-inf"))
            o = (scores.softmax(-1) @ v).transpose(0, 1).reshape(n, -1)
            x = x + self.linear(i, "o_proj", o)
            y = self.norm(f"model.layers.{i}.post_attention_layernorm.weight", x)
            gate = self.linear(i, "gate_proj", y)
            x = x + self.linear(i, "down_proj", gate * gate.sigmoid() * self.linear(i, "up_proj", y))
        name = "model.embed_tokens" if c.tie_word_embeddings else "lm_head"
        return self.norm("model.norm.weight", x) @ self.weights[f"{name}.weight"].t()

    def loss(self, prompt: Sequence[int], completion: Sequence[int], ends: bool = True) -> Tensor:
        c = self.config
        tokens = [c.bos_token_id, *prompt, *completion, *([c.eos_token_id] if ends else [])]
        rows = self.logits(tokens[:-1]).log_softmax(-1)[len(prompt) :]
        targets = torch.tensor(tokens[1 + len(prompt) :])
        return -rows.gather(1, targets[:, None]).sum()

    def gradients(self, loss: Tensor) -> Factors:
        names = list(self.factors)
        flat = torch.autograd.grad(loss, [t for n in names for t in self.factors[n]])
        return {n: (flat[2 * i], flat[2 * i + 1]) for i, n in enumerate(names)}
