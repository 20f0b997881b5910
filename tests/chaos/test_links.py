"""A relay passes bytes both ways, holds back those of one way, ends and refuses connections, and heals."""

from collections.abc import Awaitable, Callable

import pytest
import trio

from node.devnet.ports import free_ports
from tests.chaos.links import HOST, Links

SOON_S = 20.0
QUIET_S = 0.3
"""How long nothing must arrive: a silence has no event."""

Body = Callable[[Links, trio.SocketStream], Awaitable[None]]


async def echo(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)


def with_relay(body: Body) -> None:
    """Run `body` with a connection from "a" through its relay to "b", which echoes."""

    async def main() -> None:
        target, port = free_ports(2)
        links = Links({("a", "b"): port}, {"b": target})
        with trio.fail_after(SOON_S):
            async with trio.open_nursery() as nursery:
                await nursery.start(trio.serve_tcp, echo, target)
                nursery.start_soon(links.run)
                stream = await connect(links)
                await body(links, stream)
                await stream.aclose()
                nursery.cancel_scope.cancel()

    trio.run(main)


async def connect(links: Links) -> trio.SocketStream:
    while True:
        try:
            return await trio.open_tcp_stream(HOST, links.ports["a", "b"])
        except OSError:
            await trio.sleep(0.01)


async def arrives(stream: trio.SocketStream, data: bytes) -> None:
    got = b""
    while len(got) < len(data):
        got += await stream.receive_some()
    assert got == data


async def stays_silent(stream: trio.SocketStream) -> None:
    with trio.move_on_after(QUIET_S) as scope:
        await stream.receive_some()
    assert scope.cancelled_caught


def test_bytes_pass_both_ways() -> None:
    async def body(_links: Links, stream: trio.SocketStream) -> None:
        await stream.send_all(b"there")
        await arrives(stream, b"there")

    with_relay(body)


@pytest.mark.parametrize("way", [("a", "b"), ("b", "a")])
def test_silence_of_one_way_holds_bytes_back_until_it_heals(way: tuple[str, str]) -> None:
    async def body(links: Links, stream: trio.SocketStream) -> None:
        links.silence([way])
        await stream.send_all(b"held")
        await stays_silent(stream)
        links.heal()
        await arrives(stream, b"held")

    with_relay(body)


def test_a_connection_that_is_made_in_silence_is_made_and_hears_nothing() -> None:
    async def body(links: Links, _stream: trio.SocketStream) -> None:
        links.silence([("a", "b")])
        async with await connect(links) as late:
            await late.send_all(b"held")
            await stays_silent(late)
            links.heal()
            await arrives(late, b"held")

    with_relay(body)


def test_a_slow_way_delays_what_passes_and_loses_nothing() -> None:
    async def body(links: Links, stream: trio.SocketStream) -> None:
        links.slow([("a", "b")], 5 * QUIET_S)
        await stream.send_all(b"late")
        await stays_silent(stream)
        await arrives(stream, b"late")
        links.heal()
        await stream.send_all(b"at once")
        await arrives(stream, b"at once")

    with_relay(body)


def test_a_severed_link_ends_its_connections_and_refuses_new_ones_whoever_dials() -> None:
    async def body(links: Links, stream: trio.SocketStream) -> None:
        await stream.send_all(b"there")
        await arrives(stream, b"there")
        links.sever([("b", "a")])
        assert await stream.receive_some() == b""
        async with await connect(links) as refused:
            assert await refused.receive_some() == b""
        links.heal()
        async with await connect(links) as again:
            await again.send_all(b"back")
            await arrives(again, b"back")

    with_relay(body)
