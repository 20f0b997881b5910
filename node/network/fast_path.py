"""The way of a frame through libp2p's connection, with fewer turns of the scheduler.

Between a socket and a stream py-libp2p 0.8.1 takes some eight locks, each of which gives up its turn even when it is free, reads a
message in two system calls and writes a dozen log lines that nobody sees: half a millisecond a frame at both ends, where
a block of four validators takes some thirty. What these replacements do is what the stock methods do; whatever is not the common
case (a stream that closes, a window that is empty, a frame with flags) they leave to them. `hardening.apply` applies them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import libp2p.stream_muxer.yamux.yamux as yamux_module
import trio
from libp2p.io.exceptions import ConnectionClosedError, IncompleteReadError
from libp2p.io.trio import TrioTCPStream
from libp2p.io.utils import read_exactly
from libp2p.network.stream.net_stream import NetStream, StreamState
from libp2p.security.noise.io import MAX_PLAINTEXT_LENGTH, NoiseTransportReadWriter
from libp2p.security.secure_session import SecureSession
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream

_HEADER = struct.Struct("!BBHII")  # version, type, flags, stream, length
_FRAME_BYTES_MAX = yamux_module.MAX_MESSAGE_SIZE - yamux_module.HEADER_SIZE
_READ_BYTES = 64 * 1024
ARRIVED_BYTES_MAX = 2 * _READ_BYTES
"""A message that is not complete, and one read of the socket."""

_LENGTH_BYTES = 2
AT_ONCE_BYTES_MAX = 16 * 1024
"""Longer data is written with turns of others in between."""

READS_AT_ONCE_MAX = 32
"""Frames taken from what has arrived between two turns of others: a full buffer holds ten thousand of the smallest."""

_stock_write = YamuxStream.write
_stock_read = YamuxStream.read


class PromptLock:
    """A lock that is taken at once where it is free; `trio.Lock` gives up its turn even then."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = trio.Lock()

    def locked(self) -> bool:
        """Whether somebody holds it."""
        return self._lock.locked()

    async def __aenter__(self) -> None:
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()


def with_prompt_locks(cls: Any, *names: str) -> None:
    """Give every new object of a class prompt locks under these names."""
    stock_init = cls.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        stock_init(self, *args, **kwargs)
        for name in names:
            setattr(self, name, PromptLock())

    cls.__init__ = init


def apply() -> None:
    """Replace the methods; called once."""
    with_prompt_locks(TrioTCPStream, "read_lock", "write_lock")
    with_prompt_locks(NetStream, "_state_lock")
    with_prompt_locks(Yamux, "streams_lock", "_write_lock")
    with_prompt_locks(YamuxStream, "window_lock")
    YamuxStream.write = _write
    YamuxStream.read = _read


