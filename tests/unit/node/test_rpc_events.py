"""Server-sent events: what is sent, in which order, what a resume misses (nothing), and what a subscriber can cost."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
import trio
from jsonschema import Draft7Validator
from trio.testing import MockClock

from node.client import Client, Event, NodeUnreachable, RpcError
from node.config import RpcSection
from node.ledger.bodies import Transfer
from node.rpc import events as feed_module
from node.rpc import shapes
from node.rpc.backend import BlockView
from node.rpc.errors import Code, Fault
from node.rpc.events import Feed, Filter, Position, read_filter, read_position
from node.rpc.schemas import schema_of
from tests.unit.node.ledger_backend import LedgerBackend, RunningServer, running_server
from tests.unit.node_ledger.world import VALIDATORS, address, seed

ALL = Filter(frozenset(feed_module.KINDS), {})
SHAPES = {
    "block": shapes.BlockEvent,
    "transaction": shapes.TransactionEvent,
    "receipt": shapes.ReceiptEvent,
}


def story(backend: LedgerBackend) -> bytes:
    """Play a settled inference; return its id."""
    world = backend.world
    settled = world.revealed(world.active_adapter())
    world.attest(settled, {name: world.answer(settled) for name in VALIDATORS})
    backend.tell_executed()
    return settled


def take(events: Iterator[Event], count: int) -> list[Event]:
    return [next(events) for _ in range(count)]


def collect(
    backend: LedgerBackend, start: Position, wanted: Filter = ALL, resume_blocks_max: int = 1000
) -> bytes:
    """Everything that is sent up to the present."""
    sent = bytearray()

    async def write(data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        sent.extend(data)

    async def main() -> None:
        with trio.move_on_after(0.5):
            await Feed(backend, 1, resume_blocks_max).follow(start, wanted, write)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return bytes(sent)


def parsed(sent: bytes) -> list[tuple[str, str, Any]]:
    """(kind, id, data) of each event."""
    found = []
    for part in sent.decode().split("\n\n"):
        members = dict(line.split(": ", 1) for line in part.splitlines() if not line.startswith(":"))
        if "data" in members:
            found.append((members["event"], members.get("id", ""), json.loads(members["data"])))
    return found


@contextmanager
def subscribed(server: RunningServer, path: str = "/events") -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request("GET", path)
        yield connection.getresponse()
    finally:
        connection.close()


def dialled(server: RunningServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def played() -> tuple[LedgerBackend, bytes]:
    backend = LedgerBackend()
    return backend, story(backend)


@pytest.fixture(scope="module")
def everything(played: tuple[LedgerBackend, bytes]) -> list[tuple[str, str, Any]]:
    return parsed(collect(played[0], Position(1, -1)))


# --- what is sent ---


def test_the_events_are_the_chain_block_by_block(
    played: tuple[LedgerBackend, bytes], everything: list[tuple[str, str, Any]]
) -> None:
    backend, _ = played
    expected: list[tuple[str, str]] = []
    for height in range(1, backend.world.height + 1):
        block = backend.block(height)
        assert block is not None
        kinds = ["block", *("transaction" for _ in block.transactions), *("receipt" for _ in block.events)]
        expected += [(kind, f"{height}-{index}") for index, kind in enumerate(kinds)]
    assert [(kind, name) for kind, name, _ in everything] == expected
    assert {kind for kind, _ in expected} == {"block", "transaction", "receipt"}


def test_every_event_has_its_declared_shape(everything: list[tuple[str, str, Any]]) -> None:
    components: dict[str, Any] = {}
    schemas = {kind: schema_of(shape, components) for kind, shape in SHAPES.items()}
    for kind, _, data in everything:
        Draft7Validator({**schemas[kind], "components": {"schemas": components}}).validate(data)


def test_a_resume_after_any_event_gives_exactly_the_rest(
    played: tuple[LedgerBackend, bytes], everything: list[tuple[str, str, Any]]
) -> None:
    backend, _ = played
    for cut in range(0, len(everything), 7):
        start = read_position(everything[cut][1], "after")
        assert list(_now(backend, start, ALL)) == everything[cut + 1 :]


def _now(backend: LedgerBackend, start: Position, wanted: Filter) -> Iterator[tuple[str, str, Any]]:
    """`collect` without waiting for the end of a stream that has none: a filter over what blocks hold."""
    for height in range(start.height, backend.world.height + 1):
        block = backend.block(height)
        assert block is not None
        for event in feed_module._events_of(block):
            if Position(height, event.index) > start and wanted.wants(event):
                yield parsed(event.data)[0]


@pytest.mark.parametrize("after", [1, 5])
def test_the_stream_itself_resumes_after_a_whole_block_or_in_the_middle_of_one(
    played: tuple[LedgerBackend, bytes], everything: list[tuple[str, str, Any]], after: int
) -> None:
    backend, _ = played
    whole = parsed(collect(backend, read_position(str(after), "after")))
    assert whole == [row for row in everything if row[2]["height"] > after]
    middle = parsed(collect(backend, read_position(f"{after}-0", "after")))
    cut = next(place for place, row in enumerate(everything) if row[1] == f"{after}-0")
    assert middle == everything[cut + 1 :]


@pytest.mark.parametrize(
    ("query", "passes"),
    [
        ([("types", "block")], lambda kind, data: kind == "block"),
        ([("types", "receipt,block")], lambda kind, data: kind != "transaction"),
        ([("status", "settled")], lambda kind, data: data.get("status") == "settled"),
        ([("status", "ok")], lambda kind, data: kind == "transaction" and data["status"] == "ok"),
        ([("sender", address("user").hex())], lambda kind, data: data.get("sender") == address("user").hex()),
        (
            [("types", "transaction"), ("sender", address("provider").hex()), ("status", "ok")],
            lambda kind, data: data.get("sender") == address("provider").hex() and data["status"] == "ok",
        ),
        ([("types", "block"), ("status", "ok")], lambda kind, data: False),
    ],
)
def test_filters_let_through_what_matches_all_of_them(
    played: tuple[LedgerBackend, bytes],
    everything: list[tuple[str, str, Any]],
    query: list[tuple[str, str]],
    passes: Callable[[str, Any], bool],
) -> None:
    wanted, _ = read_filter(query)
    expected = [row for row in everything if passes(row[0], row[2])]
    assert list(_now(played[0], Position(1, -1), wanted)) == expected


def test_a_subject_and_a_hash_are_found(
    played: tuple[LedgerBackend, bytes], everything: list[tuple[str, str, Any]]
) -> None:
    backend, settled = played
    wanted, _ = read_filter([("subject", settled.hex())])
    statuses = [data["status"] for _, _, data in _now(backend, Position(1, -1), wanted)]
    assert statuses[-1] == "settled"
    transaction = next(data for kind, _, data in everything if kind == "transaction")
    wanted, after = read_filter([("hash", transaction["tx_hash"]), ("after", "0")])
    assert after == Position(1, -1)
    assert [data for _, _, data in _now(backend, after, wanted)] == [transaction]


@pytest.mark.parametrize(
    "query",
    [
        [("types", "blocks")],
        [("types", "")],
        [("hash", "AB" * 32)],
        [("hash", "ab")],
        [("sender", "0x")],
        [("subject", "")],
        [("subject", "abc")],
        [("status", "OK")],
        [("status", "x" * 65)],
        [("after", "-1")],
        [("after", "1-")],
        [("after", "01")],
        [("after", "1" * 19)],
        [("after", "１")],
        [("surprise", "1")],
        [("hash", "ab" * 32), ("hash", "ab" * 32)],
    ],
)
def test_malformed_filters_are_refused_by_name(query: list[tuple[str, str]]) -> None:
    with pytest.raises(Fault) as caught:
        read_filter(query)
    assert caught.value.code == Code.INVALID_PARAMS
    assert caught.value.data["param"] == query[0][0]


# --- what it is bounded by ---


def test_past_the_range_a_gap_names_what_is_left_out(
    played: tuple[LedgerBackend, bytes], everything: list[tuple[str, str, Any]]
) -> None:
    backend, _ = played
    head = backend.world.height
    rows = parsed(collect(backend, read_position("1-0", "after"), resume_blocks_max=3))
    assert rows[0] == ("gap", f"{head - 3}", {"after": "1-0", "resumed_height": head - 2})
    assert rows[1:] == [row for row in everything if row[2]["height"] >= head - 2]


def test_a_block_that_is_not_here_is_a_gap_too(played: tuple[LedgerBackend, bytes]) -> None:
    backend, _ = played

    class Pruned(LedgerBackend):
        def block(self, height: int) -> BlockView | None:
            return None if height == 2 else super().block(height)

    pruned = Pruned(world=backend.world)
    rows = parsed(collect(pruned, Position(1, -1)))
    kinds = [(kind, data.get("resumed_height")) for kind, _, data in rows if kind == "gap"]
    assert kinds == [("gap", 3)]


def test_large_blocks_are_written_in_pieces(
    played: tuple[LedgerBackend, bytes],
    everything: list[tuple[str, str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed_module, "WRITE_BYTES_MAX", 1)
    sizes: list[int] = []

    async def write(data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        sizes.append(len(parsed(data)))

    async def main() -> None:
        with trio.move_on_after(0.5):
            await Feed(played[0], 1, 1000).follow(Position(1, -1), ALL, write)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert sizes == [0] + [1] * len(everything)


def test_blocks_are_read_once_for_subscribers_that_keep_up_and_few_are_remembered() -> None:
    reads: list[int] = []

    class Counting(LedgerBackend):
        def block(self, height: int) -> BlockView | None:
            reads.append(height)
            return super().block(height)

    backend = Counting()
    backend.world.blocks(20)
    feed = Feed(backend, 5, 1000)

    async def write(_data: bytes) -> None:
        await trio.lowlevel.checkpoint()

    async def main() -> None:
        with trio.move_on_after(0.5):
            await feed.follow(Position(1, -1), ALL, write)
        with trio.move_on_after(0.2):
            await feed.follow(Position(20, -1), ALL, write)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert reads == list(range(1, 21))
    assert len(feed._blocks) == feed_module.BLOCKS_REMEMBERED_MAX


def test_a_quiet_stream_says_that_it_lives_and_moves_its_position_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "HEARTBEAT_S", 0.05)
    backend = LedgerBackend()
    backend.world.blocks(3)
    wanted, _ = read_filter([("hash", "ab" * 32)])
    sent = collect(backend, Position(1, -1), wanted)
    assert parsed(sent) == []
    assert b": heartbeat\nid: 3\n\n" in sent


# --- over HTTP ---


def test_subscribers_get_new_blocks_as_they_are_executed() -> None:
    with running_server() as server:
        client = Client(server.url)
        sent = client.send(seed("ann"), Transfer(address("ben"), 5))
        with subscribed(server) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.readline() == b"retry: 2000\n"
            server.do(server.backend.execute)
            lines = [response.readline() for _ in range(6)]
            assert b"event: block\n" in lines
            assert b"id: 1-0\n" in lines
        first = next(client.events(after="0", types="transaction"))
        assert (first.id, first.data["tx_hash"]) == ("1-1", sent.tx_hash.hex())
        assert (first.data["status"], first.data["sender"]) == ("ok", address("ann").hex())


def test_the_header_beats_the_address_as_browsers_repeat_the_address() -> None:
    with running_server() as server:
        server.do(server.backend.world.blocks, 3)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("GET", "/events?after=0", headers={"last-event-id": "2"})
        response = connection.getresponse()
        lines = [response.readline() for _ in range(5)]
        connection.close()
        assert b"id: 3-0\n" in lines


@pytest.mark.parametrize("path", ["/events?surprise=1", "/events?after=x", "/events?after=5000"])
def test_refusals_are_typed_and_bad_requests(path: str) -> None:
    with running_server() as server, subscribed(server, path) as response:
        assert response.status == 400
        assert json.loads(response.read())["error"]["code"] == Code.INVALID_PARAMS


def test_head_is_no_subscriber() -> None:
    with running_server(config=RpcSection(port=0, event_subscribers_max=1)) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("HEAD", "/events")
        assert connection.getresponse().status == 405
        connection.close()


def test_pages_of_other_origins_do_not_subscribe() -> None:
    with running_server() as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("GET", "/events", headers={"origin": "http://evil.example"})
        assert connection.getresponse().status == 403
        connection.close()


def test_subscribers_over_the_limit_are_refused_and_places_are_given_back() -> None:
    with running_server(config=RpcSection(port=0, event_subscribers_max=2)) as server:
        with subscribed(server), subscribed(server):
            with subscribed(server) as third:
                assert third.status == 503
                error = json.loads(third.read())["error"]
                assert (error["code"], error["data"]) == (
                    Code.SERVER_BUSY,
                    {"limit": 2, "unit": "subscribers"},
                )
            with pytest.raises(RpcError):
                next(Client(server.url, retries=0).events())

        def free() -> bool:
            with subscribed(server) as response:
                return response.status == 200

        wait_for(free)


def test_a_stream_outlives_the_time_that_other_requests_have() -> None:
    with (
        running_server(config=RpcSection(port=0, request_timeout_ms=150)) as server,
        subscribed(server) as response,
    ):
        assert response.readline() == b"retry: 2000\n"
        time.sleep(0.6)  # over twice the time: what would be cut off by then
        server.do(server.backend.execute)
        assert b"event: block\n" in [response.readline() for _ in range(3)]


def test_a_subscriber_that_stops_reading_is_cut_off_and_delays_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed_module, "_encode", _enormous(feed_module._encode))
    # Long enough for a reader that a busy machine holds up, and nobody's wait beside one that does not read at all.
    config = RpcSection(port=0, request_timeout_ms=1500, event_subscribers_max=2)
    with running_server(config=config) as server, dialled(server) as stalled:
        stalled.sendall(b"GET /events HTTP/1.1\r\nhost: x\r\n\r\n")
        assert stalled.recv(12) == b"HTTP/1.1 200"
        with subscribed(server) as reading:
            assert reading.readline() == b"retry: 2000\n"
            server.do(server.backend.execute)
            seen = 0
            while seen < 32 * 2**20:
                seen += len(reading.read1(2**20))

        def free() -> bool:
            with subscribed(server) as one, subscribed(server) as other:
                return one.status == other.status == 200

        wait_for(free)


def _enormous(encode: Callable[..., bytes]) -> Callable[..., bytes]:
    return lambda *arguments: encode(*arguments) + b":" + b" " * 2**25 + b"\n\n"


def test_the_end_of_the_server_is_said_and_prompt_whoever_listens_or_not() -> None:
    with running_server() as server, ExitStack() as clients:
        streams = [clients.enter_context(subscribed(server)) for _ in range(5)]
        assert [stream.readline() for stream in streams] == [b"retry: 2000\n"] * 5
        began = time.monotonic()
        assert server.stop(2)
        assert time.monotonic() - began < 1.5
        for stream in streams:
            rest = stream.read()
            assert b'event: end\ndata: {"reason":"the node is stopping"}\n\n' in rest


# --- the client ---


def test_the_client_resumes_where_a_broken_connection_was_and_gives_up_in_the_end() -> None:
    backend = LedgerBackend()
    backend.world.blocks(3)
    with running_server(backend) as server:
        port = server.port
        events = Client(server.url, retries=6).events(after="0", types="block")
        assert [event.id for event in take(events, 3)] == ["1-0", "2-0", "3-0"]
    backend = LedgerBackend()
    backend.world.blocks(5)
    with running_server(backend, RpcSection(port=port)):
        assert [event.id for event in take(events, 2)] == ["4-0", "5-0"]
    impatient = Client(f"http://127.0.0.1:{port}", retries=0).events()
    with pytest.raises(NodeUnreachable):
        next(impatient)


def test_closing_the_iterator_closes_the_connection() -> None:
    with running_server(config=RpcSection(port=0, event_subscribers_max=1)) as server:
        server.do(server.backend.world.blocks, 1)
        events = Client(server.url).events(after="0")
        assert next(events).kind == "block"
        with suppress(AttributeError):
            events.close()  # type: ignore[attr-defined]

        def free() -> bool:
            with subscribed(server) as response:
                return response.status == 200

        wait_for(free)
