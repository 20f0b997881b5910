"""The same model before it was quantised: a plain binary32 forward pass, one layer in memory at a time.

Only for comparing: nothing here is exact, and nothing that is hashed, voted or paid calls it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor

from attribution.config import ModelConfig
from attribution.importing.directory import Directory
from attribution.model import head_norm_names, module_name

_HEAD_ROWS = 64


def float_logits(directory: Directory, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits (len, vocab), float32, after each token of each sequence."""
    return [torch.cat(list(rows)) for rows in _head(directory, _hidden(directory, sequences))]


def float_nats(directory: Directory, sequences: Sequence[Sequence[int]]) -> float:
    """Summed negative log-likelihood, in nats, of every token of every sequence but its first."""
    total = 0.0
    hidden = _hidden(directory, [ids[:-1] for ids in sequences])
    for ids, parts in zip(sequences, _head(directory, hidden), strict=True):
        targets = torch.split(torch.tensor(list(ids[1:])), _HEAD_ROWS)
        for rows, target in zip(parts, targets, strict=True):
            total += float(functional.cross_entropy(rows.double(), target, reduction="sum"))
    return total


def _hidden(directory: Directory, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """Final normed states of each sequence, (len, hidden)."""
    config = directory.config
    table = directory.tensor("model.embed_tokens.weight")
    states = [table[torch.tensor(list(ids))] for ids in sequences]
    del table
    tables = _rotary(config, max(len(ids) for ids in sequences))
    for layer in range(config.num_hidden_layers):
        states = _layer(directory, layer, states, tables)
    return [_norm(directory, "model.norm.weight", x) for x in states]


def _head(directory: Directory, hidden: list[Tensor]) -> list[list[Tensor]]:
    name = "model.embed_tokens.weight" if directory.config.tie_word_embeddings else "lm_head.weight"
    weight = directory.tensor(name)
    return [[part @ weight.t() for part in torch.split(x, _HEAD_ROWS)] for x in hidden]


def _layer(
    directory: Directory, layer: int, states: list[Tensor], tables: tuple[Tensor, Tensor]
) -> list[Tensor]:
    config, weights = directory.config, {}

    def linear(projection: str, x: Tensor) -> Tensor:
        name = module_name(layer, projection)
        if projection not in weights:
            bias = directory.tensor(f"{name}.bias") if projection in config.biases else None
            weights[projection] = (directory.tensor(f"{name}.weight"), bias)
        return functional.linear(x, *weights[projection])

    def heads(projection: str, x: Tensor, norm: str | None, turned: bool) -> Tensor:
        y = linear(projection, x).view(len(x), -1, config.head_dim)
        if norm is not None:
            y = _norm(directory, norm, y)
        return _turn(y, tables).transpose(0, 1) if turned else y.transpose(0, 1)

    q_norm, k_norm = head_norm_names(layer) if config.qk_norm else (None, None)
    share = config.num_attention_heads // config.num_key_value_heads
    out = []
    for x in states:
        y = _norm(directory, f"model.layers.{layer}.input_layernorm.weight", x)
        q, k, v = (
            heads("q_proj", y, q_norm, True),
            heads("k_proj", y, k_norm, True),
            heads("v_proj", y, None, False),
        )
        k, v = k.repeat_interleave(share, 0), v.repeat_interleave(share, 0)
        o = functional.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
        x = x + linear("o_proj", o.transpose(0, 1).reshape(len(x), -1))
        y = _norm(directory, f"model.layers.{layer}.post_attention_layernorm.weight", x)
        gated = functional.silu(linear("gate_proj", y)) * linear("up_proj", y)
        out.append(x + linear("down_proj", gated))
    return out


def _norm(directory: Directory, name: str, x: Tensor) -> Tensor:
    mean = x.square().mean(-1, keepdim=True)
    return x * torch.rsqrt(mean + float(directory.config.rms_norm_eps)) * directory.tensor(name)


def _rotary(config: ModelConfig, length: int) -> tuple[Tensor, Tensor]:
    half = config.head_dim // 2
    frequency = float(config.rope_theta) ** (-torch.arange(half, dtype=torch.float64) / half)
    scaling = config.rope_scaling
    if scaling is not None:
        slow = frequency / float(scaling.factor)
        if scaling.rope_type == "linear":
            frequency = slow
        else:
            low, high = float(scaling.low_freq_factor), float(scaling.high_freq_factor)
            turns = scaling.original_max_position_embeddings * frequency / (2 * math.pi)
            share = ((turns - low) / (high - low)).clamp(0.0, 1.0)
            frequency = torch.lerp(slow, frequency, share)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    return angle.cos().float()[:, None], angle.sin().float()[:, None]


def _turn(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = (table[: len(x)] for table in tables)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
