"""The HTTP server, inside the caller's nursery: how many connections there may be, and how it ends.

A fault in one connection cannot end the daemon, and the end waits for no client that has stopped reading.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from node.config import RpcSection
from node.errors import AddressUnavailable
from node.rpc.app import build_app
from node.rpc.backend import Backend
from node.rpc.http import App, Connection, Patience
from node.rpc.limits import client_key

if TYPE_CHECKING:
    # Not trio's own: the stubs that libp2p's dependencies install shadow trio's annotations.
    from trio_typing import TaskStatus

_log = structlog.get_logger("rpc")

SHUTDOWN_GRACE_S = 0.5
"""How long requests in progress may go on once the node stops; then their connections are closed."""

_BACKLOG = 128
_REFUSALS_MAX = 64
_REFUSAL_READ_BYTES = 65536
_REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


@dataclass(slots=True)
class _Connections:
    """The open connections, how many each client has, and an event for when the last of them has ended."""

    by_client: Counter[str] = field(default_factory=Counter)
    open: dict[trio.SocketStream, Connection] = field(default_factory=dict)
    all_ended: trio.Event = field(default_factory=trio.Event)
    closing: bool = False
    refusals: int = 0

    def begin(self, stream: trio.SocketStream, client: str | None, connection: Connection) -> None:
        self.open[stream] = connection
        if client is not None:
            self.by_client[client] += 1

    def end(self, stream: trio.SocketStream, client: str | None) -> None:
        del self.open[stream]
        if client is not None:
            self.by_client[client] -= 1
            if not self.by_client[client]:
                del self.by_client[client]
        if self.closing and not self.open:
            self.all_ended.set()

    async def end_all(self) -> None:
        """Tell all of them to end, and return when the last one has."""
        self.closing = True
        for connection in self.open.values():
            connection.end()
        if self.open:
            await self.all_ended.wait()


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
    patience = Patience(config.idle_timeout_ms / 1000, 2 * config.request_timeout_ms / 1000)
    serve_connection = partial(
        _serve_connection,
        build_app(backend, config, shutdown),
        patience,
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
            with trio.move_on_after(SHUTDOWN_GRACE_S):
                await connections.end_all()
        finally:
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
    app: App,
    patience: Patience,
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
    connection = Connection(app, stream, patience)
    connections.begin(stream, client, connection)
    try:
        await connection.run()
    except Exception as error:
        # One client's connection must never end the daemon's nursery, whatever we did not think of.
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
