"""What a snapshot is: chunks of bytes under a Merkle root that headers carry. Pure.

The state after a block at height s, in key order, follows a first chunk that says what the state belongs to::

    chunk 0      [version, chain id, height, block id, state digest, receipts root, accumulator root, LtHash, accumulator,
                  next validators' hash, the root that this height's execution carries]
    chunk 1..    [key, value, key, value, ...]: filled greedily up to CHUNK_BYTES of keys and values; a value longer than
                 VALUE_PART_BYTES is cut, and its parts follow one another under the same key
    root         attribution.merkle.merkle_root over digest("snapshot-chunk", chunk, chain id) of each, in this order

More than two thirds of the stake voted for a header with the root, so whoever has the chunks needs nobody's word for them. That
the values are those of the state digest is checked besides, by adding up the LtHash.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from attribution.merkle import merkle_root
from consensus import codec, fields
from consensus.digest import DIGEST_BYTES, digest
from consensus.errors import CodecError
from node.ledger.accumulator import ACCUMULATOR_BYTES_MAX, accumulator_root, decode_accumulator
from node.ledger.errors import LedgerError
from node.ledger.lthash import EMPTY_LTHASH, LTHASH_BYTES, apply_changes, state_digest
from node.storage.chain import ExecutedHead, Outcome

SNAPSHOT_VERSION = 1
CHUNK_BYTES = 256 << 10
CHUNK_BYTES_MAX = CHUNK_BYTES + (64 << 10)
"""An encoded chunk with its rows' headers; also its limit on the wire."""

VALUE_PART_BYTES = 128 << 10
ROW_BYTES = 16
"""What a row counts besides its bytes: no chunk of many tiny rows may outgrow the codec's limits."""

ROWS_MAX = CHUNK_BYTES // ROW_BYTES
CHUNKS_MAX = 32_768
"""Eight GiB of state. Past it no snapshot is made, and none is believed."""

KEY_BYTES_MAX = 4096
VALUE_BYTES_MAX = 16 << 20
HASH_EMPTY_OR_FULL = (0, DIGEST_BYTES)


class SnapshotInvalid(Exception):
    """Bytes that are no part of the snapshot they claim to be of."""


@dataclass(frozen=True, slots=True)
class SnapshotHead:
    """What the state of a snapshot belongs to; the fields are those of `ExecutedHead` and `Outcome`."""

    chain_id: bytes
    head: ExecutedHead
    outcome: Outcome


