"""Blobs of waiting transactions: what is fetched, what is vouched for, whose receipts count, and each sender's quota."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from node.errors import BlobMissing
from node.ledger.batch import StorageClaim, storage_claim
from node.ledger.bodies import ContributionSubmit
from node.ledger.errors import MalformedError
from node.ledger.records import encode_records, records_root
from node.ledger.transaction import decode_transaction
from node.storage.blobs import LOOSE_BYTES_MIN, LooseLimits, Note
from node.storage.errors import LooseQuotaExceeded
from node.wire import Frame, encode_transactions
from tests.unit.node.rooms import Room, run, until, with_rooms
from tests.unit.node.waiting import BLOB, PEER, contribution, receipt_frame, select
from tests.unit.node_ledger.world import VALIDATORS, address


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    made = Room("val0", tmp_path)
    yield made
    made.close()


def test_a_blob_transaction_is_includable_only_with_receipts_of_more_than_two_thirds(room: Room) -> None:
    body = contribution(room)
    raw = room.tx("ann", body)

    async def main() -> None:
        await room.intake.submit(raw)
        assert select(room) == []
        room.intake.receive_receipt(PEER, receipt_frame(room, storage_claim(body), "val1"))
        assert select(room) == []
        room.intake.receive_receipt(PEER, receipt_frame(room, storage_claim(body), "val2"))
        assert select(room) == [room.hash(raw)]
        pooled = room.mempool.get(room.hash(raw))
        assert pooled is not None
        assert room.intake.item(pooled) == (raw, room.stored(raw, VALIDATORS[:3]))
        assert room.loopback.blamed == []

    run(main)


@pytest.mark.parametrize(
    "lie",
    [
        {"record_count": 3},
        {"token_count": 6},
        {"records_root": b"r" * 32},
        {"blob_bytes": len(BLOB) + 1},
    ],
)
@pytest.mark.parametrize("way", ["submitted", "received"])
def test_no_receipt_is_signed_for_a_blob_that_is_not_what_the_transaction_says(
    room: Room, lie: dict[str, int | bytes], way: str
) -> None:
    raw = room.tx("ann", contribution(room, **lie))

    async def body() -> None:
        if way == "submitted":
            with pytest.raises(MalformedError):
                await room.intake.submit(raw)
        else:
            await room.intake.receive(PEER, encode_transactions([raw]))
            await until(lambda: room.hash(raw) not in room.mempool)
        assert room.loopback.sent(Frame.STORAGE_RECEIPT) == []
        assert room.loopback.sent(Frame.TRANSACTIONS) == []
        assert room.hash(raw) not in room.mempool
        assert room.loopback.blamed == []

    run(lambda: with_rooms([room], body))


def test_a_transaction_whose_blob_is_not_here_is_refused_and_leaves_no_trace(room: Room) -> None:
    raw = room.tx("ann", contribution(room, blob_digest=b"b" * 32))

    async def main() -> None:
        with pytest.raises(BlobMissing):
            await room.intake.submit(raw)
        assert len(room.mempool) == 0
        assert room.loopback.frames == []

    run(main)


def test_a_blob_that_could_not_be_fetched_at_first_is_fetched_when_the_transaction_comes_again(
    tmp_path: Path,
) -> None:
    here, there = Room("val0", tmp_path), Room("val1", tmp_path)
    here.connect(there)
    raw = there.tx("ann", contribution(there))
    message = encode_transactions([raw])

    async def body() -> None:
        here.starts = False  # too many tasks at the moment
        await here.intake.receive(PEER, message)
        assert here.loopback.requests == []
        here.starts = True
        await here.intake.receive(PEER, message)
        await until(lambda: here.loopback.sent(Frame.STORAGE_RECEIPT))
        assert here.blobs.get(contribution(there).blob_digest) == BLOB
        await here.intake.receive(PEER, message)  # once more: a receipt may have been lost
        assert len(set(here.loopback.sent(Frame.STORAGE_RECEIPT))) == 1
        assert len(here.loopback.sent(Frame.STORAGE_RECEIPT)) == 2

    run(lambda: with_rooms([here, there], body))
    here.close()
    there.close()


def test_a_claim_of_the_same_blob_with_a_false_size_does_not_hold_up_the_true_one(tmp_path: Path) -> None:
    here, there = Room("val0", tmp_path), Room("val1", tmp_path)
    here.connect(there)
    true = there.tx("ann", contribution(there))
    false = there.tx("ben", contribution(there, blob_bytes=len(BLOB) + 9))

    async def body() -> None:
        await here.intake.receive(PEER, encode_transactions([false, true]))
        with trio.fail_after(5):
            await until(lambda: here.loopback.sent(Frame.STORAGE_RECEIPT))
        assert here.loopback.blamed == []

    run(lambda: with_rooms([here, there], body))
    here.close()
    there.close()


def test_a_false_receipt_costs_its_sender_and_a_known_one_nothing(room: Room) -> None:
    claim = storage_claim(contribution(room))

    async def main() -> None:
        good = receipt_frame(room, claim, "val1")
        room.intake.receive_receipt(PEER, good)
        room.intake.receive_receipt(PEER, good)
        assert room.loopback.blamed == []
        room.intake.receive_receipt(PEER, receipt_frame(room, claim, "ann"))  # no validator
        room.intake.receive_receipt(PEER, receipt_frame(room, claim, "val2")[:-1] + b"\0")
        room.intake.receive_receipt(PEER, b"\x90")
        assert room.loopback.blamed == [PEER] * 3

    run(main)


def test_one_validator_cannot_push_out_the_receipts_of_the_others(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.receipts.CLAIMS_MAX", 3)
    claim = storage_claim(contribution(room))

    async def main() -> None:
        for name in VALIDATORS[:3]:
            room.intake.receive_receipt(PEER, receipt_frame(room, claim, name))
        for number in range(20):
            made_up = StorageClaim(bytes([number]) * 32, 9, b"", 0, 0)
            room.intake.receive_receipt(PEER, receipt_frame(room, made_up, "val3"))
        assert room.receipts.quorum(claim) is not None
        assert len(room.receipts._signatures) == 1 + 3

    run(main)


def blob_limits(room: Room, sender_bytes: int) -> None:
    room.blobs.loose_limits = LooseLimits(owner_bytes_max=sender_bytes, unnamed_bytes_max=1 << 20)


def loose(room: Room, data: bytes) -> bytes:
    """A blob that came by RPC."""
    return room.blobs.put(data, note=Note(b"", 0, 0))


def test_a_senders_blobs_have_a_quota_with_a_typed_refusal_that_leaves_no_trace(room: Room) -> None:
    blob_limits(room, 2 * LOOSE_BYTES_MIN)
    rows = []
    for number in range(3):
        records = [[number, 7]]
        data = encode_records(records)
        lie: dict[str, int | bytes] = {
            "records_root": records_root(records),
            "record_count": 1,
            "token_count": 2,
            "blob_digest": loose(room, data),
            "blob_bytes": len(data),
        }
        rows.append(room.tx("ann", contribution(room, **lie), nonce=number))

    async def main() -> None:
        await room.intake.submit(rows[0])
        await room.intake.submit(rows[1])
        with pytest.raises(LooseQuotaExceeded):
            await room.intake.submit(rows[2])
        assert [pooled.raw for pooled in room.mempool] == rows[:2]
        note = room.blobs.note(decode_blob(rows[0]))
        assert note is not None
        assert (note.owner, note.until_height) == (address("ann"), 50)

    run(main)


def decode_blob(raw: bytes) -> bytes:
    body = decode_transaction(raw).body
    assert isinstance(body, ContributionSubmit)
    return body.blob_digest


def test_a_peers_transaction_over_its_senders_quota_fetches_nothing(tmp_path: Path) -> None:
    here, there = Room("val0", tmp_path), Room("val1", tmp_path)
    here.connect(there)
    blob_limits(here, 1)
    raw = there.tx("ann", contribution(there))

    async def body() -> None:
        await here.intake.receive(PEER, encode_transactions([raw]))
        assert here.loopback.requests == []
        assert len(here.mempool) == 0
        assert here.loopback.blamed == []

    run(lambda: with_rooms([here, there], body))
    here.close()
    there.close()
