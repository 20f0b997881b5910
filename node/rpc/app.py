"""The ASGI application: routes, and the limits that guard them.

``POST /`` is JSON-RPC, ``GET /events`` a stream of what blocks hold; ``GET /health`` says that the process is alive,
``GET /ready`` that it is in step with the chain, ``GET /metrics`` how it fares.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import urlsplit

import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from node.config import RpcSection
from node.metrics import CONTENT_TYPE
from node.rpc.backend import Backend
from node.rpc.errors import Code, Fault
from node.rpc.events import Feed, Filter, Position, last_event, read_filter, read_position
from node.rpc.http import App, Receive, Scope, Send
from node.rpc.limits import RateLimiter, client_key
from node.rpc.methods import METHODS
from node.rpc.protocol import answer, error_body

BODIES_HELD_MAX = 8
"""Bodies in memory at once, in units of the largest that is allowed."""

RESPONSE_BYTES_MAX = 64 * 2**20
"""A batch's answers stop growing past this."""

_PAGES = ["POST / (JSON-RPC 2.0)", "GET /health", "GET /ready", "GET /metrics", "GET /events"]
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_HTTP_STATUS = {
    Code.BODY_TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Code.SERVER_BUSY: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.REQUEST_TIMEOUT: HTTPStatus.REQUEST_TIMEOUT,
    Code.ORIGIN_REFUSED: HTTPStatus.FORBIDDEN,
    Code.RATE_LIMITED: HTTPStatus.TOO_MANY_REQUESTS,
}


@dataclass(slots=True)
class _Load:
    """What the requests in progress hold together."""

    requests: int = 0
    body_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Service:
    """What every route needs."""

    backend: Backend
    config: RpcSection
    limiter: RateLimiter
    feed: Feed
    shutdown: trio.Event
    load: _Load = field(default_factory=_Load)


def build_app(backend: Backend, config: RpcSection, shutdown: trio.Event) -> App:
    """Return the ASGI application. Event streams end once ``shutdown`` is set."""
    limiter = RateLimiter(config.calls_per_second, config.calls_burst)
    feed = Feed(backend, config.event_subscribers_max, config.event_resume_blocks_max)
    service = _Service(backend, config, limiter, feed, shutdown)
    call = _page(service, _serve_call)
    starlette = Starlette(
        routes=[
            Route("/", call, methods=["POST"]),
            # Never refused: whoever kills what does not answer here would kill a busy node.
            Route("/health", _health, methods=["GET"]),
            Route("/ready", _page(service, _ready), methods=["GET"]),
            Route("/metrics", _page(service, _metrics), methods=["GET"]),
            Route("/events", _page(service, _events), methods=["GET"]),
        ],
        exception_handlers={
            HTTPStatus.NOT_FOUND: _no_such_page,
            HTTPStatus.METHOD_NOT_ALLOWED: _no_such_page,
        },
    )

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/" and scope["method"] == "POST":  # past the layers that are for the other pages
            response = await call(Request(scope, receive))
            await response(scope, receive, send)
        else:
            await starlette(scope, receive, send)

    return app


def _page(
    service: _Service, serve: Callable[[_Service, Request], Awaitable[Response]]
) -> Callable[[Request], Awaitable[Response]]:
    """A route that answers what it refuses with the fault's body and status, and counts it."""

    async def page(request: Request) -> Response:
        try:
            _check_rate(service, request)
            return await serve(service, request)
        except Fault as fault:
            service.backend.metrics.refused(fault.code.name)
            return _refusal(fault)

    return page


def _refusal(fault: Fault, status: HTTPStatus | None = None) -> Response:
    status = status or _HTTP_STATUS.get(fault.code, HTTPStatus.OK)
    headers = {} if status is HTTPStatus.OK else {"connection": "close"}
    if fault.code is Code.RATE_LIMITED:
        headers["retry-after"] = str(math.ceil(int(str(fault.data["retry_after_ms"])) / 1000))
    return Response(error_body(fault), status, headers, media_type="application/json")


async def _no_such_page(_request: Request, error: Exception) -> Response:
    code = error.status_code if isinstance(error, HTTPException) else HTTPStatus.NOT_FOUND
    return JSONResponse({"error": "no such page", "pages": _PAGES}, code)


async def _health(_request: Request) -> Response:
    return JSONResponse({"status": "alive"})


