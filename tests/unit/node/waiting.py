"""What tests of the way in share: a blob transaction, its receipts, and what a leader would order now."""

from node.ledger.batch import StorageClaim, sign_storage_receipt
from node.ledger.bodies import ContributionSubmit
from node.ledger.records import encode_records, records_root
from node.wire import StorageReceiptFrame, encode_storage_receipt
from tests.unit.node.rooms import Room, peer_id
from tests.unit.node_ledger.world import address, seed

RECORDS = [[1, 2, 3], [4, 5]]
BLOB = encode_records(RECORDS)
PEER = peer_id("val1")


def contribution(room: Room, **changes: int | bytes) -> ContributionSubmit:
    fields = {
        "datanet": b"d" * 32,
        "records_root": records_root(RECORDS),
        "record_count": 2,
        "token_count": 5,
        "blob_digest": room.blobs.put(BLOB),
        "blob_bytes": len(BLOB),
        "licence": "MIT",
    } | changes
    return ContributionSubmit(**fields)  # type: ignore[arg-type]


def select(room: Room, in_flight: frozenset[bytes] = frozenset()) -> list[bytes]:
    """Hashes that a leader would order now."""
    flying = set(in_flight)
    chosen = room.mempool.select(
        room.intake.next_nonce, room.intake.includable, room.intake.withheld(flying), 1 << 20, 100
    )
    return [pooled.tx_hash for pooled in room.intake.affordable(chosen, flying)]


def receipt_frame(room: Room, claim: StorageClaim, name: str) -> bytes:
    signature = sign_storage_receipt(seed(name), claim, room.chain_id)
    fields = (
        claim.blob_digest,
        claim.blob_bytes,
        claim.content_root,
        claim.content_count,
        claim.content_tokens,
    )
    return encode_storage_receipt(StorageReceiptFrame(*fields, address(name), signature))
