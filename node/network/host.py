"""Building one libp2p host that listens on TCP, speaks Noise and Yamux only, and survives what reaches it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import multiaddr
import structlog
import trio
from google.protobuf.message import DecodeError
from libp2p import new_host
from libp2p.abc import INotifee
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import ParseError
from libp2p.identity.identify_push.identify_push import ID_PUSH
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.stream_muxer.yamux.yamux import Yamux

from node.network import hardening
from node.network.address import listen_multiaddr
from node.network.config import NetworkConfig
from node.network.errors import ListenFailed, RemoteProtocolError

log = structlog.get_logger("node.network")

_MALFORMED_POINTS = 50
_REMOTE_FAULTS = (UnicodeDecodeError, DecodeError, ParseError)


class PeerRefused(SwarmException):
    """An inbound handshake proved an identity that is not let in."""


class AdmittingNoise(NoiseTransport):
    """Noise that turns away identities right after the handshake; libp2p's own gate knows only IP addresses."""

    def __init__(self, key_pair: Any, admit: Callable[[str], bool]) -> None:
        super().__init__(key_pair, noise_privkey=create_new_noise_key_pair().private_key)
        self._admit = admit

    async def secure_inbound(self, conn: Any) -> Any:
        """Finish the handshake, then admit the peer or refuse it."""
        session = await super().secure_inbound(conn)
        peer_id = str(session.get_remote_peer())
        if not self._admit(peer_id):
            log.debug("inbound peer refused", peer_id=peer_id)
            raise PeerRefused(f"{peer_id} is not let in")
        return session


def build_host(
    config: NetworkConfig, port: int, admit: Callable[[str], bool], penalise: Callable[[str, int, str], None]
) -> Any:
    """Return a hardened host, not yet running."""
    hardening.apply()
    limits = config.limits
    key_pair = create_new_key_pair(seed=config.key_seed)
    negotiation_s = limits.negotiation_timeout_ms / 1000
    host = new_host(
        key_pair=key_pair,
        listen_addrs=[multiaddr.Multiaddr(listen_multiaddr(config.listen_host, port))],
        sec_opt={NOISE_ID: AdmittingNoise(key_pair, admit)},  # replaces defaults that include plaintext
        muxer_opt={TProtocol(YAMUX_ID): Yamux},
        negotiate_timeout=max(1, round(negotiation_s)),
        connection_config=ConnectionConfig(
            max_connections=limits.connections_max + limits.handshakes_max,
            min_connections=0,
            low_watermark=0,
            high_watermark=limits.connections_max + limits.handshakes_max,
            max_connections_per_peer=4,
            dial_timeout=limits.dial_timeout_ms / 1000,
            inbound_upgrade_timeout=limits.dial_timeout_ms / 1000,
            outbound_upgrade_timeout=limits.dial_timeout_ms / 1000,
            inbound_stream_protocol_negotiation_timeout=negotiation_s,
            outbound_stream_protocol_negotiation_timeout=negotiation_s,
        ),
        disable_identify_address_discovery=True,
    )
    swarm = host.get_network()
    swarm.openledger_limits = limits
    swarm.openledger_penalise = penalise
    swarm.retry_config = RetryConfig(max_retries=0)  # the dialler retries, without blocking the peer
    swarm.auto_connector.start = _start_nothing  # would dial every address it ever heard of
    swarm.set_resource_manager(None)  # its limits are coarser than ours, and its denials leak
    # We never need a peer's own list of addresses and protocols; it still may ask for ours (js-libp2p does).
    host._schedule_identify = _identify_nobody
    host.get_mux().handlers.pop(TProtocol(ID_PUSH), None)
    _release_inbound_slots(swarm, limits.handshakes_max)
    _contain_stream_handlers(host, limits.streams_per_connection_max, penalise)
    return host


async def _start_nothing() -> None:
    """Replace the start of the swarm's auto-connector."""


def _identify_nobody(peer_id: Any, *, reason: str) -> None:
    """Replace the host's outbound identify."""


def _release_inbound_slots(swarm: Any, handshakes_max: int) -> None:
    """Stock: an inbound connection keeps its slot after it closed, so a node stops listening after enough of them.

    Also bounds how many strangers may be in a handshake at once. The oldest of them gives way: were new ones turned
    away, a few silent connections would keep everybody out.
    """
    upgrade: Callable[[Any, Any], Awaitable[Any]] = swarm.upgrade_inbound_raw_conn
    in_handshake: list[Any] = []

    async def upgrade_and_outlive(raw_conn: Any, maddr: Any) -> None:
        in_handshake.append(raw_conn)
        try:
            if len(in_handshake) > handshakes_max:
                await in_handshake.pop(0).close()
            muxed = await upgrade(raw_conn, maddr)
        finally:
            if raw_conn in in_handshake:
                in_handshake.remove(raw_conn)
        await muxed.event_closed.wait()
        # Ends the handler, which closes the socket and frees the slot.
        raise SwarmException("connection over")

    swarm.upgrade_inbound_raw_conn = upgrade_and_outlive


