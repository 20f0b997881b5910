"""What bounds the transfer of an answer, whatever its client does."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import trio

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_LINGER_S = 1.0


async def guard(app: App, piece_s: float, scope: Scope, receive: Receive, send: Send) -> None:
    """Run ``app`` for one request; leave no connection half used, and none that its client can hold for ever.

    Hypercorn writes in a shielded scope and stops reading once ten pieces of a body wait: a client that stops reading,
    or keeps sending past the answer, would hold its connection for ever. Here the first is cut off when it has not taken a
    piece of the answer (most are one piece) in ``piece_s``, the second a moment after its answer (at once, and the answer
    would be lost to it: TCP resets discard what is unread).
    """
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1000})
        return
    stream: trio.SocketStream = scope["state"]["connection"]
    body_ended = trio.Event()

    async def receive_watched() -> Message:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            body_ended.set()
        return message

    async def drain() -> None:
        while not body_ended.is_set():
            await receive_watched()

    async with trio.open_nursery() as nursery:
        watch = _Watch(stream, piece_s)

        async def send_watched(message: Message) -> None:
            if not watch.runs:  # one task for all pieces of an answer: most answers are over before it looks
                watch.runs = True
                nursery.start_soon(watch.run)
            if (
                message["type"] != "http.response.body"
                or message.get("more_body", False)
                or body_ended.is_set()
            ):
                await watch.send(send, message)
                return
            nursery.start_soon(drain)
            await watch.send(send, {**message, "more_body": True})
            with trio.move_on_after(_LINGER_S):
                await body_ended.wait()
            if not body_ended.is_set():
                stream.socket.close()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await app(scope, receive_watched, send_watched)
        nursery.cancel_scope.cancel()


class _Watch:
    """Closes a connection whose client has not taken a piece of its answer in ``piece_s``."""

    def __init__(self, stream: trio.SocketStream, piece_s: float) -> None:
        self.runs = False
        self._stream = stream
        self._piece_s = piece_s
        self._until_s = math.inf  # of the piece that is being sent

    async def send(self, send: Send, message: Message) -> None:
        """Send one piece; it fails once `run` has closed the connection."""
        self._until_s = trio.current_time() + self._piece_s
        try:
            await send(message)
        finally:
            self._until_s = math.inf

    async def run(self) -> None:
        """Look when the piece that is being sent is due, or a piece that begins now would be."""
        while trio.current_time() < self._until_s:  # noqa: ASYNC110  it waits for a time that moves
            await trio.sleep_until(min(self._until_s, trio.current_time() + self._piece_s))
        self._stream.socket.close()
