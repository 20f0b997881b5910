"""Limits per client address, slow clients, and the one protocol that is spoken."""

from __future__ import annotations

import http.client
import json
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace

import pytest

from node.client import Client, RpcError
from node.config import RpcSection
from node.rpc.errors import Code
from node.rpc.limits import ADDRESSES_MAX, RateLimiter, client_key
from tests.unit.node.ledger_backend import RunningServer, running_server

LIMITED = RpcSection(port=0, limit_loopback=True, calls_per_second=1, calls_burst=3)
STATUS = {"jsonrpc": "2.0", "id": 1, "method": "status"}


def post(server: RunningServer, document: object) -> tuple[int, dict[str, str], object]:
    with connecting(server) as connection:
        connection.request("POST", "/", json.dumps(document).encode())
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), json.loads(response.read())


@contextmanager
def connecting(server: RunningServer) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        yield connection
    finally:
        connection.close()


def get(server: RunningServer, path: str) -> int:
    with connecting(server) as connection:
        connection.request("GET", path)
        return connection.getresponse().status


def dialled(server: RunningServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def closed(client: socket.socket) -> bool:
    """Read until the server closes; whatever it says on the way."""
    with suppress(ConnectionResetError):
        while client.recv(65536):
            pass
    return True


# --- the buckets themselves ---


def test_a_burst_passes_then_as_many_a_second_as_are_allowed() -> None:
    limiter = RateLimiter(per_second=10, burst=5)
    assert [limiter.take("a", 0.0) for _ in range(5)] == [0.0] * 5
    assert limiter.take("a", 0.0) == pytest.approx(0.1)
    assert limiter.take("a", 0.05) == pytest.approx(0.05)
    assert limiter.take("a", 0.1) == 0.0
    assert limiter.take("b", 0.1) == 0.0


def test_a_batch_is_paid_off_before_the_next_call_and_a_bucket_never_overflows() -> None:
    limiter = RateLimiter(per_second=10, burst=5)
    assert limiter.take("a", 0.0) == 0.0
    limiter.charge("a", 49, 0.0)
    assert limiter.take("a", 0.0) == pytest.approx(4.6)
    assert limiter.take("a", 4.7) == 0.0
    assert [limiter.take("a", 1000.0) for _ in range(6)] == [0.0] * 5 + [pytest.approx(0.1)]


def test_time_that_goes_back_gives_nothing() -> None:
    limiter = RateLimiter(per_second=1, burst=1)
    assert limiter.take("a", 100.0) == 0.0
    assert limiter.take("a", 0.0) == 1.0


def test_the_table_of_addresses_is_bounded_and_forgets_the_quietest() -> None:
    limiter = RateLimiter(per_second=1, burst=1)
    assert limiter.take("busy", 0.0) == 0.0
    for number in range(2 * ADDRESSES_MAX):
        limiter.take(f"stranger {number}", 0.0)
        assert limiter.take("busy", 0.0) > 0
    assert len(limiter) == ADDRESSES_MAX


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("127.0.0.1", None),
        ("127.9.9.9", None),
        ("::1", None),
        ("::ffff:127.0.0.1", None),
    ],
)
def test_a_client_is_an_address_or_a_network_of_ipv6_and_never_this_machine(
    host: str, key: str | None
) -> None:
    assert client_key(host, limit_loopback=False) == key
    assert client_key(host, limit_loopback=True) is not None


# --- over HTTP ---


def test_a_client_over_its_rate_is_told_when_to_come_again() -> None:
    with running_server(config=LIMITED) as server:
        assert [post(server, STATUS)[0] for _ in range(3)] == [200] * 3
        status, headers, document = post(server, STATUS)
        assert status == 429
        assert headers["retry-after"] == "1"
        assert isinstance(document, dict)
        assert document["error"]["code"] == Code.RATE_LIMITED
        assert 0 < document["error"]["data"]["retry_after_ms"] <= 1000
        assert get(server, "/metrics") == get(server, "/events") == get(server, "/ready") == 429
        assert get(server, "/health") == 200


def test_each_call_of_a_batch_counts() -> None:
    with running_server(config=replace(LIMITED, calls_burst=20)) as server:
        assert post(server, [STATUS] * 40)[0] == 200
        status, _, document = post(server, STATUS)
        assert status == 429
        assert isinstance(document, dict)
        assert document["error"]["data"]["retry_after_ms"] > 10_000


def test_clients_of_this_machine_are_not_counted_unless_asked_for() -> None:
    with running_server(config=replace(LIMITED, limit_loopback=False)) as server:
        assert [post(server, STATUS)[0] for _ in range(10)] == [200] * 10


def test_no_rate_means_no_limit() -> None:
    with running_server(config=replace(LIMITED, calls_per_second=0)) as server:
        assert [post(server, STATUS)[0] for _ in range(10)] == [200] * 10


