"""The shipped base with a low-rank adapter as a plain torch module in binary32, its parts named as Hugging Face and PEFT name them.

`model.layers.0.self_attn.q_proj` is a `LoraLinear`: `base_layer` (frozen), `lora_A` (in -> rank) and `lora_B` (rank -> out), all
`nn.Linear` without bias, so hooks on `nn.Linear` see both factors. Weights are the base's own numbers (7-bit integers with
row exponents, exact in binary32).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from attribution.adapter import Adapter, LoraModule
from attribution.model import PROJECTIONS, Base, module_name, weight_shapes

IGNORED = -100
"""Target of a padded position."""

State = Mapping[str, tuple[Tensor, Tensor]]
"""Per module name the factors a (rank, in) and b (out, rank)."""


class LoraLinear(nn.Module):
    """y = W x + scale * B (A x)."""

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        out, width = weight.shape
        self.scale = scale
        self.base_layer = nn.Linear(width, out, bias=False)
        self.lora_A = nn.Linear(width, rank, bias=False)
        self.lora_B = nn.Linear(rank, out, bias=False)
        with torch.no_grad():
            self.base_layer.weight.copy_(weight)
            self.lora_B.weight.zero_()
        self.base_layer.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.add(self.base_layer(x), self.lora_B(self.lora_A(x)), alpha=self.scale)
        return out


class Norm(nn.Module):
    """Root mean square normalisation, its weight frozen."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone(), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, projections: Mapping[str, LoraLinear], heads: int, kv: int) -> None:
        super().__init__()
        for name, module in projections.items():
            self.add_module(name, module)
        self.heads, self.kv = heads, kv

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            getattr(self, name)(x).view(batch, length, heads, -1).transpose(1, 2)
            for name, heads in (("q_proj", self.heads), ("k_proj", self.kv), ("v_proj", self.kv))
        )
        shared = self.heads // self.kv
        if shared > 1:
            k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        mixed = functional.scaled_dot_product_attention(
            _rotated(q, cos, sin), _rotated(k, cos, sin), v, is_causal=True
        )
        out: Tensor = self.get_submodule("o_proj")(mixed.transpose(1, 2).reshape(batch, length, -1))
        return out


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, projections: Mapping[str, LoraLinear]) -> None:
        super().__init__()
        for name, module in projections.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        gate, up, down = (self.get_submodule(name) for name in PROJECTIONS[4:])
        out: Tensor = down(functional.silu(gate(x)) * up(x))
        return out


class Block(nn.Module):
    """One layer."""

    def __init__(self, attention: Attention, mlp: FeedForward, first: Norm, second: Norm) -> None:
        super().__init__()
        self.self_attn, self.mlp = attention, mlp
        self.input_layernorm, self.post_attention_layernorm = first, second

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Decoder(nn.Module):
    """Everything below the head."""

    def __init__(self, base: Base, rank: int, scale: float) -> None:
        super().__init__()
        c = base.config
        weights = {
            name: base.tensors[f"{name}.q"].float() * 2.0 ** base.tensors[f"{name}.e"].float()[:, None]
            for name in weight_shapes(c)
        }
        rows, columns = weights["model.embed_tokens"].shape
        self.embed_tokens = nn.Embedding(rows, columns, _weight=weights["model.embed_tokens"])
        self.embed_tokens.weight.requires_grad_(False)
        self.layers = nn.ModuleList()
        for i in range(c.num_hidden_layers):
            lora = {p: LoraLinear(weights[module_name(i, p)], rank, scale) for p in PROJECTIONS}
            attention = Attention(
                {p: lora[p] for p in PROJECTIONS[:4]}, c.num_attention_heads, c.num_key_value_heads
            )
            mlp = FeedForward({p: lora[p] for p in PROJECTIONS[4:]})
            norms = [
                Norm(base.tensors[f"model.layers.{i}.{part}_layernorm.weight"], base.eps)
                for part in ("input", "post_attention")
            ]
            self.layers.append(Block(attention, mlp, norms[0], norms[1]))
        self.norm = Norm(base.tensors["model.norm.weight"], base.eps)
        cos, sin = (part[:, 0] for part in base.rope)
        self.register_buffer("cos", torch.cat([cos, cos], -1), persistent=False)
        self.register_buffer("sin", torch.cat([sin, sin], -1), persistent=False)
        self.head_weight = weights["model.embed_tokens" if c.tie_word_embeddings else "lm_head"]

    def forward(self, ids: Tensor) -> Tensor:
        cos, sin = (self.get_buffer(name)[: ids.shape[1]] for name in ("cos", "sin"))
        x: Tensor = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        out: Tensor = self.norm(x)
        return out


class Network(nn.Module):
    """ids (batch, length) int64 -> logits (batch, length, vocabulary) float32; right padding disturbs nothing before it."""

    def __init__(self, base: Base, rank: int, alpha: int) -> None:
        super().__init__()
        self.rank, self.alpha = rank, alpha
        self.model = Decoder(base, rank, alpha / rank)
        rows, columns = self.model.head_weight.shape
        self.lm_head = nn.Linear(columns, rows, bias=False)
        with torch.no_grad():
            self.lm_head.weight.copy_(self.model.head_weight)
        self.lm_head.weight.requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.lm_head(self.model(ids))
        return out

    def adapted(self) -> Iterator[tuple[str, LoraLinear]]:
        """(name, module) of every adapted linear layer, in model order: layers, then q, k, v, o, gate, up, down."""
        for i in range(len(self.model.layers)):
            for p in PROJECTIONS:
                name = module_name(i, p)
                module = self.get_submodule(name)
                if isinstance(module, LoraLinear):
                    yield name, module

    def state(self) -> dict[str, tuple[Tensor, Tensor]]:
        """A copy of the factors (a, b) of every module."""
        return {
            name: (m.lora_A.weight.detach().clone(), m.lora_B.weight.detach().clone())
            for name, m in self.adapted()
        }

    def load(self, state: State) -> Network:
        """Take over the factors, in place."""
        with torch.no_grad():
            for name, m in self.adapted():
                m.lora_A.weight.copy_(state[name][0])
                m.lora_B.weight.copy_(state[name][1])
        return self


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def as_adapter(network: Network, state: State) -> Adapter:
    """The same numbers as an adapter of the exact engine."""
    modules = tuple(LoraModule(name, a + 0.0, b + 0.0) for name, (a, b) in state.items())
    return Adapter(network.rank, network.alpha, modules)


def as_state(adapter: Adapter) -> dict[str, tuple[Tensor, Tensor]]:
    """Inverse of `as_adapter`."""
    return {m.name: (m.a.clone(), m.b.clone()) for m in adapter.modules}


def padded(sequences: Sequence[Sequence[int]], end: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs and targets (count, longest + 1) int64 of records between BOS and EOS (both ``end``); padding IGNORED."""
    longest = max(map(len, sequences)) + 1
    inputs = torch.full((len(sequences), longest), end, dtype=torch.int64)
    targets = torch.full((len(sequences), longest), IGNORED, dtype=torch.int64)
    for row, ids in enumerate(sequences):
        inputs[row, 1 : len(ids) + 1] = torch.tensor(ids, dtype=torch.int64)
        targets[row, : len(ids) + 1] = torch.tensor([*ids, end], dtype=torch.int64)
    return inputs, targets


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihoods (batch, length) in nats, 0 where padded."""
    flat = functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return flat.view(targets.shape)
