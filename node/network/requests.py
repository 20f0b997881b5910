"""Request and response, each on a fresh stream.

The asker writes one frame (``u32 length | u8 kind | payload``) and half-closes; the answerer writes
``u8 status | u32 length | body`` in chunks and closes. Status 0 carries the response, any other is a refusal code
whose body is a short UTF-8 text.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog
import trio

from node.network.config import Limits
from node.network.errors import (
    REFUSED_BUSY,
    REFUSED_INTERNAL,
    REFUSED_TIMEOUT,
    REFUSED_TOO_LARGE,
    PayloadTooLarge,
    PeerUnavailable,
    RemoteProtocolError,
    RequestRefused,
    RequestTimeout,
    ResponseTooLarge,
)
from node.network.framing import READ_BYTES, FrameDecoder, encode_header
from node.network.host import close_quietly, ended_by_peer, reset_quietly
from node.network.queues import TokenBucket
from node.network.types import RequestHandler

log = structlog.get_logger("node.network")

_STATUS = struct.Struct("!BI")
_STATUS_OK = 0
_REFUSAL_BYTES_MAX = 512
_READ_REQUEST_S_MAX = 10.0
_READ_REFUSED_S_MAX = 2.0
_WRITE_RESPONSE_S_MAX = 30.0
_BUCKETS_MAX = 4096


class RequestClient:
    """Our requests to peers, bounded in number."""

    def __init__(self, limits: Limits, penalise: Callable[[str, int, str], None]) -> None:
        self._limits = limits
        self._penalise = penalise
        self._all = trio.CapacityLimiter(limits.requests_max)
        self._per_peer: dict[str, trio.CapacityLimiter] = {}

    async def request(
        self,
        peer_id: str,
        kind: int,
        payload: bytes,
        timeout_s: float,
        open_stream: Callable[[], Awaitable[Any]],
    ) -> bytes:
        """Ask and return the answer; see `Network.request` for the errors."""
        if len(payload) > self._limits.request_bytes_max:
            raise PayloadTooLarge("request", len(payload), self._limits.request_bytes_max)
        with trio.move_on_after(timeout_s):
            async with self._slot(peer_id), self._all:
                return await self._exchange(peer_id, kind, payload, open_stream)
        raise RequestTimeout(peer_id, timeout_s)

    @asynccontextmanager
    async def _slot(self, peer_id: str) -> AsyncIterator[None]:
        limiter = self._per_peer.setdefault(peer_id, trio.CapacityLimiter(self._limits.requests_per_peer_max))
        try:
            async with limiter:
                yield
        finally:
            if not limiter.borrowed_tokens and not limiter.statistics().tasks_waiting:
                self._per_peer.pop(peer_id, None)

    async def _exchange(
        self, peer_id: str, kind: int, payload: bytes, open_stream: Callable[[], Awaitable[Any]]
    ) -> bytes:
        stream = None
        try:
            stream = await open_stream()
            await stream.write(encode_header(kind, len(payload)) + payload)
            await stream.close_write()
            answer = await self._read_answer(peer_id, stream)
        except (RequestRefused, ResponseTooLarge, PeerUnavailable):
            raise
        except RemoteProtocolError as error:
            self._penalise(peer_id, error.points, error.reason)
            raise PeerUnavailable(peer_id, error.reason) from error
        except Exception as error:
            raise PeerUnavailable(peer_id, f"request failed: {error!r}") from error
        else:
            await close_quietly(stream)
            stream = None
            return answer
        finally:
            if stream is not None:
                with trio.CancelScope(shield=True):
                    await reset_quietly(stream)

    async def _read_answer(self, peer_id: str, stream: Any) -> bytes:
        buffer = bytearray()
        expected: int | None = None
        status = _STATUS_OK
        while expected is None or len(buffer) < expected:
            try:
                data = await stream.read(READ_BYTES)
            except EOFError:
                data = b""
            if not data:
                raise PeerUnavailable(peer_id, "answer ended early")
            buffer += data
            if expected is None and len(buffer) >= _STATUS.size:
                status, expected = _STATUS.unpack_from(buffer)
                del buffer[: _STATUS.size]
                if status == _STATUS_OK and expected > self._limits.response_bytes_max:
                    raise ResponseTooLarge(peer_id, expected, self._limits.response_bytes_max)
                if status != _STATUS_OK and expected > _REFUSAL_BYTES_MAX:
                    raise RemoteProtocolError("malformed refusal")
        if len(buffer) > expected:
            raise RemoteProtocolError("answer longer than announced")
        if status != _STATUS_OK:
            raise RequestRefused(status, bytes(buffer).decode(errors="replace"), peer_id)
        return bytes(buffer)


class RequestServer:
    """Peers' requests to us: bounded in number, rate and time, and no failure of the handler leaves this class."""

    def __init__(self, limits: Limits, handler: RequestHandler) -> None:
        self._limits = limits
        self._handler = handler
        self._serving: Counter[str] = Counter()
        self._buckets: dict[str, TokenBucket] = {}

    async def serve(self, stream: Any, peer_id: str) -> None:
        """Read one request from a stream, answer it, close. Raises `RemoteProtocolError` on a malformed one."""
        if not self._admit(peer_id):
            with trio.move_on_after(_READ_REFUSED_S_MAX):  # unread bytes would linger in the muxer
                await self._read_request(stream)
            await self._answer(stream, REFUSED_BUSY, b"too many requests")
            return
        self._serving[peer_id] += 1
        try:
            with trio.move_on_after(_READ_REQUEST_S_MAX) as reading:
                kind, payload = await self._read_request(stream)
            if reading.cancelled_caught:
                raise RemoteProtocolError("request not completed in time", points=5)
            status, body = await self._handle(peer_id, kind, payload)
            await self._answer(stream, status, body)
        finally:
            self._serving[peer_id] -= 1
            if not self._serving[peer_id]:
                del self._serving[peer_id]

    def _admit(self, peer_id: str) -> bool:
        limits = self._limits
        if self._serving[peer_id] >= limits.served_per_peer_max or self._serving.total() >= limits.served_max:
            return False
        now_s = trio.current_time()
        bucket = self._buckets.get(peer_id)
        if bucket is None:
            if len(self._buckets) >= _BUCKETS_MAX:
                self._buckets.clear()
            bucket = self._buckets[peer_id] = TokenBucket(limits.served_per_s, limits.served_burst, now_s)
        return bucket.take(now_s)

    async def _read_request(self, stream: Any) -> tuple[int, bytes]:
        decoder = FrameDecoder(self._limits.request_bytes_max)
        while True:
            try:
                data = await stream.read(READ_BYTES)
            except EOFError:
                data = b""
            if not data:
                raise RemoteProtocolError("request ended early", points=5 if ended_by_peer(stream) else 0)
            frames = decoder.feed(data)
            if frames:
                if len(frames) > 1 or decoder.buffered_bytes:
                    raise RemoteProtocolError("more than one request on a stream")
                return frames[0]

    async def _handle(self, peer_id: str, kind: int, payload: bytes) -> tuple[int, bytes]:
        try:
            with trio.move_on_after(self._limits.served_timeout_ms / 1000) as scope:
                body = await self._handler(peer_id, kind, payload)
            if scope.cancelled_caught:
                return REFUSED_TIMEOUT, b"not answered in time"
        except RequestRefused as refusal:
            return refusal.code & 0xFF or REFUSED_INTERNAL, refusal.text.encode()[:_REFUSAL_BYTES_MAX]
        except Exception:
            log.exception("request handler failed", peer_id=peer_id, kind=kind)
            return REFUSED_INTERNAL, b"internal error"
        if len(body) > self._limits.response_bytes_max:
            return REFUSED_TOO_LARGE, b"answer too large"
        return _STATUS_OK, body

    async def _answer(self, stream: Any, status: int, body: bytes) -> None:
        with trio.move_on_after(_WRITE_RESPONSE_S_MAX) as scope:
            chunk_bytes = self._limits.response_chunk_bytes
            await stream.write(_STATUS.pack(status, len(body)) + body[:chunk_bytes])
            for offset in range(chunk_bytes, len(body), chunk_bytes):
                await stream.write(body[offset : offset + chunk_bytes])
        if scope.cancelled_caught:
            await reset_quietly(stream)
        else:
            await close_quietly(stream)
