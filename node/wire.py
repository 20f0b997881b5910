"""What nodes say to one another besides consensus messages: kinds, shapes, limits.

Everything is a canonical array. Direct frames go between validators; requests may come from any peer that is
let in; gossip reaches full nodes. Every decoder here reads from a hostile peer: it checks shape and size and
raises WireError, which costs the peer that sent it.
"""

from dataclasses import dataclass
from enum import IntEnum

from consensus import codec
from consensus.errors import CodecError

TRANSACTIONS_BYTES_MAX = 900 << 10
TRANSACTIONS_MAX = 4096
BLOB_PART_BYTES = 256 << 10
RANGE_BLOCKS_MAX = 64
RANGE_BYTES_MAX = 6 << 20
BATCH_REQUEST_MAX = 64
ID_BYTES = 32
EPOCH_ROWS_MAX = 64
EPOCH_ROWS_BYTES_MAX = 4 << 20
SNAPSHOT_OFFER_BYTES_MAX = 2 << 20
INDEX_FILES = ("header.bin", "bases.bin", "weights.bin", "rows.bin", "standing.bin")
"""Files of an adapter's index (`attribution.index`), by their number in a request; what says which rows are erased is fetched last."""
INDEX_BYTES_MAX = 1 << 30
"""Of all files of one index together, as far as a peer's is fetched."""


class Frame(IntEnum):
    """Kinds of direct frames."""

    CONSENSUS = 1
    BATCH = 2
    TRANSACTIONS = 3
    STORAGE_RECEIPT = 4


class Request(IntEnum):
    """Kinds of requests."""

    STATUS = 1
    BLOCK = 2
    RANGE = 3
    BATCH = 4
    BLOB = 5
    SNAPSHOT = 6
    CHUNK = 7
    EPOCHS = 8
    INDEX = 9


class Topic:
    """Gossip topics."""

    TRANSACTIONS = "tx"
    BLOCKS = "block"


class WireError(Exception):
    """A peer sent bytes that are not of the agreed shape."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """How far a node has come: its last committed block."""

    height: int
    block_id: bytes


@dataclass(frozen=True, slots=True)
class SyncedBlock:
    """A block and the batches that its payload names, in that order."""

    block: bytes
    batches: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class BlockRange:
    """Consecutive committed blocks, oldest first, and the proof that the last of them is committed."""

    blocks: tuple[SyncedBlock, ...]
    proof: bytes


@dataclass(frozen=True, slots=True)
class SnapshotOffer:
    """A snapshot's manifest, a committed block whose header carries its root, and the proof of that block; all encoded."""

    manifest: bytes
    block: bytes
    proof: bytes


@dataclass(frozen=True, slots=True)
class StorageReceiptFrame:
    """One validator's word, signed after fsync, that it holds a transaction's blob."""

    blob_digest: bytes
    blob_bytes: int
    content_root: bytes
    content_count: int
    content_tokens: int
    validator: bytes
    signature: bytes


def encode_transactions(transactions: list[bytes]) -> bytes:
    """Return a frame or gossip message of raw transactions."""
    return codec.encode(transactions)


def decode_transactions(data: bytes) -> list[bytes]:
    """Return raw transactions; raises WireError."""
    match _decode(data, TRANSACTIONS_BYTES_MAX):
        case list(rows) if len(rows) <= TRANSACTIONS_MAX and all(isinstance(row, bytes) for row in rows):
            return rows
    raise WireError("expected an array of transactions")


def encode_announcement(announcement: Announcement) -> bytes:
    """Return the gossip message and status answer."""
    return codec.encode([announcement.height, announcement.block_id])


def decode_announcement(data: bytes) -> Announcement:
    """Return an announcement; raises WireError."""
    match _decode(data, 128):
        case [int(height), bytes(block_id)] if _integers(height) and len(block_id) == ID_BYTES:
            return Announcement(height, block_id)
    raise WireError("expected [height, block id]")


def encode_range_request(from_height: int, blocks_max: int) -> bytes:
    """Return the body of a RANGE request."""
    return codec.encode([from_height, blocks_max])


def decode_range_request(data: bytes) -> tuple[int, int]:
    """Return (from_height, blocks_max); raises WireError."""
    match _decode(data, 64):
        case [int(from_height), int(blocks_max)] if (
            _integers(from_height, blocks_max) and from_height >= 1 and 1 <= blocks_max <= RANGE_BLOCKS_MAX
        ):
            return from_height, blocks_max
    raise WireError(f"expected [from_height >= 1, 1..{RANGE_BLOCKS_MAX} blocks]")


def encode_range(answer: BlockRange) -> bytes:
    """Return the answer to a RANGE request."""
    return codec.encode([[[row.block, list(row.batches)] for row in answer.blocks], answer.proof])


def decode_range(data: bytes) -> BlockRange:
    """Return blocks and proof, neither checked yet; raises WireError."""
    match _decode(data, RANGE_BYTES_MAX * 2):
        case [list(rows), bytes(proof)] if len(rows) <= RANGE_BLOCKS_MAX:
            return BlockRange(tuple(_synced_block(row) for row in rows), proof)
    raise WireError("expected [blocks, proof]")


def _synced_block(row: object) -> SyncedBlock:
    match row:
        case [bytes(block), list(batches)] if all(isinstance(batch, bytes) for batch in batches):
            return SyncedBlock(block, tuple(batches))
    raise WireError("expected [block, batches]")


