"""What py-libp2p 0.8.1 needs before it may meet hostile peers: patches to its classes, applied once per process.

Most of these cannot be done from outside: the muxer class, the negotiation's reader and the outgoing pubsub queue are
hard-coded where they are used. Each patch says what goes wrong without it. Everything per host is in `host.py`.
"""

from __future__ import annotations

import logging
import struct
from collections import deque
from typing import Any

import libp2p.protocol_muxer.multiselect_communicator as multiselect_communicator
import libp2p.pubsub.gossipsub as gossipsub_module
import libp2p.pubsub.pubsub as pubsub_module
import libp2p.stream_muxer.yamux.yamux as yamux_module
import trio
from libp2p.exceptions import ParseError
from libp2p.io.exceptions import ConnectionClosedError, MessageTooLarge
from libp2p.peer.peerstore import issue_and_cache_local_record
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.pubsub.validators import signature_validator
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream
from libp2p.utils.varint import read_varint_prefixed_bytes_limited

from node.network import fast_path
from node.network.config import Limits
from node.network.errors import RemoteProtocolError

_HEADER = struct.Struct("!BBHII")  # version, type, flags, stream, length
_FRAME_WRITE_S_MAX = 4.0
# An honest peer fills at most this much of one stream before it is read, so a few streams stay below
# `receive_buffer_bytes_max`; and both directions fit the kernel's socket buffers, so that two muxers which both
# wait to write while neither reads cannot lock each other up.
_STREAM_WINDOW_BYTES_MAX = 1024 * 1024
_NEGOTIATION_LINE_BYTES_MAX = 1024
_STARVED_S = 1.0
_MUXER_POINTS = 100
_stock_handle_incoming = Yamux.handle_incoming

_applied = False


def apply() -> None:
    """Apply every patch; further calls do nothing."""
    global _applied
    if _applied:
        return
    _applied = True
    quieten_logging()
    fast_path.apply()
    yamux_module.MAX_WINDOW_SIZE = _STREAM_WINDOW_BYTES_MAX
    yamux_module.read_exactly = _read_header
    Yamux.handle_incoming = _handle_incoming
    Yamux._read_data_body = _read_data_body
    Yamux._write_frame = _write_frame
    Yamux._measure_rtt_loop = _ping_loop
    YamuxStream._auto_tune_and_send_window_update = _release_window
    multiselect_communicator.read_delim = _read_delim
    pubsub_module.RpcQueue = BoundedRpcQueue
    pubsub_module.signature_validator = _verify_signature
    pubsub_module.read_varint_prefixed_bytes_limited = _read_gossip_rpc
    for module in (pubsub_module, gossipsub_module):
        module.maybe_consume_signed_record = _ignore_signed_record
        module.env_to_send_in_RPC = _cached_signed_record


def quieten_logging() -> None:
    """Keep libp2p off standard error.

    It reports every failed dial and every hostile byte at WARNING or ERROR, and calls `logging.debug` on the root
    logger, which installs a handler on standard error if there is none.
    """
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.NullHandler())
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    for name in list(root.manager.loggerDict):
        if name.startswith("libp2p."):  # some modules set a level of their own
            logging.getLogger(name).setLevel(logging.NOTSET)


def limits_of(conn: Any) -> Limits:
    """Return the limits of the host a muxed connection belongs to (set on its swarm by `host.py`)."""
    return getattr(getattr(conn, "swarm", None), "openledger_limits", None) or Limits()


async def hard_close(conn: Any) -> None:
    """Close the socket under a muxed connection, without the goodbye that waits for a peer that does not read."""
    with trio.CancelScope(shield=True), trio.move_on_after(1.0):
        await conn.secured_conn.close()


def _penalise(conn: Any, reason: str) -> None:
    swarm = getattr(conn, "swarm", None)
    if swarm is not None:
        swarm.openledger_penalise(str(conn.peer_id), _MUXER_POINTS, reason)


async def _read_header(secured_conn: Any, length: int) -> bytes:
    """Stock: frames of unknown versions and types are skipped, so that garbage is read for ever.

    Frames that only carry data are delivered here; the muxer gets the header of the next one that does more.
    """
    muxer = getattr(secured_conn, "openledger_muxer", None)
    while True:
        secured_conn.openledger_arriving_bytes = 0  # the last frame is in its stream's buffer by now
        header = await fast_path.read_secured(secured_conn, length)
        version, kind, flags, stream_id, announced = _HEADER.unpack(header)
        oversized = kind == yamux_module.TYPE_DATA and announced > yamux_module.MAX_WINDOW_SIZE
        if version != 0 or kind > yamux_module.TYPE_GO_AWAY or oversized:
            secured_conn.openledger_malformed = True
            raise RemoteProtocolError(
                "malformed muxer frame"
            )  # on any exception here the muxer closes the connection
        if muxer is None or kind != yamux_module.TYPE_DATA or flags or not announced:
            return header
        fast_path.deliver(muxer, stream_id, await _read_data_body(muxer, announced))


