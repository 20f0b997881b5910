"""The attribution index of an adapter: sign rows of its training records, and the Merkle root that commits to them.

`build_index` maps records to whitened gradients (`attribution.whitening`) and packs one bit per coordinate
(`attribution.signs`); it is a map over records and integer reductions between them, so any number of shards gives the
same bytes. The records are token ids, without the beginning and end tokens the model adds.

**Files**, all little-endian, none of them compressed; each is mapped, not read:

``header.bin``
    magic ``OLINDEX1``; u32 records, u32 factors, u32 row bytes; 32 bytes base hash; 32 bytes adapter hash; then per
    factor u16 name length, name (ASCII), u32 wide, u32 rank.
``bases.bin``
    float32 (rank, rank) per factor, row-major, eigenvectors as columns.
``weights.bin``
    float32 (wide, rank) per factor, row-major.
``rows.bin``
    one row per record: 32 bytes digest of its token ids, u32 scale per factor, then each factor's sign bits in whole
    bytes, bit k of byte j being coordinate 8j + k.

**Root**: the Merkle root (`attribution.merkle`) over the leaves: the header; ``bases.bin`` in chunks of `CHUNK_BYTES`;
``weights.bin`` likewise; every row by itself, so that one row can be recomputed and disputed against the root.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from blake3 import blake3
from torch import Tensor

from attribution.adapter import Adapter
from attribution.gradients import Example, factors
from attribution.merkle import DIGEST_BYTES, merkle_proof, merkle_root
from attribution.model import Base
from attribution.signs import (
    COORDINATES_MAX,
    FACTORS_MAX,
    Bytes,
    integer_scales,
    mean_magnitudes,
    pack_signs,
    sign_bytes,
)
from attribution.whitening import (
    RANK_MAX,
    RECORDS_MAX,
    WIDE_MAX,
    FactorShape,
    eigenvectors,
    factor_gradients,
    factor_shapes,
    narrow_moments,
    normalised,
    rotated,
    squares,
    weights,
)

CHUNK_BYTES = 1 << 16
HEADER_BYTES_MAX = 1 << 20
NAME_BYTES_MAX = 256
FILES = ("header.bin", "bases.bin", "weights.bin", "rows.bin")
INDEX_VERSION = 1
"""Version of format and method, the last character of the magic; audit results name it."""

_MAGIC = b"OLINDEX1"
_FIXED = struct.Struct("<8sIII32s32s")
_FACTOR = struct.Struct("<II")
_RECORDS_AT_ONCE = 16

Floats = npt.NDArray[np.float32]


class IndexFileError(ValueError):
    """An index directory is missing, truncated, corrupt, of another version, or has another root than expected."""


@dataclass(frozen=True, slots=True)
class IndexHeader:
    """What the rows are about: the models' hashes, the number of records, and every factor's name and shape."""

    base_hash: bytes
    adapter_hash: bytes
    record_count: int
    shapes: tuple[FactorShape, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of ``rows.bin``."""
        return DIGEST_BYTES + 4 * len(self.shapes) + sum(map(sign_bytes, self.shapes))

    @property
    def coordinates(self) -> int:
        """Coordinates of all factors together, the number of weights."""
        return sum(s.coordinates for s in self.shapes)

    @property
    def bases_bytes(self) -> int:
        """Size of ``bases.bin``."""
        return 4 * sum(s.rank * s.rank for s in self.shapes)

    def encode(self) -> bytes:
        """Bytes of ``header.bin``."""
        counts = (self.record_count, len(self.shapes), self.row_bytes)
        parts = [_FIXED.pack(_MAGIC, *counts, self.base_hash, self.adapter_hash)]
        for shape in self.shapes:
            name = shape.name.encode("ascii")
            parts.append(struct.pack("<H", len(name)) + name + _FACTOR.pack(shape.wide, shape.rank))
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> IndexHeader:
        """Inverse of `encode`; raises `IndexFileError` on anything `encode` would not have written."""
        try:
            magic, records, count, row_bytes, base_hash, adapter_hash = _FIXED.unpack_from(data)
            at, shapes = _FIXED.size, list[FactorShape]()
            if magic != _MAGIC or not 1 <= records <= RECORDS_MAX or not 1 <= count <= FACTORS_MAX:
                raise IndexFileError("not an index header, or one beyond the limits")
            for _ in range(count):
                (size,) = struct.unpack_from("<H", data, at)
                name = data[at + 2 : at + 2 + size].decode("ascii")
                at += 2 + size
                shapes.append(FactorShape(name, *_FACTOR.unpack_from(data, at)))
                at += _FACTOR.size
        except (struct.error, UnicodeDecodeError) as error:
            raise IndexFileError(f"index header is malformed: {error}") from error
        header = cls(base_hash, adapter_hash, records, tuple(shapes))
        _check_shapes(header.shapes)
        if header.row_bytes != row_bytes or header.encode() != data:
            raise IndexFileError("index header contradicts itself or has bytes after its end")
        return header


