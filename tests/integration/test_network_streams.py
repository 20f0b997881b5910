"""Streams that are cancelled, stalled, left half open or read in drops."""

from __future__ import annotations

from typing import Any

import trio
from libp2p.custom_types import TProtocol

from node.network import PeerAddress, PeerUnavailable, RequestTimeout, peer_id_of_seed
from node.network.framing import encode_header
from tests.unit.node_network.cluster import (
    CHAIN,
    Node,
    config_of,
    mesh_for,
    open_mesh,
    quick,
    receive_payloads,
    run_trio,
    sorted_seeds,
    start_node,
    until_true,
)
from tests.unit.node_network.villain import STRANGER, hostile

DIRECT, REQUEST = f"/openledger/{CHAIN[:8].hex()}/direct/1", f"/openledger/{CHAIN[:8].hex()}/request/1"
MIB = 1024 * 1024


def streams_open(node: Node) -> int:
    """Streams of all connections, in the muxer's books."""
    running = node.network._running
    assert running is not None
    return sum(len(conn.muxed_conn.streams) for conn in running.host.get_network().get_connections())


def test_cancelled_writes_leave_the_connection_whole() -> None:
    async def main() -> None:
        async with open_mesh(2) as ((asker, answerer), _, _):
            payload = bytes(MIB)
            cancelled = 0
            for attempt in range(60):
                try:
                    await asker.network.request(answerer.peer_id, 1, payload, 0.001 + attempt * 0.0004)
                except (RequestTimeout, PeerUnavailable):
                    cancelled += 1
            assert cancelled > 20
            assert await asker.network.request(answerer.peer_id, 1, b"ab", 20) == b"ba"
            asker.network.broadcast(1, b"still")
            assert await receive_payloads(answerer, 1) == [b"still"]
            assert len(asker.events) == len(answerer.events) == 1

    run_trio(main)


def test_a_consumer_that_stalls_here_loses_old_frames_but_not_the_connection() -> None:
    async def main() -> None:
        limits = quick(inbox_frames_max=10, inbox_wait_ms_max=50)
        async with open_mesh(2, limits=limits) as ((sender, receiver), _, _):
            for number in range(400):
                sender.network.send(receiver.peer_id, 1, bytes([number % 256]) * 10_000)
            status = sender.status(receiver.peer_id)
            assert status is not None
            frames_of = receiver.network.frames
            with trio.fail_after(30):
                await until_true(lambda: frames_of.dropped_items >= 350)
            sender.network.send(receiver.peer_id, 1, b"last")
            while (await frames_of.receive()).payload != b"last":
                pass
            assert len(sender.events) == len(receiver.events) == 1

    run_trio(main)


def test_a_validator_that_does_not_read_is_dropped_and_holds_nobody_up() -> None:
    async def stall(stream: Any) -> None:
        await trio.sleep_forever()

    async def main() -> None:
        seeds = sorted_seeds(3)
        limits = quick(write_timeout_ms=700, send_queue_bytes_max=4 * MIB)
        async with trio.open_nursery() as nursery:
            known: dict[bytes, PeerAddress] = {}
            honest: list[Node] = []
            for seed in seeds[:2]:
                config = config_of(seed, mesh=mesh_for(seed, seeds, known), limits=limits)
                honest.append(await start_node(nursery, config))
                known[seed] = honest[-1].address
            sender, receiver = honest
            await sender.until_connected(receiver.peer_id)
            staller = peer_id_of_seed(seeds[2])
            async with hostile(seeds[2], sender.address, dial=False) as villain:
                villain.host.set_stream_handler(TProtocol(DIRECT), stall)
                await villain.dial()
                await sender.until_connected(staller)
                for number in range(20):
                    sender.network.broadcast(1, bytes([number]) * 100_000)
                assert len(await receive_payloads(receiver, 20)) == 20
                with trio.fail_after(20):
                    await sender.until_event(staller, connected=False)
            for _ in range(100):
                sender.network.broadcast(1, bytes(100_000))
            status = sender.status(staller)
            assert status is not None
            assert status.queue_bytes <= 4 * MIB
            assert status.points == 0  # slow is not hostile
            nursery.cancel_scope.cancel()

    run_trio(main)


def test_a_peer_that_does_not_read_its_answers_keeps_nobody_from_theirs() -> None:
    async def main() -> None:
        async with open_mesh(2) as (validators, _, _):
            server, asker = validators
            async with hostile(STRANGER, server.address) as villain:
                for _ in range(8):
                    stream = await villain.stream(REQUEST)
                    size = (4 * MIB).to_bytes(4, "big")
                    await stream.write(encode_header(2, 4) + size)
                    await stream.close_write()
                with trio.fail_after(20):
                    for _ in range(20):
                        assert await asker.network.request(server.peer_id, 1, b"ab", 10) == b"ba"
            assert len(asker.events) == 1

    run_trio(main)


def test_streams_are_closed_on_both_sides() -> None:
    async def main() -> None:
        async with open_mesh(2) as ((asker, answerer), _, _):
            for _ in range(5):
                await asker.network.request(answerer.peer_id, 1, b"ab", 20)
            await until_true(lambda: streams_open(asker) <= 4 and streams_open(answerer) <= 4)
            for _ in range(100):
                await asker.network.request(answerer.peer_id, 1, b"ab", 20)
            with trio.fail_after(20):
                # two direct and two gossip streams remain
                await until_true(lambda: streams_open(asker) <= 4 and streams_open(answerer) <= 4)

    run_trio(main)


def test_a_stream_whose_protocol_is_done_with_it_is_closed_by_us_too() -> None:
    async def main() -> None:
        async with open_mesh(2) as ((victim, _), _, _), hostile(STRANGER, victim.address) as villain:
            await victim.until_connected(peer_id_of_seed(STRANGER))
            before = streams_open(victim)
            streams = []
            for _ in range(30):
                stream = await villain.stream("/meshsub/1.1.0")
                await stream.close_write()
                streams.append(stream)
            with trio.fail_after(20):
                await until_true(lambda: streams_open(victim) <= before + 1)

    run_trio(main)


def test_reading_costs_few_window_updates() -> None:
    async def main() -> None:
        async with open_mesh(2) as ((sender, receiver), _, _):

            def bytes_out() -> int:
                status = receiver.status(sender.peer_id)
                assert status is not None
                return status.bytes_out

            for number in range(50):
                sender.network.send(receiver.peer_id, 1, bytes([number]) * 1000)
                await receive_payloads(receiver, 1)
            before = bytes_out()
            for number in range(300):
                sender.network.send(receiver.peer_id, 1, bytes([number % 256]) * 1000)
                await receive_payloads(receiver, 1)
            assert bytes_out() - before < 60 * 12  # stock: one header of 12 bytes for each of them

    run_trio(main)
