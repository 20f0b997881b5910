"""The executor on a real store: what it says of each transaction, and that a crash loses nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from node.ledger.bodies import DatanetCreate, Transfer
from node.ledger.state import get_account
from node.storage.errors import StorageError
from tests.unit.node.rooms import Room, next_block, run, with_rooms
from tests.unit.node_ledger.world import address


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    made = Room("val0", tmp_path)
    yield made
    made.close()


def test_execution_resumes_exactly_after_a_crash_between_any_two_blocks(tmp_path: Path) -> None:
    digests: list[bytes] = []
    blocks = 5

    def history(room: Room) -> None:
        """The same committed blocks in every store; nothing executed yet."""
        for number in range(blocks):
            raw = [
                room.tx("ann", Transfer(address("ben"), 1 + number), nonce=number),
                room.tx("cid", DatanetCreate(f"d{number}", ("MIT",), ""), nonce=number),
            ]
            room.commit(next_block(room.top(), [room.put(room.batch(number + 1, *raw))]))

    async def main() -> None:
        for crash_after in range(blocks + 1):
            room = Room(f"node{crash_after}", tmp_path)
            history(room)
            waiting = list(room.executor._waiting)
            room.executor._waiting.clear()
            room.executor.deliver(tuple(waiting[:crash_after]))

            async def first(room: Room = room, height: int = crash_after) -> None:
                await room.reach(height)

            await with_rooms([room], first)
            room.close()

            again = Room(f"node{crash_after}", tmp_path)
            assert again.executor.head.height == crash_after
            again.executor.recover()

            async def second(room: Room = again) -> None:
                await room.reach(blocks)

            await with_rooms([again], second)
            digests.append(again.store.executed().state_digest + again.store.executed().accumulator_root)
            assert get_account(again.store, address("ann")).nonce == blocks
            again.close()

    run(main)
    assert len(set(digests)) == 1


def test_what_a_skipped_batch_carries_is_neither_performed_nor_lost(room: Room) -> None:
    """A batch whose sequence was used is skipped: its transactions must go on waiting, in everybody's pool."""
    first, second = (
        room.tx("ann", Transfer(address("ben"), 5)),
        room.tx("cid", Transfer(address("ben"), 7)),
    )

    async def body() -> None:
        await room.intake.submit(second)
        await room.order(room.batch(1, first))
        await room.order(room.batch(1, second))  # another batch under a used sequence
        assert not room.done[-1].performed
        assert room.hash(second) in room.mempool
        await room.order(room.batch(2, second))
        assert room.done[-1].performed == (room.hash(second),)
        assert room.hash(second) not in room.mempool

    run(lambda: with_rooms([room], body))


def test_a_repetition_in_the_same_block_does_not_hide_what_happened(room: Room) -> None:
    raw = room.tx("ann", Transfer(address("ben"), 5))

    async def body() -> None:
        await room.order(room.batch(1, raw), room.batch(2, raw))
        height, position = room.store.transaction_place(room.hash(raw)) or (0, 0)
        assert (height, position) == (1, 0)
        await room.order(room.batch(3, raw))
        assert room.store.transaction_place(room.hash(raw)) == (1, 0)
        assert room.done[-1].invalid == (room.hash(raw),)

    run(lambda: with_rooms([room], body))


def test_what_is_in_flight_is_known_from_blocks_that_wait_and_from_uncommitted_ones(room: Room) -> None:
    waits, floats = (
        room.tx("ann", Transfer(address("ben"), 1)),
        room.tx("cid", Transfer(address("ben"), 1)),
    )
    room.commit(next_block(room.top(), [room.put(room.batch(1, waits))]))
    uncommitted = room.put(room.batch(2, floats))
    found = room.executor.transactions_in_flight((uncommitted,))
    assert found == {room.hash(waits), room.hash(floats)}
    assert room.executor.knows_in_flight((uncommitted,))
    assert not room.executor.knows_in_flight((uncommitted, b"n" * 32))


def test_a_gap_in_the_delivered_blocks_is_an_error_and_not_executed(room: Room) -> None:
    skipped = next_block(next_block(room.top()))

    async def body() -> None:
        room.executor.deliver((skipped,))
        await room.executor.run()

    with pytest.raises(StorageError, match="delivered where 1 was due"):
        run(body)
    assert room.store.executed().height == 0