def _contain_stream_handlers(host: Any, streams_max: int, penalise: Callable[[str, int, str], None]) -> None:
    """Stock: an exception in negotiation (a name that is not UTF-8) or in any handler ends the whole node.

    And a stream whose handler is done stays half open, with its buffers, until the connection ends.
    """
    inner: Callable[[Any], Awaitable[None]] = host._swarm_stream_handler

    async def contained(stream: Any) -> None:
        peer_id = str(stream.muxed_conn.peer_id)
        if len(stream.muxed_conn.streams) > streams_max:
            penalise(peer_id, 1, "too many streams")
            await reset_quietly(stream)
            return
        try:
            await inner(stream)
            await close_quietly(stream)
        except RemoteProtocolError as error:
            penalise(peer_id, error.points, error.reason)  # first: a reset gives others a turn
            await reset_quietly(stream)
        except _REMOTE_FAULTS as error:
            penalise(peer_id, _MALFORMED_POINTS, f"malformed stream: {type(error).__name__}")
            await reset_quietly(stream)
        except Exception as error:  # a broken connection raises a dozen different types
            log.debug("stream handler ended", peer_id=peer_id, error=repr(error))
            await reset_quietly(stream)

    host.get_network().set_stream_handler(contained)


def ended_by_peer(stream: Any) -> bool:
    """Whether a peer ended a stream in good order: neither was it reset, nor did the connection end.

    A reset is how a caller gives up (its time is over); libp2p reports it as an end if the stream is gone already.
    """
    reset = stream.muxed_stream.reset_received
    return not reset and not stream.muxed_conn.event_shutting_down.is_set()


async def reset_quietly(stream: Any) -> None:
    """Reset a stream; that it is gone already is no news."""
    try:
        with trio.move_on_after(5.0):
            await stream.reset()
    except Exception as error:
        log.debug("stream reset failed", error=repr(error))


async def close_quietly(stream: Any) -> None:
    """Close a stream on our side; that it is gone already is no news."""
    try:
        with trio.move_on_after(5.0):
            await stream.close()
    except Exception as error:
        log.debug("stream close failed", error=repr(error))


def check_port_is_free(host: str, port: int) -> None:
    """Raise `ListenFailed` if someone listens there: libp2p sets SO_REUSEPORT and would silently share the port."""
    if port == 0:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ListenFailed(host, port, errno.errorcode.get(error.errno or 0, str(error))) from error


def listening_port(host: Any) -> int | None:
    """Return the TCP port the host listens on, None if it does not."""
    for address in host.get_transport_addrs():
        return int(address.value_for_protocol("tcp"))
    return None


async def close_host(host: Any) -> None:
    """Release everything a host holds, sockets first, within about 1.5 s. Safe under cancellation."""
    swarm = host.get_network()
    with trio.CancelScope(shield=True), trio.move_on_after(1.5):
        async with trio.open_nursery() as nursery:
            for conn in swarm.get_connections():
                nursery.start_soon(hardening.hard_close, conn.muxed_conn)
            for listener in list(swarm.listeners.values()):
                nursery.start_soon(listener.close)
    swarm.listeners.clear()


class ConnectionObserver(INotifee):
    """Tells the adapter of connections that came up and went down."""

    def __init__(self, on_connected: Callable[[Any], None], on_disconnected: Callable[[Any], None]) -> None:
        self._on_connected = on_connected
        self._on_disconnected = on_disconnected

    async def connected(self, network: Any, conn: Any) -> None:
        """A connection is ready for streams."""
        self._on_connected(conn)

    async def disconnected(self, network: Any, conn: Any) -> None:
        """A connection is gone."""
        self._on_disconnected(conn)

    async def opened_stream(self, network: Any, stream: Any) -> None:
        """Not needed."""

    async def closed_stream(self, network: Any, stream: Any) -> None:
        """Not needed."""

    async def listen(self, network: Any, multiaddr: Any) -> None:
        """Not needed."""

    async def listen_close(self, network: Any, multiaddr: Any) -> None:
        """Not needed."""


def to_id(peer_id: str) -> ID:
    """Return libp2p's form of a base58 peer id."""
    return ID.from_base58(peer_id)
