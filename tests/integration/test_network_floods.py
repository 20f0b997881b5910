"""Thousands of streams and connections, and more bytes than were asked for: memory stays bounded, others are served."""

from __future__ import annotations

import os
import struct
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any

import pytest
import structlog.testing
import trio
import trio.lowlevel
from libp2p.utils import encode_varint_prefixed

from node.network import PeerAddress, peer_id_of_seed
from tests.unit.node_network.cluster import Node, config_of, quick, run_trio, seed_of, start_node, until_true
from tests.unit.node_network.villain import (
    STRANGER,
    HostileHost,
    Victim,
    end_of,
    hostile,
    points,
    victim_process,
)

MIB = 1024 * 1024
NEVER = 1_000_000_000
PING = "/ipfs/ping/1.0.0"


def data_frame(stream_id: int, length: int) -> bytes:
    return struct.pack("!BBHII", 0, 0, 0, stream_id, length) + bytes(length)


async def overflow(villain: HostileHost, bytes_max: int) -> int:
    """Send far more than the window to a stream that is read slowly; return how much went out."""
    stream = await villain.stream(
        PING
    )  # answers each 32 bytes; nobody reads the answers, so it comes to a stop
    muxed = stream.muxed_conn
    frame = data_frame(stream.muxed_stream.stream_id, 60_000)
    sent = 0
    while sent < bytes_max and not muxed.is_closed:
        try:
            await muxed._write_frame(frame)
        except Exception:  # the victim cut the connection
            break
        sent += len(frame)
    return sent


def test_memory_stays_bounded_when_a_peer_ignores_its_window() -> None:
    async def main() -> None:
        async with victim_process() as victim, hostile(STRANGER, victim.address) as villain:
            before = victim.resident_bytes()
            sent = await overflow(villain, 300 * MIB)
            assert sent < 200 * MIB  # it was cut
            assert victim.peak_bytes() - before < 100 * MIB

    run_trio(main)


def test_memory_stays_bounded_when_many_peers_fill_their_windows_at_once() -> None:
    async def main() -> None:
        limits = quick(
            receive_buffer_bytes_max=8 * MIB, receive_buffers_bytes_max=16 * MIB, connections_max=16
        )
        peak = 0
        async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
            victim = await start_node(nursery, config_of(seed_of(1), limits=limits))
            villains = [
                await stack.enter_async_context(hostile(seed_of(100 + number), victim.address))
                for number in range(5)
            ]
            running = victim.network._running
            assert running is not None
            swarm = running.host.get_network()

            async def watch() -> None:
                nonlocal peak
                while True:
                    buffers = [conn.muxed_conn.stream_buffers.values() for conn in swarm.get_connections()]
                    peak = max(peak, sum(len(buffer) for values in buffers for buffer in values))
                    await trio.lowlevel.checkpoint()

            watcher = trio.CancelScope()
            with watcher:
                async with trio.open_nursery() as flood:
                    flood.start_soon(watch)
                    async with trio.open_nursery() as floods:
                        for villain in villains:
                            floods.start_soon(overflow, villain, 7 * MIB)
                    with trio.move_on_after(5):
                        await victim.until(lambda: any(not event.connected for event in victim.events))
                    watcher.cancel()
            assert 8 * MIB < peak <= 16 * MIB
            assert not points(victim, peer_id_of_seed(seed_of(100)))  # none of them broke a rule
            nursery.cancel_scope.cancel()

    run_trio(main)


async def assert_answers(nursery: trio.Nursery, victim: Victim, seed: bytes) -> Node:
    """Connect an honest node and ask."""
    honest = await start_node(nursery, config_of(seed, gossip=[victim.address], limits=quick()))
    with trio.fail_after(30):
        await honest.until_connected(victim.address.peer_id)
        assert await honest.network.request(victim.address.peer_id, 1, b"ab", 20) == b"ab"
    return honest


def test_two_thousand_streams_leave_nothing_behind() -> None:
    async def fleeting(muxed: Any, number: int) -> None:
        stream = await muxed.open_stream()
        said = (b"", b"\x13/multistream/1.0.0\n", b"\xff\xff\xff", os.urandom(20))[number % 4]
        with suppress(Exception):
            if said:
                await stream.write(said)
            if number % 3:
                await stream.reset()
            else:
                await stream.close()
                await end_of(stream)

    async def main() -> None:
        limits = {"negotiation_timeout_ms": 1000, "ban_points": NEVER}
        async with victim_process(**limits) as victim, trio.open_nursery() as nursery:
            honest = await assert_answers(nursery, victim, seed_of(2))
            async with hostile(STRANGER, victim.address) as villain:
                muxed = await villain.dial()
                before = 0
                for batch in range(22):
                    if batch == 2:  # what is allocated once has been
                        before = victim.resident_bytes()
                    async with trio.open_nursery() as batch_nursery:
                        for number in range(100):
                            batch_nursery.start_soon(fleeting, muxed, number)
                assert muxed.next_stream_id > 2 * 2200
                assert not muxed.is_closed
                assert victim.resident_bytes() - before < 10 * MIB
            assert await honest.network.request(victim.address.peer_id, 1, b"ab", 20) == b"ab"
            assert len(honest.events) == 1
            nursery.cancel_scope.cancel()

    run_trio(main)


