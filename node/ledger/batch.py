"""What validators order: signed bundles of transactions, each with the storage receipts that its kind needs.

``[author, sequence, [[tx_bytes, [[account, signature], ...]], ...], signature]``. A batch's digest is over its first three fields, so that the
signature adds nothing to argue about. Authors and storing validators sign with their *account* keys; consensus
keys sign consensus messages alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from consensus.codec import encode
from consensus.crypto import public_key, sign, verify
from consensus.digest import digest
from node.ledger.bodies import SIGNATURE_BYTES, ContributionSubmit, InferenceReveal
from node.ledger.errors import MalformedError
from node.ledger.fields import blob, fixed, from_bytes, many, pack, row, to_bytes, uint, validate
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
    return digest("batch", encode([batch.author, batch.sequence, pack(batch.items)]), chain_id)


def sign_batch(seed: bytes, chain_id: bytes, sequence: int, items: tuple[Item, ...]) -> Batch:
    """Build and sign a batch by the account of this seed; raises :class:`MalformedError` over a limit."""
    unsigned = validate(Batch(public_key(seed), sequence, items, bytes(SIGNATURE_BYTES)))
    batch = Batch(unsigned.author, sequence, items, sign(seed, batch_digest(unsigned, chain_id)))
    encode_batch(batch)
    return batch


def verify_batch(batch: Batch, chain_id: bytes, check: SignatureCheck = verify) -> bool:
    """Whether the author signed this batch on this chain. Whether it is a validator is the state's to say."""
    return check(batch.author, batch_digest(batch, chain_id), batch.signature)


def encode_batch(batch: Batch) -> bytes:
    """Canonical bytes; raises :class:`MalformedError` over `BATCH_BYTES_MAX`."""
    data = to_bytes(batch)
    if len(data) > BATCH_BYTES_MAX:
        raise MalformedError(f"a batch of {len(data)} bytes, over {BATCH_BYTES_MAX}", "batch")
    return data


def decode_batch(data: bytes) -> Batch:
    """Read a batch; its transactions stay bytes, judged one by one when they execute. Raises :class:`MalformedError`."""
    return from_bytes(Batch, data, BATCH_BYTES_MAX)


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
