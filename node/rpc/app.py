"""The ASGI application: routes, and the limits that guard them.

``POST /`` is JSON-RPC; ``GET /health`` says that the process is alive, ``GET /ready`` that it is in step with the chain.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

import structlog
import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from node.config import RpcSection
from node.rpc.backend import Backend
from node.rpc.errors import Code, Fault
from node.rpc.methods import build_methods
from node.rpc.protocol import answer, error_body

_log = structlog.get_logger("rpc")

BODIES_HELD_MAX = 8
"""Bodies in memory at once, in units of the largest that is allowed."""

RESPONSE_BYTES_MAX = 64 * 2**20
"""A batch's answers stop growing past this."""

_LINGER_S = 1.0
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")


@dataclass(slots=True)
class _Load:
    """What requests in progress hold."""

    requests: int = 0
    body_bytes: int = 0


def build_app(backend: Backend, config: RpcSection) -> ASGIApp:
    """Return the application; ``scope["state"]["connection"]`` must hold the client's `trio.SocketStream`."""
    load = _Load()
    methods = build_methods()

    async def rpc(request: Request) -> Response:
        held = 0
        try:
            _check_origin(request, config.host)
            if load.requests >= config.requests_concurrent_max:
                raise _busy(config.requests_concurrent_max, "requests")
            load.requests += 1
            try:
                with trio.fail_after(config.request_timeout_ms / 1000):
                    chunks = []
                    async for chunk in _body(request, config.body_bytes_max):
                        if load.body_bytes + len(chunk) > BODIES_HELD_MAX * config.body_bytes_max:
                            raise _busy(BODIES_HELD_MAX * config.body_bytes_max, "bytes")
                        held += len(chunk)
                        load.body_bytes += len(chunk)
                        chunks.append(chunk)
                    response = await answer(
                        b"".join(chunks), methods, backend, config.batch_max, RESPONSE_BYTES_MAX
                    )
            except trio.TooSlowError:
                timeout_ms = config.request_timeout_ms
                data: dict[str, object] = {"timeout_ms": timeout_ms}
                raise Fault(Code.REQUEST_TIMEOUT, f"not done within {timeout_ms} ms", data) from None
            finally:
                load.requests -= 1
                load.body_bytes -= held
        except Fault as fault:
            return Response(error_body(fault), _HTTP_STATUS[fault.code], media_type="application/json")
        if response is None:
            return Response(status_code=HTTPStatus.NO_CONTENT)
        return Response(response, media_type="application/json")

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(request: Request) -> Response:
        status = backend.status()
        code = HTTPStatus.OK if status.ready else HTTPStatus.SERVICE_UNAVAILABLE
        document = {"ready": status.ready, "reason": status.not_ready_reason, "height": status.height}
        return JSONResponse(document, code)

    routes = [
        Route("/", rpc, methods=["POST"]),
        Route("/health", health, methods=["GET"]),
        Route("/ready", ready, methods=["GET"]),
    ]
    return _Guard(Starlette(routes=routes), 2 * config.request_timeout_ms / 1000)


_HTTP_STATUS = {
    Code.BODY_TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Code.SERVER_BUSY: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.REQUEST_TIMEOUT: HTTPStatus.REQUEST_TIMEOUT,
    Code.ORIGIN_REFUSED: HTTPStatus.FORBIDDEN,
}


class _Guard:
    """Bounds every request's whole life, its answer's transfer included, and leaves no connection half used.

    A client that stops reading or keeps sending past the answer is cut off by closing its socket.
    """

    def __init__(self, app: ASGIApp, life_s: float) -> None:
        self._app = app
        self._life_s = life_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        body_ended = False

        async def receive_watched() -> Message:
            nonlocal body_ended
            message = await receive()
            if message["type"] != "http.request" or not message.get("more_body", False):
                body_ended = True
            return message

        stream: trio.SocketStream = scope["state"]["connection"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_close_after, stream, self._life_s)
            await self._app(scope, receive_watched, send)
            # The answer is out. A client still sending gets a moment to notice it, then the end; answering with an
            # abrupt close would destroy the answer on its way.
            with trio.move_on_after(_LINGER_S):
                while not body_ended:
                    await receive_watched()
            if not body_ended:
                stream.socket.close()
            nursery.cancel_scope.cancel()


async def _close_after(stream: trio.SocketStream, seconds: float) -> None:
    await trio.sleep(seconds)
    stream.socket.close()


async def _body(request: Request, bytes_max: int):  # type: ignore[no-untyped-def]
    raise NotImplementedError
