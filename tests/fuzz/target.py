"""One decoder under attack, and what holds for every input."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ALLOCATED_BYTES_BASE = 4 << 20
"""What a decoder may take whatever the input's size: 32768 arrays of some 90 bytes, and objects made of them."""

ALLOCATED_PER_BYTE = 64
"""And for each byte of input: the smallest value is an integer of three bytes, 40 in memory, read and copied."""


class WrongReading(Exception):
    """A decoder took bytes that its encoder would not have made, or took too much memory to say no."""


@dataclass(frozen=True, slots=True)
class Target:
    """A decoder, valid inputs, and the only errors it may raise.

    `encode` gives back the bytes (or, where `same` is set, bytes that read as an equal value). `bytes_max` is the longest
    input that is looked at, None where another layer sees to it; `where` the file that states it. `text` inputs are
    JSON or TOML, others binary.
    """

    name: str
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes] | None
    seeds: tuple[bytes, ...]
    refusals: tuple[type[Exception], ...]
    bytes_max: int | None = None
    where: str = ""
    sender: str = "peer"
    same: Callable[[Any, Any], bool] | None = None
    text: bool = False


def judge(target: Target, data: bytes) -> bool:
    """Whether `data` is read. Raises `WrongReading`, and whatever the decoder raises that it may not."""
    try:
        value = target.decode(data)
    except target.refusals:
        return False
    if target.encode is None:
        return True
    again = target.encode(value)
    if target.same is None:
        if again != data:
            raise WrongReading(f"{target.name}: {data[:80].hex()} is read, but written as {again[:80].hex()}")
    elif not target.same(target.decode(again), value):
        raise WrongReading(f"{target.name}: what was read is written as something else")
    return True


def judge_memory(target: Target, data: bytes) -> int:
    """Most bytes allocated while `data` is judged. Raises `WrongReading` past the bound."""
    tracemalloc.start()
    try:
        judge(target, data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    bound = ALLOCATED_BYTES_BASE + ALLOCATED_PER_BYTE * len(data)
    if peak > bound:
        raise WrongReading(f"{target.name}: {len(data)} bytes of input took {peak} of memory, over {bound}")
    return peak