class Arrived:
    """What has arrived on a secured connection and was not asked for yet: at most two reads of the socket beside what is asked for.

    One task reads a connection, the muxer's. Nothing is lost between what read before it and this: the stock reader takes from the
    socket exactly what it was asked for, and what it decrypted is taken over.
    """

    __slots__ = ("_at", "_cipher", "_noise", "_plain", "_reads", "_receive_some")

    def __init__(
        self,
        secured: SecureSession,
        noise: NoiseTransportReadWriter,
        receive_some: Callable[[int], Awaitable[bytes]],
    ) -> None:
        """`receive_some` reads the socket: up to so many bytes, none at the end, as a `trio.SocketStream`'s does."""
        self._plain = bytearray(secured._drain(None))
        self._at = 0
        self._cipher = bytearray()
        self._noise = noise
        self._reads = 0
        self._receive_some = receive_some

    def take(self, size: int) -> bytes | None:
        """The next `size` bytes, or None where they are not here yet."""
        end = self._at + size
        if len(self._plain) < end:
            return None
        data = bytes(self._plain[self._at : end])
        self._at = end
        if end == len(self._plain):
            self._plain.clear()
            self._at = 0
        return data

    async def read(self, size: int) -> bytes:
        """The next `size` bytes. Raises IncompleteReadError at the end, ConnectionClosedError on a reset."""
        self._reads = (self._reads + 1) % READS_AT_ONCE_MAX
        if not self._reads:
            await trio.lowlevel.checkpoint()
        while (data := self.take(size)) is None:
            del self._plain[: self._at]
            self._at = 0
            if not await self._receive():
                raise IncompleteReadError(
                    "connection closed", expected_bytes=size, received_bytes=len(self._plain)
                )
        return data

    async def _receive(self) -> bool:
        try:
            data = await self._receive_some(_READ_BYTES)
        except trio.BrokenResourceError as error:
            raise ConnectionClosedError("connection reset by the peer", transport="tcp") from error
        except trio.ClosedResourceError:
            return False
        self._cipher += data
        at = 0
        while len(self._cipher) - at >= _LENGTH_BYTES:
            end = at + _LENGTH_BYTES + int.from_bytes(self._cipher[at : at + _LENGTH_BYTES], "big")
            if len(self._cipher) < end:
                break
            self._plain += self._noise.decrypt(bytes(self._cipher[at + _LENGTH_BYTES : end]))
            at = end
        del self._cipher[:at]
        return bool(data)


def arrived(secured: Any) -> Arrived | None:
    """What has arrived on a connection secured by Noise over TCP; None for any other, which is read as stock does."""
    known: Arrived | None = getattr(secured, "openledger_arrived", None)
    if known is None and (tcp := _tcp_under(secured)) is not None:
        known = secured.openledger_arrived = Arrived(secured, secured.conn, Socket(tcp.stream).receive_some)
    return known


def _tcp_under(secured: Any) -> TrioTCPStream | None:
    """The TCP stream under a connection secured by Noise; None under any other."""
    noise = secured.conn if isinstance(secured, SecureSession) else None
    if not isinstance(noise, NoiseTransportReadWriter):
        return None
    tcp = getattr(getattr(noise.read_writer, "read_write_closer", None), "stream", None)
    return tcp if isinstance(tcp, TrioTCPStream) else None


class Socket:
    """Reads a socket without trying in vain first: trio tries, waits for the socket, and tries again."""

    __slots__ = ("_stream",)

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def receive_some(self, bytes_max: int) -> bytes:
        """Up to so many bytes, none at the end. Raises BrokenResourceError, ClosedResourceError."""
        while True:
            number = self._stream.socket.fileno()
            if number < 0:
                raise trio.ClosedResourceError
            await trio.lowlevel.wait_readable(number)
            # Closed before our turn came: the number may be another's by now.
            if self._stream.socket.fileno() != number:
                raise trio.ClosedResourceError
            try:
                return os.read(number, bytes_max)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error


class Prompt:
    """Writes a connection's frames at once, as far as the socket takes them, where nobody else is writing.

    The stock way of a frame to the socket, through five objects and their locks, gives its turn away even where the socket takes
    all of it. The muxer's own lock and the TCP stream's are respected: while either is held nothing is written here.
    """

    __slots__ = ("_locks", "_noise", "_stream", "_tcp")

    def __init__(self, muxer: Any, tcp: TrioTCPStream) -> None:
        self._locks: tuple[Any, Any] = (muxer._write_lock, tcp.write_lock)
        self._noise: NoiseTransportReadWriter = muxer.secured_conn.conn
        self._stream = tcp.stream
        self._tcp = tcp

    def write(self, frame: bytes) -> bytes | None:
        """Encrypt and write a frame; returns what the socket did not take, or None where nothing was done.

        What it did not take belongs on the wire next: `finish` it before anybody has a turn.
        """
        if len(frame) > MAX_PLAINTEXT_LENGTH or self._locks[0].locked() or self._locks[1].locked():
            return None
        message: bytes = self._noise.encrypt(frame)
        wire = len(message).to_bytes(_LENGTH_BYTES, "big") + message
        try:
            sent = os.write(self._stream.socket.fileno(), wire)
        except OSError:  # it is full, or broken: the way that waits finds out which
            sent = 0
        return wire[sent:]

    async def finish(self, rest: bytes) -> None:
        """Write what `write` left. Raises as the stock connection does; nobody may be given a turn in between."""
        async with self._locks[0]:
            await self._tcp.write(rest)


