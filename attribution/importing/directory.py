"""A Hugging Face model directory to a `Base`: read row by row, so that memory holds the integers and little more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from attribution.checkpoint import FILE_BYTES_MAX
from attribution.config import ModelConfig
from attribution.errors import NotRepresentable
from attribution.importing.architecture import model_config
from attribution.importing.errors import ImportRefused
from attribution.importing.files import read_json, shown
from attribution.importing.shards import Weights, open_weights
from attribution.model import VECTOR_MAX, Base, quantise_weight, tensor_specs, vector_shapes, weight_shapes

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Directory:
    """An open model directory: what `config.json` says, and tensors that are known to have its shapes."""

    config: ModelConfig
    weights: Weights

    @property
    def parameters(self) -> int:
        """Numbers in all tensors that the model has."""
        matrices = sum(rows * columns for rows, columns in weight_shapes(self.config).values())
        return matrices + sum(vector_shapes(self.config).values())

    def tensor(self, name: str) -> Tensor:
        """A whole tensor, float32. Raises ImportRefused."""
        return self.weights.files[name].whole(name)


@contextmanager
def open_directory(
    folder: Path, bits: int = 7, bos: int | None = None, eos: int | None = None
) -> Iterator[Directory]:
    """Open a model directory and check it, without reading a weight. Raises ImportRefused, BadModel."""
    config = model_config(read_json(folder / "config.json"), bits, bos, eos)
    size = sum(dtype.itemsize * prod(shape) for dtype, shape in tensor_specs(config).values())
    if size > FILE_BYTES_MAX:
        raise ImportRefused(f"the model takes {size} bytes as a base; the limit is {FILE_BYTES_MAX}")
    with open_weights(folder) as weights:
        _check_tensors(config, weights)
        yield Directory(config, weights)


def quantise_directory(directory: Directory) -> Base:
    """The base that the directory's weights round to. Raises ImportRefused, BadModel."""
    config = directory.config
    tensors: dict[str, Tensor] = {}
    for name in weight_shapes(config):
        tensors[f"{name}.q"], tensors[f"{name}.e"] = _quantised(directory, f"{name}.weight")
    for name in vector_shapes(config):
        vector = directory.tensor(name)
        if not bool(vector.abs().max() < VECTOR_MAX):
            raise ImportRefused(f"{name} holds a value that is not finite or too large")
        tensors[name] = vector + 0.0
    return Base(config, tensors)


def import_model(folder: Path, bits: int = 7, bos: int | None = None, eos: int | None = None) -> Base:
    """Read and quantise a model directory to weights of 7 or 14 bits. Raises ImportRefused, BadModel."""
    with open_directory(folder, bits, bos, eos) as directory:
        return quantise_directory(directory)


def _quantised(directory: Directory, name: str) -> tuple[Tensor, Tensor]:
    file, bits = directory.weights.files[name], directory.config.weight_bits
    rows, columns = file.entries[name].shape
    q = torch.empty(rows, columns, dtype=torch.int8 if bits == 7 else torch.int16)
    e = torch.empty(rows, dtype=torch.int16)
    for first, last in file.chunks(name):
        try:
            q[first:last], e[first:last] = quantise_weight(file.rows(name, first, last), bits)
        except NotRepresentable:
            raise ImportRefused(f"{name} holds a weight that is not finite, or of 2^14 or more") from None
    return q, e


def _check_tensors(config: ModelConfig, weights: Weights) -> None:
    wanted: dict[str, tuple[int, ...]] = {f"{name}.weight": s for name, s in weight_shapes(config).items()}
    wanted |= {name: (length,) for name, length in vector_shapes(config).items()}
    missing = sorted(set(wanted) - set(weights.files))
    if missing:
        raise ImportRefused(f"the model lacks {shown(missing[0])} and {len(missing) - 1} more tensors")
    for name, file in weights.files.items():
        if name in wanted:
            if file.entries[name].shape != wanted[name]:
                shape = file.entries[name].shape
                raise ImportRefused(f"{name} has shape {list(shape)}, config.json says {list(wanted[name])}")
        elif name == _HEAD:
            _check_tied(weights)
        # Tables that old versions of the library stored; they are computed here.
        elif not name.endswith(".rotary_emb.inv_freq"):
            raise ImportRefused(f"unexpected tensor {shown(name)}")


def _check_tied(weights: Weights) -> None:
    """A head that is stored although it is tied must be the embedding; else the file says two things."""
    head, embedding = weights.files[_HEAD], weights.files[_EMBEDDING]
    same = head.entries[_HEAD].shape == embedding.entries[_EMBEDDING].shape
    for i, j in embedding.chunks(_EMBEDDING) if same else ():
        same = same and torch.equal(head.rows(_HEAD, i, j), embedding.rows(_EMBEDDING, i, j))
    if not same:
        raise ImportRefused(f"tie_word_embeddings is true, but {_HEAD} is not {_EMBEDDING}")