def test_the_client_comes_again_when_it_was_told_to() -> None:
    with running_server(config=replace(LIMITED, calls_per_second=5, calls_burst=1)) as server:
        client = Client(server.url)
        assert [client.status()["height"] for _ in range(4)] == [0] * 4
    with running_server(config=replace(LIMITED, calls_burst=1)) as server:
        post(server, [STATUS] * 50)
        with pytest.raises(RpcError) as caught:
            Client(server.url).status()  # a minute is too long to wait unasked
        assert caught.value.code == Code.RATE_LIMITED


def test_one_address_cannot_take_all_connections() -> None:
    config = RpcSection(port=0, limit_loopback=True, connections_per_address_max=3)
    with running_server(config=config) as server:
        with ExitStack() as clients:
            held = [clients.enter_context(dialled(server)) for _ in range(3)]
            for connection in held:
                connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
                assert connection.recv(12) == b"HTTP/1.1 200"
            with dialled(server) as fourth:
                assert fourth.recv(12) == b"HTTP/1.1 503"
        deadline = time.monotonic() + 10
        while get(server, "/health") != 200:  # the places are given back
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert b'openledger_rpc_refusals_total{reason="CONNECTIONS_PER_ADDRESS_MAX"}' in (
            server.backend.metrics.render()
        )


# --- slow clients ---


@pytest.mark.parametrize("beginning", [b"", b"GET /health HTTP/1.1\r\nx-slow: "], ids=["silent", "dripping"])
def test_a_request_head_that_does_not_come_whole_in_time_is_hung_up_on(beginning: bytes) -> None:
    with running_server(config=RpcSection(port=0, idle_timeout_ms=400)) as server, dialled(server) as client:
        began = time.monotonic()
        client.sendall(beginning)
        client.settimeout(0.05)
        ended = False
        while not ended:
            assert time.monotonic() < began + 8, "a byte now and then kept the connection"
            try:
                if beginning:
                    client.sendall(b"x")
                ended = client.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:
                ended = True
        assert time.monotonic() - began > 0.3


def test_many_idle_connections_give_their_places_back() -> None:
    config = RpcSection(port=0, idle_timeout_ms=300, connections_max=20)
    with running_server(config=config) as server, ExitStack() as clients:
        idle = [clients.enter_context(dialled(server)) for _ in range(20)]
        assert all(closed(connection) for connection in idle)
        assert get(server, "/health") == 200


def test_a_body_that_drips_is_timed_out_as_a_whole() -> None:
    config = RpcSection(port=0, request_timeout_ms=400)
    with running_server(config=config) as server, dialled(server) as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n")
        client.settimeout(0.05)
        answer, began = b"", time.monotonic()
        while b"408" not in answer:
            assert time.monotonic() < began + 8, "a byte now and then kept the request"
            client.sendall(b" ")
            with suppress(TimeoutError):
                answer += client.recv(65536)
        assert str(Code.REQUEST_TIMEOUT.value).encode() in answer or b"408" in answer


def test_bodies_in_memory_are_bounded_together() -> None:
    config = RpcSection(port=0, body_bytes_max=64 * 1024)
    with running_server(config=config) as server, ExitStack() as clients:
        nine = [clients.enter_context(dialled(server)) for _ in range(9)]
        for client in nine:  # one more than are held at once, none of them complete
            client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 65536\r\n\r\n" + b" " * 65535)
        refused, _, _ = select.select(nine, [], [], 10)
        assert len(refused) == 1
        response = http.client.HTTPResponse(refused[0])
        response.begin()
        document = json.loads(response.read())
        assert response.status == 503
        assert document["error"]["code"] == Code.SERVER_BUSY
        assert document["error"]["data"] == {"limit": 8 * 64 * 1024, "unit": "bytes"}


def test_header_floods_are_refused_at_sixteen_kibibytes() -> None:
    with running_server() as server, dialled(server) as client, suppress(BrokenPipeError):
        client.sendall(b"GET /health HTTP/1.1\r\nx: " + b"y" * 100_000)
        assert client.recv(12) in (b"HTTP/1.1 431", b"HTTP/1.1 400")


# --- one protocol ---


def test_http_2_is_not_spoken_with_prior_knowledge() -> None:
    with running_server() as server, dialled(server) as client:
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
        assert client.recv(9).startswith(b"HTTP/1.1")


def test_an_offer_of_http_2_is_answered_in_http_1() -> None:
    with running_server() as server, dialled(server) as client:
        client.sendall(
            b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n"
            b"http2-settings: AAMAAABkAAQAAP__\r\n\r\n"
        )
        assert client.recv(12) == b"HTTP/1.1 200"
