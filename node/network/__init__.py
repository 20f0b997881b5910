"""The py-libp2p adapter: peers, direct streams, requests and gossip, with no libp2p type in its interface.

Importing this package does not import libp2p; `node.network.network` (class `Network`, `open_network`) does.

Where things are: `network` the one object the daemon uses, `config` every limit and what happens past it, `hardening`
the patches libp2p needs and why, `fast_path` those that only make it faster, `host` one hardened host, `gossip` (with `router`), `direct` and `requests` the three ways
of talking, `dialling` reconnection, `standing` penalties, `queues` and `framing` the parts without IO.
"""

from node.network.address import PeerAddress, check_peer_id, peer_id_of_public_key, peer_id_of_seed
from node.network.config import Limits, NetworkConfig
from node.network.errors import (
    AddressInvalid,
    ListenFailed,
    LocalNetworkError,
    NetworkConfigInvalid,
    NetworkError,
    NetworkNotRunning,
    NoGossipPeers,
    PayloadTooLarge,
    PeerError,
    PeerUnavailable,
    RequestRefused,
    RequestTimeout,
    ResponseTooLarge,
    UnknownPeer,
    UnknownTopic,
)
from node.network.types import (
    Frame,
    GossipMessage,
    GossipValidator,
    PeerEvent,
    PeerObserver,
    PeerStatus,
    RequestHandler,
)

__all__ = [
    "AddressInvalid",
    "Frame",
    "GossipMessage",
    "GossipValidator",
    "Limits",
    "ListenFailed",
    "LocalNetworkError",
    "NetworkConfig",
    "NetworkConfigInvalid",
    "NetworkError",
    "NetworkNotRunning",
    "NoGossipPeers",
    "PayloadTooLarge",
    "PeerAddress",
    "PeerError",
    "PeerEvent",
    "PeerObserver",
    "PeerStatus",
    "PeerUnavailable",
    "RequestHandler",
    "RequestRefused",
    "RequestTimeout",
    "ResponseTooLarge",
    "UnknownPeer",
    "UnknownTopic",
    "check_peer_id",
    "peer_id_of_public_key",
    "peer_id_of_seed",
]
