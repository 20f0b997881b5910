"""The widened decoder in float64 with autograd: biases, norms of heads, stretched frequencies.

Given `noise`, it says what quantising may do: a number drawn from half a step to either side is added to each entry
wherever docs/exact-arithmetic.md and docs/models.md quantise, and to each weight. `import_bound` measures it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from attribution.adapter import Adapter
from attribution.config import ModelConfig
from attribution.exact.bits import pow2
from attribution.model import Base, head_norm_names, module_name, weight_shapes

Factors = dict[str, tuple[Tensor, Tensor]]


class WideReference:
    """Weights with Hugging Face names in float64; the adapter's factors, if any, require gradients."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        adapter: Adapter | None = None,
        noise: torch.Generator | None = None,
    ) -> None:
        self.config = config
        self.noise = noise
        self.scale = adapter.scale if adapter else 0.0
        matrices = {f"{name}.weight" for name in weight_shapes(config)}
        self.weights = {
            name: self.rounded(w.double(), config.weight_bits) if name in matrices else w.double()
            for name, w in weights.items()
        }
        self.factors: Factors = {
            m.name: (m.a.double().requires_grad_(), m.b.double().requires_grad_())
            for m in (adapter.modules if adapter else ())
        }

    def rounded(self, x: Tensor, bits: int = 14) -> Tensor:
        if self.noise is None:
            return x
        return x + (torch.rand(x.shape, generator=self.noise, dtype=torch.float64) - 0.5) * steps(x, bits)

    def linear(self, layer: int, projection: str, x: Tensor) -> Tensor:
        name = module_name(layer, projection)
        y = x @ self.weights[f"{name}.weight"].t()
        if f"{name}.bias" in self.weights:
            y = y + self.weights[f"{name}.bias"]
        if name in self.factors:
            a, b = self.factors[name]
            y = y + self.scale * ((x @ a.t()) @ b.t())
        return y

    def norm(self, name: str, x: Tensor) -> Tensor:
        mean = x.square().mean(-1, keepdim=True)
        return x * torch.rsqrt(mean + float(self.config.rms_norm_eps)) * self.weights[name]

    def frequencies(self) -> Tensor:
        """Written from the published formula: by wavelengths, where the engine counts turns."""
        c = self.config
        out = []
        for i in range(c.head_dim // 2):
            f = float(c.rope_theta) ** (-2.0 * i / c.head_dim)
            s = c.rope_scaling
            if s is not None:
                if s.rope_type == "linear":
                    f /= float(s.factor)
                else:
                    low, high = float(s.low_freq_factor), float(s.high_freq_factor)
                    old, wavelength = s.original_max_position_embeddings, 2 * math.pi / f
                    if wavelength > old / low:
                        f /= float(s.factor)
                    elif wavelength >= old / high:
                        smooth = (old / wavelength - low) / (high - low)
                        f = (1 - smooth) * f / float(s.factor) + smooth * f
            out.append(f)
        return torch.tensor(out, dtype=torch.float64)

    def logits(self, ids: Sequence[int]) -> Tensor:
        c = self.config
        n, width = len(ids), c.head_dim
        angle = torch.arange(n, dtype=torch.float64)[:, None] * self.frequencies()
        cos, sin = angle.cos(), angle.sin()

        def turn(x: Tensor) -> Tensor:
            a, b = x.chunk(2, -1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

        x = self.weights["model.embed_tokens.weight"][torch.tensor(list(ids))]
        for i in range(c.num_hidden_layers):
            y = self.rounded(self.norm(f"model.layers.{i}.input_layernorm.weight", x))
            q, k, v = (self.linear(i, p, y).view(n, -1, width) for p in ("q_proj", "k_proj", "v_proj"))
            if c.qk_norm:
                names = head_norm_names(i)
                q, k = self.norm(names[0], q), self.norm(names[1], k)
            q, k, v = turn(q.transpose(0, 1)), turn(k.transpose(0, 1)), v.transpose(0, 1)
            share = c.num_attention_heads // c.num_key_value_heads
            powers = steps(v).transpose(1, 2).repeat_interleave(share, 0)
            q, k, v = (self.rounded(part) for part in (q, k, v))
            k, v = k.repeat_interleave(share, 0), v.repeat_interleave(share, 0)
            scores = q @ k.transpose(1, 2) / width**0.5
            scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), float("-inf"))
            p = self.rounded(scores.softmax(-1) * powers) / powers
            o = (p @ v).transpose(0, 1).reshape(n, -1)
            x = x + self.linear(i, "o_proj", self.rounded(o))
            y = self.rounded(self.norm(f"model.layers.{i}.post_attention_layernorm.weight", x))
            gate = self.linear(i, "gate_proj", y)
            x = x + self.linear(
                i, "down_proj", self.rounded(gate * gate.sigmoid() * self.linear(i, "up_proj", y))
            )
        name = "model.embed_tokens" if c.tie_word_embeddings else "lm_head"
        return self.rounded(self.norm("model.norm.weight", x)) @ self.weights[f"{name}.weight"].t()

    def gradients(self, prompt: Sequence[int], completion: Sequence[int]) -> Factors:
        """Of the summed loss of `completion` and EOS, given BOS and `prompt`, by each factor."""
        tokens = [self.config.bos_token_id, *prompt, *completion, self.config.eos_token_id]
        rows = self.logits(tokens[:-1]).log_softmax(-1)[len(prompt) :]
        loss = -rows.gather(1, torch.tensor(tokens[1 + len(prompt) :])[:, None]).sum()
        names = list(self.factors)
        flat = torch.autograd.grad(loss, [t for n in names for t in self.factors[n]])
        return {n: (flat[2 * i], flat[2 * i + 1]) for i, n in enumerate(names)}


def steps(x: Tensor, bits: int = 14) -> Tensor:
    """2^e of each row's grid of `bits`, float64 (..., 1)."""
    _, exponent = torch.frexp(x.detach().abs().amax(-1, keepdim=True).clamp_(min=2.0**-99))
    return torch.ldexp(torch.ones(exponent.shape, dtype=torch.float64), exponent - (bits - 1))


def import_bound(
    config: ModelConfig, weights: Mapping[str, Tensor], ids: Sequence[int], draws: int = 4
) -> float:
    """Bound on |logits - float logits| / |float logits| (Euclidean) that rounding weights and activations may cause.

    Twice the largest effect of `draws` random errors of half a step at every place: their effect is a sum of thousands
    of small terms, whose size hardly varies; the factor of two is for what does.
    """
    truth = WideReference(config, weights).logits(ids)
    seen = []
    for seed in range(draws):
        noisy = WideReference(config, weights, noise=torch.Generator().manual_seed(seed)).logits(ids)
        seen.append(float((noisy - truth).norm() / truth.norm()))
    return 2.0 * max(seen)


def exact_weights(base: Base) -> dict[str, Tensor]:
    """Float weights with Hugging Face names that equal the base's integers exactly."""
    out = {name: x for name, x in base.tensors.items() if not name.endswith((".q", ".e"))}
    for name in weight_shapes(base.config):
        q, e = base.tensors[f"{name}.q"], base.tensors[f"{name}.e"]
        out[f"{name}.weight"] = q.float() * pow2(e.to(torch.int32))[:, None]
    return out
