"""The way of a frame through libp2p's connection, with fewer turns of the scheduler.

Between a socket and a stream py-libp2p 0.8.1 takes some eight locks, each of which gives up its turn even when it is free, reads a
message in two system calls and writes a dozen log lines that nobody sees: half a millisecond a frame at both ends, where
a block of four validators takes some thirty. What these replacements do is what the stock methods do; whatever is not the common
case (a stream that closes, a window that is empty, a frame with flags) they leave to them. `hardening.apply` applies them.
"""

from __future__ import annotations

import struct
from typing import Any

import libp2p.stream_muxer.yamux.yamux as yamux_module
import trio
from libp2p.io.exceptions import ConnectionClosedError, IncompleteReadError
from libp2p.io.trio import TrioTCPStream
from libp2p.io.utils import read_exactly
from libp2p.network.stream.net_stream import NetStream
from libp2p.security.noise.io import NoiseTransportReadWriter
from libp2p.security.secure_session import SecureSession
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream

_HEADER = struct.Struct("!BBHII")  # version, type, flags, stream, length
_FRAME_BYTES_MAX = yamux_module.MAX_MESSAGE_SIZE - yamux_module.HEADER_SIZE
_READ_BYTES = 64 * 1024
ARRIVED_BYTES_MAX = 2 * _READ_BYTES
"""A message that is not complete, and one read of the socket."""

_LENGTH_BYTES = 2
READS_AT_ONCE_MAX = 32
"""Frames taken from what has arrived between two turns of others: a full buffer holds ten thousand of the smallest."""

_stock_write = YamuxStream.write
_stock_read = YamuxStream.read


class PromptLock:
    """A lock that is taken at once where it is free; `trio.Lock` gives up its turn even then."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = trio.Lock()

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

    __slots__ = ("_at", "_cipher", "_noise", "_plain", "_reads", "_socket")

    def __init__(self, secured: SecureSession, noise: NoiseTransportReadWriter, socket: Any) -> None:
        self._plain = bytearray(secured._drain(None))
        self._at = 0
        self._cipher = bytearray()
        self._noise = noise
        self._reads = 0
        self._socket = socket

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
            data = await self._socket.receive_some(_READ_BYTES)
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
    if known is None and isinstance(secured, SecureSession):
        noise = secured.conn
        tcp = getattr(getattr(getattr(noise, "read_writer", None), "read_write_closer", None), "stream", None)
        if isinstance(noise, NoiseTransportReadWriter) and isinstance(tcp, TrioTCPStream):
            known = Arrived(secured, noise, tcp.stream)
            secured.openledger_arrived = known
    return known


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
