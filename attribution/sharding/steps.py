"""What one call does: a step of the build over one shard's records, from files to a file.

====================  =========================================  ==============================================
step                  reads                                      leaves
====================  =========================================  ==============================================
``gradients``         the task                                   ``gradients-K.bin``, ``moments-K.bin``
``squares``           those two, ``bases.bin``                   ``squares-K.bin``
``rows``              those three, ``weights.bin``               ``rows-K.bin``
====================  =========================================  ==============================================

K is the shard's number. A call returns the digest of the last file; a call done twice, or twice at once, leaves the same.

``gradients-K.bin``: float32, part by part, factor by factor, (records, wide, rank). ``moments-K.bin``: u32 length and the
bytes of an index header over the shard's records, int64 as in ``bases.bin``, 32-byte digests of the parts of
``gradients-K.bin``. ``squares-K.bin``: int64 (wide, rank) per factor. ``rows-K.bin``: as in ``rows.bin``. All little-endian.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attribution.gradients import Example
from attribution.index import (
    BASES_MAX,
    HEADER_BYTES_MAX,
    IndexHeader,
    batched,
    check_shapes,
    counted_gradients,
    part_rows,
    split_factors,
)
from attribution.index_files import PART_BYTES, RECORDS_AT_ONCE
from attribution.sharding.errors import ShardFileWrong
from attribution.sharding.files import digest_of, read_file, write_file
from attribution.sharding.task import Opened, open_task
from attribution.signs import COORDINATES_MAX
from attribution.whitening import (
    RECORDS_MAX,
    FactorShape,
    Turning,
    bases_count,
    example_gradients,
    moments,
    normalised,
    split_bases,
    squares,
)

STEPS = ("gradients", "squares", "rows")
CALL_BYTES_MAX = 1 << 10
BASES_BYTES_MAX = 4 * BASES_MAX
WEIGHTS_BYTES_MAX = 4 * COORDINATES_MAX
SQUARES_BYTES_MAX = 8 * COORDINATES_MAX

_DIGEST_DIGITS = 64
_LENGTH = struct.Struct("<I")
_MOMENTS_BYTES_MAX = 4 + HEADER_BYTES_MAX + 2 * BASES_BYTES_MAX + 32 * RECORDS_MAX

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Call:
    """One step over one shard; ``inputs`` are digests of the task and then of the files that the step reads."""

    step: str
    shard: int
    inputs: tuple[str, ...]

    @property
    def name(self) -> str:
        """For messages."""
        return f"shard {self.shard}, {self.step}"

    def encode(self) -> str:
        """The call as one line."""
        return " ".join((self.step, str(self.shard), *self.inputs))

    @classmethod
    def decode(cls, line: str) -> Call:
        """Inverse of `encode`; raises ``ValueError``."""
        step, shard, *inputs = line.split(" ")
        if step not in STEPS or len(inputs) != 1 + STEPS.index(step) + (step != "gradients"):
            raise ValueError(f"no call: {line[:80]!r}")
        if any(len(digest) != _DIGEST_DIGITS for digest in inputs):
            raise ValueError("an input is no digest")
        return cls(step, int(shard), tuple(inputs))


@dataclass(frozen=True, slots=True)
class Moments:
    """Content of ``moments-K.bin``; ``sums`` holds all factors' moments, one after the other."""

    header: IndexHeader
    sums: Integers
    parts: tuple[str, ...]

    def encode(self) -> bytes:
        """Bytes of the file."""
        head = self.header.encode()
        sums = self.sums.astype("<i8").tobytes()
        return _LENGTH.pack(len(head)) + head + sums + bytes.fromhex("".join(self.parts))

    @classmethod
    def read(cls, folder: Path, shard: int, digest: str) -> Moments:
        """The file of one shard. Raises `ShardFileWrong`."""
        data = read_file(folder / f"moments-{shard}.bin", digest, _MOMENTS_BYTES_MAX)
        (size,) = _LENGTH.unpack_from(data)
        header = IndexHeader.decode(data[_LENGTH.size : _LENGTH.size + size])
        count, at = header.bases_bytes // 4, _LENGTH.size + size
        sums = np.frombuffer(data, "<i8", count, at).astype(np.int64)
        digits = data[at + 8 * count :].hex()
        return cls(header, sums, tuple(digits[i : i + 64] for i in range(0, len(digits), 64)))


