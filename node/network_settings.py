"""The network's settings, out of a node's configuration and its chain."""

from node.config import Config
from node.directory import Identity
from node.ledger.entries import ValidatorSet
from node.network import Limits, NetworkConfig, PeerAddress
from node.wire import Topic


def network_config(
    config: Config, identity: Identity, chain_id: bytes, validators: ValidatorSet
) -> NetworkConfig:
    """Return how the node listens, whom it dials, and what it lets others take; `validators` of the genesis are let in."""
    section = config.network
    allowed = {entry.peer_id for entry in validators.validators}
    return NetworkConfig(
        key_seed=identity.node_seed,
        chain_id=chain_id,
        listen_host=section.listen_host,
        listen_port=section.listen_port,
        mesh_peers=tuple(PeerAddress.parse(text) for text in section.mesh_peers),
        gossip_peers=tuple(PeerAddress.parse(text) for text in section.gossip_peers),
        allowed=frozenset(allowed | set(section.peer_ids_allowed)),
        topics=(Topic.TRANSACTIONS, Topic.BLOCKS),
        limits=Limits(
            frame_bytes_max=section.message_bytes_max,
            send_queue_frames_max=section.queue_messages_max,
            connections_max=section.peers_max,
            ping_interval_ms=section.ping_interval_ms,
            ping_timeout_ms=section.ping_timeout_ms,
            redial_delay_ms_max=section.dial_backoff_ms_max,
        ),
    )
