"""The HTTP server: Starlette on Hypercorn's trio connections, inside the caller's nursery.

Hypercorn's own accept loop is replaced by ours (`serve_rpc`) for what it does not do: a limit on connections, a fault
in one connection that cannot end the daemon, and a shutdown that does not wait for peers who have stopped reading
(Hypercorn writes in a shielded scope, which only closing the socket ends).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, cast

import h11
import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Event, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from node.config import RpcSection
from node.errors import AddressUnavailable
from node.rpc.app import build_app
from node.rpc.backend import Backend
from node.rpc.limits import client_key

if TYPE_CHECKING:
    from hypercorn.typing import ASGIFramework

    # Not trio's own: the stubs that libp2p's dependencies install shadow trio's annotations.
    from trio_typing import TaskStatus

_log = structlog.get_logger("rpc")

SHUTDOWN_GRACE_S = 0.5
"""How long requests in progress may go on once the node stops; then their connections are closed."""

_HEADER_BYTES_MAX = 16 * 1024
_BACKLOG = 128
_REFUSALS_MAX = 64
_REFUSAL_READ_BYTES = 65536
_REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


@dataclass(slots=True)
class _Connections:
    """The open connections, how many each client has, and an event for when the last of them has ended."""

    by_client: Counter[str] = field(default_factory=Counter)
    open: set[trio.SocketStream] = field(default_factory=set)
    all_ended: trio.Event = field(default_factory=trio.Event)
    closing: bool = False
    refusals: int = 0

    def begin(self, stream: trio.SocketStream, client: str | None) -> None:
        self.open.add(stream)
        if client is not None:
            self.by_client[client] += 1

    def end(self, stream: trio.SocketStream, client: str | None) -> None:
        self.open.discard(stream)
        if client is not None:
            self.by_client[client] -= 1
            if not self.by_client[client]:
                del self.by_client[client]
        if self.closing and not self.open:
            self.all_ended.set()

    async def wait_all_ended(self) -> None:
        self.closing = True
        if self.open:
            await self.all_ended.wait()


class _Http1(H11Protocol):
    """Hypercorn's HTTP/1.1, which stays with it.

    HTTP/2 would let one connection have a hundred requests in progress, and cancel and repeat them without end.
    """

    async def _check_protocol(self, event: h11.Request) -> None:
        """Take no offer of HTTP/2: ``Upgrade: h2c`` is ignored, ``PRI * HTTP/2.0`` is a page that there is not."""


class _Connection(TCPServer):
    """Hypercorn's connection, which frees its place as soon as the client has gone.

    Hypercorn waits for its keep-alive timer even when the client closed long before; a busy client without keep-alive
    would use up all places. And it speaks HTTP/1.1 alone.
    """

    _client_gone = False

    async def _read_data(self) -> None:
        wrapped = self.protocol
        self.protocol = _Http1(  # type: ignore[assignment]
            wrapped.app,
            wrapped.config,
            wrapped.context,
            wrapped.task_group,
            wrapped.state,
            wrapped.ssl,
            wrapped.client,
            wrapped.server,
            wrapped.send,
        )
        await super()._read_data()
        self._client_gone = True
        await self.idle_task.stop()

    async def protocol_send(self, event: Event) -> None:
        if self._client_gone and isinstance(event, Updated):
            return
        # A client that breaks the protocol while its answer is written makes Hypercorn answer twice at once: the
        # second answer is left out.
        with suppress(trio.BusyResourceError):
            await super().protocol_send(event)


async def serve_rpc(
    backend: Backend,
    config: RpcSection,
    shutdown: trio.Event,
    task_status: TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until ``shutdown`` is set or the scope is cancelled; then end within a second, whatever clients do.

    Reports the bound URL (``http://127.0.0.1:7550``, with the real port) through ``task_status``:
    ``url = await nursery.start(serve_rpc, backend, config, shutdown)``.
    Raises `AddressUnavailable` where it cannot listen.
    """
    listener = await _listen(config)
    host, port = listener.socket.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    connections = _Connections()
    context = WorkerContext(None)
    serve_connection = partial(
        _serve_connection,
        ASGIWrapper(cast("ASGIFramework", build_app(backend, config, shutdown))),
        _hypercorn_config(config),
        context,
        config,
        connections,
        backend.metrics.refused,
    )
    async with listener, trio.open_nursery() as handlers:
        try:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(
                    partial(trio.serve_listeners, serve_connection, [listener], handler_nursery=handlers)
                )
                task_status.started(url)
                await shutdown.wait()
                accepting.cancel_scope.cancel()
            # Idle connections end at once; those with a request in progress get the grace.
            await context.terminated.set()
            with trio.move_on_after(SHUTDOWN_GRACE_S):
                await connections.wait_all_ended()
        finally:
            # Also when cancelled from outside: what is shielded ends only with its socket.
            for connection in connections.open:
                connection.socket.close()
            handlers.cancel_scope.cancel()


async def _listen(config: RpcSection) -> trio.SocketListener:
    try:
        listeners = await trio.open_tcp_listeners(config.port, host=config.host, backlog=_BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise AddressUnavailable(config.host, config.port, reason) from error
    # A name such as "localhost" may stand for several addresses; with port 0 each would get a port of its own.
    for other in listeners[1:]:
        await other.aclose()
    return listeners[0]


async def _serve_connection(
    app: ASGIWrapper,
    hypercorn: HypercornConfig,
    context: WorkerContext,
    config: RpcSection,
    connections: _Connections,
    refused: Callable[[str], None],
    stream: trio.SocketStream,
) -> None:
    client = _client_of(stream, config)
    over = len(connections.open) >= config.connections_max
    if over or (client and connections.by_client[client] >= config.connections_per_address_max):
        refused("CONNECTIONS_MAX" if over else "CONNECTIONS_PER_ADDRESS_MAX")
        await _refuse(connections, stream)
        return
    connections.begin(stream, client)
    try:
        # The application needs its connection to cut off a client that neither reads nor stops sending.
        state = ConnectionState({"connection": stream})
        await _Connection(app, hypercorn, context, state, stream).run()  # type: ignore[arg-type]
    except Exception as error:
        # One client's connection must never end the daemon's nursery; h11 and h2 raise what they like.
        _log.warning("rpc.connection_failed", error=repr(error))
    finally:
        connections.end(stream, client)
        stream.socket.close()


async def _refuse(connections: _Connections, stream: trio.SocketStream) -> None:
    """Answer a connection over the limit, without parsing what it says.

    A close with bytes unread would reset the connection and take the answer along, so they are read and thrown away
    for a moment; past `_REFUSALS_MAX` of that at once, connections are closed without a word.
    """
    if connections.refusals < _REFUSALS_MAX:
        connections.refusals += 1
        try:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError), trio.move_on_after(1):
                await stream.send_all(_REFUSAL)
                await stream.send_eof()
                while await stream.receive_some(_REFUSAL_READ_BYTES):
                    pass
        finally:
            connections.refusals -= 1
    stream.socket.close()


def _client_of(stream: trio.SocketStream, config: RpcSection) -> str | None:
    try:
        host: str = stream.socket.getpeername()[0]
    except OSError:  # it has gone already
        return None
    return client_key(host, limit_loopback=config.limit_loopback)


def _hypercorn_config(section: RpcSection) -> HypercornConfig:
    config = HypercornConfig()
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    config.include_server_header = False
    config.h11_max_incomplete_size = _HEADER_BYTES_MAX
    config.keep_alive_timeout = section.idle_timeout_ms / 1000
    return config
