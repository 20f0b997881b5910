"""A base model as one safetensors file: tensors of `model.tensor_specs`, the configuration as canonical JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from attribution.config import ModelConfig
from attribution.errors import BadModel
from attribution.model import Base, tensor_specs

FILE_BYTES_MAX = 1 << 36
HEADER_BYTES_MAX = 1 << 22


def save_base(base: Base, path: str | Path) -> None:
    """Write the base to `path` atomically (a file beside it, then a rename)."""
    target = Path(path)
    scratch = target.with_name(f"{target.name}.{os.getpid()}.new")
    tensors = {name: t.detach().cpu().contiguous() for name, t in base.tensors.items()}
    save_file(tensors, scratch, metadata={"config": base.config.canonical_json()})
    scratch.replace(target)


def load_base(path: str | Path, device: str | torch.device = "cpu", bytes_max: int = FILE_BYTES_MAX) -> Base:
    """Read a base written by `save_base`. Raises BadModel for anything malformed, missing, extra or too large."""
    source = Path(path)
    try:
        size = source.stat().st_size
        with source.open("rb") as stream:
            header = int.from_bytes(stream.read(8), "little")
    except OSError as error:
        raise BadModel(f"{source.name} cannot be read: {error.strerror}") from None
    if size > bytes_max or not 2 <= header <= min(HEADER_BYTES_MAX, size - 8):
        raise BadModel(f"{source.name} has {size} bytes or a header of {header}: out of bounds")
    try:
        return _read(source, device)
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise BadModel(f"{source.name} is not a safetensors file: {error}") from None


def _read(source: Path, device: str | torch.device) -> Base:
    with safe_open(source, framework="pt", device="cpu") as file:
        metadata = file.metadata() or {}
        if set(metadata) != {"config"}:
            raise BadModel("the file's metadata are not a configuration")
        config = ModelConfig.from_canonical_json(metadata["config"])
        names = set(file.keys())
        specs = tensor_specs(config)
        if names != set(specs):
            raise BadModel(f"missing or unexpected tensors: {', '.join(sorted(names ^ set(specs))[:4])}")
        tensors: dict[str, Tensor] = {}
        for name, (_, shape) in specs.items():
            if tuple(file.get_slice(name).get_shape()) != shape:
                raise BadModel(f"{name} does not have the shape {shape}")
            tensors[name] = file.get_tensor(name).to(device)
    return Base(config, tensors)
