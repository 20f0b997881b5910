"""The attribution index of an adapter: sign rows of its training records, and the Merkle root that commits to them.

`build_index` maps records to whitened gradients (`attribution.whitening`) and packs one bit per coordinate
(`attribution.signs`); it is a map over records and integer reductions between them, so any number of shards
gives the same bytes. The records are token ids, without the beginning and end tokens the model adds.

**Files**, all little-endian, none of them compressed; each is mapped, not read:

``header.bin``
    magic ``OLINDEX2`` (a bit a coordinate) or ``OLINDEX3`` (sketched rows: `attribution.rows`); u32 records, u32 factors, u32 row bytes; 32 bytes base hash; 32 bytes adapter hash; then
    per factor u16 name length, name (ASCII), u32 wide, u32 rank.
``bases.bin``
    float32 per factor, row-major: (rank, rank), eigenvectors as columns; then, where the wide side is turned, (wide,
    wide), directions as rows.
``weights.bin``
    float32 (wide, rank) per factor, row-major.
``rows.bin``
    one row per record: 32 bytes digest of its token ids, u32 scale per factor, then each factor's sign bits in
    whole bytes, bit k of byte j being coordinate 8j + k. Sketched: one scale, and the bits of the sums.

``standing.bin``
    only where near-duplicates are led or rows were erased: `attribution.index_standing`.

**Root**: the Merkle root (`attribution.merkle`) over the leaves: the header; ``bases.bin`` in chunks of
`CHUNK_BYTES`; ``weights.bin`` likewise; every row by itself, so that one row can be recomputed and disputed
against the root. An erased row's leaf is known by its hash, so the root stays what the ledger holds.

Nothing that is read from a mapped index is held as a whole but the bases, the weights and the scales;
`index_files` builds one that is larger than memory.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from blake3 import blake3
from torch import Tensor

from attribution.adapter import Adapter
from attribution.first_look import RECORDS_SCANNED, ShortRows, short_rows
from attribution.gradients import Example
from attribution.index_standing import STANDING_FILE, Standing, StandingInvalid
from attribution.last_made import LastMade
from attribution.merkle import DIGEST_BYTES, leaf_hash, proof_of_hashes, root_of_hashes
from attribution.model import Base
from attribution.rows import is_sketched, row_parts, row_shapes
from attribution.shares import ScoredRows
from attribution.signs import COORDINATES_MAX, FACTORS_MAX, Bytes, row_norms, sign_bytes
from attribution.whitening import (
    RANK_MAX,
    RECORDS_MAX,
    WIDE_MAX,
    Bases,
    FactorShape,
    Turning,
    bases_count,
    bases_of,
    example_gradients,
    flat_bases,
    moments,
    normalised,
    split_bases,
    squares,
    weights,
)

CHUNK_BYTES = 1 << 16
HEADER_BYTES_MAX = 1 << 20
NAME_BYTES_MAX = 256
BASES_MAX = 1 << 26
"""Numbers in all bases together: 256 MiB."""
STANDING_BYTES_MAX = 64 + 40 * RECORDS_MAX
FILES = ("header.bin", "bases.bin", "weights.bin", "rows.bin")
INDEX_VERSION, INDEX_VERSION_SKETCHED = 2, 3
"""Versions of format and method, the last character of the magic; audit results name the index's."""

