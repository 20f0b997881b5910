"""The ASGI application: routes, and the limits that guard them.

``POST /`` is JSON-RPC; ``GET /health`` says that the process is alive, ``GET /ready`` that it is in step with the chain.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from node.config import RpcSection
from node.rpc.backend import Backend
from node.rpc.errors import Code, Fault
from node.rpc.methods import METHODS
from node.rpc.protocol import answer, error_body

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

BODIES_HELD_MAX = 8
"""Bodies in memory at once, in units of the largest that is allowed."""

RESPONSE_BYTES_MAX = 64 * 2**20
"""A batch's answers stop growing past this."""

_LINGER_S = 1.0
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_HTTP_STATUS = {
    Code.BODY_TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Code.SERVER_BUSY: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.REQUEST_TIMEOUT: HTTPStatus.REQUEST_TIMEOUT,
    Code.ORIGIN_REFUSED: HTTPStatus.FORBIDDEN,
}


@dataclass(slots=True)
class _Load:
    """What the requests in progress hold together."""

    requests: int = 0
    body_bytes: int = 0


def build_app(backend: Backend, config: RpcSection) -> App:
    """Return the application; ``scope["state"]["connection"]`` must hold the client's `trio.SocketStream`."""

    async def health(_request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(_request: Request) -> Response:
        status = backend.status()
        code = HTTPStatus.OK if status.ready else HTTPStatus.SERVICE_UNAVAILABLE
        document = {"ready": status.ready, "reason": status.not_ready_reason, "height": status.height}
        return JSONResponse(document, code)

    starlette = Starlette(
        routes=[
            Route("/", partial(_serve_call, backend, config, _Load()), methods=["POST"]),
            Route("/health", health, methods=["GET"]),
            Route("/ready", ready, methods=["GET"]),
        ],
        exception_handlers={
            HTTPStatus.NOT_FOUND: _no_such_page,
            HTTPStatus.METHOD_NOT_ALLOWED: _no_such_page,
        },
    )
    return partial(_guard, starlette, 2 * config.request_timeout_ms / 1000)


async def _no_such_page(_request: Request, error: Exception) -> Response:
    pages = ["POST / (JSON-RPC 2.0)", "GET /health", "GET /ready"]
    code = error.status_code if isinstance(error, HTTPException) else HTTPStatus.NOT_FOUND
    return JSONResponse({"error": "no such page", "pages": pages}, code)


async def _serve_call(backend: Backend, config: RpcSection, load: _Load, request: Request) -> Response:
    """``POST /``: refuse what is over a limit before reading it, else read and answer within the deadline."""
    try:
        _check_origin(request, config.host)
        if load.requests >= config.requests_concurrent_max:
            raise _busy(config.requests_concurrent_max, "requests")
        load.requests += 1
        try:
            with trio.fail_after(config.request_timeout_ms / 1000):
                response = await _read_and_answer(backend, config, load, request)
        except trio.TooSlowError:
            data: dict[str, object] = {"timeout_ms": config.request_timeout_ms}
            text = f"not done within {config.request_timeout_ms} ms"
            raise Fault(Code.REQUEST_TIMEOUT, text, data) from None
        finally:
            load.requests -= 1
    except Fault as fault:
        status = _HTTP_STATUS.get(fault.code, HTTPStatus.OK)
        headers = {"connection": "close"} if status is not HTTPStatus.OK else None
        return Response(error_body(fault), status, headers, media_type="application/json")
    except ClientDisconnect:
        # Nobody is left to read the answer.
        return Response(status_code=HTTPStatus.BAD_REQUEST)
    if response is None:
        return Response(status_code=HTTPStatus.NO_CONTENT)
    return Response(response, media_type="application/json")


async def _read_and_answer(
    backend: Backend, config: RpcSection, load: _Load, request: Request
) -> bytes | None:
    announced = request.headers.get("content-length", "0")
    if not announced.isdigit() or int(announced) > config.body_bytes_max:
        raise _too_large(config.body_bytes_max)
    bytes_held_max = BODIES_HELD_MAX * config.body_bytes_max
    body = bytearray()
    try:
        async with aclosing(request.stream()) as stream:
            async for chunk in stream:
                # The length may be absent (chunked transfer), so it is counted as well.
                if len(body) + len(chunk) > config.body_bytes_max:
                    raise _too_large(config.body_bytes_max)
                if load.body_bytes + len(chunk) > bytes_held_max:
                    raise _busy(bytes_held_max, "bytes")
                body += chunk
                load.body_bytes += len(chunk)
        return await answer(bytes(body), METHODS, backend, config.batch_max, RESPONSE_BYTES_MAX)
    finally:
        load.body_bytes -= len(body)


def _check_origin(request: Request, bound_host: str) -> None:
    """Refuse web pages of other origins, which a browser on the operator's machine would let reach loopback.

    Browsers send ``Origin`` with every POST and pages cannot forge it; other clients send none. On loopback the host
    must be a loopback name too, or a page could rebind its own name to 127.0.0.1.
    """
    origin = request.headers.get("origin")
    if origin is None:
        return
    host = request.headers.get("host", "")
    name = urlsplit(f"//{host}").hostname
    if urlsplit(origin).netloc != host or (bound_host in _LOOPBACK_NAMES and name not in _LOOPBACK_NAMES):
        expected = "no Origin header, or the node's own"
        raise Fault(Code.ORIGIN_REFUSED, "this origin may not call the node", {"expected": expected})


def _too_large(bytes_max: int) -> Fault:
    return Fault(Code.BODY_TOO_LARGE, f"the body is over {bytes_max} bytes", {"bytes_max": bytes_max})


def _busy(limit: int, unit: str) -> Fault:
    return Fault(
        Code.SERVER_BUSY, f"over {limit} {unit} in progress; try again", {"limit": limit, "unit": unit}
    )


async def _guard(
    app: App, life_s: float, scope: MutableMapping[str, Any], receive: Receive, send: Send
) -> None:
    """Bound a request's whole life, the transfer of its answer included, and leave no connection half used.

    Hypercorn writes in a shielded scope and stops reading once ten pieces of a body wait: a client that stops reading,
    or keeps sending past the answer, would hold its connection for ever. Here the first is cut off after ``life_s``, the
    second a moment after its answer (at once, and the answer would be lost to it: TCP resets discard what is unread).
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

        async def send_watched(message: Message) -> None:
            if (
                message["type"] != "http.response.body"
                or message.get("more_body", False)
                or body_ended.is_set()
            ):
                await send(message)
                return
            nursery.start_soon(drain)
            await send({**message, "more_body": True})
            with trio.move_on_after(_LINGER_S):
                await body_ended.wait()
            if not body_ended.is_set():
                stream.socket.close()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        nursery.start_soon(_close_after, stream, life_s)
        await app(scope, receive_watched, send_watched)
        nursery.cancel_scope.cancel()


async def _close_after(stream: trio.SocketStream, seconds: float) -> None:
    await trio.sleep(seconds)
    stream.socket.close()
