"""HTTP/1.1 on one connection: h11 reads and writes it, an ASGI application answers, and no client can hold it for ever.

One task serves a connection, one request after another: it reads a head, lets the application read the body and write the answer,
and goes on or hangs up. What bounds a client is said at each wait. HTTP/2 is not spoken: it would let one connection have a
hundred requests in progress, and cancel and repeat them without end; offers of it are ignored.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import h11
import structlog
import trio

from node.clock import now_ms

_log = structlog.get_logger("rpc")

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADER_BYTES_MAX = 16 * 1024
READ_BYTES = 64 * 1024
LINGER_S = 1.0
"""What a client sends past its answer is read away for so long: closing at once would take the answer along (a TCP reset)."""

_JOINED_BYTES_MAX = 64 * 1024
_DISCONNECT: Message = {"type": "http.disconnect"}


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds that a client may take: ``idle_s`` to send a request's head, ``piece_s`` to take a piece of an answer."""

    idle_s: float
    piece_s: float


class Connection:
    """Serves one client. `run` returns when it is over; whoever called it closes the stream."""

    def __init__(self, app: App, stream: trio.SocketStream, patience: Patience) -> None:
        self._app = app
        self._stream = stream
        self._patience = patience
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_BYTES_MAX)
        self._client, self._server = _addresses(stream)
        self._idle: trio.CancelScope | None = None  # while no request is in progress
        self._ending = False  # once its present answer is written
        self._method = ""
        self._start: Message | None = None  # of an answer of which nothing is written yet

    def end(self) -> None:
        """Hang up at once where no request is in progress, else after its answer."""
        self._ending = True
        if self._idle is not None:
            self._idle.cancel()

    async def run(self) -> None:
        """Answer requests until either side has had enough. Raises nothing for what a client does."""
        while (request := await self._head()) is not None:
            await self._answer(request)
            if not await self._again():
                return

    # The head

    async def _head(self) -> h11.Request | None:
        """The next request; None where there is none, or none in time, or what came is not HTTP/1 (which is answered)."""
        if self._ending:
            return None
        try:
            with trio.move_on_after(self._patience.idle_s) as self._idle:
                while True:
                    event = self._http.next_event()
                    if event is h11.NEED_DATA:
                        self._http.receive_data(await self._read())
                    else:
                        return event if isinstance(event, h11.Request) else None
        except h11.RemoteProtocolError as error:
            await self._refuse(error.error_status_hint)
            await self._hear_out()
        finally:
            self._idle = None
        return None

    async def _read(self) -> bytes:
        """What the client sent; nothing once it has gone."""
        try:
            return bytes(await self._stream.receive_some(READ_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""

    # The answer

    async def _answer(self, request: h11.Request) -> None:
        self._method, self._start = request.method.decode("ascii"), None
        headers = list(request.headers)
        if any(name == b"upgrade" and value.lower() == b"websocket" for name, value in headers):
            await self._refuse(HTTPStatus.FORBIDDEN)
            return
        path, _, query = request.target.partition(b"?")
        scope: Scope = {
            "type": "http",
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "http_version": request.http_version.decode("ascii"),
            "method": self._method,
            "scheme": "http",
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": headers,
            "client": self._client,
            "server": self._server,
        }
        try:
            await self._app(scope, self._receive, self._send)
        except Exception as error:
            # A fault of ours in one answer must never end the daemon's nursery.
            _log.error("rpc.page_failed", path=scope["path"][:64], exc_info=error)
        if self._http.our_state is h11.SEND_RESPONSE:
            await self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR)

    async def _receive(self) -> Message:
        """ASGI's `receive`: pieces of the body, then, once the client has gone, that it has."""
        try:
            while self._http.their_state is h11.SEND_BODY:
                event = self._http.next_event()
                if isinstance(event, h11.Data):
                    return {"type": "http.request", "body": bytes(event.data), "more_body": True}
                if isinstance(event, h11.EndOfMessage):
                    return {"type": "http.request", "body": b"", "more_body": False}
                if self._http.they_are_waiting_for_100_continue:
                    go_on = h11.InformationalResponse(status_code=HTTPStatus.CONTINUE, headers=[])
                    await self._write(self._http.send(go_on) or b"")
                self._http.receive_data(await self._read())
        except h11.RemoteProtocolError:  # it went in the middle, or sent what is no body
            self._ending = True
            return _DISCONNECT
        self._ending = True  # it may have sent more, which is thrown away here
        while await self._read():
            pass
        return _DISCONNECT

    async def _send(self, message: Message) -> None:
        """ASGI's `send`: the head of an answer leaves with the first piece of its body."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        pieces: list[bytes] = []
        if self._start is not None:
            headers = [*self._start["headers"], (b"date", _date(now_ms() // 1000))]
            head = h11.Response(status_code=int(self._start["status"]), headers=headers)
            pieces.append(self._http.send(head) or b"")
            self._start = None
        if (body := message.get("body", b"")) and self._method != "HEAD":
            pieces.append(self._http.send(h11.Data(data=body)) or b"")
        if not message.get("more_body", False):
            pieces.append(self._http.send(h11.EndOfMessage()) or b"")
        if sum(map(len, pieces)) <= _JOINED_BYTES_MAX:
            pieces = [b"".join(pieces)]
        for piece in pieces:
            await self._write(piece)

    async def _refuse(self, status: int) -> None:
        """Answer without a word, as the last thing on this connection."""
        self._ending = True
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        headers = [(b"content-length", b"0"), (b"connection", b"close")]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body"})

    async def _write(self, data: bytes) -> None:
        """Write a piece; who does not take it in time is cut off. To who has gone nothing is written."""
        with trio.move_on_after(self._patience.piece_s) as scope:
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._ending = True
        if scope.cancelled_caught:
            self._ending = True
            self._stream.socket.close()  # whoever still reads from it learns that it is over

    # What comes after it

    async def _again(self) -> bool:
        """Whether another request may come; what is left of the last one's body is read away, for a moment."""
        self._skip_body()
        if self._http.their_state is h11.SEND_BODY:
            await self._hear_out()
        if self._ending or not self._http.our_state is self._http.their_state is h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    def _skip_body(self) -> None:
        """Take what has come of a body that nobody wants."""
        try:
            while self._http.their_state is h11.SEND_BODY and self._http.next_event() is not h11.NEED_DATA:
                pass
        except h11.RemoteProtocolError:
            self._ending = True

    async def _hear_out(self) -> None:
        """Read away what a client goes on to send, up to the end of its request, for `LINGER_S` at most."""
        with trio.move_on_after(LINGER_S):
            while data := await self._read():
                if self._http.their_state is h11.SEND_BODY:
                    self._http.receive_data(data)
                    self._skip_body()
                if self._http.their_state is h11.DONE:
                    return


def _addresses(stream: trio.SocketStream) -> tuple[tuple[str, int] | None, tuple[str, int] | None]:
    """Host and port of the client and of this end; None where the client has gone already."""
    try:
        return stream.socket.getpeername()[:2], stream.socket.getsockname()[:2]
    except OSError:
        return None, None


@lru_cache(maxsize=2)
def _date(seconds: int) -> bytes:
    return formatdate(seconds, usegmt=True).encode("ascii")