def open_files(victim: Victim) -> int:
    return len(os.listdir(f"/proc/{victim.process.pid}/fd"))


def test_a_thousand_connections_leave_nothing_behind_and_keep_nobody_out() -> None:
    async def fleeting(address: PeerAddress, number: int, limiter: trio.CapacityLimiter) -> None:
        async with limiter:
            with suppress(trio.BrokenResourceError, OSError):
                async with await trio.open_tcp_stream("127.0.0.1", address.port) as stream:
                    if number % 3 == 1:
                        await stream.send_all(os.urandom(100))
                    elif number % 3 == 2:
                        await stream.send_all(
                            encode_varint_prefixed(b"/multistream/1.0.0\n")
                            + encode_varint_prefixed(b"/noise\n")
                            + b"\0\x20"
                            + os.urandom(32)
                        )
                        await stream.receive_some(1000)

    async def main() -> None:
        async with victim_process() as victim, trio.open_nursery() as nursery:
            honest = await assert_answers(nursery, victim, seed_of(2))
            files = open_files(victim)
            before = 0
            limiter = trio.CapacityLimiter(50)
            for batch in range(11):
                if batch == 1:
                    before = victim.resident_bytes()
                async with trio.open_nursery() as connections:
                    for number in range(100):
                        connections.start_soon(fleeting, victim.address, number, limiter)
            assert victim.resident_bytes() - before < 10 * MIB
            newcomer = await assert_answers(nursery, victim, seed_of(3))
            with trio.fail_after(30):
                await until_true(lambda: open_files(victim) <= files + 2)
            assert await honest.network.request(victim.address.peer_id, 1, b"ab", 20) == b"ab"
            assert len(honest.events) == len(newcomer.events) == 1
            nursery.cancel_scope.cancel()

    run_trio(main)


def test_silent_connections_do_not_keep_others_from_a_handshake() -> None:
    async def main() -> None:
        limits = quick(handshakes_max=8, dial_timeout_ms=60_000)
        async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
            node = await start_node(nursery, config_of(seed_of(1), limits=limits))
            for _ in range(20):
                await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", node.address.port))
            late = await start_node(nursery, config_of(seed_of(2), gossip=[node.address], limits=quick()))
            with trio.fail_after(20):
                await late.until_connected(node.peer_id)
            nursery.cancel_scope.cancel()

    run_trio(main)


@pytest.mark.slow
def test_a_thousand_identities_leave_nothing_behind() -> None:
    async def main() -> None:
        async with victim_process(negotiation_timeout_ms=2000) as victim, trio.open_nursery() as nursery:
            honest = await assert_answers(nursery, victim, seed_of(2))
            before = 0
            for batch in range(105):
                if batch == 10:
                    before = victim.resident_bytes()
                async with trio.open_nursery() as visits:
                    for number in range(10):
                        seed = struct.pack("!II", batch, number) + bytes(24)
                        visits.start_soon(partial(visit, seed, victim))
            assert victim.resident_bytes() - before < 30 * MIB
            assert await honest.network.request(victim.address.peer_id, 1, b"ab", 20) == b"ab"
            assert len(honest.events) == 1
            nursery.cancel_scope.cancel()

    run_trio(main)


async def visit(seed: bytes, victim: Victim) -> None:
    async with hostile(seed, victim.address) as villain:
        with suppress(Exception):
            await end_of(await villain.stream("/ipfs/id/1.0.0"))


def test_a_peer_cannot_fill_the_log() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            node = await start_node(nursery, config_of(seed_of(1), limits=quick(ban_points=NEVER)))
            with structlog.testing.capture_logs() as lines:
                for number in range(5000):
                    node.network._penalise_remote(peer_id_of_seed(seed_of(number % 200)), 1, "test")
            reported = [line for line in lines if line["event"] == "peer penalised"]
            assert 0 < len(reported) <= 250
            await trio.sleep(0.3)
            with structlog.testing.capture_logs() as lines:
                node.network.penalise(peer_id_of_seed(seed_of(3)), 1, "test")
            counted = sum(line.get("events_not_logged_before", 0) for line in (*reported, *lines))
            assert counted + len(reported) == 5000
            nursery.cancel_scope.cancel()

    run_trio(main)
