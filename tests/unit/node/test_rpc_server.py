"""The HTTP server on loopback: limits, hostile clients, and a prompt end."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
import trio

from node.config import RpcSection
from node.errors import AddressUnavailable
from node.rpc.errors import Code
from node.rpc.server import serve_rpc
from tests.unit.node.ledger_backend import LedgerBackend, RunningServer, running_server

STATUS = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "status"}).encode()


@contextmanager
def connecting(server: RunningServer) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    try:
        yield connection
    finally:
        connection.close()


def dialled(server: RunningServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=5)


def post(server: RunningServer, body: bytes, **headers: str) -> tuple[int, bytes]:
    with connecting(server) as connection:
        connection.request(
            "POST", "/", body, {name.replace("_", "-"): value for name, value in headers.items()}
        )
        response = connection.getresponse()
        return response.status, response.read()


def get(server: RunningServer, path: str) -> tuple[int, dict[str, object]]:
    with connecting(server) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def receive_all(client: socket.socket) -> bytes:
    received = b""
    with suppress(ConnectionResetError):
        while chunk := client.recv(65536):
            received += chunk
    return received


def code_of(data: bytes) -> int:
    code = json.loads(data)["error"]["code"]
    assert isinstance(code, int)
    return code


def tx_submit(body: str = "00") -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tx_submit", "params": {"tx": body}}).encode()


def send_for(client: socket.socket, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        client.sendall(b" " * 65536)


def blob_get(count: int) -> bytes:
    call = {"jsonrpc": "2.0", "id": 1, "method": "blob_get", "params": {"digest": "00" * 32}}
    return json.dumps([call] * count).encode()


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


def test_health_says_alive_and_ready_follows_the_node() -> None:
    with running_server() as server:
        assert get(server, "/health") == (200, {"status": "alive"})
        assert get(server, "/ready") == (200, {"ready": True, "reason": "", "height": 0})
        server.backend.ready = False
        assert get(server, "/ready") == (503, {"ready": False, "reason": "catching up", "height": 0})
        assert get(server, "/health")[0] == 200


@pytest.mark.parametrize(("path", "status"), [("/", 405), ("/nowhere", 404)])
def test_other_pages_say_what_there_is(path: str, status: int) -> None:
    with running_server() as server:
        found, document = get(server, path)
        assert found == status
        assert "GET /ready" in str(document["pages"])


def test_no_content_type_is_asked_for() -> None:
    with running_server() as server:
        assert json.loads(post(server, STATUS, content_type="text/plain")[1])["result"]["height"] == 0


def test_a_fault_of_the_node_hides_its_details() -> None:
    with running_server(LedgerBackend(broken=True)) as server:
        data = post(server, STATUS)[1]
        assert code_of(data) == Code.INTERNAL_ERROR
        assert b"fault of the node" not in data


def test_an_announced_body_over_the_limit_is_refused_unread() -> None:
    with running_server(config=RpcSection(port=0, body_bytes_max=2048)) as server:
        with dialled(server) as client:
            client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000000\r\n\r\n")
            answer = receive_all(client)
        assert answer.startswith(b"HTTP/1.1 413")
        assert str(Code.BODY_TOO_LARGE.value).encode() in answer


def test_a_chunked_body_over_the_limit_is_refused_as_it_comes() -> None:
    config = RpcSection(port=0, body_bytes_max=2048)
    with running_server(config=config) as server, connecting(server) as connection:
        connection.request("POST", "/", iter([b" " * 1000] * 4), encode_chunked=True)
        response = connection.getresponse()
        assert response.status == 413
        assert json.loads(response.read())["error"]["data"] == {"bytes_max": 2048}


def test_a_client_that_keeps_sending_past_the_refusal_is_cut_off() -> None:
    with running_server(config=RpcSection(port=0, body_bytes_max=2048)) as server:
        with dialled(server) as client:
            client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000000\r\n\r\n")
            began = time.monotonic()
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                send_for(client, 10)
        assert time.monotonic() < began + 5
        assert json.loads(post(server, STATUS)[1])["result"]["height"] == 0


def test_a_body_on_get_does_not_hold_the_connection() -> None:
    with running_server() as server, dialled(server) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000\r\n\r\n")
        client.sendall(b" " * 500_000)
        assert b"alive" in receive_all(client)


def test_a_body_that_never_comes_times_out() -> None:
    with running_server(config=RpcSection(port=0, request_timeout_ms=200)) as server:
        with dialled(server) as client:
            client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
            answer = receive_all(client)
        assert answer.startswith(b"HTTP/1.1 408")
        assert str(Code.REQUEST_TIMEOUT.value).encode() in answer


def test_a_slow_method_times_out() -> None:
    backend = LedgerBackend()
    with running_server(backend, RpcSection(port=0, request_timeout_ms=200)) as server:
        backend.slow = server.do(trio.Event)
        status, data = post(server, tx_submit())
        assert (status, code_of(data)) == (408, Code.REQUEST_TIMEOUT)


def test_concurrent_requests_over_the_limit_are_told_to_come_again() -> None:
    backend = LedgerBackend()
    with running_server(backend, RpcSection(port=0, requests_concurrent_max=1)) as server:
        slow = backend.slow = server.do(trio.Event)
        with connecting(server) as first:
            first.request("POST", "/", tx_submit())
            wait_for(lambda: post(server, STATUS)[0] == 503)
            assert code_of(post(server, STATUS)[1]) == Code.SERVER_BUSY
            server.do(slow.set)
            assert code_of(first.getresponse().read()) == Code.TRANSACTION_REFUSED
        assert post(server, STATUS)[0] == 200


def test_connections_over_the_limit_are_refused_and_free_places_are_given_again() -> None:
    with running_server(config=RpcSection(port=0, connections_max=1)) as server:
        with dialled(server) as holder:
            holder.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            answer = holder.recv(65536)
            while b"alive" not in answer:  # head and body may come apart
                part = holder.recv(65536)
                assert part, answer
                answer += part
            with dialled(server) as second:
                assert receive_all(second).startswith(b"HTTP/1.1 503")
        wait_for(lambda: post(server, STATUS)[0] == 200)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00" * 2000,
        b"GET / HTTP/9.9\r\n\r\n",
        b"A" * 100_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 99,
    ],
)
def test_garbage_ends_its_own_connection_only(garbage: bytes) -> None:
    with running_server() as server:
        # The server may have hung up on the first bytes already.
        with dialled(server) as client, suppress(OSError):
            client.sendall(garbage)
            client.shutdown(socket.SHUT_WR)
            receive_all(client)
        assert post(server, STATUS)[0] == 200


def test_websockets_are_refused() -> None:
    with running_server() as server, dialled(server) as client:
        client.sendall(
            b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
        )
        assert receive_all(client).startswith(b"HTTP/1.1 403")


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        ("http://evil.example", "127.0.0.1:1", False),
        ("http://evil.example:1", "evil.example:1", False),
        ("null", "127.0.0.1:1", False),
        ("http://127.0.0.1:1", "127.0.0.1:1", True),
        ("http://localhost:1", "localhost:1", True),
    ],
)
def test_web_pages_of_other_origins_are_refused(origin: str, host: str, allowed: bool) -> None:
    with running_server() as server:
        status, data = post(server, STATUS, origin=origin, host=host)
        assert status == (200 if allowed else 403)
        assert allowed or code_of(data) == Code.ORIGIN_REFUSED


def test_idle_keep_alive_clients_do_not_delay_the_end() -> None:
    with running_server() as server, ExitStack() as clients:
        for _ in range(3):
            idle = clients.enter_context(connecting(server))
            idle.request("POST", "/", STATUS)
            idle.getresponse().read()
        clients.enter_context(dialled(server))
        began = time.monotonic()
        assert server.stop(2)
        assert time.monotonic() - began < 1.5


def test_requests_in_progress_and_clients_that_stopped_reading_do_not_delay_the_end() -> None:
    backend = LedgerBackend()
    backend.blobs[bytes(32)] = bytes(2**23)
    with running_server(backend) as server, connecting(server) as stalled, connecting(server) as waiting:
        stalled.request("POST", "/", blob_get(2))
        stalled.sock.recv(1000)
        backend.slow = server.do(trio.Event)
        waiting.request("POST", "/", tx_submit())
        began = time.monotonic()
        assert server.stop(2)
        assert time.monotonic() - began < 1.5


def test_a_client_that_stops_reading_is_cut_off_in_time() -> None:
    backend = LedgerBackend()
    backend.blobs[bytes(32)] = bytes(2**23)
    config = RpcSection(port=0, request_timeout_ms=200, connections_max=1)
    with running_server(backend, config) as server, connecting(server) as stalled:
        stalled.request("POST", "/", blob_get(1))
        stalled.sock.recv(1000)
        assert post(server, STATUS)[0] == 503
        wait_for(lambda: post(server, STATUS)[0] == 200)


def test_cancelling_the_scope_ends_the_server_at_once() -> None:
    async def main() -> float:
        async with trio.open_nursery() as nursery:
            url = await nursery.start(serve_rpc, LedgerBackend(), RpcSection(port=0), trio.Event())
            stream = await trio.open_tcp_stream("127.0.0.1", int(url.rsplit(":", 1)[1]))
            await trio.sleep(0.05)
            began = trio.current_time()
            nursery.cancel_scope.cancel()
        await stream.aclose()
        return trio.current_time() - began

    assert trio.run(main) < 1


def test_a_taken_port_is_a_typed_error() -> None:
    async def main(port: int) -> None:
        await serve_rpc(LedgerBackend(), RpcSection(port=port), trio.Event())

    with running_server() as server, pytest.raises(AddressUnavailable, match="cannot listen on"):
        trio.run(main, server.port)


def test_the_url_answers_on_the_same_port_after_a_restart() -> None:
    with running_server() as server:
        port = server.port
        with dialled(server):
            assert server.stop(2)
    with running_server(config=RpcSection(port=port)) as again:
        assert post(again, STATUS)[0] == 200
