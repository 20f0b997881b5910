"""One safetensors file: its header checked in full before a tensor is read, its tensors read a few rows at a time.

The format: https://huggingface.co/docs/safetensors. Stricter here: two dimensions at most, three dtypes, and (as the
format asks) tensors that fill the file without gap or overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from attribution.importing.errors import ImportRefused
from attribution.importing.files import opened, parse_json, read_at, shown

HEADER_BYTES_MAX = 1 << 22
FILE_BYTES_MAX = 1 << 36
TENSORS_MAX = 1 << 14
BYTES_AT_ONCE = 1 << 25
DTYPES = {"F32": (torch.float32, 4), "F16": (torch.float16, 2), "BF16": (torch.bfloat16, 2)}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor's place: bytes start..stop of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class TensorFile:
    """An open file and what its header says."""

    name: str
    descriptor: int
    entries: dict[str, Entry]

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Rows first..last of a tensor (numbers first..last of a vector), float32, exactly what the file holds."""
        entry = self.entries[name]
        dtype, size = DTYPES[entry.dtype]
        width = prod(entry.shape[1:])
        start = entry.start + first * width * size
        data = read_at(self.descriptor, self.name, start, start + (last - first) * width * size)
        return torch.frombuffer(data, dtype=dtype).view(last - first, *entry.shape[1:]).float()

    def chunks(self, name: str) -> Iterator[tuple[int, int]]:
        """Spans of rows of at most BYTES_AT_ONCE as float32 (at least one row)."""
        rows, *rest = self.entries[name].shape
        step = max(1, BYTES_AT_ONCE // max(1, 4 * prod(rest)))
        yield from ((i, min(i + step, rows)) for i in range(0, rows, step))

    def whole(self, name: str) -> Tensor:
        """All of a tensor, float32."""
        return self.rows(name, 0, self.entries[name].shape[0])


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Open a safetensors file and check its header. Raises ImportRefused."""
    with opened(path) as (descriptor, size):
        if not 10 <= size <= FILE_BYTES_MAX:
            raise ImportRefused(
                f"{path.name} has {size} bytes; a safetensors file has 10 to {FILE_BYTES_MAX}"
            )
        length = int.from_bytes(read_at(descriptor, path.name, 0, 8), "little")
        if not 2 <= length <= min(HEADER_BYTES_MAX, size - 8):
            raise ImportRefused(f"{path.name} announces a header of {length} bytes, in a file of {size}")
        header = parse_json(
            bytes(read_at(descriptor, path.name, 8, 8 + length)), f"the header of {path.name}"
        )
        yield TensorFile(path.name, descriptor, _entries(path.name, header, 8 + length, size))


def _entries(file: str, header: dict[str, object], begin: int, end: int) -> dict[str, Entry]:
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise ImportRefused(f"the metadata of {file} are not an object")
    if len(header) > TENSORS_MAX:
        raise ImportRefused(f"{file} holds {len(header)} tensors; the limit is {TENSORS_MAX}")
    entries = {name: _entry(file, name, value, begin) for name, value in header.items()}
    at = begin
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != at:
            raise ImportRefused(f"{file}: {shown(name)} overlaps another tensor or leaves a gap before it")
        at = entry.stop
    if at != end:
        raise ImportRefused(f"{file}: its tensors end at byte {at}, the file at {end}")
    return entries


def _entry(file: str, name: str, value: object, begin: int) -> Entry:
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(stop)], **rest}:
            if rest:
                raise ImportRefused(f"{file}: {shown(name)} has unknown fields {shown(list(rest))}")
        case _:
            raise ImportRefused(f"{file}: the header's entry of {shown(name)} is malformed")
    if dtype not in DTYPES:
        raise ImportRefused(
            f"{file}: {shown(name)} has dtype {shown(dtype)}; read are {', '.join(sorted(DTYPES))}"
        )
    if not 1 <= len(shape) <= 2 or not all(type(n) is int and 1 <= n < 1 << 31 for n in shape):
        raise ImportRefused(
            f"{file}: {shown(name)} has shape {shown(shape)}, not one or two positive numbers"
        )
    if (
        type(start) is not int
        or type(stop) is not int
        or not 0 <= start <= stop
        or stop - start != prod(shape) * DTYPES[dtype][1]
    ):
        raise ImportRefused(
            f"{file}: {shown(name)} lies at {shown([start, stop])}, which is not the size of {shown(shape)} {dtype}"
        )
    return Entry(dtype, tuple(shape), begin + start, begin + stop)