def snapshot_height(height: int, every: int) -> int:
    """Height of the snapshot whose root the execution of `height` carries; 0 where there is none yet.

    It is the newest multiple s of `every` with s + every // 2 <= height (and s < height: a state cannot hold its own root).
    """
    if not every:
        return 0
    return max(0, height - max(1, every // 2)) // every * every


def encode_head_chunk(snapshot: SnapshotHead) -> bytes:
    """Chunk 0."""
    head, outcome = snapshot.head, snapshot.outcome
    return codec.encode(
        [
            SNAPSHOT_VERSION,
            snapshot.chain_id,
            head.height,
            head.block_id,
            head.state_digest,
            outcome.receipts_root,
            head.accumulator_root,
            head.lthash,
            head.accumulator,
            outcome.next_validators_hash,
            outcome.snapshot_root,
        ]
    )


def decode_head_chunk(data: bytes, chain_id: bytes) -> SnapshotHead:
    """Read chunk 0, and check that its digests are those of its own LtHash and accumulator; raises SnapshotInvalid."""
    try:
        row = fields.array(codec.decode(data, CHUNK_BYTES_MAX), 11, "snapshot head")
        version, chain, height, block_id, digest_, receipts, root, lthash, accumulator, validators, before = (
            row
        )
        if type(version) is not int or version != SNAPSHOT_VERSION or chain != chain_id:
            raise SnapshotInvalid("a snapshot of another version or chain")
        for value, name in ((block_id, "block"), (digest_, "state"), (receipts, "receipts"), (root, "root")):
            fields.hash32(value, name)
        sizes_fit = (
            isinstance(lthash, bytes)
            and len(lthash) == LTHASH_BYTES
            and isinstance(accumulator, bytes)
            and len(accumulator) <= ACCUMULATOR_BYTES_MAX
            and isinstance(validators, bytes)
            and len(validators) in HASH_EMPTY_OR_FULL
            and isinstance(before, bytes)
            and len(before) in HASH_EMPTY_OR_FULL
        )
        if not sizes_fit or fields.uint(height, "height") < 1:
            raise SnapshotInvalid("a snapshot's head with fields of wrong sizes")
        peaks = decode_accumulator(accumulator)
    except (CodecError, LedgerError) as error:
        raise SnapshotInvalid(str(error)) from error
    if accumulator_root(peaks) != root or peaks.count != height or state_digest(lthash, chain_id) != digest_:
        raise SnapshotInvalid("a snapshot's head that contradicts itself")
    head = ExecutedHead(height, block_id, digest_, root, lthash, accumulator)
    return SnapshotHead(chain_id, head, Outcome(digest_, receipts, root, (), validators, before))


def state_chunks(rows: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    """Yield the chunks of a state given in key order; the same state always gives the same bytes."""
    flat: list[bytes] = []
    size = 0
    for key, part in _parts(rows):
        row_bytes = ROW_BYTES + len(key) + len(part)
        if flat and size + row_bytes > CHUNK_BYTES:
            yield codec.encode(flat)
            flat, size = [], 0
        flat += (key, part)
        size += row_bytes
    if flat:
        yield codec.encode(flat)


def _parts(rows: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    for key, value in rows:
        if len(value) <= VALUE_PART_BYTES:
            yield key, value
        else:
            for start in range(0, len(value), VALUE_PART_BYTES):
                yield key, value[start : start + VALUE_PART_BYTES]


def read_chunks(chunks: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the rows of chunks 1.. in key order; raises SnapshotInvalid for what no `state_chunks` gives."""
    last, parts, size = b"", [b""], 0
    for data in chunks:
        for key, value in _rows(data):
            if key == last and len(parts[-1]) == VALUE_PART_BYTES:
                parts.append(value)
                size += len(value)
                if size > VALUE_BYTES_MAX:
                    raise SnapshotInvalid("a value over its limit")
                continue
            if key <= last:
                raise SnapshotInvalid("keys out of order")
            if last:
                yield last, b"".join(parts)
            last, parts, size = key, [value], len(value)
    if last:
        yield last, b"".join(parts)


def _rows(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    try:
        flat = codec.decode(data, CHUNK_BYTES_MAX)
    except CodecError as error:
        raise SnapshotInvalid(str(error)) from error
    if not isinstance(flat, list) or not flat or len(flat) % 2 or len(flat) > 2 * ROWS_MAX:
        raise SnapshotInvalid("a chunk that is no list of keys and values")
    for key, value in zip(flat[::2], flat[1::2], strict=True):
        if not isinstance(key, bytes) or not isinstance(value, bytes) or not 0 < len(key) <= KEY_BYTES_MAX:
            raise SnapshotInvalid("a chunk that is no list of keys and values")
        if len(value) > VALUE_PART_BYTES:
            raise SnapshotInvalid("a value that should have been cut")
        yield key, value


def chunk_digest(data: bytes, chain_id: bytes) -> bytes:
    """The 32 bytes under which a chunk stands in the tree."""
    return digest("snapshot-chunk", data, chain_id)


def snapshot_root(digests: list[bytes] | tuple[bytes, ...]) -> bytes:
    """The root that headers carry."""
    return merkle_root(digests)


ADDED_AT_ONCE = 512


def lthash_of_rows(rows: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Add up the LtHash of a state that need not fit into memory."""
    lthash, waiting = EMPTY_LTHASH, []
    for key, value in rows:
        waiting.append((key, None, value))
        if len(waiting) == ADDED_AT_ONCE:
            lthash, waiting = apply_changes(lthash, waiting), []
    return apply_changes(lthash, waiting)