def _check_shapes(shapes: Sequence[FactorShape]) -> None:
    fits = all(
        0 < len(s.name) <= NAME_BYTES_MAX and 1 <= s.wide <= WIDE_MAX and 1 <= s.rank <= RANK_MAX
        for s in shapes
    )
    if not fits or len(shapes) > FACTORS_MAX or sum(s.coordinates for s in shapes) > COORDINATES_MAX:
        raise IndexFileError("a factor of the index is beyond the limits")


def record_digest(record: Sequence[int]) -> bytes:
    """BLAKE3 of a record's token ids, each as u32 little-endian (kind ``record-tokens``): 32 bytes."""
    ids = struct.pack(f"<{len(record)}I", *record)
    digest: bytes = blake3(b"openledger/record-tokens/v1\0" + ids).digest()
    return digest


@dataclass(frozen=True)
class Index:
    """Sign rows of every record with the bases and weights that made them; arrays may be memory-mapped.

    ``bases`` and ``weights`` are float32, all factors one after the other; ``rows`` uint8 (records, row bytes).
    """

    header: IndexHeader
    bases: Floats
    weights: Floats
    rows: Bytes

    @property
    def record_count(self) -> int:
        """Number of records, which is the number of scores."""
        return self.header.record_count

    @property
    def size_bytes(self) -> int:
        """Size of the four files together."""
        return len(self.header.encode()) + self.bases.nbytes + self.weights.nbytes + self.rows.nbytes

    def leaves(self) -> list[bytes]:
        """Leaves of the Merkle tree, rows last."""
        chunks = [self.header.encode(), *_chunks(self.bases), *_chunks(self.weights)]
        return chunks + [row.tobytes() for row in self.rows]

    @cached_property
    def root(self) -> bytes:
        """Merkle root over `leaves`, 32 bytes: what the ledger holds."""
        return merkle_root(self.leaves())

    def row_proof(self, record: int) -> tuple[bytes, int, int, list[bytes]]:
        """(row bytes, leaf number, leaf count, proof) of one record, for `merkle.verify_merkle_proof`."""
        leaves = self.leaves()
        leaf = len(leaves) - self.record_count + record
        return leaves[leaf], leaf, len(leaves), merkle_proof(leaves, leaf)

    @cached_property
    def leaders(self) -> tuple[int, ...]:
        """Per record the earliest one with the same token ids (itself unless it is a copy)."""
        first = dict[bytes, int]()
        return tuple(first.setdefault(row[:DIGEST_BYTES].tobytes(), i) for i, row in enumerate(self.rows))

    @cached_property
    def scales(self) -> npt.NDArray[np.uint32]:
        """Integer scales (records, factors)."""
        stop = DIGEST_BYTES + 4 * len(self.header.shapes)
        return np.ascontiguousarray(self.rows[:, DIGEST_BYTES:stop]).view("<u4").astype(np.uint32)

    @property
    def signs(self) -> Bytes:
        """Sign bytes (records, bytes), a view."""
        return self.rows[:, DIGEST_BYTES + 4 * len(self.header.shapes) :]

    def factor_bases(self, device: torch.device) -> list[Tensor]:
        """Basis (rank, rank) of every factor on ``device``."""
        return _split(self.bases, [(s.rank, s.rank) for s in self.header.shapes], device)

    def factor_weights(self, device: torch.device) -> list[Tensor]:
        """Weights (wide, rank) of every factor on ``device``."""
        return _split(self.weights, [(s.wide, s.rank) for s in self.header.shapes], device)

    def save(self, directory: Path) -> None:
        """Write the four files into ``directory`` (created if missing); each replaces its predecessor atomically."""
        directory.mkdir(parents=True, exist_ok=True)
        contents = (self.header.encode(), self.bases.tobytes(), self.weights.tobytes(), self.rows.tobytes())
        for name, content in zip(FILES, contents, strict=True):
            part = directory / f"{name}.part"
            part.write_bytes(content)
            os.replace(part, directory / name)

    @classmethod
    def open(cls, directory: Path, root: bytes | None = None) -> Index:
        """Map an index's files.

        Sizes are checked against the header, the header against its limits. With ``root`` the Merkle root is
        recomputed, which reads everything once; without it, bytes are trusted as far as this machine's disk is.
        Raises `IndexFileError`.
        """
        try:
            if (directory / FILES[0]).stat().st_size > HEADER_BYTES_MAX:
                raise IndexFileError(f"{FILES[0]} is larger than {HEADER_BYTES_MAX} bytes")
            header = IndexHeader.decode((directory / FILES[0]).read_bytes())
            bases = _mapped(directory / FILES[1], header.bases_bytes)
            weights_ = _mapped(directory / FILES[2], 4 * header.coordinates)
            rows = _mapped(directory / FILES[3], header.record_count * header.row_bytes)
        except OSError as error:
            raise IndexFileError(f"{directory}: {error}") from error
        index = cls(
            header,
            bases.view("<f4"),
            weights_.view("<f4"),
            rows.reshape(header.record_count, header.row_bytes),
        )
        if root is not None and index.root != root:
            raise IndexFileError(f"{directory}: root {index.root.hex()}, expected {root.hex()}")
        return index