def perform(folder: Path, call: Call, device: str = "cpu") -> str:
    """Do a call and return the digest of what it left. Raises what its parts raise, and ``OSError``."""
    opened = open_task(folder, call.inputs[0], device)
    if not 0 <= call.shard < opened.task.shards:
        raise ShardFileWrong(f"the task has no shard {call.shard}")
    if call.step == "gradients":
        return _gradients(folder, call.shard, opened)
    found = Moments.read(folder, call.shard, call.inputs[1])
    shapes = found.header.shapes
    flat = np.frombuffer(read_file(folder / "bases.bin", call.inputs[2], BASES_BYTES_MAX), "<f4")
    turning = Turning(split_bases(flat, shapes, opened.base.device), shapes)
    parts = _turned_parts(folder, call.shard, opened, found, turning)
    if call.step == "squares":
        return _squares(folder, call.shard, opened, shapes, parts)
    flat = np.frombuffer(read_file(folder / "weights.bin", call.inputs[3], WEIGHTS_BYTES_MAX), "<f4")
    weights = split_factors(flat, [(s.wide, s.rank) for s in shapes], opened.base.device)
    rows = (part_rows([opened.record(i) for i in part], g, weights, shapes) for part, g in parts)
    return write_file(
        folder / f"rows-{call.shard}.bin", (np.ascontiguousarray(r).data.cast("B") for r in rows)
    )


def shard_parts(opened: Opened, shard: int) -> list[range]:
    """The shard's records as parts that are in memory at once."""
    coordinates = sum(m.a.numel() + m.b.numel() for m in opened.adapter.modules)
    at_once = max(1, min(RECORDS_AT_ONCE, PART_BYTES // (4 * coordinates)))
    return batched(opened.task.records(shard), at_once)


def _gradients(folder: Path, shard: int, opened: Opened) -> str:
    """Gradients of the shard's records into a file, with a digest of every part; the sum of their moments."""
    shapes, digests = tuple[FactorShape, ...](), list[str]()
    sums = np.zeros(0, np.int64)

    def parts() -> Iterator[memoryview]:
        nonlocal shapes, sums
        for part in shard_parts(opened, shard):
            examples = [Example((), opened.record(i)) for i in part]
            shapes, gradients = example_gradients(opened.base, opened.adapter, examples)
            check_shapes(shapes)
            if not len(sums):
                sums = np.zeros(sum(map(bases_count, shapes)), np.int64)
            if chosen := counted_gradients(gradients, part, opened.counted(part)):
                sums += torch.cat([moments(g) for g in chosen]).cpu().numpy()
            data = torch.cat([g.flatten() for g in gradients]).cpu().numpy().data.cast("B")
            digests.append(digest_of(data))
            yield data

    write_file(folder / f"gradients-{shard}.bin", parts())
    header = IndexHeader(opened.base.hash, opened.adapter.hash, len(opened.task.records(shard)), shapes)
    return write_file(folder / f"moments-{shard}.bin", [Moments(header, sums, tuple(digests)).encode()])


def _turned_parts(
    folder: Path, shard: int, opened: Opened, moments: Moments, turning: Turning
) -> Iterator[tuple[range, list[Tensor]]]:
    """Every part with its turned gradients, read from the shard's file, part after part, and checked."""
    shapes, parts = moments.header.shapes, shard_parts(opened, shard)
    record_bytes = 4 * moments.header.coordinates
    try:
        with (folder / f"gradients-{shard}.bin").open("rb") as file:
            if os.fstat(file.fileno()).st_size != record_bytes * moments.header.record_count:
                raise ShardFileWrong(f"gradients-{shard}.bin has another size than was written")
            for part, digest in zip(parts, moments.parts, strict=True):
                data = bytearray(len(part) * record_bytes)
                if file.readinto(data) != len(data) or digest_of(memoryview(data)) != digest:
                    raise ShardFileWrong(f"gradients-{shard}.bin is not what was written")
                yield part, turning.turned(normalised(_factors(data, len(part), shapes, opened)))
    except FileNotFoundError as error:
        raise ShardFileWrong(f"gradients-{shard}.bin: {error.strerror}") from error


def _factors(data: bytearray, count: int, shapes: Sequence[FactorShape], opened: Opened) -> list[Tensor]:
    flat = torch.from_numpy(np.frombuffer(data, np.float32)).to(opened.base.device)
    sizes = [count * s.coordinates for s in shapes]
    return [
        part.view(count, s.wide, s.rank) for part, s in zip(torch.split(flat, sizes), shapes, strict=True)
    ]


def _squares(
    folder: Path,
    shard: int,
    opened: Opened,
    shapes: Sequence[FactorShape],
    parts: Iterator[tuple[range, list[Tensor]]],
) -> str:
    sums = np.zeros(sum(s.coordinates for s in shapes), np.int64)
    for part, gradients in parts:
        if chosen := counted_gradients(gradients, part, opened.counted(part)):
            sums += torch.cat([squares(g).flatten() for g in chosen]).cpu().numpy()
    return write_file(folder / f"squares-{shard}.bin", [sums.astype("<i8").data.cast("B")])
