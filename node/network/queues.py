"""Bounded queues between the daemon and its peers, and the token bucket that limits a peer's rate.

All three take the time as an argument, so that tests drive them without a clock.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import trio

from node.network.framing import HEADER_BYTES, encode_header


class SendQueue:
    """Frames waiting for one peer's writer: an urgent lane and a bulk lane, bounded together by count and bytes.

    Urgent frames (consensus) leave first. When the queue is full a bulk frame is refused (`push` returns False: its
    sender can wait or let the peer ask for it), and an urgent one pushes out the oldest bulk frames first, then the
    oldest urgent ones, because in consensus the newest message supersedes the older. Frames older than ``age_s_max``
    (the peer is away) are discarded by `take`. Within a lane order is kept; across lanes it is not.
    """

    def __init__(self, frames_max: int, bytes_max: int, age_s_max: float) -> None:
        self._frames_max = frames_max
        self._bytes_max = bytes_max
        self._age_s_max = age_s_max
        self._lanes: tuple[deque[tuple[float, int, bytes]], deque[tuple[float, int, bytes]]] = (
            deque(),
            deque(),
        )
        self._waiting = trio.lowlevel.ParkingLot()
        self.queued_bytes = 0
        self.dropped_frames = 0

    def __len__(self) -> int:
        return len(self._lanes[0]) + len(self._lanes[1])

    def push(self, kind: int, payload: bytes, now_s: float, *, bulk: bool) -> bool:
        """Queue a frame; False if it was refused (full and bulk, or larger than the whole queue)."""
        size = len(payload) + HEADER_BYTES
        if size > self._bytes_max or (bulk and not self._has_room(size)):
            self.dropped_frames += 1
            return False
        while not self._has_room(size):
            self._drop_oldest(self._lanes[1] or self._lanes[0])
        self._lanes[bulk].append((now_s, kind, payload))
        self.queued_bytes += size
        self._waiting.unpark_all()
        return True

    def take(self, now_s: float, bytes_target: int) -> list[bytes]:
        """Remove frames, at least one if any is fresh, until about ``bytes_target``; return the pieces to join."""
        pieces: list[bytes] = []
        taken = 0
        for lane in self._lanes:
            while lane and taken < bytes_target:
                queued_s, kind, payload = lane[0]
                size = len(payload) + HEADER_BYTES
                if now_s - queued_s > self._age_s_max:
                    self._drop_oldest(lane)
                    continue
                if pieces and taken + size > bytes_target:
                    return pieces
                lane.popleft()
                self.queued_bytes -= size
                taken += size
                pieces += (encode_header(kind, len(payload)), payload)
        return pieces

    def clear(self) -> None:
        """Drop everything that waits."""
        for lane in self._lanes:
            while lane:
                self._drop_oldest(lane)

    async def wait(self) -> None:
        """Return once there is something to take."""
        while not len(self):
            await self._waiting.park()

    def _has_room(self, size: int) -> bool:
        return len(self) < self._frames_max and self.queued_bytes + size <= self._bytes_max

    def _drop_oldest(self, lane: deque[tuple[float, int, bytes]]) -> None:
        _, _, payload = lane.popleft()
        self.queued_bytes -= len(payload) + HEADER_BYTES
        self.dropped_frames += 1


T = TypeVar("T")


@dataclass(slots=True)
class _Share(Generic[T]):
    items: deque[tuple[T, int]] = field(default_factory=deque)
    size_bytes: int = 0
    room: trio.Event = field(default_factory=trio.Event)


class FairInbox(Generic[T]):
    """Undelivered items by peer, each peer bounded on its own, received in turn.

    A plain memory channel has one bound for all, so that one peer's flood would keep the others out; here each peer
    fills only its own share, and `receive` goes round the peers that have something. While all shares together are over
    ``bytes_max``, each is bounded by its part of that, so that what is held stays below twice ``bytes_max``.
    """

    def __init__(
        self, items_per_peer_max: int, bytes_per_peer_max: int, bytes_max: int, peers_max: int
    ) -> None:
        self._items_max = items_per_peer_max
        self._bytes_max = bytes_per_peer_max
        self._all_bytes_max = bytes_max
        self._fair_bytes = bytes_max // peers_max
        self._all_bytes = 0
        self._shares: OrderedDict[str, _Share[T]] = OrderedDict()
        self._waiting = trio.lowlevel.ParkingLot()
        self.dropped_items = 0

    def __len__(self) -> int:
        return sum(len(share.items) for share in self._shares.values())

    def offer(self, peer_id: str, item: T, size_bytes: int) -> bool:
        """Add an item to the peer's share; False if the share is full. One item always fits an empty share."""
        share = self._shares.get(peer_id)
        if share is None:
            share = self._shares[peer_id] = _Share()
        elif not self._has_room(share, size_bytes):
            return False
        share.items.append((item, size_bytes))
        share.size_bytes += size_bytes
        self._all_bytes += size_bytes
        self._waiting.unpark_all()
        return True

    def _has_room(self, share: _Share[T], size_bytes: int) -> bool:
        size = share.size_bytes + size_bytes
        crowded = self._all_bytes + size_bytes > self._all_bytes_max
        bytes_max = min(self._bytes_max, self._fair_bytes) if crowded else self._bytes_max
        return len(share.items) < self._items_max and size <= bytes_max

    async def put(self, peer_id: str, item: T, size_bytes: int, wait_s_max: float) -> None:
        """Add an item, waiting while the share is full; after ``wait_s_max`` the share's old items are discarded.

        The wait must stay below 5 s, after which a libp2p writer gives up on a reader that does not read.
        """
        with trio.move_on_after(wait_s_max) as scope:
            while not self.offer(peer_id, item, size_bytes):
                await self._shares[peer_id].room.wait()
        if scope.cancelled_caught:
            self.dropped_items += self.discard(peer_id)
            self.offer(peer_id, item, size_bytes)

    def discard(self, peer_id: str) -> int:
        """Drop everything undelivered from a peer; return how many items that were."""
        share = self._shares.pop(peer_id, None)
        if share is None:
            return 0
        self._all_bytes -= share.size_bytes
        share.room.set()
        return len(share.items)

    def receive_nowait(self) -> T:
        """Return the next item; raises `trio.WouldBlock` if there is none."""
        if not self._shares:
            raise trio.WouldBlock
        peer_id, share = self._shares.popitem(last=False)
        item, size_bytes = share.items.popleft()
        share.size_bytes -= size_bytes
        self._all_bytes -= size_bytes
        if share.items:
            self._shares[peer_id] = share  # to the end of the round
        share.room.set()
        share.room = trio.Event()
        return item

    async def receive(self) -> T:
        """Return the next item, waiting for one."""
        while True:
            if self._shares:
                await trio.lowlevel.checkpoint()  # a flood must not starve the caller's other tasks
            else:
                await self._waiting.park()
            if self._shares:
                return self.receive_nowait()

    def __aiter__(self) -> FairInbox[T]:
        return self

    async def __anext__(self) -> T:
        return await self.receive()


class TokenBucket:
    """``per_s`` tokens a second, at most ``burst`` saved up."""

    def __init__(self, per_s: float, burst: float, now_s: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._tokens = burst
        self._updated_s = now_s

    def take(self, now_s: float) -> bool:
        """Take one token; False if there is none."""
        self._tokens = min(self._burst, self._tokens + (now_s - self._updated_s) * self._per_s)
        self._updated_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
