"""Vectors of what is the same on every chain: Merkle trees, the recipe, adapter and base hashes, the index."""

from __future__ import annotations

import numpy as np
import torch
from blake3 import blake3

from attribution.adapter import PREFIX, Adapter, LoraModule, adapter_to_bytes
from attribution.config import ModelConfig
from attribution.exact.random import stream
from attribution.index import Index, IndexHeader, record_digest
from attribution.merkle import leaf_hash, merkle_root
from attribution.model import Base, module_name, projection_shape, tensor_specs
from attribution.recipe import Recipe
from attribution.tensor_hash import tensors_digest
from attribution.whitening import FactorShape
from consensus.codec import encode
from tests.vectors.notation import Encoding, Json, Vector, VectorMismatch

CONFIG = ModelConfig(
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    intermediate_size=12,
    vocab_size=32,
    max_position_embeddings=16,
    tie_word_embeddings=False,
    bos_token_id=0,
    eos_token_id=1,
    rms_norm_eps="1e-05",
    rope_theta="10000.0",
)
RECIPE = Recipe(seed=2**40, target_modules=("q_proj", "v_proj"))
LEAVES = tuple(bytes([number]) * number for number in range(9))


def base() -> Base:
    """A base of counted weights."""
    tensors = {}
    for name, (dtype, shape) in tensor_specs(CONFIG).items():
        count = int(np.prod(shape))
        values = torch.arange(count) % 7 - 3 if dtype == torch.int8 else torch.arange(count) % 3 - 9
        tensors[name] = (
            torch.arange(1, count + 1).float() / 8 if dtype == torch.float32 else values.to(dtype)
        ).view(shape)
    return Base(CONFIG, tensors)


def adapter() -> Adapter:
    """An adapter of two modules with exact small numbers, zeros of both signs among them."""
    modules = []
    for projection in ("q_proj", "down_proj"):
        out, inputs = projection_shape(CONFIG, projection)
        a = torch.arange(2 * inputs).view(2, inputs).float() / 16 - 0.5
        b = torch.arange(out * 2).view(out, 2).float() * -0.0
        modules.append(LoraModule(module_name(0, projection), a, b + torch.tensor([[0.25, -0.0]])))
    return Adapter(2, 4, tuple(modules))


def index() -> Index:
    """An index of two records and two factors."""
    shapes = (FactorShape("one.A", 3, 2), FactorShape("one.B", 5, 2))
    header = IndexHeader(bytes([1]) * 32, bytes([2]) * 32, 2, shapes)
    bases = (np.arange(header.bases_bytes // 4) / 4).astype(np.float32)
    weights = (np.arange(header.coordinates) / 2).astype(np.float32)
    rows = (np.arange(2 * header.row_bytes) % 251).astype(np.uint8).reshape(2, header.row_bytes)
    return Index(header, bases, weights, rows)


def vectors() -> list[Vector]:
    """Everything that is hashed without a chain and without the ledger."""
    ids = (1, 2, 70_000)
    tokens = b"".join(token.to_bytes(4, "little") for token in ids)
    some, made = base(), adapter()
    left, right = leaf_hash(LEAVES[0]), leaf_hash(LEAVES[1])
    return [
        Vector("record", "record-tokens", b"", {"ids": tokens}, record_digest(ids), raw=True),
        Vector(
            "stream",
            "stream",
            b"",
            {"seed": (2**40 + 7).to_bytes(8, "little"), "label": b"order 3"},
            stream(2**40 + 7, "order 3", 96),
            raw=True,
        ),
        Vector("leaf", "merkle-leaf", b"", {"data": LEAVES[3]}, leaf_hash(LEAVES[3]), raw=True),
        Vector(
            "node",
            "merkle-node",
            b"",
            {"left": left, "right": right},
            merkle_root([LEAVES[0], LEAVES[1]]),
            raw=True,
        ),
        Vector("empty tree", "merkle-empty", b"", {}, merkle_root([]), raw=True),
        Vector("adapter", "adapter", b"", _tensor_fields(b"2 4", made.tensors()), made.hash),
        Vector(
            "base model",
            "model",
            b"",
            _tensor_fields(CONFIG.canonical_json().encode(), dict(some.tensors)),
            some.hash,
        ),
    ]


def _tensor_fields(header: bytes, tensors: dict[str, torch.Tensor]) -> dict[str, object]:
    """Fields of a set of tensors; the bytes of floats are without negative zeros."""
    names = {torch.int8: "int8", torch.int16: "int16", torch.float32: "float32"}
    rows = []
    for name in sorted(tensors):
        array = tensors[name].numpy()
        plain = np.where(array == 0, 0, array).astype(array.dtype.newbyteorder("<"))
        data = blake3(plain.tobytes()).digest()
        rows.append(
            {"name": name, "dtype": names[tensors[name].dtype], "shape": list(array.shape), "data": data}
        )
    return {"header": header, "tensors": rows}


def encodings() -> list[Encoding]:
    """The recipe as the ledger holds it, and the base's configuration as its file holds it."""
    fields = {name: getattr(RECIPE, name) for name in RECIPE.__slots__}
    return [
        Encoding("recipe", fields, encode(RECIPE.to_fields())),
        Encoding("model configuration", CONFIG.canonical_json(), CONFIG.canonical_json().encode()),
    ]


def derived() -> Json:
    """Files, and roots over them."""
    made, some = adapter(), index()
    if tensors_digest("adapter", b"2 4", made.tensors()) != made.hash or not PREFIX:
        raise VectorMismatch("an adapter hashes otherwise")
    return {
        "merkle": [
            {"leaves": [leaf.hex() for leaf in LEAVES[:count]], "root": merkle_root(LEAVES[:count]).hex()}
            for count in range(len(LEAVES) + 1)
        ],
        "adapter_file": adapter_to_bytes(made).hex(),
        "index": {
            "header": some.header.encode().hex(),
            "bases": some.bases.tobytes().hex(),
            "weights": some.weights.tobytes().hex(),
            "rows": [row.tobytes().hex() for row in some.rows],
            "root": some.root.hex(),
        },
    }
