"""What the executor remembers between blocks is what the store, the curve and the plain ways would say."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.crypto import verify
from node import executor
from node.executor import AUDIT_ENDS, Recent, SharedVerifier, tell_apart
from node.ledger.accumulator import Accumulator
from node.ledger.batch import batch_digest, encode_batch, sign_batch
from node.ledger.block import BlockOutcome, Receipt, ReceiptStatus, SystemCode
from node.ledger.bodies import Transfer
from node.ledger.entries import ACCOUNT
from tests.profiles import examples
from tests.unit.node.rooms import Room, run, with_rooms
from tests.unit.node.test_batches import batches_of, peer_of
from tests.unit.node_ledger.world import address, seed

KEYS = [ACCOUNT + bytes([at]) * 32 for at in range(5)] + [b"g/head", b"q/draws"]
CHANGES = st.dictionaries(st.sampled_from(KEYS), st.none() | st.binary(min_size=3, max_size=5), max_size=4)


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    made = Room("val0", tmp_path)
    yield made
    made.close()


@settings(max_examples=examples(40))
@given(st.lists(CHANGES, max_size=8), st.integers(1, 3))
def test_recent_accounts_are_what_the_store_has(blocks: list[dict[bytes, bytes | None]], bound: int) -> None:
    stored = {KEYS[0]: b"old", KEYS[5]: b"head"}
    recent = Recent(stored)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor, "ACCOUNTS_RECENT_MAX", bound)
        for changes in blocks:
            for key, value in changes.items():
                if value is None:
                    stored.pop(key, None)
                else:
                    stored[key] = value
            recent.wrote(changes)
            assert {key: recent.get(key) for key in KEYS} == {key: stored.get(key) for key in KEYS}


def test_the_accounts_at_hand_are_bounded_and_the_last_of_them_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "ACCOUNTS_RECENT_MAX", 3)
    recent = Recent({})
    for number in range(20):
        key = ACCOUNT + bytes([number])
        recent.wrote({key: b"value"})
        assert recent.get(key) == b"value"
        assert len(recent) <= 6


def test_of_recent_accounts_the_store_is_not_asked_and_of_anything_else_it_is() -> None:
    asked: list[bytes] = []

    class Store:
        """A state that notes what it is asked for."""

        def get(self, key: bytes) -> bytes | None:
            asked.append(key)
            return None

    recent = Recent(Store())
    recent.wrote({KEYS[0]: b"one", KEYS[5]: b"two"})
    assert (recent.get(KEYS[0]), recent.get(KEYS[5]), recent.get(KEYS[1])) == (b"one", None, None)
    assert asked == [KEYS[5], KEYS[1]]


def test_blocks_that_follow_one_another_come_out_as_after_a_restart(tmp_path: Path) -> None:
    """The same transfers on one executor that goes on, and on one that remembers nothing of the block before."""

    async def history(room: Room, forget: bool) -> list[tuple[bytes, bytes]]:
        digests = []
        for nonce in range(3):
            raws = [room.tx(name, Transfer(address("ben"), 5), nonce=nonce) for name in ("ann", "cid")]
            await room.order(room.batch(nonce + 1, *raws))
            assert len(room.done[-1].performed) == 2
            digests.append((room.executor.head.state_digest, room.executor.head.accumulator))
            assert room.executor._recent.get(ACCOUNT + address("ann")) == room.store.get(
                ACCOUNT + address("ann")
            )
            assert len(room.executor._recent) > 0
            if forget:
                room.executor._recent = Recent(room.store)
                room.executor._accumulator = (b"", Accumulator())
        return digests

    async def main() -> None:
        found = []
        for forget in (False, True):
            room = Room(f"node{forget}", tmp_path)

            async def body(room: Room = room, forget: bool = forget) -> None:
                found.append(await history(room, forget))

            await with_rooms([room], body)
            room.close()
        assert found[0] == found[1]

    run(main)


STATUSES = st.sampled_from(list(ReceiptStatus))
CODES = st.sampled_from(["", SystemCode.DRAWN, SystemCode.SETTLED, SystemCode.SLASHED])
ROWS = st.lists(st.tuples(STATUSES, CODES, st.integers(0, 3)), max_size=9)


@settings(max_examples=examples(60))
@given(ROWS, st.sets(st.integers(0, 3)))
def test_receipts_are_told_apart_by_their_status(
    rows: list[tuple[ReceiptStatus, str, int]], placed: set[int]
) -> None:
    receipts = tuple(Receipt(bytes([at]) * 32, status, 1, code, 0) for status, code, at in rows)
    outcome = BlockOutcome(1, {}, receipts, b"", Accumulator(), b"", b"", b"", ())
    told = tell_apart(outcome, lambda subject: subject[0] in placed)

    def subjects(*statuses: ReceiptStatus) -> list[bytes]:
        return [receipt.subject for receipt in receipts if receipt.status in statuses]

    assert told.performed == subjects(ReceiptStatus.OK, ReceiptStatus.FAILED)
    assert told.invalid == subjects(ReceiptStatus.INVALID)
    assert told.audits_ended == [
        receipt.subject
        for receipt in receipts
        if receipt.status == ReceiptStatus.SYSTEM and receipt.code in AUDIT_ENDS
    ]
    for at in range(4):
        performed = [
            n for n, (status, _, who) in enumerate(rows) if who == at and status <= ReceiptStatus.FAILED
        ]
        invalid = [
            n for n, (status, _, who) in enumerate(rows) if who == at and status == ReceiptStatus.INVALID
        ]
        first = performed[-1:] or ([] if at in placed else invalid[:1])
        assert told.places.get(bytes([at]) * 32) == (first[0] if first else None)


def test_the_signature_of_a_batch_that_was_taken_is_not_verified_again_and_of_another_it_is(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[bytes] = []

    def noted(public: bytes, message: bytes, signature: bytes) -> bool:
        verified.append(message)
        return verify(public, message, signature)

    monkeypatch.setattr("consensus.crypto.verify", noted)
    pushed, stored = (
        sign_batch(seed("val1"), room.chain_id, number, ((b"nothing", ()),)) for number in (1, 2)
    )
    taken = batches_of(room)

    async def body() -> None:
        taken.take(peer_of(room, "val1"), encode_batch(pushed))
        await room.order(pushed)
        await room.order(stored)

    run(lambda: with_rooms([room], body))
    assert batch_digest(pushed, room.chain_id) not in verified
    assert verified.count(batch_digest(stored, room.chain_id)) == 1


def test_signatures_noted_good_are_remembered_within_the_same_bound() -> None:
    check = SharedVerifier()
    check._capacity = 3
    for number in range(9):
        check.note_good(bytes([number]) * 32, b"m", b"s" * 64)
        assert check(bytes([number]) * 32, b"m", b"s" * 64)
        assert len(check._good) <= 3
    assert not check(bytes(32), b"m", b"s" * 64)


def test_others_have_their_turn_while_a_long_block_executes(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bytes] = []

    def noted(public: bytes, message: bytes, signature: bytes) -> bool:
        told.append(signature)
        return verify(public, message, signature)

    async def watch() -> None:
        while True:
            told.append(b"turn")
            await trio.lowlevel.checkpoint()

    async def body() -> None:
        assert room.nursery is not None
        batch = room.batch(
            1, *[room.tx("ann", Transfer(address("ben"), 1), nonce=nonce) for nonce in range(9)]
        )
        monkeypatch.setattr("consensus.crypto.verify", noted)
        room.nursery.start_soon(watch)
        await room.order(batch)
        of_batch = told.index(batch.signature)
        runs = [len(list(group)) for same, group in groupby(told[of_batch + 1 :], b"turn".__ne__) if same]
        assert sum(runs) == 9
        assert max(runs) <= 4  # a step at the end of a turn, one at the start of the next

    monkeypatch.setattr("node.ledger.execute.STEP_SIGNATURES", 2)
    run(lambda: with_rooms([room], body))
