"""Rows, leaves and root of an index (docs/attribution.md, "Rows, query, score", "Files and root", "Erased records")."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from blake3 import blake3

from tests.vectors.stranger.arithmetic import Matrix, Vector, fl32, fsum, sqrt32

MAGIC, MAGIC_SKETCHED = b"OLINDEX2", b"OLINDEX3"
COORDINATES_SIGNED_MAX = 1 << 17
SKETCH_BYTES = 8192
STANDING_MAGIC = b"OLSTAND1"
SCALE_BITS = 24
CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Shape:
    """Name ("<module>.B" or "<module>.A"), rows and columns of a factor."""

    name: str
    wide: int
    rank: int

    @property
    def coordinates(self) -> int:
        return self.wide * self.rank

    @property
    def sign_bytes(self) -> int:
        """Whole bytes, so that no byte belongs to two factors."""
        return -(-self.coordinates // 8)


# Rows


def magnitudes(example: Sequence[Matrix]) -> Vector:
    """``a_f``: mean magnitude of each factor's whitened coordinates."""
    return [fl32(fsum([abs(x) for row in f for x in row]) / (len(f) * len(f[0]))) for f in example]


def scales(means: Sequence[float], shapes: Sequence[Shape]) -> list[int]:
    """``S_f``: each factor's part of the row's length, in 2^-24."""
    energy = [fl32(fl32(a * a) * s.coordinates) for a, s in zip(means, shapes, strict=True)]
    norm = sqrt32(fl32(fsum(energy)))
    return [round(fl32(a / norm) * 2.0**SCALE_BITS) if norm > 0.0 else 0 for a in means]


def signs(factor: Matrix) -> bytes:
    """One bit a coordinate, 1 where it is not negative: bit k of byte j is coordinate 8j + k; the rest of the last byte is 0."""
    bits = [x + 0.0 >= 0.0 for row in factor for x in row]
    return bytes(sum(bit << k for k, bit in enumerate(bits[at : at + 8])) for at in range(0, len(bits), 8))


def record_digest(ids: Sequence[int]) -> bytes:
    """Digest of a record's token ids, u32 little-endian each."""
    return _digest("record-tokens", struct.pack(f"<{len(ids)}I", *ids))


def row(ids: Sequence[int], row_scales: Sequence[int], example: Sequence[Matrix]) -> bytes:
    """Digest of the record, u32 scales, signs."""
    return (
        record_digest(ids) + struct.pack(f"<{len(row_scales)}I", *row_scales) + b"".join(map(signs, example))
    )


def row_scales(data: bytes, shapes: Sequence[Shape]) -> list[int]:
    """Scales of a row's bytes."""
    return list(struct.unpack_from(f"<{len(shapes)}I", data, 32))


def row_signs(data: bytes, shapes: Sequence[Shape]) -> list[list[int]]:
    """Signs of a row's bytes, +1 or -1, factor by factor."""
    at, found = 32 + 4 * len(shapes), []
    for shape in shapes:
        part = data[at : at + shape.sign_bytes]
        found.append([1 if part[c // 8] >> c % 8 & 1 else -1 for c in range(shape.coordinates)])
        at += shape.sign_bytes
    return found


# Files, leaves, root


def header(base_hash: bytes, adapter_hash: bytes, records: int, shapes: Sequence[Shape]) -> bytes:
    """``header.bin``."""
    if sum(shape.coordinates for shape in shapes) > COORDINATES_SIGNED_MAX:
        magic, row_bytes = MAGIC_SKETCHED, 32 + 4 + SKETCH_BYTES
    else:
        magic, row_bytes = MAGIC, 32 + sum(4 + shape.sign_bytes for shape in shapes)
    data = magic + struct.pack("<III", records, len(shapes), row_bytes) + base_hash + adapter_hash
    for shape in shapes:
        name = shape.name.encode("ascii")
        data += struct.pack("<H", len(name)) + name + struct.pack("<II", shape.wide, shape.rank)
    return data


def floats(matrices: Sequence[Matrix]) -> bytes:
    """Binary32, little-endian, row-major, one matrix after the other: ``bases.bin`` and ``weights.bin``."""
    values = [x for matrix in matrices for line in matrix for x in line]
    return struct.pack(f"<{len(values)}f", *values)


def leaf_hashes(
    head: bytes, bases: bytes, weights: bytes, rows: Sequence[bytes], erased: Mapping[int, bytes]
) -> list[bytes]:
    """Header, chunks of bases, chunks of weights, rows; an erased row is known by its leaf's hash alone."""
    parts = [head, *_chunks(bases), *_chunks(weights)]
    return [leaf_hash(part) for part in parts] + [
        erased[i] if i in erased else leaf_hash(data) for i, data in enumerate(rows)
    ]


def leaf_hash(data: bytes) -> bytes:
    return _digest("merkle-leaf", data)


def root(hashes: Sequence[bytes]) -> bytes:
    """RFC 9162, section 2.1: more than one leaf are split at the largest power of two below their number."""
    if not hashes:
        return _digest("merkle-empty", b"")
    if len(hashes) == 1:
        return hashes[0]
    at = _split(len(hashes))
    return _node(root(hashes[:at]), root(hashes[at:]))


def proof(hashes: Sequence[bytes], leaf: int) -> list[bytes]:
    """Roots of the trees beside a leaf's path, from the leaf upwards."""
    if len(hashes) == 1:
        return []
    at = _split(len(hashes))
    left, right = hashes[:at], hashes[at:]
    return [*proof(left, leaf), root(right)] if leaf < at else [*proof(right, leaf - at), root(left)]


def proven(data: bytes, leaf: int, count: int, path: Sequence[bytes]) -> bytes:
    """The root that a row's bytes, its place among the leaves and its proof give."""
    if count == 1:
        return leaf_hash(data)
    at = _split(count)
    if leaf < at:
        return _node(proven(data, leaf, at, path[:-1]), path[-1])
    return _node(path[-1], proven(data, leaf - at, count - at, path[:-1]))


def standing(leaders: Sequence[int], erased: Mapping[int, bytes]) -> bytes:
    """``standing.bin`` of an index with leaders."""
    data = STANDING_MAGIC + struct.pack("<III", len(leaders), 1, len(erased))
    data += struct.pack(f"<{len(leaders)}I", *leaders)
    data += b"".join(struct.pack("<I", i) + erased[i] for i in sorted(erased))
    return data + struct.pack("<I", zlib.crc32(data))


def _chunks(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), CHUNK_BYTES):
        yield data[at : at + CHUNK_BYTES]


def _split(count: int) -> int:
    return 1 << (count - 1).bit_length() - 1


def _node(left: bytes, right: bytes) -> bytes:
    return _digest("merkle-node", left + right)


def _digest(kind: str, data: bytes) -> bytes:
    found: bytes = blake3(b"openledger/" + kind.encode() + b"/v1\0" + data).digest()
    return found
