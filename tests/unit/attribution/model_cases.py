"""Tiny models and records, made from the counter-based stream so that every run sees the same ones."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from attribution.adapter import Adapter, LoraModule
from attribution.exact.bits import pow2
from attribution.exact.random import uniform_floats, uniform_integers
from attribution.model import (
    PROJECTIONS,
    Base,
    ModelConfig,
    module_name,
    norm_names,
    projection_shape,
    quantise_checkpoint,
    weight_shapes,
)

CONFIG: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def draw(label: str, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.from_numpy(uniform_floats(7, label, math.prod(shape))).view(shape) * scale


def state_dict(config: dict[str, Any] | None = None) -> dict[str, Tensor]:
    model = ModelConfig.from_mapping(config or CONFIG)
    out = {}
    for name, shape in weight_shapes(model).items():
        scale = 0.8 if name == "model.embed_tokens" else 1.2 / math.sqrt(shape[1])
        out[f"{name}.weight"] = draw(name, *shape, scale=scale)
    for name in norm_names(model):
        out[name] = 1.0 + draw(name, model.hidden_size, scale=0.2)
    return out


def tiny_base(config: dict[str, Any] | None = None) -> Base:
    return quantise_checkpoint(state_dict(config), config or CONFIG)


def tiny_adapter(
    base: Base, rank: int = 4, alpha: int = 6, targets: tuple[str, ...] = PROJECTIONS
) -> Adapter:
    modules = []
    for layer in range(base.config.num_hidden_layers):
        for p in PROJECTIONS:
            if p in targets:
                out, width = projection_shape(base.config, p)
                name = module_name(layer, p)
                a = draw(f"{name} a", rank, width, scale=1.0 / math.sqrt(width))
                b = draw(f"{name} b", out, rank, scale=0.3)
                modules.append(LoraModule(name, a, b))
    return Adapter(rank, alpha, tuple(modules))


def records(count: int = 6, vocabulary: int = 64, shortest: int = 4, longest: int = 14) -> list[list[int]]:
    lengths = uniform_integers(3, "record lengths", count, longest - shortest + 1)
    return [
        [2 + int(t) for t in uniform_integers(3, f"record {i}", shortest + int(n), vocabulary - 2)]
        for i, n in enumerate(lengths)
    ]


def dequantised(base: Base) -> dict[str, Tensor]:
    """Float weights with Hugging Face names that equal the base's integers exactly."""
    out = {}
    for name in weight_shapes(base.config):
        q, e = base.tensors[f"{name}.q"], base.tensors[f"{name}.e"]
        out[f"{name}.weight"] = q.float() * pow2(e.to(torch.int32))[:, None]
    for name in norm_names(base.config):
        out[name] = base.tensors[name]
    return out
