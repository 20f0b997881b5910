"""The same decoder in float64 with autograd, for agreement within the quantisation error.

Given `noise`, it says what that error is: wherever the specification quantises a row, a number drawn from half a step to
either side is added to each entry, which is what rounding does to them. `quantisation_bound` measures it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attribution.adapter import Adapter
from attribution.model import Base, module_name
from tests.unit.attribution.model_cases import dequantised

Factors = dict[str, tuple[Tensor, Tensor]]


class Reference:
    """Weights dequantised to float64; the adapter's factors, if any, require gradients."""

    def __init__(self, base: Base, adapter: Adapter | None, noise: torch.Generator | None = None) -> None:
        self.config = base.config
        self.weights = {name: w.double() for name, w in dequantised(base).items()}
        self.scale = adapter.alpha / adapter.rank if adapter else 0.0
        self.noise = noise
        self.factors: Factors = {
            m.name: (m.a.double().requires_grad_(), m.b.double().requires_grad_())
            for m in (adapter.modules if adapter else ())
        }

    def rounded(self, x: Tensor) -> Tensor:
        """Rows (..., K) with the error of 14 bits in each entry, or as they are."""
        if self.noise is None:
            return x
        step = _steps(x)
        return x + (torch.rand(x.shape, generator=self.noise, dtype=torch.float64) - 0.5) * step

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
            y = self.rounded(self.norm(f"model.layers.{i}.input_layernorm.weight", x))
            q, k, v = (
                self.linear(i, p, y).view(n, -1, width).transpose(0, 1)
                for p in ("q_proj", "k_proj", "v_proj")
            )
            share = c.num_attention_heads // c.num_key_value_heads
            powers = _steps(v).transpose(1, 2).repeat_interleave(share, 0)
            q, k, v = (self.rounded(part) for part in (turn(q), turn(k), v))
            k, v = k.repeat_interleave(share, 0), v.repeat_interleave(share, 0)
            scores = q @ k.transpose(1, 2) / width**0.5
            scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), float("-inf"))
            # The power of two of each value's row is folded into p before p is quantised.
            p = self.rounded(scores.softmax(-1) * powers) / powers
            o = (p @ v).transpose(0, 1).reshape(n, -1)
            x = x + self.linear(i, "o_proj", self.rounded(o))
            y = self.rounded(self.norm(f"model.layers.{i}.post_attention_layernorm.weight", x))
            gate = self.linear(i, "gate_proj", y)
            wide = self.rounded(gate * gate.sigmoid() * self.linear(i, "up_proj", y))
            x = x + self.linear(i, "down_proj", wide)
        name = "model.embed_tokens" if c.tie_word_embeddings else "lm_head"
        return self.rounded(self.norm("model.norm.weight", x)) @ self.weights[f"{name}.weight"].t()

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


def _steps(x: Tensor) -> Tensor:
    """2^e of each row's 14-bit grid, float64 (..., 1); rows of zeros get the smallest."""
    _, exponent = torch.frexp(x.detach().abs().amax(-1, keepdim=True).clamp_(min=2.0**-99))
    return torch.ldexp(torch.ones(exponent.shape, dtype=torch.float64), exponent - 13)


def quantisation_bound(base: Base, ids: Sequence[int], draws: int = 6) -> float:
    """Bound on |logits - float logits| / |float logits| (Euclidean norms) that quantising may cause, without an adapter.

    Twice the largest effect of `draws` random errors of half a step at every place where the specification quantises.
    Rounding errors are fixed numbers rather than random ones, but their effect is a sum of thousands of small terms, whose
    size hardly varies; the factor of two is for what does.
    """
    truth = Reference(base, None).logits(ids)
    seen = []
    for seed in range(draws):
        noisy = Reference(base, None, torch.Generator().manual_seed(seed)).logits(ids)
        seen.append(float((noisy - truth).norm() / truth.norm()))
    return 2.0 * max(seen)
