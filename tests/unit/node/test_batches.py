"""Batches of others: whose are taken, what consensus is told of them, and which go when no block came to use them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio.testing

from consensus.effects import FetchPayload
from consensus.inputs import PayloadAvailable
from node.batches import EXPIRY_HEIGHTS, Batches
from node.ledger.batch import encode_batch, sign_batch
from node.ledger.errors import MalformedError
from node.pushed import UNUSED_HEIGHTS_MAX
from node.wire import WireError
from tests.unit.node.rooms import Room, next_block, run, until, with_rooms
from tests.unit.node_ledger.world import consensus_key, seed


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    made = Room("val0", tmp_path)
    yield made
    made.close()


def batches_of(room: Room) -> Batches:
    return Batches(
        room.directory,
        room.chain_id,
        room.store,
        room.executor,
        room.fetcher,
        room.told.append,
        room.start,
    )


def pushed(room: Room, author: str, sequence: int) -> bytes:
    return encode_batch(sign_batch(seed(author), room.chain_id, sequence, ((b"anything", ()),)))


def peer_of(room: Room, name: str) -> str:
    return room.directory.peer_of[consensus_key(name)]


def names_told(room: Room) -> list[bytes]:
    return [event.digest for event in room.told if isinstance(event, PayloadAvailable)]


def test_a_batch_is_taken_from_the_validator_that_signed_it_and_from_nobody_else(room: Room) -> None:
    taken = batches_of(room)
    data = pushed(room, "val1", 1)

    async def main() -> None:
        with pytest.raises(WireError, match="no validator"):
            taken.take("a stranger", data)
        with pytest.raises(MalformedError, match="another author"):
            taken.take(peer_of(room, "val2"), data)
        assert room.told == []
        taken.take(peer_of(room, "val1"), data)
        (name,) = names_told(room)
        assert room.store.batch(name) == data

    run(main)


def test_batches_past_their_authors_quota_are_not_stored(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.pushed.UNUSED_COUNT_MAX", 2)
    taken = batches_of(room)

    async def main() -> None:
        for sequence in range(1, 5):
            taken.take(peer_of(room, "val1"), pushed(room, "val1", sequence))
        assert len(names_told(room)) == 2
        taken.take(peer_of(room, "val2"), pushed(room, "val2", 1))
        assert len(names_told(room)) == 3

    run(main)


def test_what_no_block_came_to_use_goes_and_what_an_executed_or_a_waiting_block_names_stays(
    room: Room,
) -> None:
    taken = batches_of(room)

    async def main() -> None:
        for sequence in range(1, 4):
            taken.take(peer_of(room, "val1"), pushed(room, "val1", sequence))
        executed, waiting, unused = names_told(room)
        room.commit(next_block(room.top(), [waiting]))
        assert taken.ordered() == [waiting]
        last = UNUSED_HEIGHTS_MAX - UNUSED_HEIGHTS_MAX % EXPIRY_HEIGHTS
        taken.executed(last - 1, (executed,))
        assert room.store.batch(unused) is not None
        taken.executed(last, ())
        assert room.store.batch(unused) is None
        assert room.store.batch(executed) is not None
        assert room.store.batch(waiting) is not None

    run(main)


def test_a_batch_that_a_proposal_names_is_told_at_once_where_it_is_here_and_else_fetched_once(
    tmp_path: Path,
) -> None:
    here, there = Room("val0", tmp_path), Room("val1", tmp_path)
    here.loopback.answers[peer_of(here, "val1")] = there.sync.answer
    own = here.put(here.batch(1, b"own"))
    foreign = there.put(there.batch(2, b"foreign"))
    asked = batches_of(here)
    effect = FetchPayload((own, foreign), (consensus_key("val1"),))

    async def body() -> None:
        here.starts = False  # too many tasks at the moment: what consensus asks for again is fetched then
        asked.fetch(effect)
        assert names_told(here) == [own]
        here.starts = True
        asked.fetch(effect)
        asked.fetch(effect)
        await until(lambda: foreign in names_told(here))
        await trio.testing.wait_all_tasks_blocked()
        assert names_told(here) == [own, own, own, foreign]
        assert len(here.loopback.requests) == 1
        assert here.store.batch(foreign) is not None

    run(lambda: with_rooms([here, there], body))
    here.close()
    there.close()