def prompt(muxer: Any) -> Prompt | None:
    """The prompt writer of a muxed connection; None where it is not Noise over TCP, which is written as stock does."""
    known: Prompt | None = getattr(muxer, "openledger_prompt", None)
    if known is None and (tcp := _tcp_under(muxer.secured_conn)) is not None:
        known = muxer.openledger_prompt = Prompt(muxer, tcp)
    return known


def write_now(stream: Any, data: bytes) -> bytes | None:
    """Write to an open stream at once, without a turn for others; None where that cannot be, and nothing was done.

    Returns what the socket did not take (mostly nothing), which the connection's `Prompt` has to `finish`. For short data: the
    peer's window must hold all of it.
    """
    muxed = stream.muxed_stream if isinstance(stream, NetStream) else None
    if (
        not isinstance(muxed, YamuxStream)
        or stream._state is not StreamState.OPEN
        or stream._state_lock.locked()
        or muxed.send_closed
        or muxed.closed
        or not 0 < len(data) <= min(AT_ONCE_BYTES_MAX, muxed.send_window)
    ):
        return None
    muxer: Any = muxed.conn
    writer = prompt(muxer)
    frame = _HEADER.pack(0, yamux_module.TYPE_DATA, 0, muxed.stream_id, len(data)) + data
    rest = None if writer is None else writer.write(frame)
    if writer is None or rest is None:
        return None
    muxed.send_window -= len(data)
    muxer.openledger_bytes_out = getattr(muxer, "openledger_bytes_out", 0) + len(frame)
    return rest


async def read_secured(secured: Any, size: int) -> bytes:
    """Read exactly `size` bytes of what the peer wrote."""
    inbox = arrived(secured)
    if inbox is None:
        data: bytes = await read_exactly(secured, size)
        return data
    return await inbox.read(size)


def deliver(muxer: Any, stream_id: int, data: bytes) -> None:
    """Put the body of a data frame without flags where its stream's reader finds it; dropped if the stream is gone."""
    stream = muxer.streams.get(stream_id)
    if stream is None:
        return
    muxer.stream_buffers[stream_id].extend(data)
    stream.recv_window = max(0, stream.recv_window - len(data))
    muxer.stream_events[stream_id].set()


async def _write(self: Any, data: bytes) -> None:
    sent = 0
    while sent < len(data) and self.send_window > 0 and not (self.send_closed or self.closed):
        size = min(self.send_window, _FRAME_BYTES_MAX, len(data) - sent)
        self.send_window -= size  # before the wait, so that writers beside this one see it
        header = _HEADER.pack(0, yamux_module.TYPE_DATA, 0, self.stream_id, size)
        await self.conn._write_frame(header + data[sent : sent + size])
        sent += size
    if sent < len(data) or not data:
        await _stock_write(self, data[sent:])


async def _read(self: Any, n: int | None = -1) -> bytes:
    if n is None or n <= 0:
        data: bytes = await _stock_read(self, n)
        return data
    muxer = self.conn
    while not (self.recv_closed or self.closed or self.reset_received or muxer.event_shutting_down.is_set()):
        buffer = muxer.stream_buffers.get(self.stream_id)
        event = muxer.stream_events.get(self.stream_id)
        if buffer is None or event is None:
            break
        if buffer:
            data = bytes(buffer[:n])
            del buffer[:n]
            await self._auto_tune_and_send_window_update(bytes_read=len(data))
            return data
        await event.wait()
        if muxer.stream_events.get(self.stream_id) is event:
            muxer.stream_events[self.stream_id] = trio.Event()
    data = await _stock_read(self, n)
    return data
