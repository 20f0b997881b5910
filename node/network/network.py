"""The adapter: one object that is a node's whole view of its peers. No libp2p type leaves it.

Usage::

    config = NetworkConfig(key_seed=seed, chain_id=chain_id, listen_port=4001, mesh_peers=validators)
    async with open_network(config, on_request=answer, validate_gossip=check) as network:
        network.broadcast(KIND_VOTE, vote_bytes)
        async for frame in network.frames: ...
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import multiaddr
import structlog
import trio
from libp2p.custom_types import TProtocol
from libp2p.tools.anyio_service import background_trio_service

from node.network import hardening
from node.network.address import PeerAddress, check_peer_id, listen_multiaddr, peer_id_of_seed
from node.network.config import NetworkConfig
from node.network.dialling import is_dialler, keep_connected
from node.network.direct import read_frames, write_frames
from node.network.errors import (
    ListenFailed,
    NetworkNotRunning,
    PayloadTooLarge,
    PeerUnavailable,
    RemoteProtocolError,
    UnknownPeer,
)
from node.network.gossip import ContainedPubsub, GossipHooks, new_pubsub
from node.network.host import (
    ConnectionObserver,
    build_host,
    check_port_is_free,
    close_host,
    listening_port,
    reset_quietly,
    to_id,
)
from node.network.peers import Peer, new_peer, status_of
from node.network.queues import FairInbox, TokenBucket
from node.network.requests import RequestClient, RequestServer
from node.network.standing import Standings
from node.network.types import (
    Frame,
    GossipMessage,
    GossipValidator,
    PeerEvent,
    PeerObserver,
    PeerStatus,
    RequestHandler,
)

log = structlog.get_logger("node.network")

_DROP_WAIT_S_MAX = 5.0
_LOG_LINES_PER_S, _LOG_LINES_BURST = 10.0, 200.0  # about peers; past it they are counted
_RESTART_DELAY_S_MIN, _RESTART_DELAY_S_MAX = 0.5, 30.0


@dataclass(frozen=True, slots=True)
class _Running:
    """What exists only while the libp2p host runs; replaced whole if it has to be restarted."""

    host: Any
    pubsub: ContainedPubsub
    nursery: trio.Nursery


class Network:
    """One node's network. Create it, start `run` in a nursery, use it until `run` is cancelled.

    ``frames`` and ``gossip`` are bounded per peer and must be consumed; what happens when they are not is said in
    `Limits`. Every method may be called from any task of the trio run, `send` and `broadcast` never block.
    """

    def __init__(
        self,
        config: NetworkConfig,
        *,
        on_request: RequestHandler,
        validate_gossip: GossipValidator,
        on_peer: PeerObserver | None = None,
    ) -> None:
        limits = config.limits
        self.config = config
        self.peer_id = peer_id_of_seed(config.key_seed)
        self.frames: FairInbox[Frame] = FairInbox(
            limits.inbox_frames_max, limits.inbox_bytes_max, limits.inboxes_bytes_max, limits.connections_max
        )
        self.gossip: FairInbox[GossipMessage] = FairInbox(
            limits.gossip_inbox_messages_max,
            limits.gossip_inbox_bytes_max,
            limits.gossip_inboxes_bytes_max,
            limits.connections_max,
        )
        self._own_id = check_peer_id(self.peer_id)
        self._addresses = {peer.peer_id: peer for peer in (*config.mesh_peers, *config.gossip_peers)}
        self._mesh = frozenset(peer.peer_id for peer in config.mesh_peers)
        self._admitted: frozenset[str] = frozenset()
        self._peers: dict[str, Peer] = {
            peer_id: new_peer(peer_id, limits, mesh=peer_id in self._mesh, configured=True)
            for peer_id in self._addresses
        }
        self._standings = Standings(limits, self._mesh)
        self._client = RequestClient(limits, self._penalise_remote)
        self._server = RequestServer(limits, on_request)
        self._validate_gossip = validate_gossip
        self._on_peer = on_peer
        self._jitter = random.Random()  # spreads dials, decides nothing
        self._log_budget = TokenBucket(_LOG_LINES_PER_S, _LOG_LINES_BURST, 0.0)
        self._unreported = 0
        self._readers: dict[str, trio.CancelScope] = {}
        self._writers: dict[str, trio.CancelScope] = {}
        self._running: _Running | None = None
        self._port = config.listen_port
        self._started = False

    # Life

    async def run(self, *, task_status: trio.TaskStatus[PeerAddress] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled; ``started`` gets the address listened on. Raises `ListenFailed` at the start.

        Should libp2p itself fail in spite of all containment, the host is rebuilt on the same port, at most every
        half second and then ever more rarely.
        """
        check_port_is_free(self.config.listen_host, self._port)
        delay_s = _RESTART_DELAY_S_MIN
        while True:
            began_s = trio.current_time()
            failures: tuple[Exception, ...] = ()
            try:
                await self._run_host(task_status)
            except* Exception as group:
                failures = group.exceptions
            if not self._started:
                raise _first_leaf(failures) or ListenFailed(
                    self.config.listen_host, self._port, "not listening"
                )
            log.error(
                "libp2p failed, restarting it", delay_s=delay_s, errors=[repr(error) for error in failures]
            )
            if trio.current_time() - began_s > _RESTART_DELAY_S_MAX:
                delay_s = _RESTART_DELAY_S_MIN
            await trio.sleep(delay_s)
            delay_s = min(delay_s * 2, _RESTART_DELAY_S_MAX)

    async def _run_host(self, task_status: trio.TaskStatus[PeerAddress]) -> None:
        """Run one libp2p host; returns at once if it cannot listen, else only by cancellation or failure."""
        host = build_host(self.config, self._port, self._admits, self._penalise_remote)
        host.get_network().register_notifee(ConnectionObserver(self._connected, self._disconnected))
        hooks = GossipHooks(
            validate=self._validate_gossip,
            penalise=self._penalise_remote,
            drop_peer=lambda peer: self._drop_soon(str(peer)),
            is_connected=lambda peer: self._is_connected(str(peer)),
            is_banned=lambda peer: bool(self._banned_s(str(peer))),
            inbox=self.gossip,
        )
        pubsub, router = new_pubsub(host, self.config, hooks)
        host.set_stream_handler(TProtocol(self.config.direct_protocol), self._serve_direct)
        host.set_stream_handler(TProtocol(self.config.request_protocol), self._serve_request)
        listen_on = [multiaddr.Multiaddr(listen_multiaddr(self.config.listen_host, self._port))]
        try:
            async with (
                host.run(listen_addrs=listen_on),
                background_trio_service(pubsub),
                background_trio_service(router),
            ):
                port = listening_port(host)
                if port is not None:
                    self._port = port
                    await pubsub.start()
                    await self._run_tasks(host, pubsub, task_status)
        finally:
            await close_host(host)
            pubsub.seen_messages.stop()
            self._forget_connections()

    async def _run_tasks(
        self, host: Any, pubsub: ContainedPubsub, task_status: trio.TaskStatus[PeerAddress]
    ) -> None:
        async with trio.open_nursery() as nursery:
            self._running = _Running(host, pubsub, nursery)
            for peer in list(self._peers.values()):
                self._start_peer_tasks(nursery, peer)
            if not self._started:
                self._started = True
                log.info("listening", address=str(self.address))
                task_status.started(self.address)
            try:
                await trio.sleep_forever()
            finally:
                self._running = None
                await close_host(host)

    def _start_peer_tasks(self, nursery: trio.Nursery, peer: Peer) -> None:
        limits, peer_id = self.config.limits, peer.peer_id
        if not peer.mesh or is_dialler(self._own_id, check_peer_id(peer_id)):
            nursery.start_soon(
                keep_connected,
                peer,
                limits,
                partial(self._dial, peer_id),
                partial(self._banned_s, peer_id),
                self._jitter,
                name=f"dial {peer_id}",
            )
        if peer.mesh:
            nursery.start_soon(self._write_to, peer, name=f"write {peer_id}")

    async def _write_to(self, peer: Peer) -> None:
        """Write a mesh peer's queue until it leaves the mesh."""
        peer_id = peer.peer_id
        open_stream = partial(self._open_stream, peer_id, self.config.direct_protocol)
        with trio.CancelScope() as scope:
            self._writers[peer_id] = scope
            await write_frames(peer, self.config.limits, open_stream, partial(self._drop, peer_id))

    @property
    def address(self) -> PeerAddress:
        """Where this node listens; the port is the actual one once `run` has started."""
        if not self._started:
            raise NetworkNotRunning
        return PeerAddress.of(self.config.listen_host, self._port, self.peer_id)

    # Sending

    def send(self, peer_id: str, kind: int, payload: bytes, *, bulk: bool = False) -> bool:
        """Queue a frame for a mesh peer, connected or not; False if it was refused. Never blocks.

        ``kind`` is 0..255. Urgent frames go before ``bulk`` ones; what gives way when the queue is full is said in
        `SendQueue`. Raises `UnknownPeer` and `PayloadTooLarge`. Delivery is not promised: a frame in flight when the
        connection breaks is lost, one that waited longer than ``send_age_ms_max`` is discarded.
        """
        self._check_frame(kind, payload)
        peer = self._peers.get(peer_id)
        if peer is None or not peer.mesh:
            raise UnknownPeer(peer_id)
        return peer.queue.push(kind, payload, trio.current_time(), bulk=bulk)

    def broadcast(self, kind: int, payload: bytes, *, bulk: bool = False) -> int:
        """Queue a frame for every mesh peer; return how many queues took it. Never blocks."""
        self._check_frame(kind, payload)
        now_s = trio.current_time()
        return sum(self._peers[peer_id].queue.push(kind, payload, now_s, bulk=bulk) for peer_id in self._mesh)

    def _check_frame(self, kind: int, payload: bytes) -> None:
        if not 0 <= kind <= 255:
            raise ValueError(f"frame kind {kind}: expected 0 to 255")
        if len(payload) > self.config.limits.frame_bytes_max:
            raise PayloadTooLarge("frame", len(payload), self.config.limits.frame_bytes_max)

    async def request(self, peer_id: str, kind: int, payload: bytes, timeout_s: float) -> bytes:
        """Ask any connected peer and return its answer.

        Raises `PeerUnavailable`, `RequestTimeout`, `RequestRefused` (with the peer's code and text),
        `ResponseTooLarge`, `PayloadTooLarge` and `NetworkNotRunning`. The time includes waiting for one of the
        ``requests_per_peer_max`` slots.
        """
        if not 0 <= kind <= 255:
            raise ValueError(f"request kind {kind}: expected 0 to 255")
        open_stream = partial(self._open_stream, peer_id, self.config.request_protocol)
        return await self._client.request(peer_id, kind, payload, timeout_s, open_stream)

    async def publish(self, topic: str, data: bytes, timeout_s: float = 5.0) -> None:
        """Gossip ``data`` to all subscribers of a configured topic.

        Waits up to ``timeout_s`` until at least one connected peer has subscribed, else raises `NoGossipPeers`,
        having sent nothing. Peers that connect within the next few seconds get the message too. Publishing the same
        bytes again sends them again (to peers that have them, without effect): the cure for a message that is missed.
        Raises `UnknownTopic`, `PayloadTooLarge` and `NetworkNotRunning`.
        """
        if self._running is None:
            raise NetworkNotRunning
        await self._running.pubsub.publish_when_heard(topic, data, timeout_s)

    # Peers

    def peers(self) -> tuple[PeerStatus, ...]:
        """Return every configured and every connected peer."""
        now_s = trio.current_time()
        return tuple(
            status_of(
                peer, now_s, self._standings.points(peer.peer_id, now_s), bool(self._banned_s(peer.peer_id))
            )
            for peer in self._peers.values()
        )

    @property
    def penalties(self) -> tuple[int, int]:
        """How many penalties and how many bans peers earned here since the start."""
        return self._standings.penalties, self._standings.bans

    def set_mesh(self, peer_ids: Iterable[str]) -> None:
        """Make these peers the mesh, beside none other: they get our frames, and theirs are read.

        A newcomer need not be configured: it is let in, and dials us. Who leaves keeps its connection, as any other peer;
        what waits for it is dropped.
        """
        mesh = frozenset(peer_ids) - {self.peer_id}
        left, joined = self._mesh - mesh, mesh - self._mesh
        self._mesh = self._standings.mesh = mesh
        for peer_id in sorted(left):
            self._leave_mesh(self._peers[peer_id])
        for peer_id in sorted(joined):
            limits = self.config.limits
            peer = self._peers.setdefault(peer_id, new_peer(peer_id, limits, mesh=True, configured=False))
            peer.mesh = True
            if self._running is not None:
                self._running.nursery.start_soon(self._write_to, peer, name=f"write {peer_id}")

    def _leave_mesh(self, peer: Peer) -> None:
        peer.mesh = False
        peer.queue.clear()
        for tasks in (self._writers, self._readers):
            if (scope := tasks.pop(peer.peer_id, None)) is not None:
                scope.cancel()
        if not peer.kept and not peer.connected:
            del self._peers[peer.peer_id]

    def admit(self, peer_ids: Iterable[str]) -> None:
        """Let these strangers in, beside those whom the configuration allows and nobody else; who is connected stays."""
        self._admitted = frozenset(peer_ids)

    def learn_address(self, address: PeerAddress) -> None:
        """Replace the address of a configured peer, from the next dial on. Raises `UnknownPeer`."""
        if address.peer_id not in self._addresses:
            raise UnknownPeer(address.peer_id)
        self._addresses[address.peer_id] = address

    def penalise(self, peer_id: str, points: int, reason: str) -> None:
        """Hold something against a peer. At ``ban_points`` it is disconnected and refused for a while.

        Points fade by ``points_decay_per_s``. Mesh peers are banned for ``mesh_ban_s`` only.
        """
        self._penalise_remote(peer_id, points, reason)

    def _penalise_remote(self, peer_id: str, points: int, reason: str) -> None:
        if points <= 0:
            return
        now_s = trio.current_time()
        banned = self._standings.penalise(peer_id, points, now_s)
        self._report("peer penalised", peer_id, points=points, reason=reason, banned=banned)
        if banned:
            self._drop_soon(peer_id)

    def _report(self, event: str, peer_id: str, **fields: object) -> None:
        """Log what a peer did, but no faster than a disk can take: peers decide how often this is called."""
        if not self._log_budget.take(trio.current_time()):
            self._unreported += 1
            return
        if self._unreported:
            fields["events_not_logged_before"] = self._unreported
            self._unreported = 0
        log.info(event, peer_id=peer_id, **fields)

    def _banned_s(self, peer_id: str) -> float:
        return self._standings.banned_s(peer_id, trio.current_time())

    def _admits(self, peer_id: str) -> bool:
        """Decide on an inbound peer, right after its handshake."""
        if self._banned_s(peer_id):
            return False
        if peer_id in self._addresses or peer_id in self._mesh:
            return True
        allowed = self.config.allowed
        if allowed is not None and peer_id not in allowed and peer_id not in self._admitted:
            return False
        strangers = sum(not peer.kept for peer in self._peers.values())
        return strangers < self.config.limits.connections_max - len(self._mesh | self._addresses.keys())

    # Connections, as libp2p reports them

    def _connected(self, conn: Any) -> None:
        peer_id = str(conn.muxed_conn.peer_id)
        peer = self._peers.get(peer_id)
        if peer is None:
            peer = self._peers[peer_id] = new_peer(peer_id, self.config.limits, mesh=False, configured=False)
        was_connected = peer.connected
        peer.conns.append(conn)
        if was_connected:
            # The peer came back before we noticed it was gone, or both dialled at once. Which connection the streams
            # of either side are on is then anybody's guess: start over.
            self._report("duplicate connection, dropping both", peer_id)
            self._drop_soon(peer_id)
            return
        peer.connected_s = trio.current_time()
        peer.notify()
        self._report("peer connected", peer_id, mesh=peer.mesh, outbound=conn.muxed_conn.is_initiator)
        self._tell(PeerEvent(peer_id, connected=True, mesh=peer.mesh))

    def _disconnected(self, conn: Any) -> None:
        peer_id = str(conn.muxed_conn.peer_id)
        peer = self._peers.get(peer_id)
        if peer is None or conn not in peer.conns:
            return
        peer.conns.remove(conn)
        if not peer.connected:
            self._went_down(peer)

    def _went_down(self, peer: Peer) -> None:
        peer.notify()
        if not peer.kept:
            self._peers.pop(peer.peer_id, None)
        self._report("peer disconnected", peer.peer_id, mesh=peer.mesh)
        self._tell(PeerEvent(peer.peer_id, connected=False, mesh=peer.mesh))

    def _forget_connections(self) -> None:
        """Mark everyone disconnected once the host is gone."""
        for peer in list(self._peers.values()):
            if peer.conns:
                peer.conns.clear()
                self._went_down(peer)

    def _tell(self, event: PeerEvent) -> None:
        if self._on_peer is None:
            return
        try:
            self._on_peer(event)
        except Exception:
            log.exception("peer observer failed", peer_id=event.peer_id)

    def _is_connected(self, peer_id: str) -> bool:
        peer = self._peers.get(peer_id)
        return peer is not None and peer.connected

    async def _dial(self, peer_id: str) -> None:
        if self._running is None:
            raise NetworkNotRunning
        host, target = self._running.host, to_id(peer_id)
        swarm = host.get_network()
        swarm.unblock_peer(target)  # a failed dial blocks the peer for 60 s
        store = host.get_peerstore()
        store.clear_addrs(target)
        store.add_addrs(target, [multiaddr.Multiaddr(self._addresses[peer_id].multiaddr)], 3600)
        await swarm.dial_peer(target)

    async def _open_stream(self, peer_id: str, protocol: str) -> Any:
        if self._running is None:
            raise NetworkNotRunning
        if not self._is_connected(peer_id):
            raise PeerUnavailable(peer_id, "not connected")
        return await self._running.host.new_stream(to_id(peer_id), [TProtocol(protocol)])

    def _drop_soon(self, peer_id: str) -> None:
        if self._running is not None:
            self._running.nursery.start_soon(self._drop, peer_id)

    async def _drop(self, peer_id: str) -> None:
        """Close a peer's connections and return once they are gone (or, at worst, after a few seconds)."""
        peer = self._peers.get(peer_id)
        if peer is None:
            return
        for conn in list(peer.conns):
            await hardening.hard_close(conn.muxed_conn)
        with trio.move_on_after(_DROP_WAIT_S_MAX):
            await peer.wait_disconnected()

    # Streams peers open

    async def _serve_direct(self, stream: Any) -> None:
        peer_id = str(stream.muxed_conn.peer_id)
        # A validator of an epoch before ours, or after it, means well: a newcomer that is still behind would ban all of them.
        points = 0 if peer_id in self._admitted else 10
        if peer_id not in self._mesh:
            raise RemoteProtocolError("direct stream from a peer outside the mesh", points)
        previous = self._readers.get(peer_id)
        if previous is not None:
            previous.cancel()  # a peer has one stream to us; the newest counts
        with trio.CancelScope() as scope:
            self._readers[peer_id] = scope
            try:
                await read_frames(stream, peer_id, self.config.limits, self.frames)
            except RemoteProtocolError:
                self._drop_soon(peer_id)
                raise
            finally:
                if self._readers.get(peer_id) is scope:
                    del self._readers[peer_id]
        if scope.cancelled_caught:
            await reset_quietly(stream)

    async def _serve_request(self, stream: Any) -> None:
        await self._server.serve(stream, str(stream.muxed_conn.peer_id))


def _first_leaf(failures: tuple[Exception, ...]) -> Exception | None:
    """Return the first exception that is not a group, None if there is none."""
    for failure in failures:
        if isinstance(failure, ExceptionGroup):
            return _first_leaf(failure.exceptions)
        return failure
    return None


@asynccontextmanager
async def open_network(
    config: NetworkConfig,
    *,
    on_request: RequestHandler,
    validate_gossip: GossipValidator,
    on_peer: PeerObserver | None = None,
) -> AsyncIterator[Network]:
    """Run a network for the length of an ``async with`` block."""
    network = Network(config, on_request=on_request, validate_gossip=validate_gossip, on_peer=on_peer)
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        try:
            yield network
        finally:
            nursery.cancel_scope.cancel()