async def _handle_incoming(self: Any) -> None:
    self.secured_conn.openledger_muxer = self
    await _stock_handle_incoming(self)
    if getattr(self.secured_conn, "openledger_malformed", False):
        _penalise(self, "malformed muxer frame")


async def _read_data_body(self: Any, length: int) -> bytes:
    """Stock: a peer that ignores its window is buffered without bound (87 -> 512 MB in one test).

    Many peers, each within its own bound, are held to one for all of them: who has more than its share then is cut.
    """
    limits = limits_of(self)
    unread = _unread_bytes(self) + length
    if unread > limits.receive_buffer_bytes_max:
        _penalise(self, "ignores flow control")
        raise trio.TooSlowError  # the one exception on which the muxer closes the connection
    share = limits.receive_buffers_bytes_max // limits.connections_max
    if unread > share and _unread_bytes_of_all(self) + length > limits.receive_buffers_bytes_max:
        raise trio.TooSlowError
    # Claimed before the wait: frames of other connections are judged while this one arrives.
    self.secured_conn.openledger_arriving_bytes = length
    inbox = fast_path.arrived(self.secured_conn)
    data = None if inbox is None else inbox.take(length)
    if data is None:
        with trio.fail_after(limits.ping_timeout_ms / 1000 * 2):
            data = await fast_path.read_secured(self.secured_conn, length)
    self.openledger_bytes_in = getattr(self, "openledger_bytes_in", 0) + length
    return data


def _unread_bytes(conn: Any) -> int:
    """What lies in the streams' buffers, and the frame that is on its way there."""
    arriving: int = getattr(conn.secured_conn, "openledger_arriving_bytes", 0)
    return sum(map(len, conn.stream_buffers.values())) + arriving


def _unread_bytes_of_all(conn: Any) -> int:
    swarm = getattr(conn, "swarm", None)
    if swarm is None:
        return _unread_bytes(conn)
    return sum(_unread_bytes(other.muxed_conn) for other in swarm.get_connections())


async def _write_frame(self: Any, data: bytes) -> None:
    """Stock: a cancellation between encrypting a frame and sending it ends the connection for all its streams.

    Here a frame is written whole or, if the peer does not take it in time, the connection is closed.
    """
    writer = fast_path.prompt(self)
    rest = None if writer is None else writer.write(data)
    if rest is None or rest:
        await _write_whole(self, data if rest is None else rest, None if rest is None else writer)
    self.openledger_bytes_out = getattr(self, "openledger_bytes_out", 0) + len(data)
    # Stock gives its turn away at each write. Who publishes two messages relies on it: a reader that finds both takes either first.
    await trio.lowlevel.checkpoint()


async def _write_whole(muxer: Any, data: bytes, begun: fast_path.Prompt | None) -> None:
    """Write a frame, or with `begun` what that writer left of one, or close the connection."""
    with trio.CancelScope(deadline=trio.current_time() + _FRAME_WRITE_S_MAX, shield=True) as scope:
        if begun is None:
            async with muxer._write_lock:
                await muxer.secured_conn.write(data)
        else:
            await begun.finish(data)
    if scope.cancelled_caught:
        await hard_close(muxer)
        raise ConnectionClosedError("peer does not take data", transport="tcp")


async def write_at_once(stream: Any, data: bytes) -> bool:
    """Write short data to a stream whole, or close its connection; False where it has to wait, and nothing was done."""
    rest = fast_path.write_now(stream, data)
    if rest:
        muxer = stream.muxed_stream.conn
        await _write_whole(muxer, rest, fast_path.prompt(muxer))
    return rest is not None