def encode_block_request(block_id: bytes, known_height: int) -> bytes:
    """Return the body of a BLOCK request: a block and its ancestors above a height."""
    return codec.encode([block_id, known_height])


def decode_block_request(data: bytes) -> tuple[bytes, int]:
    """Return (block id, known height); raises WireError."""
    match _decode(data, 64):
        case [bytes(block_id), int(known_height)] if len(block_id) == ID_BYTES and _integers(known_height):
            return block_id, known_height
    raise WireError("expected [block id, known height]")


def encode_blob_request(blob_digest: bytes, offset: int) -> bytes:
    """Return the body of a BLOB request: one part of at most BLOB_PART_BYTES."""
    return codec.encode([blob_digest, offset])


def decode_blob_request(data: bytes) -> tuple[bytes, int]:
    """Return (digest, offset); raises WireError."""
    match _decode(data, 64):
        case [bytes(blob_digest), int(offset)] if len(blob_digest) == ID_BYTES and _integers(offset):
            return blob_digest, offset
    raise WireError("expected [blob digest, offset]")


def encode_index_request(adapter_id: bytes, file: int, offset: int) -> bytes:
    """Return the body of an INDEX request: one part, of at most BLOB_PART_BYTES, of a file of an adapter's index."""
    return codec.encode([adapter_id, file, offset])


def decode_index_request(data: bytes) -> tuple[bytes, int, int]:
    """Return (adapter id, number of the file in INDEX_FILES, offset); raises WireError."""
    match _decode(data, 64):
        case [bytes(adapter_id), int(file), int(offset)] if (
            len(adapter_id) == ID_BYTES
            and _integers(file, offset)
            and file < len(INDEX_FILES)
            and offset < INDEX_BYTES_MAX
        ):
            return adapter_id, file, offset
    raise WireError("expected [adapter id, number of a file, offset]")


def encode_chunk_request(height: int, index: int) -> bytes:
    """Return the body of a CHUNK request: one chunk of the snapshot at a height."""
    return codec.encode([height, index])


def decode_chunk_request(data: bytes) -> tuple[int, int]:
    """Return (height, index); raises WireError."""
    match _decode(data, 64):
        case [int(height), int(index)] if _integers(height, index):
            return height, index
    raise WireError("expected [height, index]")


def encode_epochs_request(first: int, count: int) -> bytes:
    """Return the body of an EPOCHS request: rows of consecutive epochs."""
    return codec.encode([first, count])


def decode_epochs_request(data: bytes) -> tuple[int, int]:
    """Return (first epoch, how many); raises WireError."""
    match _decode(data, 64):
        case [int(first), int(count)] if _integers(first, count) and 1 <= count <= EPOCH_ROWS_MAX:
            return first, count
    raise WireError(f"expected [epoch, 1..{EPOCH_ROWS_MAX}]")


def encode_epoch_rows(rows: list[bytes]) -> bytes:
    """Return the answer to an EPOCHS request."""
    return codec.encode(rows)


def decode_epoch_rows(data: bytes) -> list[bytes]:
    """Return rows, none of them checked yet; raises WireError."""
    match _decode(data, 2 * EPOCH_ROWS_BYTES_MAX):
        case list(rows) if len(rows) <= EPOCH_ROWS_MAX and all(isinstance(row, bytes) for row in rows):
            return rows
    raise WireError("expected an array of epochs")


def encode_snapshot_offer(offer: SnapshotOffer) -> bytes:
    """Return the answer to a SNAPSHOT request; empty bytes are the answer of a node that has none."""
    return codec.encode([offer.manifest, offer.block, offer.proof])


def decode_snapshot_offer(data: bytes) -> SnapshotOffer:
    """Return an offer of which nothing is checked yet; raises WireError."""
    match _decode(data, SNAPSHOT_OFFER_BYTES_MAX):
        case [bytes(manifest), bytes(block), bytes(proof)]:
            return SnapshotOffer(manifest, block, proof)
    raise WireError("expected [manifest, block, proof]")


def encode_storage_receipt(receipt: StorageReceiptFrame) -> bytes:
    """Return the frame of a storage receipt."""
    return codec.encode(
        [
            receipt.blob_digest,
            receipt.blob_bytes,
            receipt.content_root,
            receipt.content_count,
            receipt.content_tokens,
            receipt.validator,
            receipt.signature,
        ]
    )


def decode_storage_receipt(data: bytes) -> StorageReceiptFrame:
    """Return a receipt whose signature is not checked yet; raises WireError."""
    match _decode(data, 512):
        case [
            bytes(blob),
            int(size),
            bytes(root),
            int(count),
            int(tokens),
            bytes(validator),
            bytes(signature),
        ] if (
            len(blob) == ID_BYTES
            and len(root) in (0, ID_BYTES)
            and len(validator) == ID_BYTES
            and len(signature) == 64
            and _integers(size, count, tokens)
        ):
            return StorageReceiptFrame(blob, size, root, count, tokens, validator, signature)
    raise WireError("expected a storage receipt")


def _integers(*values: int) -> bool:
    """Whether all are integers from 0 up; True and False match `int` in a pattern, and are none."""
    return all(type(value) is int and value >= 0 for value in values)


def _decode(data: bytes, bytes_max: int) -> object:
    try:
        return codec.decode(data, bytes_max)
    except CodecError as error:
        raise WireError(str(error)) from error
