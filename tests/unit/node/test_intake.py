"""The way in: when a blob transaction may be ordered, what is vouched for, what leaves the pool, who is blamed."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from consensus.crypto import verify
from node import intake
from node.config import MempoolSection
from node.errors import BlobMissing
from node.inbox import MESSAGES_PER_PEER_MAX
from node.ledger.batch import StorageClaim, sign_storage_receipt, storage_claim
from node.ledger.block import ReceiptStatus, decode_receipt
from node.ledger.bodies import BaseRegister, ContributionSubmit, DatanetCreate, Held, Transfer
from node.ledger.errors import InvalidTransactionError, MalformedError
from node.ledger.records import encode_records, records_root
from node.ledger.state import get_account
from node.ledger.transaction import decode_transaction
from node.storage.blobs import LOOSE_BYTES_MIN, LooseLimits, Note
from node.storage.errors import LooseQuotaExceeded
from node.wire import Frame, StorageReceiptFrame, encode_storage_receipt, encode_transactions
from tests.unit.node.rooms import Room, peer_id, run, until, with_rooms
from tests.unit.node_ledger.world import BASE_HASH, VALIDATORS, address, seed

RECORDS = [[1, 2, 3], [4, 5]]
BLOB = encode_records(RECORDS)
PEER = peer_id("val1")


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    made = Room("val0", tmp_path)
    yield made
    made.close()


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


# --- blobs and receipts ---


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


# --- what leaves the pool ---


def test_what_is_executed_leaves_the_pool_and_is_not_admitted_again(room: Room) -> None:
    raw = room.tx("ann", Transfer(address("ben"), 5))

    async def body() -> None:
        assert await room.intake.submit(raw) == room.hash(raw)
        await room.order(room.batch(1, raw))
        assert len(room.mempool) == 0
        assert await room.intake.submit(raw) == room.hash(raw)
        await room.intake.receive(PEER, encode_transactions([raw]))
        assert len(room.mempool) == 0
        assert room.loopback.blamed == []

    run(lambda: with_rooms([room], body))


def test_one_proposer_cannot_take_transactions_out_of_the_pools_by_ordering_them_wrongly(room: Room) -> None:
    body_ = contribution(room)
    stored, later = room.tx("ann", body_), room.tx("ann", Transfer(address("ben"), 1), nonce=1)

    async def body() -> None:
        await room.intake.submit(stored)
        await room.intake.submit(later)
        # Without storage receipts, and before its turn: both are invalid and consume nothing.
        await room.order(room.batch(1, stored, later))
        outcome = room.store.outcome(1)
        assert outcome is not None
        statuses = [decode_receipt(receipt).status for receipt in outcome.receipts]
        assert statuses == [ReceiptStatus.INVALID] * 2
        assert room.hash(stored) in room.mempool
        assert room.hash(later) in room.mempool
        for name in VALIDATORS[1:]:
            room.intake.receive_receipt(PEER, receipt_frame(room, storage_claim(body_), name))
        assert select(room) == [room.hash(stored), room.hash(later)]
        await room.order(room.batch(2, (stored, room.stored(stored)), later))
        assert get_account(room.store, address("ann")).nonce == 2
        assert len(room.mempool) == 0

    run(lambda: with_rooms([room], body))


def test_one_that_was_ordered_wrongly_before_this_node_met_it_is_admitted(room: Room) -> None:
    early = room.tx("ann", Transfer(address("ben"), 1), nonce=1)

    async def body() -> None:
        await room.order(room.batch(1, early))
        await room.intake.receive(PEER, encode_transactions([early]))
        assert room.hash(early) in room.mempool

    run(lambda: with_rooms([room], body))


def test_what_can_no_longer_pay_its_fee_leaves_the_pool_when_it_was_ordered_in_vain(room: Room) -> None:
    rest = get_account(room.store, address("ann")).balance
    fee = decode_transaction(room.tx("ann", Transfer(address("ben"), 1))).fee
    drain = room.tx("ann", Transfer(address("ben"), rest - fee))
    left = room.tx("ann", Transfer(address("ben"), 1), nonce=1)

    async def body() -> None:
        await room.intake.submit(drain)
        await room.intake.submit(left)
        assert select(room) == [room.hash(drain)]  # the second could not pay, at its orderer's cost
        await room.order(room.batch(1, drain, left))
        assert len(room.mempool) == 0

    run(lambda: with_rooms([room], body))


def test_what_is_in_flight_counts_against_what_its_sender_can_pay(room: Room) -> None:
    balance = get_account(room.store, address("ann")).balance
    fee = decode_transaction(room.tx("ann", Transfer(address("ben"), 1))).fee
    first = room.tx("ann", Transfer(address("ben"), balance - 2 * fee))
    second = room.tx("ann", Transfer(address("ben"), 1), nonce=1)
    third = room.tx("ann", Transfer(address("ben"), 1), nonce=2)

    async def main() -> None:
        for raw in (first, second, third):
            await room.intake.submit(raw)
        assert select(room) == [room.hash(first)]
        assert select(room, frozenset({room.hash(first)})) == []

    run(main)


# --- duties ---


def test_a_duty_that_is_not_owed_is_not_ordered_until_it_is_and_not_kept_for_ever(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.admission.UNOWED_HEIGHTS_MAX", 3)
    early = room.tx("val1", Held(BASE_HASH, b""))
    never = room.tx("val1", Held(b"n" * 32, b""))
    register = room.tx("ann", BaseRegister(BASE_HASH, "base"))

    async def body() -> None:
        await room.intake.receive(PEER, encode_transactions([early, never]))
        assert select(room) == []
        assert not room.mempool.has_ready(
            room.intake.next_nonce, room.intake.includable, room.intake.withheld(set())
        )
        await room.order(room.batch(1, register))
        assert select(room) == [room.hash(early)]
        await room.order(room.batch(2, early))
        assert room.hash(early) not in room.mempool
        assert room.hash(never) in room.mempool
        await room.order()
        await room.order()
        assert len(room.mempool) == 0
        assert room.loopback.blamed == []

    run(lambda: with_rooms([room], body))


# --- blame and loss ---


def test_only_who_made_a_malformed_message_is_blamed_never_who_passed_it_on(room: Room) -> None:
    async def main() -> None:
        for data in (encode_transactions([b"\xc1"]), b"\xc1", encode_transactions([b""])):
            await room.intake.receive(PEER, data, forwarded=True)
        assert room.loopback.blamed == []
        for data in (encode_transactions([b"\xc1"]), b"\xc1"):
            await room.intake.receive(PEER, data)
        assert room.loopback.blamed == [PEER] * 2

    run(main)


def test_a_refused_transaction_costs_nobody_and_hides_none_that_follows(room: Room) -> None:
    ahead = room.tx("ann", Transfer(address("ben"), 1), nonce=10_000)
    unsigned = room.tx("cid", Transfer(address("ben"), 1))[:-1] + b"\0"
    good = room.tx("owner", Transfer(address("ben"), 1))

    async def main() -> None:
        await room.intake.receive(PEER, encode_transactions([ahead, unsigned, good]))
        assert [pooled.tx_hash for pooled in room.mempool] == [room.hash(good)]
        assert room.loopback.blamed == []

    run(main)


def test_a_full_pool_refuses_and_blames_nobody(tmp_path: Path) -> None:
    room = Room("val0", tmp_path, limits=MempoolSection(transactions_max=1))
    rows = [room.tx(name, Transfer(address("owner"), 1)) for name in ("ann", "ben", "cid")]

    async def main() -> None:
        await room.intake.receive(PEER, encode_transactions(rows))
        assert len(room.mempool) == 1
        assert room.loopback.blamed == []
        with pytest.raises(InvalidTransactionError):
            await room.intake.submit(room.tx("ann", Transfer(address("ben"), 1), nonce=99_999))

    run(main)
    room.close()


def test_a_validator_repeats_what_was_submitted_to_it_until_it_is_executed(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "REPUBLISH_S", 0.01)
    raw = room.tx("ann", Transfer(address("ben"), 1))

    async def body() -> None:
        assert room.nursery is not None
        room.nursery.start_soon(room.intake.run_repeats)
        await room.intake.submit(raw)
        await until(lambda: len(room.loopback.sent(Frame.TRANSACTIONS)) >= 3)
        await room.order(room.batch(1, raw))
        before = len(room.loopback.frames)
        await trio.sleep(0.05)
        assert len(room.loopback.frames) == before

    run(lambda: with_rooms([room], body))


def test_a_full_node_publishes_again_what_waits_however_busy_its_users_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "REPUBLISH_S", 0.1)
    monkeypatch.setattr(intake, "GOSSIP_DELAY_S", 0.001)
    room = Room("observer", tmp_path)
    first = room.tx("ann", DatanetCreate("first", ("MIT",), ""))

    async def body() -> None:
        assert room.nursery is not None
        room.nursery.start_soon(room.intake.run_gossip)
        await room.intake.submit(first)
        for nonce in range(30):  # something new all the time
            await room.intake.submit(room.tx("ben", Transfer(address("cid"), 1), nonce=nonce))
            await trio.sleep(0.01)
        carrying = [data for _, data in room.loopback.published if first in data]
        assert len(carrying) >= 2
        assert room.loopback.frames == []

    run(lambda: with_rooms([room], body))
    room.close()


def test_what_waits_to_be_published_is_bounded_and_the_rest_goes_with_a_repetition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "REPUBLISH_S", 0.1)
    monkeypatch.setattr(intake, "GOSSIP_DELAY_S", 0.001)
    monkeypatch.setattr(intake, "OUTBOX_MAX", 2)
    room = Room("observer", tmp_path)
    rows = [room.tx("ben", Transfer(address("cid"), 1), nonce=nonce) for nonce in range(5)]

    async def body() -> None:
        assert room.nursery is not None
        for raw in rows:
            await room.intake.submit(raw)
        assert len(room.intake._outbox) == 2
        room.nursery.start_soon(room.intake.run_gossip)
        await until(lambda: all(any(raw in data for _, data in room.loopback.published) for raw in rows))

    run(lambda: with_rooms([room], body))
    room.close()


# --- bounds ---


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


def test_nothing_is_vouched_for_that_would_have_to_be_kept_for_very_long(room: Room) -> None:
    far = room.tx("ann", contribution(room), valid_until=room.executor.head.height + 5000)

    async def main() -> None:
        with pytest.raises(InvalidTransactionError) as refused:
            await room.intake.submit(far)
        assert refused.value.code == "expiry-too-far"
        await room.intake.submit(room.tx("ann", Transfer(address("ben"), 1), valid_until=5000))

    run(main)


def test_a_sender_cannot_promise_more_fees_than_it_has(room: Room) -> None:
    """Otherwise one balance could fill the pool with dear transactions of which it pays one."""
    balance = get_account(room.store, address("ann")).balance
    third = balance // 3

    async def main() -> None:
        await room.intake.submit(room.tx("ann", Transfer(address("ben"), 1), fee=third))
        with pytest.raises(InvalidTransactionError) as refused:
            await room.intake.submit(
                room.tx("ann", Transfer(address("ben"), 1), nonce=1, fee=balance - third + 1)
            )
        assert refused.value.code == "fee-unpayable"
        await room.intake.submit(room.tx("ann", Transfer(address("ben"), 1), nonce=1, fee=third))
        # What it replaces is not counted twice.
        await room.intake.submit(room.tx("ann", Transfer(address("ben"), 1), fee=balance - third))
        assert room.mempool.fees_of(address("ann")) == balance

    run(main)


def test_a_block_between_the_check_and_the_pool_is_noticed(room: Room) -> None:
    """While a signature is verified in its thread, the transaction may be executed or overtaken."""
    raw = room.tx("ann", Transfer(address("ben"), 5))
    other = room.tx("ann", Transfer(address("cid"), 6))

    async def body() -> None:
        candidate = room.intake.admission.examine(raw)
        assert candidate is not None
        await room.order(room.batch(1, other))
        with pytest.raises(InvalidTransactionError):
            room.intake.admission.pool(candidate, True)
        assert len(room.mempool) == 0

    run(lambda: with_rooms([room], body))


def test_signatures_are_verified_off_the_event_loop_each_once_and_the_rest_from_memory(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def noted(public: bytes, message: bytes, signature: bytes) -> bool:
        threads.append(threading.current_thread().name)
        return verify(public, message, signature)

    monkeypatch.setattr("node.executor.verify", noted)
    rows = [room.tx("ann", Transfer(address("ben"), 1), nonce=nonce) for nonce in range(5)]
    own = room.tx("ben", Transfer(address("cid"), 1))

    async def body() -> None:
        await room.intake.receive(PEER, encode_transactions(rows))
        await room.intake.submit(own)
        assert len(threads) == 6
        assert threading.current_thread().name not in threads
        for raw in (*rows, own):
            room.mempool.discard(room.hash(raw))
        await room.intake.receive(PEER, encode_transactions([*rows, own]))
        assert len(room.mempool) == 6
        await room.order(room.batch(1, *rows, own))
        assert len(room.mempool) == 0
        # The batch's own signature is the only one that was new.
        assert len(threads) == 7

    run(lambda: with_rooms([room], body))


def test_admissions_keep_the_order_in_which_they_came(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long each signature takes."""
    rows = [room.tx("ann", Transfer(address("ben"), 1), nonce=nonce) for nonce in range(8)]
    slow = threading.Event()

    def slower(public: bytes, message: bytes, signature: bytes) -> bool:
        slow.wait(0.002 * (len(room.mempool) % 3))
        return verify(public, message, signature)

    monkeypatch.setattr("node.executor.verify", slower)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for raw in rows:
                nursery.start_soon(room.intake.submit, raw)
                await trio.testing.wait_all_tasks_blocked()
        assert [pooled.raw for pooled in room.mempool] == rows

    run(main)


