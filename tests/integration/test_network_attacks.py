"""Hostile peers against a real host: each attack was seen to end or cripple a stock py-libp2p node."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
from typing import Any

import pytest
import trio
from libp2p.host.exceptions import StreamFailure
from libp2p.network.stream.exceptions import StreamError
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils import encode_varint_prefixed

from node.network import PeerAddress, PeerUnavailable, peer_id_of_seed
from node.network.framing import encode_header
from node.network.host import to_id
from tests.unit.node_network.cluster import (
    CHAIN,
    UNKNOWN_PORT,
    Node,
    config_of,
    mesh_for,
    open_mesh,
    quick,
    receive_payloads,
    run_trio,
    seed_of,
    sorted_seeds,
    start_node,
    until_true,
)
from tests.unit.node_network.villain import (
    STRANGER,
    Attack,
    HostileHost,
    assert_serving,
    attack_by_stranger,
    banned,
    close_pipes,
    end_of,
    hostile,
    spawn_node,
    talk_raw,
    wait_closed,
)


def test_a_protocol_name_that_is_not_utf8_resets_only_its_stream() -> None:
    async def attack(villain: HostileHost) -> None:
        stream = await villain.raw_stream()
        for line in (b"/multistream/1.0.0\n", b"\xff\xfe\xfd\n"):
            await stream.write(encode_varint_prefixed(line))
        await end_of(stream)

    attack_by_stranger(attack, penalised=True)


def test_an_endless_negotiation_line_is_not_read() -> None:
    async def attack(villain: HostileHost) -> None:
        stream = await villain.raw_stream()
        await stream.write(b"\xff\xff\xff\xff\x0f" + bytes(1000))
        await end_of(stream)  # at once: reading on would last as long as the negotiation may

    attack_by_stranger(attack, penalised=True, limits=quick(negotiation_timeout_ms=600_000))


def gossip_attack(rpc: bytes) -> Attack:
    async def attack(villain: HostileHost) -> None:
        stream = await villain.stream(PROTOCOL_ID_V11)
        await stream.write(rpc)

    return attack


def test_garbage_instead_of_a_gossip_message_resets_only_its_stream() -> None:
    async def attack(villain: HostileHost) -> None:
        stream = await villain.stream(PROTOCOL_ID_V11)
        await stream.write(encode_varint_prefixed(b"\xff" * 50))
        await end_of(stream)

    attack_by_stranger(attack, penalised=True)


def gossip_message(author: bytes, topics: int = 1, key: bytes = b"", signature: bytes = b"") -> Any:
    name = f"/openledger/{CHAIN[:8].hex()}/tx/1"
    return rpc_pb2.Message(
        from_id=author, data=b"x", seqno=b"1", topicIDs=[name] * topics, key=key, signature=signature
    )


BAD_KEY = b"\x08\x63\x12\x00"


@pytest.mark.parametrize(
    ("message", "penalised"),
    [
        (gossip_message(b""), True),
        (gossip_message(b"", key=BAD_KEY, signature=b"forged"), True),
        (gossip_message(b"\xff" * 3, key=BAD_KEY, signature=b"forged"), True),
        (gossip_message(to_id(peer_id_of_seed(STRANGER)).to_bytes(), topics=2, signature=b"forged"), True),
    ],
    ids=["empty-author", "empty-author-bad-key", "garbage-author", "forged-signature"],
)
def test_a_malformed_gossip_message_ends_nothing_and_is_not_delivered(message: Any, penalised: bool) -> None:
    rpc = rpc_pb2.RPC(publish=[message])
    attack_by_stranger(gossip_attack(encode_varint_prefixed(rpc.SerializeToString())), penalised=penalised)


def test_an_oversized_gossip_message_costs_its_sender_the_connection() -> None:
    async def attack(villain: HostileHost) -> None:
        stream = await villain.stream(PROTOCOL_ID_V11)
        await stream.write(b"\xff\xff\xff\x7f" + bytes(1000))
        await wait_closed(stream.muxed_conn)

    attack_by_stranger(attack, penalised=True)


def test_subscriptions_to_made_up_topics_are_not_kept() -> None:
    async def main() -> None:
        async with open_mesh(2) as (validators, _, _):
            async with hostile(STRANGER, validators[0].address) as villain:
                stream = await villain.stream(PROTOCOL_ID_V11)
                rpc = rpc_pb2.RPC()
                for number in range(50):
                    rpc.subscriptions.add(subscribe=True, topicid=f"made up {number}")
                await stream.write(encode_varint_prefixed(rpc.SerializeToString()))
                await assert_serving(validators)
            running = validators[0].network._running
            assert running is not None
            assert not any(topic.startswith("made up") for topic in running.pubsub.peer_topics)

    run_trio(main)


def test_a_direct_stream_from_outside_the_mesh_is_refused() -> None:
    async def attack(villain: HostileHost) -> None:
        with contextlib.suppress(StreamError, StreamFailure):  # the reset may overtake the protocol's name
            await end_of(await villain.stream(f"/openledger/{CHAIN[:8].hex()}/direct/1"))

    attack_by_stranger(attack, penalised=True)


def test_a_malformed_frame_of_a_mesh_peer_cuts_that_peer_alone() -> None:
    async def main() -> None:
        seeds = sorted_seeds(3)
        villain_seed = seeds[2]  # the highest id: it dials the others
        async with trio.open_nursery() as nursery:
            known: dict[bytes, PeerAddress] = {}
            honest: list[Node] = []
            for seed in seeds[:2]:
                node = await start_node(
                    nursery, config_of(seed, mesh=mesh_for(seed, seeds, known), limits=quick())
                )
                known[seed] = node.address
                honest.append(node)
            await honest[0].until_connected(honest[1].peer_id)
            async with hostile(villain_seed, honest[0].address) as villain:
                stream = await villain.stream(f"/openledger/{CHAIN[:8].hex()}/direct/1")
                await stream.write(encode_header(1, 2) + b"ok")
                assert await receive_payloads(honest[0], 1) == [b"ok"]
                await stream.write(struct.pack("!IB", 0xFFFFFFFF, 1))
                await wait_closed(stream.muxed_conn)
                assert banned(honest[0], peer_id_of_seed(villain_seed))
                await assert_serving(honest)
            nursery.cancel_scope.cancel()

    run_trio(main)


def test_malformed_requests_reset_only_their_streams() -> None:
    protocol = f"/openledger/{CHAIN[:8].hex()}/request/1"

    async def attack(villain: HostileHost) -> None:
        for wire in (struct.pack("!IB", 0xFFFFFFFF, 1), (encode_header(1, 1) + b"x") * 2, b"\0\0"):
            stream = await villain.stream(protocol)
            await stream.write(wire)
            await stream.close_write()
            await end_of(stream)
            await villain.dial()

    attack_by_stranger(attack, penalised=True, limits=quick(ban_points=10_000))


def test_a_flood_of_streams_is_cut_down_to_the_limit() -> None:
    async def attack(villain: HostileHost) -> None:
        muxed = (await villain.raw_stream()).muxed_conn
        streams = [await muxed.open_stream() for _ in range(60)]
        with trio.fail_after(60):
            await streams[-1].conn.stream_events[streams[-1].stream_id].wait()

    attack_by_stranger(attack, penalised=True, limits=quick(streams_per_connection_max=20))


def test_a_peer_that_ignores_flow_control_is_cut() -> None:
    async def attack(villain: HostileHost) -> None:
        muxed = (await villain.raw_stream()).muxed_conn
        stream = await muxed.open_stream()
        frame = struct.pack("!BBHII", 0, 0, 0, stream.stream_id, 60_000) + bytes(60_000)
        with trio.fail_after(60):
            for _ in range(200):
                if muxed.is_closed:
                    break
                try:
                    await muxed._write_frame(frame)
                except Exception:
                    break
        await wait_closed(muxed)

    attack_by_stranger(attack, penalised=True, limits=quick(receive_buffer_bytes_max=4 * 1024 * 1024))


def test_garbage_and_plaintext_on_the_port_are_contained() -> None:
    async def main() -> None:
        limits = quick(dial_timeout_ms=2000, negotiation_timeout_ms=1500)
        async with open_mesh(2, limits=limits) as (validators, _, _):
            address = validators[0].address
            header = encode_varint_prefixed(b"/multistream/1.0.0\n")
            plaintext = header + encode_varint_prefixed(b"/plaintext/2.0.0\n")
            not_utf8 = header + encode_varint_prefixed(b"\xff\xff\n")
            noise_garbage = header + encode_varint_prefixed(b"/noise\n") + b"\x00\x20" + os.urandom(32)
            answers: dict[str, bytes] = {}

            async def talk(name: str, said: bytes) -> None:
                answers[name] = await talk_raw(address, said)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(talk, "plaintext", plaintext)
                nursery.start_soon(talk, "not utf8", not_utf8)
                nursery.start_soon(talk, "noise", noise_garbage)
                nursery.start_soon(talk, "http", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                nursery.start_soon(talk, "random", os.urandom(5000))
                nursery.start_soon(talk, "long line", b"\xff\xff\xff\xff\x7f" + bytes(100_000))
            assert b"na\n" in answers["plaintext"]
            await assert_serving(validators)

    run_trio(main)


def test_a_stranger_outside_the_allow_list_is_refused_and_a_listed_one_let_in() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            listed = peer_id_of_seed(seed_of(10))
            gate = await start_node(nursery, config_of(seed_of(1), allowed=frozenset({listed})))
            friend = await start_node(nursery, config_of(seed_of(10), gossip=[gate.address], limits=quick()))
            stranger = await start_node(
                nursery, config_of(seed_of(11), gossip=[gate.address], limits=quick())
            )
            await friend.until_connected(gate.peer_id)
            assert await friend.network.request(gate.peer_id, 1, b"ab", 20) == b"ba"
            with pytest.raises(PeerUnavailable):
                await stranger.network.request(gate.peer_id, 1, b"ab", 20)
            assert not gate.connected_to(stranger.peer_id)
            assert {event.peer_id for event in gate.events} == {friend.peer_id}
            nursery.cancel_scope.cancel()

    run_trio(main)


def test_strangers_never_take_the_room_of_configured_peers() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            seeds = sorted_seeds(2)
            limits = quick(connections_max=3)
            low = await start_node(
                nursery, config_of(seeds[0], mesh=mesh_for(seeds[0], seeds, {}), limits=limits)
            )
            strangers = [
                await start_node(nursery, config_of(seed_of(20 + i), gossip=[low.address], limits=quick()))
                for i in range(4)
            ]
            await low.until(lambda: sum(low.connected_to(stranger.peer_id) for stranger in strangers) == 2)
            mesh = mesh_for(seeds[1], seeds, {seeds[0]: low.address})
            high = await start_node(nursery, config_of(seeds[1], mesh=mesh, limits=quick()))
            await high.until_connected(low.peer_id)
            assert sum(low.connected_to(stranger.peer_id) for stranger in strangers) == 2
            nursery.cancel_scope.cancel()

    run_trio(main)


def test_a_node_keeps_accepting_after_more_connections_than_it_has_slots() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            server = await start_node(
                nursery, config_of(seed_of(1), limits=quick(connections_max=2, handshakes_max=1))
            )
            for number in range(5):
                async with hostile(seed_of(30), server.address):
                    await server.until_event(peer_id_of_seed(seed_of(30)), connected=True, count=number + 1)
                await server.until_event(peer_id_of_seed(seed_of(30)), connected=False, count=number + 1)
            nursery.cancel_scope.cancel()

    run_trio(main)


def test_a_penalised_peer_is_disconnected_refused_and_let_in_again_after_its_ban() -> None:
    async def main() -> None:
        async with open_mesh(2, limits=quick(mesh_ban_s=1)) as ((low, high), _, _):
            low.network.penalise(high.peer_id, 60, "test")
            assert low.connected_to(high.peer_id)
            low.network.penalise(high.peer_id, 60, "test")
            status = low.status(high.peer_id)
            assert status is not None
            assert status.banned
            banned_s = trio.current_time()
            await low.until_event(high.peer_id, connected=False)
            await low.until_event(high.peer_id, connected=True, count=2)
            assert trio.current_time() - banned_s >= 1
            await assert_serving([low, high])

    run_trio(main)


def test_a_peer_that_connects_twice_loses_both_connections_and_may_start_over() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            node = await start_node(nursery, config_of(seed_of(1), limits=quick()))
            peer_id = peer_id_of_seed(STRANGER)
            async with hostile(STRANGER, node.address) as first:
                first_conn = await first.dial()
                await node.until_connected(peer_id)
                async with hostile(STRANGER, node.address) as second:
                    await wait_closed(first_conn)
                    await node.until_event(peer_id, connected=False)
                    assert not node.connected_to(peer_id)
                    await wait_closed_or_gone(second)
                    await second.dial()
                    await node.until_event(peer_id, connected=True, count=2)
            nursery.cancel_scope.cancel()

    run_trio(main)


def test_a_failure_inside_libp2p_restarts_the_host_on_its_port_and_the_mesh_heals() -> None:
    class Unforeseen(Exception):
        pass

    async def fail() -> None:
        raise Unforeseen

    async def main() -> None:
        async with open_mesh(2, full_nodes=1) as ((low, high), (full,), _):
            running = low.network._running
            assert running is not None
            address = low.network.address
            running.pubsub.manager.run_task(fail)
            await low.until_event(high.peer_id, connected=False)
            await high.until_event(low.peer_id, connected=True, count=2)
            await full.until_event(low.peer_id, connected=True, count=2)
            await low.until_connected(high.peer_id)
            assert low.network.address == address
            await assert_serving([low, high])
            await full.network.publish("tx", b"healed", timeout_s=60)
            assert (await low.network.gossip.receive()).data in (b"healed", b"alive")

    run_trio(main)


async def wait_closed_or_gone(villain: HostileHost) -> None:
    for conn in villain.host.get_network().get_connections(villain.target):
        await wait_closed(conn.muxed_conn)
    await until_true(lambda: not villain.host.get_network().get_connections(villain.target))


def test_a_stopped_process_is_noticed_and_dropped_and_shutting_down_does_not_wait_for_it() -> None:
    async def main() -> None:
        limits = quick(ping_interval_ms=300, ping_timeout_ms=1200)
        async with trio.open_nursery() as nursery:
            node = await start_node(nursery, config_of(seed_of(1), limits=limits))
            peer_id = peer_id_of_seed(seed_of(40))
            process = await spawn_node(seed_of(40), node.address)
            try:
                await node.until_connected(peer_id)
                assert await node.network.request(peer_id, 1, b"ab", 20) == b"ab"
                process.send_signal(signal.SIGSTOP)
                stopped_s = trio.current_time()
                await node.until_event(peer_id, connected=False)
                assert trio.current_time() - stopped_s >= 1

                process.send_signal(signal.SIGCONT)
                await node.until_event(peer_id, connected=True, count=2)
                process.send_signal(signal.SIGSTOP)
                began_s = trio.current_time()
                await node.stop()
                assert trio.current_time() - began_s < 2
            finally:
                process.kill()
                await trio.to_thread.run_sync(process.wait)
                close_pipes(process)
            nursery.cancel_scope.cancel()

    run_trio(main)


def test_a_process_whose_peers_are_missing_refuse_and_vanish_writes_nothing_to_standard_error() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            node = await start_node(nursery, config_of(seed_of(1), limits=quick(ban_points=10_000)))
            nobody = PeerAddress.of("127.0.0.1", UNKNOWN_PORT, peer_id_of_seed(seed_of(42)))
            process = await spawn_node(seed_of(41), nobody, node.address)
            peer_id = peer_id_of_seed(seed_of(41))
            await node.until_connected(peer_id)
            for _ in range(3):
                with pytest.raises(PeerUnavailable):
                    await node.network._client.request(
                        peer_id, 1, b"", 20, lambda: node.network._open_stream(peer_id, "/no/such/protocol")
                    )
            await node.stop()
            _, err = await trio.to_thread.run_sync(lambda: process.communicate(input=b"", timeout=20))
            assert process.returncode == 0, err
            assert err == b""
            nursery.cancel_scope.cancel()

    run_trio(main)