async def _ready(service: _Service, _request: Request) -> Response:
    status = service.backend.status()
    code = HTTPStatus.OK if status.ready else HTTPStatus.SERVICE_UNAVAILABLE
    document = {"ready": status.ready, "reason": status.not_ready_reason, "height": status.height}
    return JSONResponse(document, code)


async def _metrics(service: _Service, _request: Request) -> Response:
    return Response(await service.backend.metrics_text(), media_type=CONTENT_TYPE)


async def _events(service: _Service, request: Request) -> Response:
    if request.method == "HEAD":  # Starlette adds it to GET; it would hold a place and hear nothing
        raise HTTPException(HTTPStatus.METHOD_NOT_ALLOWED)
    _check_origin(request, service.config.host)
    try:
        wanted, after = read_filter(request.query_params.multi_items())
        # A client that reconnects repeats its address and says in this header how far it came.
        last = request.headers.get("last-event-id")
        start = service.feed.join(after if last is None else read_position(last, "Last-Event-ID"))
    except Fault as fault:
        if fault.code is Code.INVALID_PARAMS:
            service.backend.metrics.refused(fault.code.name)
            return _refusal(fault, HTTPStatus.BAD_REQUEST)
        raise
    return _EventStream(service, start, wanted)


class _EventStream(Response):
    """The answer to a subscriber: ends when it goes, when it takes nothing, or when the node stops."""

    def __init__(self, service: _Service, start: Position, wanted: Filter) -> None:
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._service = service
        self._start = start
        self._wanted = wanted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [entry for entry in self.raw_headers if entry[0] != b"content-length"]

        async def write(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        async def follow() -> None:
            await self._service.feed.follow(self._start, self._wanted, write)

        async def end_with_client(ends: trio.CancelScope) -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            ends.cancel()

        try:
            await send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": headers})
            async with trio.open_nursery() as nursery:
                nursery.start_soon(end_with_client, nursery.cancel_scope)
                nursery.start_soon(follow)
                await self._service.shutdown.wait()
                nursery.cancel_scope.cancel()
            if self._service.shutdown.is_set():
                await write(last_event("the node is stopping"))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._service.feed.leave()


def _check_rate(service: _Service, request: Request) -> None:
    client = _client(service, request)
    if client is None:
        return
    wait_s = service.limiter.take(client, trio.current_time())
    if wait_s > 0:
        after_ms = math.ceil(wait_s * 1000)
        text = f"over {service.config.calls_per_second} calls a second; try again in {after_ms} ms"
        raise Fault(Code.RATE_LIMITED, text, {"retry_after_ms": after_ms})


def _client(service: _Service, request: Request) -> str | None:
    """Whose rate a request counts for, or None."""
    if request.client is None:
        return None
    return client_key(request.client.host, limit_loopback=service.config.limit_loopback)


async def _serve_call(service: _Service, request: Request) -> Response:
    """``POST /``: refuse what is over a limit before reading it, else read and answer within the deadline."""
    config, load = service.config, service.load
    _check_origin(request, config.host)
    if load.requests >= config.requests_concurrent_max:
        raise _busy(config.requests_concurrent_max, "requests")
    load.requests += 1
    try:
        with trio.fail_after(config.request_timeout_ms / 1000):
            response = await _read_and_answer(service, request)
    except trio.TooSlowError:
        data: dict[str, object] = {"timeout_ms": config.request_timeout_ms}
        raise Fault(Code.REQUEST_TIMEOUT, f"not done within {config.request_timeout_ms} ms", data) from None
    except ClientDisconnect:
        # Nobody is left to read the answer.
        return Response(status_code=HTTPStatus.BAD_REQUEST)
    finally:
        load.requests -= 1
    if response is None:
        return Response(status_code=HTTPStatus.NO_CONTENT)
    return Response(response, media_type="application/json")


async def _read_and_answer(service: _Service, request: Request) -> bytes | None:
    config, load = service.config, service.load
    announced = request.headers.get("content-length", "0")
    if not announced.isdigit() or int(announced) > config.body_bytes_max:
        raise _too_large(config.body_bytes_max)
    bytes_held_max = BODIES_HELD_MAX * config.body_bytes_max
    body = bytearray()

    def charge(calls: int) -> None:
        if (client := _client(service, request)) is not None:
            service.limiter.charge(client, calls, trio.current_time())

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
        called = service.backend.metrics.called
        return await answer(
            bytes(body), METHODS, service.backend, config.batch_max, RESPONSE_BYTES_MAX, called, charge
        )
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
