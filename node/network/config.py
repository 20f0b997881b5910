"""Configuration and every limit of the network adapter, with what happens past each."""

from __future__ import annotations

from dataclasses import dataclass, field

from node.network.address import PeerAddress, peer_id_of_seed
from node.network.errors import NetworkConfigInvalid

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the adapter. Comments say what happens past each."""

    # Direct frames to mesh peers.
    frame_bytes_max: int = 4 * MIB  # sending: PayloadTooLarge; receiving: the peer is penalised and cut
    send_queue_frames_max: int = 4096  # per peer; see SendQueue: bulk is refused, then the oldest goes
    send_queue_bytes_max: int = 32 * MIB
    send_age_ms_max: int = 10_000  # a frame that waited longer (peer away) is discarded unsent
    write_bytes: int = 1 * MIB  # frames are joined into writes of about this size
    write_timeout_ms: int = 10_000  # a write that takes longer drops the connection
    linger_ms: int = 0  # how long a writer that wakes up waits for more frames to join those of one step
    inbox_frames_max: int = 2048  # per peer, undelivered; full: the peer is not read ...
    inbox_bytes_max: int = 16 * MIB
    inbox_wait_ms_max: int = 4000  # ... so long, then its undelivered frames are discarded
    inboxes_bytes_max: int = (
        256 * MIB
    )  # of all peers; past it a peer that has more than its share counts as full

    # Requests.
    request_bytes_max: int = 1 * MIB  # caller: PayloadTooLarge; server: refusal and penalty
    response_bytes_max: int = 8 * MIB  # caller: ResponseTooLarge; server: refusal
    response_chunk_bytes: int = 256 * KIB
    requests_per_peer_max: int = 8  # ours in flight to one peer; more wait, inside their own timeout
    requests_max: int = 64  # ours in flight in all
    served_per_peer_max: int = 8  # a peer's requests being served; more are refused as busy
    served_max: int = 64
    served_per_s: int = 100  # token bucket per peer; past it requests are refused as busy
    served_burst: int = 400
    served_timeout_ms: int = 30_000  # a handler that takes longer is cancelled and the request refused

    # Gossip.
    gossip_bytes_max: int = 900 * KIB  # publishing: PayloadTooLarge; receiving: invalid
    gossip_inbox_messages_max: int = 4096  # per forwarder, undelivered; full: message ignored, may come again
    gossip_inbox_bytes_max: int = 64 * MIB
    gossip_inboxes_bytes_max: int = 256 * MIB  # of all forwarders, shared as above
    gossip_per_s: int = 200  # token bucket per forwarder; past it messages are ignored
    gossip_burst: int = 4000
    gossip_queue_rpcs_max: int = 4096  # outgoing per peer; past it libp2p drops, lazy gossip (IHAVE) repairs
    gossip_queue_bytes_max: int = 64 * MIB
    gossip_cache_bytes_max: int = 64 * MIB  # recent messages kept to answer IWANT

    # Connections.
    connections_max: int = 64  # past it strangers are refused; configured peers always have room
    handshakes_max: int = 64  # inbound, at once; the oldest gives way to a new one
    streams_per_connection_max: int = 128  # more are reset
    receive_buffer_bytes_max: int = (
        32 * MIB
    )  # unread bytes of one connection; past it the peer is penalised and cut
    receive_buffers_bytes_max: int = (
        256 * MIB
    )  # of all together; past it one that has more than its share is cut
    negotiation_timeout_ms: int = 5000
    dial_timeout_ms: int = 8000
    redial_delay_ms_min: int = 200
    redial_delay_ms_max: int = 2000
    ping_interval_ms: int = 2500
    ping_timeout_ms: int = 8000  # nothing heard for so long: the connection is cut

    # Standing.
    ban_points: int = 100  # at this many points the peer is disconnected and refused
    ban_s: int = 600
    mesh_ban_s: int = 10  # consensus needs its validators: they are let back in soon
    points_decay_per_s: int = 1


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """What one node's network needs to know.

    ``key_seed`` is the 32-byte Ed25519 seed of the node's identity. ``chain_id`` (32 bytes) is part of every protocol
    and topic name, so nodes of different chains never talk. ``mesh_peers`` get permanent direct streams (validators
    among themselves; empty on a full node); ``gossip_peers`` are dialled and kept for gossip and requests only.
    ``allowed`` is the set of peer ids let in besides those two; None lets in anyone, within the limits.
    ``topics`` are the short names of the gossip topics, all of which the node subscribes to.
    """

    key_seed: bytes = field(repr=False)
    chain_id: bytes
    listen_host: str = "127.0.0.1"
    listen_port: int = 0
    mesh_peers: tuple[PeerAddress, ...] = ()
    gossip_peers: tuple[PeerAddress, ...] = ()
    allowed: frozenset[str] | None = None
    topics: tuple[str, ...] = ("tx", "block")
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Check ranges; raises `NetworkConfigInvalid`."""
        if len(self.key_seed) != 32:
            raise NetworkConfigInvalid("key_seed", "32 bytes")
        if len(self.chain_id) != 32:
            raise NetworkConfigInvalid("chain_id", "32 bytes")
        if not 0 <= self.listen_port <= 65535:
            raise NetworkConfigInvalid("listen_port", "0 to 65535")
        if not all(topic.isascii() and topic.isalnum() for topic in self.topics):
            raise NetworkConfigInvalid("topics", "ASCII letters and digits")
        configured = [peer.peer_id for peer in (*self.mesh_peers, *self.gossip_peers)]
        if len(set(configured)) != len(configured):
            raise NetworkConfigInvalid("mesh_peers, gossip_peers", "every peer once")
        if peer_id_of_seed(self.key_seed) in configured:
            raise NetworkConfigInvalid("mesh_peers, gossip_peers", "other peers, not this node itself")

    @property
    def chain_short(self) -> str:
        """The first 8 bytes of the chain id in hex, as used in protocol names."""
        return self.chain_id[:8].hex()

    @property
    def direct_protocol(self) -> str:
        """Name of the one-way stream of frames between mesh peers."""
        return f"/openledger/{self.chain_short}/direct/1"

    @property
    def request_protocol(self) -> str:
        """Name of the request/response protocol."""
        return f"/openledger/{self.chain_short}/request/1"

    def topic_name(self, topic: str) -> str:
        """Full name of a gossip topic on the wire."""
        return f"/openledger/{self.chain_short}/{topic}/1"
