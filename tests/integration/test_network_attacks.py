"""Hostile peers against a real host: each attack was seen to end or cripple a stock py-libp2p node."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import multiaddr
import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.host.exceptions import StreamFailure
from libp2p.network.stream.exceptions import StreamError
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils import encode_varint_prefixed

from node.network import Limits, PeerAddress, PeerUnavailable, peer_id_of_seed
from node.network.framing import encode_header
from node.network.host import build_host, close_host, to_id
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

STRANGER = seed_of(200)


class HostileHost:
    """A libp2p host that speaks the transport properly and then says what it likes."""

    def __init__(self, host: Any, target: PeerAddress) -> None:
        self.host = host
        self.target = to_id(target.peer_id)
        self._address = target

    async def dial(self) -> Any:
        """Return the muxed connection to the target."""
        swarm = self.host.get_network()
        swarm.unblock_peer(self.target)
        self.host.get_peerstore().add_addrs(self.target, [multiaddr.Multiaddr(self._address.multiaddr)], 3600)
        connections = await swarm.dial_peer(self.target)
        return connections[0].muxed_conn

    async def stream(self, protocol: str) -> Any:
        return await self.host.new_stream(self.target, [TProtocol(protocol)])

    async def raw_stream(self) -> Any:
        """Open a stream without negotiating a protocol."""
        return await self.host.get_network().new_stream(self.target)


@asynccontextmanager
async def hostile(seed: bytes, target: PeerAddress) -> AsyncIterator[HostileHost]:
    config = config_of(seed)
    host = build_host(config, 0, lambda peer_id: True, lambda peer_id, points, reason: None)
    async with host.run(listen_addrs=[multiaddr.Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        villain = HostileHost(host, target)
        try:
            await villain.dial()
            yield villain
        finally:
            await close_host(host)


async def wait_closed(muxed: Any) -> None:
    with trio.fail_after(60):
        await muxed.event_closed.wait()


async def assert_serving(validators: list[Node]) -> None:
    """The mesh still talks."""
    sender, *receivers = validators
    sender.network.broadcast(3, b"alive")
    for receiver in receivers:
        assert await receive_payloads(receiver, 1) == [b"alive"]
    assert await sender.network.request(receivers[0].peer_id, 1, b"ab", 20) == b"ba"
    await receivers[0].network.publish("tx", b"alive", timeout_s=20)
    assert (await sender.network.gossip.receive()).data == b"alive"


def points(node: Node, peer_id: str) -> int:
    return node.network._standings.points(peer_id, trio.current_time())


def banned(node: Node, peer_id: str) -> bool:
    return bool(node.network._standings.banned_s(peer_id, trio.current_time()))


Attack = Callable[[HostileHost], Awaitable[None]]


def attack_by_stranger(attack: Attack, *, penalised: bool, limits: Limits | None = None) -> None:
    """Run an attack by an unknown peer on the first of two validators, who must go on as if nothing happened."""

    async def main() -> None:
        async with open_mesh(2, limits=limits) as (validators, _, _):
            victim, other = validators
            async with hostile(STRANGER, victim.address) as villain:
                await victim.until_connected(peer_id_of_seed(STRANGER))
                await attack(villain)
                await assert_serving([victim, other])
            if penalised:
                assert points(victim, peer_id_of_seed(STRANGER)) > 0 or banned(
                    victim, peer_id_of_seed(STRANGER)
                )
            assert victim.connected_to(other.peer_id)
            assert [event.connected for event in victim.events if event.peer_id == other.peer_id] == [True]

    run_trio(main)


async def end_of(stream: Any) -> bytes:
    """Read until the victim ends or resets the stream."""
    data = b""
    with trio.fail_after(60):
        while True:
            try:
                chunk = await stream.read(65536)
            except Exception:
                return data
            if not chunk:
                return data
            data += chunk


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

    attack_by_stranger(attack, penalised=False, limits=quick(negotiation_timeout_ms=600_000))


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
        (gossip_message(b""), False),
        (gossip_message(b"", key=BAD_KEY, signature=b"forged"), True),
        (gossip_message(b"\xff" * 3, key=BAD_KEY, signature=b"forged"), True),
        (gossip_message(to_id(peer_id_of_seed(STRANGER)).to_bytes(), topics=2, signature=b"forged"), False),
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

    attack_by_stranger(attack, penalised=False)


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

    attack_by_stranger(attack, penalised=False, limits=quick(receive_buffer_bytes_max=4 * 1024 * 1024))


async def talk_raw(address: PeerAddress, said: bytes) -> bytes:
    """Say something on a bare TCP connection and return all that is answered."""
    stream = await trio.open_tcp_stream("127.0.0.1", address.port)
    answered = b""
    async with stream:
        await stream.send_all(said)
        with trio.move_on_after(20):
            try:
                while data := await stream.receive_some(65536):
                    answered += data
                    if b"na\n" in answered:
                        break
            except trio.BrokenResourceError:
                return answered
    return answered


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


NODE_SCRIPT = """
import sys, trio
from node.network import NetworkConfig, PeerAddress
from node.network.network import Network
seed, chain = bytes.fromhex(sys.argv[1]), bytes.fromhex(sys.argv[2])
targets = tuple(map(PeerAddress.parse, sys.argv[3:]))
async def on_request(peer_id, kind, payload): return payload
async def main():
    config = NetworkConfig(key_seed=seed, chain_id=chain, gossip_peers=targets)
    network = Network(config, on_request=on_request, validate_gossip=lambda topic, data: True)
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()
trio.run(main)
"""


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


async def spawn_node(seed: bytes, *targets: PeerAddress) -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[2]
    return await trio.to_thread.run_sync(
        lambda: subprocess.Popen(
            [sys.executable, "-W", "error", "-c", NODE_SCRIPT, seed.hex(), CHAIN.hex(), *map(str, targets)],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    )


def close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