_MAGICS = {version: b"OLINDEX%d" % version for version in (INDEX_VERSION, INDEX_VERSION_SKETCHED)}
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
        return DIGEST_BYTES + 4 * len(self.row_shapes) + sum(map(sign_bytes, self.row_shapes))

    @property
    def row_shapes(self) -> tuple[FactorShape, ...]:
        """What a row has a scale and sign bits of: the factors, or the sums of a sketch of all."""
        return row_shapes(self.shapes)

    @property
    def version(self) -> int:
        """`INDEX_VERSION`, or `INDEX_VERSION_SKETCHED`."""
        return INDEX_VERSION_SKETCHED if is_sketched(self.shapes) else INDEX_VERSION

    @property
    def coordinates(self) -> int:
        """Coordinates of all factors together, the number of weights."""
        return sum(s.coordinates for s in self.shapes)

    @property
    def bases_bytes(self) -> int:
        """Size of ``bases.bin``."""
        return 4 * sum(map(bases_count, self.shapes))

    def encode(self) -> bytes:
        """Bytes of ``header.bin``."""
        counts = (self.record_count, len(self.shapes), self.row_bytes)
        parts = [_FIXED.pack(_MAGICS[self.version], *counts, self.base_hash, self.adapter_hash)]
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
            if (
                magic not in _MAGICS.values()
                or not 1 <= records <= RECORDS_MAX
                or not 1 <= count <= FACTORS_MAX
            ):
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
        check_shapes(header.shapes)
        if header.row_bytes != row_bytes or header.encode() != data:
            raise IndexFileError("index header contradicts itself or has bytes after its end")
        return header