def _mapped(path: Path, size: int) -> Bytes:
    if path.stat().st_size != size:
        raise IndexFileError(f"{path.name} has {path.stat().st_size} bytes, its header says {size}")
    return np.memmap(path, np.uint8, mode="r")


def _chunks(array: Floats) -> Iterator[bytes]:
    data = array.tobytes()
    for at in range(0, len(data), CHUNK_BYTES):
        yield data[at : at + CHUNK_BYTES]


def _split(values: Floats, sizes: Sequence[tuple[int, int]], device: torch.device) -> list[Tensor]:
    flat = torch.from_numpy(np.array(values, np.float32)).to(device)
    parts = torch.split(flat, [math.prod(size) for size in sizes])
    return [part.view(size) for part, size in zip(parts, sizes, strict=True)]


def build_index(
    base: Base,
    adapter: Adapter,
    records: Sequence[Sequence[int]],
    shards: int = 1,
    between: Callable[[], None] = lambda: None,
) -> Index:
    """Index of ``records`` (token ids without BOS and EOS), the same bytes for any number of ``shards``.

    ``between`` is called before each batch of records in either pass, so that other work need not wait for all of them.

    Runs on the base's device; memory is about 4 bytes per coordinate and record (60 MB for 100 records of the shipped
    base at rank 16). Raises ``ValueError`` unless there are 1 to `RECORDS_MAX` records and 1 to as many shards, and
    what `attribution.gradients.factors` raises on bad ids, lengths and adapters.
    """
    if not 1 <= len(records) <= RECORDS_MAX or not 1 <= shards <= len(records):
        raise ValueError(f"{len(records)} records in {shards} shards; at most {RECORDS_MAX} and none empty")
    bounds = [len(records) * k // shards for k in range(shards + 1)]
    parts = [part for k in range(shards) for part in _batched(records[bounds[k] : bounds[k + 1]])]
    # Map: gradients of every part's records, (records, wide, rank) per factor.
    shapes, gradients = _part_gradients(base, adapter, parts, between)
    # Reduce to bases: all factors have the adapter's rank, so Jacobi rotates them in one batch.
    moments = [_sum([narrow_moments(part[f]) for part in gradients]) for f in range(len(shapes))]
    bases = eigenvectors(torch.stack(moments))
    for part in gradients:
        part[:] = rotated(normalised(part), list(bases))
    # Reduce to weights, then map to rows.
    found = [weights(_sum([squares(part[f]) for part in gradients])) for f in range(len(shapes))]
    rows = []
    for ids, part in zip(parts, gradients, strict=True):
        between()
        rows.append(_rows(ids, part, found, shapes))
    flat = torch.cat([w.flatten() for w in found]).cpu().numpy()
    header = IndexHeader(base.hash, adapter.hash, len(records), shapes)
    return Index(header, bases.flatten().cpu().numpy(), flat, np.concatenate(rows))


def _batched(records: Sequence[Sequence[int]]) -> list[Sequence[Sequence[int]]]:
    return [records[at : at + _RECORDS_AT_ONCE] for at in range(0, len(records), _RECORDS_AT_ONCE)]


def _part_gradients(
    base: Base, adapter: Adapter, parts: Sequence[Sequence[Sequence[int]]], between: Callable[[], None]
) -> tuple[tuple[FactorShape, ...], list[list[Tensor]]]:
    gradients, shapes = list[list[Tensor]](), tuple[FactorShape, ...]()
    for part in parts:
        between()
        batch = factors(base, adapter, [Example((), tuple(record)) for record in part])
        shapes = factor_shapes(batch)
        _check_shapes(shapes)
        gradients.append(factor_gradients(batch))
    return shapes, gradients


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    """Sum of integer-valued tensors, exact and therefore free of order."""
    return torch.stack(list(tensors)).sum(0)


def _rows(
    records: Sequence[Sequence[int]],
    rotated_gradients: Sequence[Tensor],
    factor_weights: Sequence[Tensor],
    shapes: Sequence[FactorShape],
) -> Bytes:
    """Rows of some records, uint8 (records, row bytes)."""
    whitened = [g * w for g, w in zip(rotated_gradients, factor_weights, strict=True)]
    digests = np.frombuffer(b"".join(map(record_digest, records)), np.uint8).reshape(len(records), -1)
    scales = integer_scales(mean_magnitudes(whitened), shapes).astype("<u4").view(np.uint8)
    return np.concatenate([digests, scales, *(pack_signs(x) for x in whitened)], axis=1)
