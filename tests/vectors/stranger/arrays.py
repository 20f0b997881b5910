"""Numbers as vectors hold them: what they are, how many, and their little-endian bytes in row-major order."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

FORMATS = {
    "int8": "b",
    "int16": "h",
    "int32": "i",
    "int64": "q",
    "uint32": "I",
    "uint64": "Q",
    "float32": "f",
    "float64": "d",
}


def flat(array: dict[str, Any]) -> list[Any]:
    """All numbers, row-major."""
    data = bytes.fromhex(array["data"])
    return list(struct.unpack(f"<{math.prod(array['shape'])}{FORMATS[array['dtype']]}", data))


def nested(array: dict[str, Any]) -> Any:
    """The numbers as lists of lists, one level for each axis."""
    values: list[Any] = flat(array)
    for size in reversed(array["shape"][1:]):
        values = [values[at : at + size] for at in range(0, len(values), size)]
    return values


def array(dtype: str, values: Any) -> dict[str, Any]:
    """Inverse of `nested`, for lists of equal lengths that are not empty."""
    shape = []
    level = values
    while isinstance(level, Sequence):
        shape.append(len(level))
        level = level[0]
    for _ in shape[1:]:
        values = [entry for row in values for entry in row]
    data = struct.pack(f"<{math.prod(shape)}{FORMATS[dtype]}", *values)
    return {"dtype": dtype, "shape": shape, "data": data.hex()}


def sides(dtype: str, narrow: Any, wide: Any) -> dict[str, Any]:
    """A factor's two square matrices, the wide one where it has one."""
    return {"narrow": array(dtype, narrow)} | ({} if wide is None else {"wide": array(dtype, wide)})
