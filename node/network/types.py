"""What crosses the adapter's boundary: plain frozen data, no libp2p type."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Frame:
    """One direct frame from a mesh peer; ``kind`` is 0..255 and means what the daemon says."""

    peer_id: str
    kind: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class GossipMessage:
    """One gossip message; ``peer_id`` is who forwarded it, which is not always its author."""

    topic: str
    peer_id: str
    data: bytes


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """One connected or configured peer, for the RPC and for logs.

    ``rtt_ms`` is 0 until measured; ``queue_frames`` and ``queue_bytes`` are waiting to be written;
    ``frames_out`` left in ``writes_out`` joined writes; byte counts are of this connection, as multiplexed; ``points`` is its bad standing (0 is best); ``direction`` is "inbound",
    "outbound" or "" while not connected.
    """

    peer_id: str
    connected: bool
    connected_s: float
    direction: str
    mesh: bool
    rtt_ms: float
    queue_frames: int
    queue_bytes: int
    frames_dropped: int
    frames_out: int
    writes_out: int
    bytes_in: int
    bytes_out: int
    points: int
    banned: bool


@dataclass(frozen=True, slots=True)
class PeerEvent:
    """A peer's first connection came up, or its last one went down."""

    peer_id: str
    connected: bool
    mesh: bool


RequestHandler = Callable[[str, int, bytes], Awaitable[bytes]]
"""``(peer_id, kind, payload) -> response``; raises `RequestRefused` to refuse. Other exceptions refuse, typed, too."""

GossipValidator = Callable[[str, bytes], bool]
"""``(topic, data) -> forward and deliver?``; synchronous and cheap; False costs the forwarder points."""

PeerObserver = Callable[[PeerEvent], None]
"""Called synchronously on each `PeerEvent`; must not block."""