def check_shapes(shapes: Sequence[FactorShape]) -> None:
    """Raise `IndexFileError` where names, shapes, their number or all coordinates together are beyond the limits."""
    fits = all(
        0 < len(s.name) <= NAME_BYTES_MAX and 1 <= s.wide <= WIDE_MAX and 1 <= s.rank <= RANK_MAX
        for s in shapes
    )
    coordinates, bases = sum(s.coordinates for s in shapes), sum(map(bases_count, shapes))
    if not fits or len(shapes) > FACTORS_MAX or coordinates > COORDINATES_MAX or bases > BASES_MAX:
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
    standing: Standing = field(default_factory=Standing)
    _turning: LastMade[torch.device, Turning] = field(
        default_factory=LastMade, init=False, repr=False, compare=False
    )
    _weights: LastMade[torch.device, list[Tensor]] = field(
        default_factory=LastMade, init=False, repr=False, compare=False
    )

    @property
    def record_count(self) -> int:
        """Number of records, which is the number of scores."""
        return self.header.record_count

    @property
    def size_bytes(self) -> int:
        """Size of the four files together."""
        return len(self.header.encode()) + self.bases.nbytes + self.weights.nbytes + self.rows.nbytes

    def leaf_hashes(self) -> list[bytes]:
        """Hashes of the Merkle tree's leaves, rows last; an erased row's is the one it had. Everything is read once."""
        return list(self._leaves)

    @cached_property
    def _leaves(self) -> list[bytes]:
        chunks = [self.header.encode()]
        hashes = [
            leaf_hash(data) for part in (chunks, _chunks(self.bases), _chunks(self.weights)) for data in part
        ]
        erased = self.standing.erased
        rows = (erased[i] if i in erased else leaf_hash(row.tobytes()) for i, row in enumerate(self.rows))
        return [*hashes, *rows]

    @cached_property
    def root(self) -> bytes:
        """Merkle root over all leaves, 32 bytes: what the ledger holds."""
        return root_of_hashes(self.leaf_hashes())

    def row_proof(self, record: int) -> tuple[bytes, int, int, list[bytes]]:
        """(row bytes, leaf number, leaf count, proof) of one record, for `merkle.verify_merkle_proof`.

        An erased record has none: raises ``KeyError``.
        """
        if record in self.standing.erased:
            raise KeyError(f"row {record} was erased")
        hashes = self.leaf_hashes()
        leaf = len(hashes) - self.record_count + record
        return self.rows[record].tobytes(), leaf, len(hashes), proof_of_hashes(hashes, leaf)

    @cached_property
    def leaders(self) -> tuple[int, ...]:
        """Per record the one that counts for it: its cluster's leader or, in an index without clusters, its earliest exact copy.

        An erased row leads nobody, as if it had never been.
        """
        if self.standing.clusters is not None:
            return self.standing.clusters
        first, erased = dict[bytes, int](), self.standing.erased
        digests = (row[:DIGEST_BYTES].tobytes() for row in self.rows)
        return tuple(i if i in erased else first.setdefault(d, i) for i, d in enumerate(digests))

    @cached_property
    def scales(self) -> npt.NDArray[np.uint32]:
        """Integer scales (records, row shapes)."""
        stop = DIGEST_BYTES + 4 * len(self.header.row_shapes)
        return np.ascontiguousarray(self.rows[:, DIGEST_BYTES:stop]).view("<u4").astype(np.uint32)

    @cached_property
    def norms(self) -> tuple[int, ...]:
        """Squared norms of the rows."""
        return tuple(row_norms(self.scales, self.header.row_shapes))

    @cached_property
    def scored(self) -> ScoredRows:
        """What scores are held against."""
        return ScoredRows(self.norms, self.leaders)

    @cached_property
    def leading(self) -> npt.NDArray[np.bool_]:
        """Whether a record counts for itself: bool (records,)."""
        return np.equal(np.array(self.leaders, np.int64), np.arange(self.record_count)).astype(np.bool_)

    @property
    def signs(self) -> Bytes:
        """Sign bytes (records, bytes), a view."""
        return self.rows[:, DIGEST_BYTES + 4 * len(self.header.row_shapes) :]

    @cached_property
    def short(self) -> ShortRows | None:
        """Short parts of the rows for a first look at them (`attribution.first_look`), None where every row is scanned."""
        return short_rows(self.signs, self.scales) if self.record_count > RECORDS_SCANNED else None

    def factor_bases(self, device: torch.device) -> list[Bases]:
        """Bases of every factor on ``device``."""
        return split_bases(self.bases, self.header.shapes, device)

    def turning(self, device: torch.device) -> Turning:
        """What turns gradients on ``device``; kept, for every query needs it: up to twice the bytes of the bases."""
        return self._turning.get(device, lambda: Turning(self.factor_bases(device), self.header.shapes))

    def factor_weights(self, device: torch.device) -> list[Tensor]:
        """Weights (wide, rank) of every factor on ``device``; kept, like `turning`."""
        sizes = [(s.wide, s.rank) for s in self.header.shapes]
        return self._weights.get(device, lambda: split_factors(self.weights, sizes, device))

    def save(self, directory: Path) -> None:
        """Write the files into ``directory`` (created if missing); each replaces its predecessor atomically.

        All of them do not: who cannot build again after a crash saves into a new folder and renames that.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self.standing.check(self.record_count)
        (directory / STANDING_FILE).unlink(missing_ok=True)  # what it says of other rows must not reach these
        arrays = (self.bases, self.weights, self.rows)
        contents: list[bytes | memoryview] = [np.ascontiguousarray(array).data for array in arrays]
        for name, content in zip(FILES, [self.header.encode(), *contents], strict=True):
            part = directory / f"{name}.part"
            part.write_bytes(content)
            os.replace(part, directory / name)
        self.standing.save(directory, self.record_count)

    @classmethod
    def open(cls, directory: Path, root: bytes | None = None) -> Index:
        """Map an index's files.

        Sizes are checked against the header, the header against its limits. With ``root`` the Merkle root is
        recomputed, which reads everything once; without it, bytes are trusted as far as this machine's disk is.
        A row that is said to be erased is zeros afterwards, even if whoever erased it was interrupted. Raises
        `IndexFileError`.
        """
        try:
            if (directory / FILES[0]).stat().st_size > HEADER_BYTES_MAX:
                raise IndexFileError(f"{FILES[0]} is larger than {HEADER_BYTES_MAX} bytes")
            header = IndexHeader.decode((directory / FILES[0]).read_bytes())
            bases = _mapped(directory / FILES[1], header.bases_bytes)
            weights_ = _mapped(directory / FILES[2], 4 * header.coordinates)
            rows = _mapped(directory / FILES[3], header.record_count * header.row_bytes)
            standing = _read_standing(directory, header.record_count)
            rows = rows.reshape(header.record_count, header.row_bytes)
            blank_rows(directory, rows, standing.erased)
        except (OSError, StandingInvalid) as error:
            raise IndexFileError(f"{directory}: {error}") from error
        index = cls(header, bases.view("<f4"), weights_.view("<f4"), rows, standing)
        if root is not None and index.root != root:
            raise IndexFileError(f"{directory}: root {index.root.hex()}, expected {root.hex()}")
        return index


def _mapped(path: Path, size: int) -> Bytes:
    if path.stat().st_size != size:
        raise IndexFileError(f"{path.name} has {path.stat().st_size} bytes, its header says {size}")
    return np.memmap(path, np.uint8, mode="r")


def _read_standing(directory: Path, records: int) -> Standing:
    path = directory / STANDING_FILE
    if not path.exists():
        return Standing()
    if path.stat().st_size > STANDING_BYTES_MAX:
        raise StandingInvalid(f"{STANDING_FILE} is larger than {STANDING_BYTES_MAX} bytes")
    return Standing.decode(path.read_bytes(), records)


def blank_rows(directory: Path, rows: Bytes, erased: Collection[int]) -> None:
    """Overwrite erased rows with zeros, durably, where that has not been done; ``rows`` are the mapped ones."""
    left = [record for record in sorted(erased) if rows[record].any()]
    if not left:
        return
    file = os.open(directory / FILES[3], os.O_WRONLY)
    try:
        for record in left:
            os.pwrite(file, bytes(rows.shape[1]), record * rows.shape[1])
        os.fsync(file)
    finally:
        os.close(file)


def _chunks(array: Floats) -> Iterator[bytes]:
    data = array.reshape(-1).view(np.uint8)
    for at in range(0, len(data), CHUNK_BYTES):
        yield data[at : at + CHUNK_BYTES].tobytes()


def split_factors(values: Floats, sizes: Sequence[tuple[int, int]], device: torch.device) -> list[Tensor]:
    """Flat values as one tensor per factor, of the given sizes, on ``device``."""
    flat = torch.from_numpy(np.array(values, np.float32)).to(device)
    parts = torch.split(flat, [math.prod(size) for size in sizes])
    return [part.view(size) for part, size in zip(parts, sizes, strict=True)]


class Kept(Protocol):
    """Where gradients of every part, float32 (records, wide, rank) per factor, wait for their next pass."""

    def put(self, part: int, gradients: Sequence[Tensor]) -> None:
        """Keep a part's gradients in place of what was kept for it."""

    def get(self, part: int) -> list[Tensor]:
        """The part's gradients."""


