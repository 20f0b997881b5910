"""Direct streams between mesh peers: one writer and one reader per peer, one-way streams, frames joined into writes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import structlog
import trio

from node.network import hardening
from node.network.config import Limits
from node.network.errors import RemoteProtocolError
from node.network.framing import READ_BYTES, FrameDecoder
from node.network.host import close_quietly, ended_by_peer, reset_quietly
from node.network.peers import Peer
from node.network.queues import FairInbox
from node.network.types import Frame

log = structlog.get_logger("node.network")

_OPEN_ATTEMPTS_MAX = 3
_OPEN_PAUSE_S = 0.25


async def write_frames(
    peer: Peer, limits: Limits, open_stream: Callable[[], Awaitable[Any]], drop: Callable[[], Awaitable[None]]
) -> None:
    """Write a peer's queue to a stream of our own for as long as the network runs.

    If the stream cannot be opened or a write fails or is too slow, the connection is dropped: the next one starts
    afresh, and what was queued meanwhile and is still young goes out then. ``drop`` returns once the peer is down.
    """
    while True:
        await peer.wait_connected()
        stream = await _open_with_retries(peer, open_stream)
        if stream is not None:
            try:
                await _drain_until_closed(peer, limits, stream)
            except Exception as error:  # a broken connection raises a dozen different types
                log.debug("direct stream broke", peer_id=peer.peer_id, error=repr(error))
            await reset_quietly(stream)
        await drop()


async def _drain_until_closed(peer: Peer, limits: Limits, stream: Any) -> None:
    """Drain the queue, but take nothing from it for a connection that is known to be gone."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_drain, peer, limits, stream)
            await stream.muxed_conn.event_closed.wait()
            scope.cancel()


async def _open_with_retries(peer: Peer, open_stream: Callable[[], Awaitable[Any]]) -> Any:
    for _ in range(_OPEN_ATTEMPTS_MAX):
        try:
            return await open_stream()
        except Exception as error:
            log.debug("direct stream not opened", peer_id=peer.peer_id, error=repr(error))
        if not peer.connected:
            break
        await trio.sleep(_OPEN_PAUSE_S)
    return None


async def _drain(peer: Peer, limits: Limits, stream: Any) -> None:
    while True:
        await peer.queue.wait()
        if limits.linger_ms:
            await trio.sleep(limits.linger_ms / 1000)  # cost is per write: let a burst gather
        pieces = peer.queue.take(trio.current_time(), limits.write_bytes)
        if not pieces:
            continue
        data = b"".join(pieces)
        if not await hardening.write_at_once(stream, data):
            with trio.fail_after(limits.write_timeout_ms / 1000):
                await stream.write(data)
        peer.frames_out += len(pieces) // 2
        peer.writes_out += 1


async def read_frames(stream: Any, peer_id: str, limits: Limits, inbox: FairInbox[Frame]) -> None:
    """Deliver the frames of a peer's stream until it ends.

    Raises `RemoteProtocolError` on a malformed frame. While the peer's share of the inbox is full nothing is read,
    for at most ``inbox_wait_ms_max``; then its undelivered frames are discarded (see `FairInbox.put`).
    """
    decoder = FrameDecoder(limits.frame_bytes_max)
    wait_s_max = limits.inbox_wait_ms_max / 1000
    while True:
        try:
            data = await stream.read(READ_BYTES)
        except EOFError:
            break
        if not data:
            break
        for kind, payload in decoder.feed(data):
            if not inbox.offer(peer_id, frame := Frame(peer_id, kind, payload), len(payload)):
                await inbox.put(peer_id, frame, len(payload), wait_s_max)
    if decoder.buffered_bytes and ended_by_peer(stream):
        raise RemoteProtocolError("frame ended early", points=5)
    await close_quietly(stream)
