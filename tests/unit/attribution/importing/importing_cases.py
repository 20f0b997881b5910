"""Small models of every family as directories, and files written byte by byte as a stranger could write them."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attribution.config import ModelConfig, RopeScaling
from attribution.exact.random import uniform_integers
from attribution.importing.architecture import model_config
from attribution.model import Base, quantise_weight, vector_shapes, weight_shapes
from tests.unit.attribution.model_cases import draw

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama, grouped heads": {"model_type": "llama", "rope_theta": 5000.0},
    "llama, tied, llama3 frequencies": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "rope_parameters": {**LLAMA3, "rope_theta": 100.0},
    },
    "llama, biases everywhere, wide heads, linear frequencies": {
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 12,
        "rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0},
    },
    "qwen2, one key head": {"model_type": "qwen2", "num_key_value_heads": 1, "rope_theta": 1e6},
    "qwen3, tied, wide heads": {
        "model_type": "qwen3",
        "head_dim": 16,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "rope_theta": 1e6,
    },
}


def config_of(family: str, bits: int = 7) -> ModelConfig:
    return model_config({**SIZES, **FAMILIES[family]}, bits)


def float_weights(config: ModelConfig) -> dict[str, Tensor]:
    """Weights of a lively model: activations of order one, biases and norms that matter."""
    out = {}
    for name, shape in weight_shapes(config).items():
        scale = 0.8 if name == "model.embed_tokens" else 1.2 / math.sqrt(shape[1])
        out[f"{name}.weight"] = draw(name, *shape, scale=scale)
    for name, length in vector_shapes(config).items():
        vector = draw(name, length, scale=0.3)
        out[name] = vector if name.endswith(".bias") else 1.0 + vector
    return out


def base_of(config: ModelConfig) -> Base:
    tensors: dict[str, Tensor] = {}
    for name, w in float_weights(config).items():
        if name in vector_shapes(config):
            tensors[name] = w + 0.0
        else:
            stem = name.removesuffix(".weight")
            tensors[f"{stem}.q"], tensors[f"{stem}.e"] = quantise_weight(w, config.weight_bits)
    return Base(config, tensors)


@cache
def drawn_ids(count: int = 40, vocabulary: int = 64) -> tuple[int, ...]:
    return tuple(2 + int(t) for t in uniform_integers(5, "imported ids", count, vocabulary - 2))


def tensor_bytes_of(x: Tensor) -> tuple[str, bytes]:
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    return names[x.dtype], x.contiguous().view(torch.uint8).numpy().tobytes()


def packed(tensors: dict[str, Tensor], **changes: Any) -> bytes:
    """A safetensors file; `changes` replace entries of its header (None: leave out)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, x in tensors.items():
        dtype, data = tensor_bytes_of(x)
        header[name] = {
            "dtype": dtype,
            "shape": list(x.shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    header |= changes
    text = json.dumps({k: v for k, v in header.items() if v is not None}).encode()
    return len(text).to_bytes(8, "little") + text + body


def write_model(folder: Path, family: str, tensors: dict[str, Tensor] | None = None, **changes: Any) -> Path:
    """A model directory of one file; `changes` are keys of config.json (a value of `...`: leave out)."""
    folder.mkdir(exist_ok=True)
    values = {**SIZES, **FAMILIES[family], **changes}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))
    weights = tensors if tensors is not None else float_weights(config_of(family))
    (folder / "model.safetensors").write_bytes(packed(weights))
    return folder


def scaling_of(mapping: dict[str, Any]) -> RopeScaling:
    texts: dict[str, Any] = {k: repr(v) if isinstance(v, float) else v for k, v in mapping.items()}
    return RopeScaling(**texts)
