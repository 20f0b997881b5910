"""What validators order: signed bundles of transactions, each with the storage receipts that its kind needs.

``[author, sequence, [[tx_bytes, [[account, signature], ...]], ...], signature]``. A batch's digest is over its first three fields, so that the
signature adds nothing to argue about. Authors and storing validators sign with their *account* keys; consensus
keys sign consensus messages alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from consensus.codec import encode, encode_known
from consensus.crypto import public_key, sign, verify
from consensus.digest import digest
from node.ledger.bodies import SIGNATURE_BYTES, ContributionSubmit, InferenceReveal
from node.ledger.errors import MalformedError
from node.ledger.fields import U63_MAX, blob, fixed, from_bytes, many, row, to_bytes, uint, validate
from node.ledger.records import RECORDS_BYTES_MAX
from node.ledger.results import ADDRESS_BYTES
from node.ledger.transaction import TRANSACTION_BYTES_MAX, SignatureCheck

BATCH_BYTES_MAX = 512 << 10
BATCH_ITEMS_MAX = 1_024
STORAGE_RECEIPTS_MAX = 128
"""Receipts on one transaction: as many as there can be validators."""

StorageReceipts = tuple[tuple[bytes, bytes], ...]
"""(validator's account, signature) pairs."""

Item = tuple[bytes, StorageReceipts]
"""(transaction's canonical bytes, its storage receipts)."""

# How the canonical form begins what a batch is made of.
_FOUR_FIELDS, _TWO_FIELDS, _NO_ENTRIES, _ARRAY16 = b"\x94", 0x92, 0x90, 0xDC
_BYTES32, _BYTES64, _BYTES8, _BYTES16 = b"\xc4\x20", b"\xc4\x40", 0xC4, 0xC5
_UINT_BYTES = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
_AUTHOR_AT, _SEQUENCE_AT, _SIGNATURE_FIELD_BYTES = 3, 35, 2 + SIGNATURE_BYTES

_RECEIPTS = many(row(fixed(ADDRESS_BYTES), fixed(SIGNATURE_BYTES)), STORAGE_RECEIPTS_MAX)


@dataclass(frozen=True, slots=True)
class Batch:
    """A validator's bundle. `sequence` is used once by each author; executed in the order given."""

    author: bytes = field(metadata=fixed(ADDRESS_BYTES))
    sequence: int = field(metadata=uint(minimum=1))
    items: tuple[Item, ...] = field(
        metadata=many(row(blob(TRANSACTION_BYTES_MAX), _RECEIPTS), BATCH_ITEMS_MAX, 1)
    )
    signature: bytes = field(metadata=fixed(SIGNATURE_BYTES))


def batch_digest(batch: Batch, chain_id: bytes) -> bytes:
    """Name (32 bytes) of a batch in proposals and stores, and what its author signs."""
    return digest("batch", encode_known((batch.author, batch.sequence, batch.items)), chain_id)


def sign_batch(seed: bytes, chain_id: bytes, sequence: int, items: tuple[Item, ...]) -> Batch:
    """Build and sign a batch by the account of this seed; raises :class:`MalformedError` over a limit."""
    return make_batch(seed, chain_id, sequence, items)[1]


def make_batch(
    seed: bytes, chain_id: bytes, sequence: int, items: tuple[Item, ...]
) -> tuple[bytes, Batch, bytes]:
    """`sign_batch` with the batch's name before it and its canonical bytes after it, all of one encoding."""
    author = validate(Batch(public_key(seed), sequence, items, bytes(SIGNATURE_BYTES))).author
    named = encode_known((author, sequence, items))
    name = digest("batch", named, chain_id)
    batch = Batch(author, sequence, items, sign(seed, name))
    return name, batch, _within_limit(b"".join((_FOUR_FIELDS, named[1:], _BYTES64, batch.signature)))


def verify_batch(batch: Batch, chain_id: bytes, check: SignatureCheck = verify) -> bool:
    """Whether the author signed this batch on this chain. Whether it is a validator is the state's to say."""
    return check(batch.author, batch_digest(batch, chain_id), batch.signature)


def encode_batch(batch: Batch) -> bytes:
    """Canonical bytes; raises :class:`MalformedError` over `BATCH_BYTES_MAX`."""
    return _within_limit(encode((batch.author, batch.sequence, batch.items, batch.signature)))


def _within_limit(data: bytes) -> bytes:
    if len(data) > BATCH_BYTES_MAX:
        raise MalformedError(f"a batch of {len(data)} bytes, over {BATCH_BYTES_MAX}", "batch")
    return data


def decode_batch(data: bytes) -> Batch:
    """Read a batch; its transactions stay bytes, judged one by one when they execute. Raises :class:`MalformedError`."""
    return _decode_bare(data) or from_bytes(Batch, data, BATCH_BYTES_MAX)


def _decode_bare(data: bytes) -> Batch | None:
    """A batch without storage receipts, read at a tenth of the plain way's cost; None for anything else, good or bad.

    One look at each header, which must be the shortest that says what it says, as in `consensus.codec.decode`.
    """
    if (
        len(data) > BATCH_BYTES_MAX
        or not data.startswith(_FOUR_FIELDS + _BYTES32)
        or data[-_SIGNATURE_FIELD_BYTES:-SIGNATURE_BYTES] != _BYTES64
    ):
        return None
    try:
        sequence, at = _uint_at(data, _SEQUENCE_AT)
        count, at = _count_at(data, at)
        if not (1 <= sequence <= U63_MAX and 1 <= count <= BATCH_ITEMS_MAX):
            return None
        items: list[Item] = []
        for _ in range(count):
            form, size, begin = data[at + 1], data[at + 2], at + 3
            if form == _BYTES16:
                size, begin = size << 8 | data[begin], begin + 1
                if size <= 0xFF:
                    return None
            elif form != _BYTES8:
                return None
            end = begin + size
            if data[at] != _TWO_FIELDS or data[end] != _NO_ENTRIES:
                return None
            items.append((data[begin:end], ()))
            at = end + 1
    except IndexError:
        return None
    if at != len(data) - _SIGNATURE_FIELD_BYTES:
        return None
    return Batch(data[_AUTHOR_AT:_SEQUENCE_AT], sequence, tuple(items), data[-SIGNATURE_BYTES:])


def _uint_at(data: bytes, at: int) -> tuple[int, int]:
    """(Integer that stands there in its shortest form, where it ends), -1 for anything else; raises IndexError."""
    first = data[at]
    if first < 0x80:
        return first, at + 1
    width = _UINT_BYTES.get(first, 0)
    end = at + 1 + width
    value = int.from_bytes(data[at + 1 : end], "big")
    shortest = value >= 0x80 if width == 1 else value >> 4 * width
    return (value if width and shortest and end <= len(data) else -1), end


def _count_at(data: bytes, at: int) -> tuple[int, int]:
    """(Entries of the array whose header stands there in its shortest form, where it ends), -1 for anything else."""
    first = data[at]
    if 0x90 <= first <= 0x9F:
        return first & 0x0F, at + 1
    count = data[at + 1] << 8 | data[at + 2]
    return (count if first == _ARRAY16 and count > 0x0F else -1), at + 3


@dataclass(frozen=True, slots=True)
class StorageClaim:
    """What a storage receipt vouches for: these bytes are on this validator's disk and hold this content.

    Of a contribution the validator checked root, count and tokens of the records; of a reveal, nothing but the bytes.
    """

    blob_digest: bytes = field(metadata=fixed(32))
    blob_bytes: int = field(metadata=uint(RECORDS_BYTES_MAX))
    content_root: bytes = field(metadata=fixed(0, 32))
    content_count: int = field(metadata=uint())
    content_tokens: int = field(metadata=uint())


def storage_claim(body: ContributionSubmit | InferenceReveal) -> StorageClaim:
    """The claim that receipts of this transaction must sign."""
    if isinstance(body, ContributionSubmit):
        return StorageClaim(
            body.blob_digest, body.blob_bytes, body.records_root, body.record_count, body.token_count
        )
    return StorageClaim(body.blob_digest, body.blob_bytes, b"", 0, 0)


def storage_receipt_digest(claim: StorageClaim, chain_id: bytes) -> bytes:
    """The 32 bytes that a storage receipt signs."""
    return digest("storage-receipt", to_bytes(claim), chain_id)


def sign_storage_receipt(seed: bytes, claim: StorageClaim, chain_id: bytes) -> bytes:
    """A validator's receipt (64-byte signature by its account key); to be given only after fsync."""
    return sign(seed, storage_receipt_digest(claim, chain_id))


def verify_storage_receipt(
    account: bytes, signature: bytes, claim: StorageClaim, chain_id: bytes, check: SignatureCheck = verify
) -> bool:
    """Whether this account signed this claim."""
    return check(account, storage_receipt_digest(claim, chain_id), signature)
