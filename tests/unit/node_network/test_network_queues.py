from __future__ import annotations

import pytest
import trio
import trio.testing

from node.network.framing import HEADER_BYTES
from node.network.queues import FairInbox, SendQueue, TokenBucket


def payloads(queue: SendQueue, now_s: float = 0.0, bytes_target: int = 1 << 20) -> list[bytes]:
    return queue.take(now_s, bytes_target)[1::2]


def test_many_frames_leave_in_one_write_in_order() -> None:
    queue = SendQueue(100, 10_000, 10.0)
    for number in range(50):
        assert queue.push(1, b"%d" % number, 0.0, bulk=False)
    assert payloads(queue) == [b"%d" % number for number in range(50)]
    assert len(queue) == 0
    assert queue.queued_bytes == 0


def test_a_write_stops_near_its_target_but_takes_at_least_one_frame() -> None:
    queue = SendQueue(100, 10_000, 10.0)
    for _ in range(3):
        queue.push(1, bytes(100), 0.0, bulk=False)
    assert len(payloads(queue, bytes_target=2 * (100 + HEADER_BYTES))) == 2
    assert len(payloads(queue, bytes_target=1)) == 1


def test_urgent_frames_overtake_bulk_ones() -> None:
    queue = SendQueue(100, 10_000, 10.0)
    queue.push(1, b"bulk", 0.0, bulk=True)
    queue.push(1, b"vote", 0.0, bulk=False)
    assert payloads(queue) == [b"vote", b"bulk"]


def test_a_full_queue_refuses_bulk() -> None:
    queue = SendQueue(2, 10_000, 10.0)
    assert queue.push(1, b"a", 0.0, bulk=True)
    assert queue.push(1, b"b", 0.0, bulk=True)
    assert not queue.push(1, b"c", 0.0, bulk=True)
    assert payloads(queue) == [b"a", b"b"]


def test_an_urgent_frame_displaces_the_oldest_bulk_then_the_oldest_urgent() -> None:
    queue = SendQueue(3, 10_000, 10.0)
    queue.push(1, b"bulk", 0.0, bulk=True)
    for name in (b"one", b"two", b"three", b"four"):
        assert queue.push(1, name, 0.0, bulk=False)
    assert payloads(queue) == [b"two", b"three", b"four"]
    assert queue.dropped_frames == 2


def test_the_byte_bound_holds() -> None:
    queue = SendQueue(1000, 1000, 10.0)
    for number in range(50):
        queue.push(1, bytes([number]) * 100, 0.0, bulk=False)
        assert queue.queued_bytes <= 1000
    assert not queue.push(1, bytes(1000), 0.0, bulk=False)
    assert payloads(queue)[-1] == bytes([49]) * 100


def test_frames_that_waited_too_long_are_not_sent() -> None:
    queue = SendQueue(100, 10_000, 10.0)
    queue.push(1, b"old", 0.0, bulk=False)
    queue.push(1, b"young", 8.0, bulk=False)
    assert payloads(queue, now_s=12.0) == [b"young"]
    assert queue.dropped_frames == 1


def test_one_peers_flood_leaves_room_for_the_others_and_they_take_turns() -> None:
    inbox: FairInbox[str] = FairInbox(3, 1000, 10_000, 4)
    accepted = sum(inbox.offer("loud", f"loud{number}", 1) for number in range(10))
    assert accepted == 3
    assert inbox.offer("quiet", "quiet0", 1)
    order = [inbox.receive_nowait() for _ in range(4)]
    assert order == ["loud0", "quiet0", "loud1", "loud2"]
    with pytest.raises(trio.WouldBlock):
        inbox.receive_nowait()


def test_one_item_always_fits_an_empty_share_and_bytes_are_bounded_after() -> None:
    inbox: FairInbox[bytes] = FairInbox(100, 10, 1000, 4)
    assert inbox.offer("peer", b"", 50)
    assert not inbox.offer("peer", b"", 1)


def test_a_reader_waits_for_room_and_then_old_items_give_way() -> None:
    async def main() -> None:
        start_s = trio.current_time()
        inbox: FairInbox[int] = FairInbox(2, 1000, 10_000, 4)
        for number in range(4):
            await inbox.put("peer", number, 1, 4.0)
        assert trio.current_time() - start_s >= 4.0
        assert inbox.dropped_items == 2
        assert [inbox.receive_nowait(), inbox.receive_nowait()] == [2, 3]

        async with trio.open_nursery() as nursery:
            for number in range(2):
                await inbox.put("peer", number, 1, 4.0)
            nursery.start_soon(inbox.put, "peer", 2, 1, 4.0)
            await trio.testing.wait_all_tasks_blocked()
            assert await inbox.receive() == 0
        assert inbox.dropped_items == 2
        assert [await inbox.receive(), await inbox.receive()] == [1, 2]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_token_bucket_allows_its_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(per_s=2, burst=3, now_s=0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(1.0) for _ in range(3)] == [True, True, False]
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]


def test_many_peers_together_are_bounded_and_a_quiet_one_still_has_room() -> None:
    inbox: FairInbox[int] = FairInbox(1000, 500, 1000, 10)
    for peer in range(8):
        while inbox.offer(f"loud {peer}", peer, 10):
            pass
    assert len(inbox) * 10 <= 2 * 1000
    assert all(inbox.offer("quiet", number, 10) for number in range(10))
    assert not inbox.offer("quiet", 10, 10)  # its fair share, as long as it is crowded
    while len(inbox):
        inbox.receive_nowait()
    assert sum(inbox.offer("quiet", number, 10) for number in range(1000)) == 50