async def _ping_loop(self: Any) -> None:
    """Stock: a ping every 30 s whose silence has no consequence, so a stopped peer is never noticed.

    A round in which this process itself was late (starved of processor time) does not count against the peer.
    """
    limits = limits_of(self)
    interval_s, timeout_s = limits.ping_interval_ms / 1000, limits.ping_timeout_ms / 1000
    heard_s = trio.current_time()
    while not self.event_shutting_down.is_set():
        received = getattr(self, "openledger_bytes_in", 0)
        started_s = trio.current_time()
        self._ping_id = (self._ping_id + 1) & 0xFFFFFFFF
        self._ping_event = trio.Event()
        self._ping_sent_time = started_s
        frame = _HEADER.pack(0, yamux_module.TYPE_PING, yamux_module.FLAG_SYN, 0, self._ping_id)
        try:
            await self._write_frame(frame)
        except Exception:  # whatever the transport raises, the connection is gone
            await hard_close(self)
            return
        with trio.move_on_after(interval_s):
            await self.event_shutting_down.wait()
        now_s = trio.current_time()
        starved = now_s - started_s > interval_s + _STARVED_S
        if self._ping_event.is_set() or starved or getattr(self, "openledger_bytes_in", 0) != received:
            heard_s = now_s
        elif now_s - heard_s > timeout_s:
            await hard_close(self)
            return


async def _release_window(self: Any, *, bytes_read: int = 0) -> None:
    """Stock: nearly every read, even of one byte, sends a window update frame (about 0.3 ms at both ends).

    As in go-yamux the window is given back once half of it is free; it doubles each time, up to the maximum.
    """
    buffered = len(self.conn.stream_buffers.get(self.stream_id, b""))
    freed = self.target_recv_window - self.recv_window - buffered
    if self.recv_closed or freed < self.target_recv_window // 2:
        return
    self.target_recv_window = min(self.target_recv_window * 2, _STREAM_WINDOW_BYTES_MAX)
    delta = self.target_recv_window - self.recv_window - buffered
    self.recv_window += delta  # nothing else runs between the look and this: no lock is needed
    await self.send_window_update(delta)


async def _read_delim(reader: Any) -> bytes:
    """Stock: a line of any announced length is read, before the peer has even shown its identity.

    Here what cannot be a line ends the negotiation, and is held against the peer once it has an identity.
    """
    try:
        line: bytes = await read_varint_prefixed_bytes_limited(reader, _NEGOTIATION_LINE_BYTES_MAX)
    except (MessageTooLarge, ParseError) as error:
        raise RemoteProtocolError(f"negotiation: {type(error).__name__}") from error
    if line[-1:] != b"\n":
        raise RemoteProtocolError("negotiation line without an end")
    return line[:-1]


def _verify_signature(msg: Any) -> bool:
    """Stock: a message without a valid signature is dropped without a word, and costs its forwarder nothing."""
    if not signature_validator(msg):
        raise RemoteProtocolError("gossip message without a valid signature")
    return True


async def _read_gossip_rpc(reader: Any, bytes_max: int) -> bytes:
    """Stock: an announced size over the limit, or one that is no number, ends the connection at no cost."""
    try:
        rpc: bytes = await read_varint_prefixed_bytes_limited(reader, bytes_max)
    except (MessageTooLarge, ParseError) as error:
        raise RemoteProtocolError(f"gossip: {type(error).__name__}", points=100) from error
    return rpc


def _ignore_signed_record(msg: Any, host: Any, peer_id: Any) -> bool:
    """Stock: every RPC's record costs a signature check and may add addresses a peer made up. None is wanted here."""
    return True


def _cached_signed_record(host: Any) -> tuple[bytes, bool]:
    """Stock: addresses are collected and compared for every RPC. They do not change while a host runs."""
    record: bytes | None = getattr(host, "openledger_signed_record", None)
    if record is None:
        record = host.openledger_signed_record = issue_and_cache_local_record(host)
    return record, False


class BoundedRpcQueue(RpcQueue):
    """Stock: 32 RPCs, then silent loss. Here thousands, bounded in bytes as well."""

    limits = Limits()

    def __init__(self) -> None:
        super().__init__(max_size=self.limits.gossip_queue_rpcs_max)
        self._sizes: deque[int] = deque()
        self._queued_bytes = 0

    def push(self, rpc: Any, priority: bool = False) -> bool:
        """Queue an RPC; False, and libp2p drops it, past the bounds."""
        size = rpc.ByteSize()
        if not priority and self._queued_bytes + size > self.limits.gossip_queue_bytes_max:
            return False
        pushed: bool = super().push(rpc, priority)
        if pushed:
            self._queued_bytes += size
        return pushed

    async def pop(self) -> Any:
        """Return the next RPC, or None once closed."""
        rpc = await super().pop()
        if rpc is not None:
            self._queued_bytes -= rpc.ByteSize()
        return rpc
