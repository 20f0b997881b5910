"""The weights of a model directory: one safetensors file, or shards that an index names. Pickle is never opened."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from attribution.importing.errors import ImportRefused
from attribution.importing.files import names_in, read_json, shown
from attribution.importing.tensor_file import TENSORS_MAX, TensorFile, open_tensors

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
INDEX_BYTES_MAX = 1 << 22
SHARDS_MAX = 256
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# One plain name: no separator, no "..", nothing hidden.
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\.safetensors", re.ASCII)


@dataclass(frozen=True, slots=True)
class Weights:
    """Which open file holds each tensor; `not_read` names files beside them that hold weights in another form."""

    files: dict[str, TensorFile]
    not_read: tuple[str, ...]


@contextmanager
def open_weights(folder: Path) -> Iterator[Weights]:
    """Open every shard of a model directory. Raises ImportRefused."""
    names = names_in(folder)
    pickles = tuple(name for name in names if name.endswith(PICKLES))
    placed = _placed(folder, names, pickles)
    files: dict[str, TensorFile] = {}
    with ExitStack() as stack:
        shards = sorted(set(placed.values())) if placed is not None else [WHOLE]
        if len(shards) > SHARDS_MAX:
            raise ImportRefused(f"{INDEX} names {len(shards)} files; the limit is {SHARDS_MAX}")
        for shard in shards:
            file = stack.enter_context(open_tensors(folder / shard))
            for name in file.entries:
                if placed is not None and placed.get(name) != shard:
                    raise ImportRefused(f"{shard} holds {shown(name)}, which {INDEX} does not place there")
                files[name] = file
        if placed is not None and set(placed) != set(files):
            missing = sorted(set(placed) - set(files))
            raise ImportRefused(f"{INDEX} places {shown(missing[0])} in a file that does not hold it")
        unread = [name for name in names if name.endswith(".safetensors") and name not in shards]
        yield Weights(files, (*pickles, *unread))


def _placed(folder: Path, names: list[str], pickles: tuple[str, ...]) -> dict[str, str] | None:
    """Tensor to shard as the index says, or None where there is one whole file."""
    if WHOLE in names and INDEX in names:
        raise ImportRefused(f"{WHOLE} and {INDEX} are both there; keep the one that is meant")
    if WHOLE in names:
        return None
    if INDEX not in names:
        if pickles:
            raise ImportRefused(
                f"{shown(pickles[0])} is pickle, which can run code; convert the model to safetensors"
            )
        raise ImportRefused(f"neither {WHOLE} nor {INDEX} is in {folder}")
    index = read_json(folder / INDEX, INDEX_BYTES_MAX)
    if set(index) - {"metadata"} != {"weight_map"}:
        raise ImportRefused(f"{INDEX} must hold weight_map, and metadata; it holds {shown(sorted(index))}")
    placed = index["weight_map"]
    if not isinstance(placed, dict) or not 1 <= len(placed) <= TENSORS_MAX:
        raise ImportRefused(f"the weight_map of {INDEX} is not an object of 1 to {TENSORS_MAX} tensors")
    checked: dict[str, str] = {}
    for tensor, shard in placed.items():
        if not isinstance(shard, str) or _SHARD_NAME.fullmatch(shard) is None:
            raise ImportRefused(f"{INDEX} names {shown(shard)}, which is not a .safetensors file beside it")
        checked[tensor] = shard
    return checked
