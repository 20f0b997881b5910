"""An append-only Merkle mountain range over the receipt roots of all blocks: O(log n) to keep and to extend.

Leaf ``i`` (from 0) is the receipts root of height ``i + 1``. Peaks are the roots of the perfect trees whose sizes are the binary
digits of the count, largest first. The root binds the count and all peaks; an inclusion proof is a path to one
peak and the list of peaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from consensus.codec import encode_known
from consensus.digest import digest
from node.ledger.errors import MalformedError
from node.ledger.fields import fixed, from_bytes, many, uint

HEIGHTS_BITS_MAX = 63
ACCUMULATOR_BYTES_MAX = 4_096

_HASHES = many(fixed(32), HEIGHTS_BITS_MAX)


@dataclass(frozen=True, slots=True)
class Accumulator:
    """`count` leaves and the peaks over them; `Accumulator()` is empty."""

    count: int = field(default=0, metadata=uint())
    peaks: tuple[bytes, ...] = field(default=(), metadata=_HASHES)

    def __post_init__(self) -> None:
        if self.count.bit_count() != len(self.peaks):
            raise MalformedError("peaks do not fit the count", "accumulator")


@dataclass(frozen=True, slots=True)
class AccumulatorProof:
    """That a leaf is number `index` of `count`: siblings from the leaf up to its peak, and all peaks."""

    index: int = field(metadata=uint())
    count: int = field(metadata=uint())
    path: tuple[bytes, ...] = field(metadata=_HASHES)
    peaks: tuple[bytes, ...] = field(metadata=_HASHES)


def _leaf(data: bytes) -> bytes:
    return digest("accumulator-leaf", data)


def _node(left: bytes, right: bytes) -> bytes:
    return digest("accumulator-node", left + right)


def append(accumulator: Accumulator, leaf: bytes) -> Accumulator:
    """The accumulator with one more leaf (bytes)."""
    peaks, peak, count = list(accumulator.peaks), _leaf(leaf), accumulator.count
    while count & 1:  # each trailing one of the count is a peak as high as what we carry
        peak = _node(peaks.pop(), peak)
        count >>= 1
    return Accumulator(accumulator.count + 1, (*peaks, peak))


def accumulator_root(accumulator: Accumulator) -> bytes:
    """Root (32 bytes) over count and peaks."""
    return digest("accumulator-root", encode_accumulator(accumulator))


def encode_accumulator(accumulator: Accumulator) -> bytes:
    """Canonical bytes, for the caller's store."""
    return encode_known((accumulator.count, accumulator.peaks))


def decode_accumulator(data: bytes) -> Accumulator:
    """Read an accumulator; raises :class:`MalformedError`."""
    return from_bytes(Accumulator, data, ACCUMULATOR_BYTES_MAX)


def _mountains(count: int) -> list[tuple[int, int]]:
    """(first leaf, size) of each perfect tree, largest first."""
    spans, first = [], 0
    for bit in reversed(range(count.bit_length())):
        if count >> bit & 1:
            spans.append((first, 1 << bit))
            first += 1 << bit
    return spans


def prove(leaves: Sequence[bytes], index: int) -> AccumulatorProof:
    """Proof for ``leaves[index]`` of the accumulator over all `leaves`; raises ``IndexError`` outside."""
    if not 0 <= index < len(leaves):
        raise IndexError(f"leaf {index} of {len(leaves)}")
    path: list[bytes] = []
    peaks = []
    for first, size in _mountains(len(leaves)):
        level = [_leaf(leaf) for leaf in leaves[first : first + size]]
        position = index - first if first <= index < first + size else None
        while len(level) > 1:
            if position is not None:
                path.append(level[position ^ 1])
                position >>= 1
            level = [_node(level[at], level[at + 1]) for at in range(0, len(level), 2)]
        peaks.append(level[0])
    return AccumulatorProof(index, len(leaves), tuple(path), tuple(peaks))


def verify_proof(root: bytes, leaf: bytes, proof: AccumulatorProof) -> bool:
    """Whether `leaf` is leaf `proof.index` under `root`; hostile proofs are simply False."""
    if not 0 <= proof.index < proof.count or proof.count.bit_count() != len(proof.peaks):
        return False
    if accumulator_root(Accumulator(proof.count, proof.peaks)) != root:
        return False
    for number, (first, size) in enumerate(_mountains(proof.count)):
        if first <= proof.index < first + size:
            return len(proof.path) == size.bit_length() - 1 and (
                _climb(_leaf(leaf), proof.index - first, proof.path) == proof.peaks[number]
            )
    return False


def _climb(node: bytes, position: int, path: tuple[bytes, ...]) -> bytes:
    for sibling in path:
        node = _node(sibling, node) if position & 1 else _node(node, sibling)
        position >>= 1
    return node
