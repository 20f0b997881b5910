"""A tiny base, an adapter with non-zero factors, and records: the smallest real input of index and scores."""

from __future__ import annotations

from functools import cache

import torch

from attribution.adapter import Adapter, LoraModule
from attribution.config import ModelConfig
from attribution.index import Index, build_index
from attribution.model import (
    PROJECTIONS,
    Base,
    module_name,
    norm_names,
    projection_shape,
    quantise_checkpoint,
    weight_shapes,
)

CONFIG = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
TEXTS = (
    "a tiny record about nothing",
    "the quick brown fox jumps over it",
    "records may repeat word for word",
    "the quick brown fox jumps over it",
    "one more of quite another kind: 42",
    "Zwei kurze Zeilen in einer Zeile.",
    "and the last one ends here",
)
RECORDS = tuple(tuple(text.encode()) for text in TEXTS)


@cache
def tiny_base() -> Base:
    """Random weights of a usual size, norms of one."""
    generator, config = torch.Generator().manual_seed(5), ModelConfig.from_mapping(CONFIG)
    state = {name: torch.ones(config.hidden_size) for name in norm_names(config)}
    for name, shape in weight_shapes(config).items():
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * shape[1] ** -0.5
    return quantise_checkpoint(state, CONFIG)


def adapter(seed: int = 9, rank: int = 4) -> Adapter:
    """An adapter on every projection, both factors random."""
    base, generator, modules = tiny_base(), torch.Generator().manual_seed(seed), []
    for layer in range(2):
        for projection in PROJECTIONS:
            out, inputs = projection_shape(base.config, projection)
            a = torch.randn(rank, inputs, generator=generator) * inputs**-0.5
            b = torch.randn(out, rank, generator=generator) * 0.1
            modules.append(LoraModule(module_name(layer, projection), a, b))
    return Adapter(rank, 2 * rank, tuple(modules))


@cache
def tiny_index() -> Index:
    """Index of `RECORDS`, in one shard."""
    return build_index(tiny_base(), adapter(), RECORDS)