class _Memory:
    """All of them in memory."""

    def __init__(self) -> None:
        self._parts = dict[int, list[Tensor]]()

    def put(self, part: int, gradients: Sequence[Tensor]) -> None:
        self._parts[part] = list(gradients)

    def get(self, part: int) -> list[Tensor]:
        return self._parts[part]


def build_index(
    base: Base,
    adapter: Adapter,
    records: Sequence[Sequence[int]],
    shards: int = 1,
    between: Callable[[], None] = lambda: None,
    clusters: Sequence[int] | None = None,
) -> Index:
    """Index of ``records`` (token ids without BOS and EOS), the same bytes for any number of ``shards``.

    ``between`` is called before each batch of records in either pass, so that other work need not wait for all
    of them.

    With ``clusters`` (`attribution.duplicates.leaders` of the records) leaders alone decide bases and weights
    and count when shares are made: every leader's row, and every score of it, has the bits that it has without
    its copies.

    Runs on the base's device; memory is about 4 bytes per coordinate and record (60 MB for 100 records of the
    shipped base at rank 16). Raises ``ValueError`` unless there are 1 to `RECORDS_MAX` records and 1 to as many
    shards, and what `attribution.gradients.factors` raises on bad ids, lengths and adapters.
    """
    if not 1 <= len(records) <= RECORDS_MAX or not 1 <= shards <= len(records):
        raise ValueError(f"{len(records)} records in {shards} shards; at most {RECORDS_MAX} and none empty")
    bounds = [len(records) * k // shards for k in range(shards + 1)]
    parts = [
        part for k in range(shards) for part in batched(range(bounds[k], bounds[k + 1]), _RECORDS_AT_ONCE)
    ]
    shapes, bases, found, rows = build_rows(base, adapter, records, parts, _Memory(), between, clusters)
    header = IndexHeader(base.hash, adapter.hash, len(records), shapes)
    standing = Standing(None if clusters is None else tuple(clusters))
    return Index(header, bases, found, np.concatenate(list(rows)), standing)


def batched(numbers: range, at_once: int) -> list[range]:
    """Runs of at most ``at_once`` consecutive records."""
    return [numbers[at : at + at_once] for at in range(0, len(numbers), at_once)]


def build_rows(
    base: Base,
    adapter: Adapter,
    records: Sequence[Sequence[int]],
    parts: Sequence[range],
    kept: Kept,
    between: Callable[[], None],
    clusters: Sequence[int] | None,
) -> tuple[tuple[FactorShape, ...], Floats, Floats, Iterator[Bytes]]:
    """Shapes, bases, weights, and the rows of one part after the other: a map over records and integer reductions between."""
    Standing(None if clusters is None else tuple(clusters)).check(len(records))
    counted = [[i for i in part if clusters is None or clusters[i] == i] for part in parts]
    # Map: gradients of every part's records. Reduce: second moments of both sides.
    shapes, found_moments = tuple[FactorShape, ...](), list[Tensor]()
    for number, part in enumerate(parts):
        between()
        shapes, gradients = example_gradients(base, adapter, [Example((), tuple(records[i])) for i in part])
        check_shapes(shapes)
        kept.put(number, gradients)
        counted_part = counted_gradients(gradients, part, counted[number])
        found_moments = _added(found_moments, [moments(g) for g in counted_part])
    bases = bases_of(found_moments, shapes)
    turning = Turning(bases, shapes)
    sums = list[Tensor]()
    for number, part in enumerate(parts):
        gradients = turning.turned(normalised(kept.get(number)))
        kept.put(number, gradients)
        sums = _added(sums, [squares(g) for g in counted_gradients(gradients, part, counted[number])])
    found = [weights(total) for total in sums]

    def rows() -> Iterator[Bytes]:
        for number, part in enumerate(parts):
            between()
            yield part_rows([records[i] for i in part], kept.get(number), found, shapes)

    flat = torch.cat([w.flatten() for w in found]).cpu().numpy()
    return shapes, flat_bases(bases), flat, rows()


def counted_gradients(gradients: Sequence[Tensor], part: range, counted: Sequence[int]) -> list[Tensor]:
    """The part's gradients without those of records that do not count; nothing where none counts."""
    if len(counted) == len(part):
        return list(gradients)
    chosen = torch.tensor([i - part.start for i in counted], dtype=torch.int64, device=gradients[0].device)
    return [g[chosen] for g in gradients] if counted else []


def _added(sums: list[Tensor], more: Sequence[Tensor]) -> list[Tensor]:
    """Sums of integer-valued tensors, exact and therefore free of order."""
    if not sums or not more:
        return sums or list(more)
    return [total + part for total, part in zip(sums, more, strict=True)]


def part_rows(
    records: Sequence[Sequence[int]],
    turned_gradients: Sequence[Tensor],
    factor_weights: Sequence[Tensor],
    shapes: Sequence[FactorShape],
) -> Bytes:
    """Rows of some records, uint8 (records, row bytes)."""
    whitened = [g * w for g, w in zip(turned_gradients, factor_weights, strict=True)]
    digests = np.frombuffer(b"".join(map(record_digest, records)), np.uint8).reshape(len(records), -1)
    scales, signs = row_parts(whitened, shapes)
    return np.concatenate([digests, scales.astype("<u4").view(np.uint8), signs], axis=1)
