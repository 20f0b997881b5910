"""Catching up with several ranges at a time: from several peers, in order, beside execution, and past liars."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from node import sync
from node.network.errors import PeerUnavailable
from node.wire import BlockRange, Request, decode_range, decode_range_request, encode_range
from tests.unit.node.rooms import Room, next_block, peer_id, run, with_rooms

AHEAD = 48
SPAN = 4
NAMES = ("val1", "val2", "val3")


@pytest.fixture
def rooms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Room, Room]]:
    """A node that was away, and one that three peers answer from; a range holds few blocks."""
    monkeypatch.setattr(sync, "RANGE_BLOCKS_MAX", SPAN)
    monkeypatch.setattr(sync, "POLL_S", 0.05)
    monkeypatch.setattr(sync, "REST_S_MIN", 30.0)
    here, there = Room("val0", tmp_path), Room("val1", tmp_path)
    for _ in range(AHEAD):
        there.commit(next_block(there.top()))
    for name in NAMES:
        here.loopback.answers[peer_id(name)] = there.sync.answer
        here.sync._note(peer_id(name), AHEAD)
    yield here, there
    here.close()
    there.close()


def ranges_asked(here: Room) -> list[tuple[str, int]]:
    return [
        (peer, decode_range_request(payload)[0])
        for peer, kind, payload in here.loopback.requests
        if kind == Request.RANGE
    ]


def test_ranges_come_from_several_peers_side_by_side_and_each_once(rooms: tuple[Room, Room]) -> None:
    here, there = rooms
    in_flight, most = 0, 0

    async def counting(asker: str, kind: int, payload: bytes) -> bytes:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await trio.sleep(0.005)
        in_flight -= 1
        return await there.sync.answer(asker, kind, payload)

    async def body() -> None:
        here.loopback.answers = dict.fromkeys(here.loopback.answers, counting)
        assert await here.sync._follow(peer_id("val1"))
        assert here.executor.head.height == AHEAD - AHEAD % SPAN

    run(lambda: with_rooms([here], body))
    assert 1 < most <= sync.RANGES_OUTSTANDING_MAX
    asked = ranges_asked(here)
    assert len(asked) == AHEAD // SPAN
    assert sorted(height for _, height in asked) == list(range(1, AHEAD, SPAN))
    assert {peer for peer, _ in asked} == {peer_id(name) for name in NAMES}
    assert here.loopback.blamed == []


def test_fetching_goes_on_while_blocks_execute(rooms: tuple[Room, Room]) -> None:
    here, _ = rooms

    async def body() -> None:
        assert here.nursery is not None
        waiting: list[int] = []
        perform = here.sync._tell_and_wait

        async def noting(event: object) -> None:
            waiting.append(here.executor.waiting_blocks)
            await perform(event)  # type: ignore[arg-type]

        here.sync._tell_and_wait = noting
        assert await here.sync._follow(peer_id("val1"))
        assert max(waiting) > 0

    run(lambda: with_rooms([here], body))


def test_no_more_is_fetched_than_execution_can_take(
    rooms: tuple[Room, Room], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = rooms
    monkeypatch.setattr(sync, "WAITING_BLOCKS_MAX", 2 * SPAN)
    most = 0

    async def body() -> None:
        nonlocal most
        perform = here.sync._tell_and_wait

        async def noting(event: object) -> None:
            nonlocal most
            await perform(event)  # type: ignore[arg-type]
            most = max(most, here.executor.waiting_blocks)

        here.sync._tell_and_wait = noting
        assert await here.sync._follow(peer_id("val1"))

    run(lambda: with_rooms([here], body))
    assert most <= 3 * SPAN


@pytest.mark.parametrize("fault", ["lies", "has nothing", "is gone"])
def test_a_peer_that_fails_in_the_middle_is_left_and_the_others_are_enough(
    rooms: tuple[Room, Room], fault: str
) -> None:
    here, there = rooms
    bad = peer_id("val2")

    async def failing(asker: str, kind: int, payload: bytes) -> bytes:
        answer = await there.sync.answer(asker, kind, payload)
        if kind != Request.RANGE:
            return answer
        if fault == "is gone":
            raise PeerUnavailable(bad, "gone")
        known = decode_range(answer)
        return encode_range(
            BlockRange(known.blocks[1:], known.proof) if fault == "lies" else BlockRange((), b"")
        )

    async def body() -> None:
        here.loopback.answers[bad] = failing
        assert here.nursery is not None
        here.nursery.start_soon(here.sync.run)
        await here.reach(AHEAD)
        if fault != "has nothing":
            assert [peer for peer, _ in ranges_asked(here)].count(bad) == 1

    run(lambda: with_rooms([here], body))
    assert set(here.loopback.blamed) <= ({bad} if fault == "lies" else set())
    assert here.store.committed_height() == AHEAD


def test_ranges_shorter_than_expected_leave_no_hole(rooms: tuple[Room, Room]) -> None:
    """Blocks grow, so that fewer of them fit; a peer that synced itself has a proof only now and then."""
    here, there = rooms
    for height in range(1, AHEAD):
        if height % 3:
            there.database.write({b"q" + height.to_bytes(8, "big"): None}, sync=False)

    async def body() -> None:
        assert here.nursery is not None
        here.nursery.start_soon(here.sync.run)
        await here.reach(AHEAD)

    run(lambda: with_rooms([here], body))
    assert here.loopback.blamed == []