def test_what_one_peer_offers_too_much_is_dropped_and_another_has_its_turn(room: Room) -> None:
    rows = [
        room.tx("ann", Transfer(address("ben"), 1), nonce=nonce) for nonce in range(MESSAGES_PER_PEER_MAX)
    ]
    quiet = room.tx("cid", Transfer(address("ben"), 1))

    async def body() -> None:
        assert room.nursery is not None
        for raw in rows * 2:
            room.intake.offer("loud", encode_transactions([raw]))
        room.intake.offer("quiet", encode_transactions([quiet]))
        assert len(room.intake._inbox) == MESSAGES_PER_PEER_MAX + 1
        room.nursery.start_soon(room.intake.run_inbox)
        await until(lambda: room.hash(quiet) in room.mempool)
        assert len(room.mempool) < MESSAGES_PER_PEER_MAX
        await until(lambda: len(room.mempool) == MESSAGES_PER_PEER_MAX + 1)
        assert room.loopback.blamed == []

    run(lambda: with_rooms([room], body))


def test_what_the_state_says_of_senders_is_read_once_and_anew_after_a_block(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader asks for every sender before every block; thousands of reads would hold up the votes."""
    raw = room.tx("ann", Transfer(address("ben"), 5))
    reads: list[bytes] = []
    real = room.store.get

    def noted(key: bytes) -> bytes | None:
        reads.append(key)
        return real(key)

    async def body() -> None:
        await room.intake.submit(raw)
        with monkeypatch.context() as patch:
            patch.setattr(room.store, "get", noted)
            for _ in range(20):
                assert select(room) == [room.hash(raw)]
        assert reads == []
        await room.order(room.batch(1, raw))
        assert room.intake.next_nonce(address("ann")) == 1

    run(lambda: with_rooms([room], body))
