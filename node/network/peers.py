"""What is known of each peer: its connections, its queue, its counters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import trio

from node.network.config import Limits
from node.network.queues import SendQueue
from node.network.types import PeerStatus


@dataclass(slots=True)
class Peer:
    """One configured or connected peer. ``conns`` holds libp2p connections and stays inside the adapter."""

    peer_id: str
    mesh: bool
    configured: bool
    queue: SendQueue
    conns: list[Any] = field(default_factory=list)
    connected_s: float = 0.0
    frames_out: int = 0
    writes_out: int = 0
    changed: trio.Event = field(default_factory=trio.Event)

    @property
    def connected(self) -> bool:
        """Whether any connection is up."""
        return bool(self.conns)

    @property
    def kept(self) -> bool:
        """Whether it is remembered while it is not connected."""
        return self.configured or self.mesh

    async def wait_connected(self) -> None:
        """Return once a connection is up."""
        while not self.conns:
            await self.changed.wait()

    async def wait_disconnected(self) -> None:
        """Return once no connection is up."""
        while self.conns:
            await self.changed.wait()

    def notify(self) -> None:
        """Wake those who wait for a change of connections."""
        self.changed.set()
        self.changed = trio.Event()


def new_peer(peer_id: str, limits: Limits, *, mesh: bool, configured: bool) -> Peer:
    """Return a peer that is not connected."""
    queue = SendQueue(
        limits.send_queue_frames_max, limits.send_queue_bytes_max, limits.send_age_ms_max / 1000
    )
    return Peer(peer_id=peer_id, mesh=mesh, configured=configured, queue=queue)


def status_of(peer: Peer, now_s: float, points: int, banned: bool) -> PeerStatus:
    """Return what the outside may know of a peer."""
    conn = peer.conns[-1] if peer.conns else None
    muxed = None if conn is None else conn.muxed_conn
    direction = "" if muxed is None else ("outbound" if muxed.is_initiator else "inbound")
    return PeerStatus(
        peer_id=peer.peer_id,
        connected=peer.connected,
        connected_s=now_s - peer.connected_s if peer.conns else 0.0,
        direction=direction,
        mesh=peer.mesh,
        rtt_ms=0.0 if muxed is None else muxed.rtt() * 1000,
        queue_frames=len(peer.queue),
        queue_bytes=peer.queue.queued_bytes,
        frames_dropped=peer.queue.dropped_frames,
        frames_out=peer.frames_out,
        writes_out=peer.writes_out,
        bytes_in=getattr(muxed, "openledger_bytes_in", 0),
        bytes_out=getattr(muxed, "openledger_bytes_out", 0),
        points=points,
        banned=banned,
    )
