"""What may wait for its place in a block: what its sender can pay, what is owed, what has had its effect."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from consensus.crypto import verify
from node.ledger.batch import storage_claim
from node.ledger.block import ReceiptStatus, decode_receipt
from node.ledger.bodies import BaseRegister, Held, Transfer
from node.ledger.errors import InvalidTransactionError
from node.ledger.state import get_account
from node.ledger.transaction import decode_transaction
from node.wire import encode_transactions
from tests.unit.node.rooms import Room, run, with_rooms
from tests.unit.node.waiting import PEER, contribution, receipt_frame, select
from tests.unit.node_ledger.world import BASE_HASH, VALIDATORS, address


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    made = Room("val0", tmp_path)
    yield made
    made.close()


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


def test_each_signature_is_verified_once_and_then_known(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[bytes] = []

    def noted(public: bytes, message: bytes, signature: bytes) -> bool:
        verified.append(signature)
        return verify(public, message, signature)

    monkeypatch.setattr("consensus.crypto.verify", noted)
    rows = [room.tx("ann", Transfer(address("ben"), 1), nonce=nonce) for nonce in range(5)]
    own = room.tx("ben", Transfer(address("cid"), 1))

    async def body() -> None:
        await room.intake.receive(PEER, encode_transactions(rows))
        await room.intake.submit(own)
        assert len(verified) == 6
        for raw in (*rows, own):
            room.mempool.discard(room.hash(raw))
        await room.intake.receive(PEER, encode_transactions([*rows, own]))
        assert len(room.mempool) == 6
        await room.order(room.batch(1, *rows, own))
        assert len(room.mempool) == 0
        # The batch's own signature is the only one that was new.
        assert len(verified) == 7

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
