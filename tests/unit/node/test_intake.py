"""The way in: who is blamed for what comes, whose turn it is, and what is passed on until it is executed."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing

from node import intake
from node.config import MempoolSection
from node.inbox import MESSAGES_PER_PEER_MAX
from node.intake import ADMITTED_AT_ONCE
from node.ledger.bodies import DatanetCreate, Transfer
from node.ledger.errors import InvalidTransactionError
from node.ledger.state import get_account
from node.ledger.transaction import decode_transaction
from node.wire import Frame, encode_transactions
from tests.unit.node.rooms import Room, run, until, with_rooms
from tests.unit.node.waiting import PEER, select
from tests.unit.node_ledger.world import address


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    made = Room("val0", tmp_path)
    yield made
    made.close()


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
    dear = room.tx(
        "cid", Transfer(address("ben"), 1), fee=get_account(room.store, address("cid")).balance + 1
    )
    good = room.tx("owner", Transfer(address("ben"), 1))

    async def main() -> None:
        await room.intake.receive(PEER, encode_transactions([ahead, dear, good]))
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


def test_one_group_is_admitted_at_a_time_however_many_send(room: Room) -> None:
    """And each who waits at the door has its turn; a burst of small messages lets others have theirs as well."""
    groups = 3 * ADMITTED_AT_ONCE
    rows = {
        name: [room.tx(name, Transfer(address("val0"), 1), nonce=nonce) for nonce in range(groups)]
        for name in ("ann", "ben", "cid")
    }
    sizes: list[int] = []

    async def watch() -> None:
        while True:
            sizes.append(len(room.mempool))
            await trio.lowlevel.checkpoint()

    async def body() -> None:
        assert room.nursery is not None
        for raw in rows["cid"]:
            room.intake.offer(PEER, encode_transactions([raw]))
        room.nursery.start_soon(watch)
        room.nursery.start_soon(room.intake.run_inbox)
        async with trio.open_nursery() as nursery:
            for name in ("ann", "ben"):
                nursery.start_soon(room.intake.submit_many, rows[name])
        await until(lambda: len(room.mempool) == 3 * groups)

    run(lambda: with_rooms([room], body))
    steps = [after - before for before, after in pairwise(sizes)]
    assert max(steps) <= 2 * ADMITTED_AT_ONCE  # one at the end of a turn, one at the start of the next
    for name, sent in rows.items():
        waiting = [pooled.raw for pooled in room.mempool if pooled.transaction.sender == address(name)]
        assert waiting == sent, name


def test_who_sends_a_forged_signature_is_blamed_who_passes_one_on_is_not(room: Room) -> None:
    """An honest node verifies before it passes on; what comes behind a forgery in one message is not looked at."""
    good = room.tx("ann", Transfer(address("ben"), 1))
    forged = good[:-1] + bytes([good[-1] ^ 1])
    behind = room.tx("cid", Transfer(address("ben"), 1))
    ahead = room.tx("ann", Transfer(address("ben"), 1), nonce=5)

    async def body() -> None:
        message = encode_transactions([ahead, forged, behind])
        await room.intake.receive(PEER, message, forwarded=True)
        assert room.loopback.blamed == []
        await room.intake.receive(PEER, message)
        assert room.loopback.blamed == [PEER]
        assert [pooled.raw for pooled in room.mempool] == [ahead]

    run(lambda: with_rooms([room], body))


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
