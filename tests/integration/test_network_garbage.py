"""Garbage on every protocol a node speaks: random bytes, valid talk cut short, valid talk with flipped bits."""

from __future__ import annotations

import random
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.validators import PUBSUB_SIGNING_PREFIX
from libp2p.utils import encode_varint_prefixed

from node.network import PeerAddress, peer_id_of_seed
from node.network.framing import encode_header
from node.network.host import to_id
from tests.unit.node_network.cluster import (
    CHAIN,
    Node,
    config_of,
    mesh_for,
    quick,
    run_trio,
    sorted_seeds,
    start_node,
    until_true,
)
from tests.unit.node_network.villain import HostileHost, assert_serving, end_of, hostile, points, talk_raw

CASES = 6
SHORT = CHAIN[:8].hex()
TOPIC = f"/openledger/{SHORT}/tx/1"
DIRECT, REQUEST = f"/openledger/{SHORT}/direct/1", f"/openledger/{SHORT}/request/1"
NEVER = 1_000_000_000

Mutation = Callable[[random.Random, bytes], bytes]
Case = Callable[[HostileHost, bytes], Awaitable[None]]


def randomly(rng: random.Random, valid: bytes) -> bytes:
    return rng.randbytes(rng.randint(1, 2 * len(valid) + 64))


def cut_short(rng: random.Random, valid: bytes) -> bytes:
    return valid[: rng.randrange(1, len(valid))]


def flipped(rng: random.Random, valid: bytes) -> bytes:
    mutated = bytearray(valid)
    for _ in range(rng.randint(1, 4)):
        mutated[rng.randrange(len(mutated))] ^= 1 << rng.randrange(8)
    return bytes(mutated)


MUTATIONS = {"random": randomly, "cut": cut_short, "flipped": flipped}


def signed_gossip(seed: bytes) -> bytes:
    """One of everything GossipSub says, the message properly signed."""
    message = rpc_pb2.Message(
        from_id=to_id(peer_id_of_seed(seed)).to_bytes(), data=b"good", seqno=b"12345678", topicIDs=[TOPIC]
    )
    signed = PUBSUB_SIGNING_PREFIX.encode() + message.SerializeToString()
    message.signature = create_new_key_pair(seed).private_key.sign(signed)
    rpc = rpc_pb2.RPC(publish=[message])
    rpc.subscriptions.add(subscribe=True, topicid=TOPIC)
    rpc.control.ihave.add(topicID=TOPIC).messageIDs.append(bytes(20))
    rpc.control.iwant.add().messageIDs.append(bytes(20))
    rpc.control.graft.add(topicID=TOPIC)
    rpc.control.prune.add(topicID=TOPIC, backoff=5).peers.add(peerID=bytes(38))
    rpc.control.idontwant.add().messageIDs.append(bytes(20))
    encoded: bytes = encode_varint_prefixed(rpc.SerializeToString())
    return encoded


def line(name: str) -> bytes:
    encoded: bytes = encode_varint_prefixed(name.encode() + b"\n")
    return encoded


def frame(kind: int, flags: int, stream_id: int, length: int, body: bytes = b"") -> bytes:
    return struct.pack("!BBHII", 0, kind, flags, stream_id, length) + body


MUXER_TALK = (
    frame(0, 1, 9001, 30, bytes(30))
    + frame(1, 0, 9001, 1000)
    + frame(2, 1, 0, 7)
    + frame(0, 4, 9001, 5, b"hello")
    + frame(1, 8, 9001, 0)
)


async def hold(stream: Any) -> None:
    """Accept what the victim has to say to a validator, so that it keeps the connection."""
    await trio.sleep_forever()


async def on_stream(protocol: str | None, villain: HostileHost, said: bytes) -> None:
    """Say it on a fresh stream and wait for the victim to end that."""
    with suppress(Exception):  # the victim may reset the stream at any point of this
        stream = await (villain.raw_stream() if protocol is None else villain.stream(protocol))
        try:
            await stream.write(said)
            await stream.close_write()
            await end_of(stream)
        finally:
            await stream.reset()


async def on_muxer(villain: HostileHost, said: bytes) -> None:
    """Say it in place of muxer frames, inside the encrypted connection."""
    muxed = await villain.dial()
    with suppress(Exception):
        await muxed.secured_conn.write(said)
        await muxed.secured_conn.write(b"\xff" * 100)  # the rest of what may have been half a frame, and more
    with trio.move_on_after(5):
        await muxed.event_closed.wait()
    await muxed.secured_conn.close()


async def on_port(villain: HostileHost, said: bytes) -> None:
    await talk_raw(villain.address, said)


async def instead_of_noise(villain: HostileHost, said: bytes) -> None:
    await talk_raw(villain.address, line("/multistream/1.0.0") + line("/noise") + said)


PROTOCOLS: dict[str, tuple[Case, Callable[[bytes], bytes]]] = {
    "port": (on_port, lambda seed: line("/multistream/1.0.0") + line("/noise")),
    "noise": (instead_of_noise, lambda seed: b"\x00\x20" + bytes(range(32))),
    "muxer": (on_muxer, lambda seed: MUXER_TALK),
    "negotiation": (partial(on_stream, None), lambda seed: line("/multistream/1.0.0") + line(REQUEST)),
    "identify": (partial(on_stream, "/ipfs/id/1.0.0"), lambda seed: bytes(range(100))),
    "ping": (partial(on_stream, "/ipfs/ping/1.0.0"), lambda seed: bytes(range(64))),
    "gossip": (partial(on_stream, PROTOCOL_ID_V11), signed_gossip),
    "direct": (partial(on_stream, DIRECT), lambda seed: (encode_header(1, 5) + b"hello") * 3),
    "request": (partial(on_stream, REQUEST), lambda seed: encode_header(1, 5) + b"hello"),
}
# Of these nobody can say who sent them, or any bytes are proper, or an end might be that of the connection.
BLAMELESS = {"port-", "noise-", "identify-", "ping-", "negotiation-cut", "gossip-cut"}


@asynccontextmanager
async def besieged() -> AsyncIterator[tuple[list[Node], bytes, trio.Nursery]]:
    """Two validators of three; the third, which dials them, is the villain. Nobody is banned."""
    seeds = sorted_seeds(3)
    limits = quick(ban_points=NEVER, dial_timeout_ms=1000, negotiation_timeout_ms=1000, served_timeout_ms=500)
    known: dict[bytes, PeerAddress] = {}
    honest: list[Node] = []
    async with trio.open_nursery() as nursery:
        for seed in seeds[:2]:
            mesh = mesh_for(seed, seeds, known)
            honest.append(await start_node(nursery, config_of(seed, mesh=mesh, limits=limits)))
            known[seed] = honest[-1].address
        await honest[0].until_connected(honest[1].peer_id)
        yield honest, seeds[2], nursery
        nursery.cancel_scope.cancel()


async def assert_unharmed(honest: list[Node], running: object) -> None:
    victim, other = honest
    while len(victim.network.frames):  # flipped bits may leave a frame that is as good as any
        victim.network.frames.receive_nowait()
    while len(victim.network.gossip):
        victim.network.gossip.receive_nowait()
    while len(other.network.gossip):
        other.network.gossip.receive_nowait()
    await assert_serving(honest)
    assert victim.network._running is running  # libp2p was not restarted
    assert [event.connected for event in victim.events if event.peer_id == other.peer_id] == [True]


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_garbage_on_a_protocol_harms_nothing_and_is_held_against_its_sender(
    protocol: str, mutation: str
) -> None:
    rng = random.Random(f"{protocol} {mutation}")
    attack, valid_of = PROTOCOLS[protocol]

    async def main() -> None:
        async with besieged() as (honest, seed, _):
            victim, running = honest[0], honest[0].network._running
            async with hostile(seed, victim.address, dial=False) as villain:
                villain.host.set_stream_handler(TProtocol(DIRECT), hold)
                valid = valid_of(seed)
                for _ in range(CASES):
                    await villain.redial(victim)
                    await attack(villain, MUTATIONS[mutation](rng, valid))
            await assert_unharmed(honest, running)
            if not any(f"{protocol}-{mutation}".startswith(case) for case in BLAMELESS):
                assert points(victim, peer_id_of_seed(seed)) > 0

    run_trio(main)


@pytest.mark.parametrize(
    "header",
    [struct.pack("!BBHII", 1, 2, 1, 0, 7), struct.pack("!BBHII", 0, 4, 0, 0, 0), frame(0, 0, 9001, 1 << 30)],
    ids=["version", "kind", "length"],
)
def test_a_muxer_frame_that_nobody_may_send_ends_its_connection_at_once(header: bytes) -> None:
    async def main() -> None:
        async with besieged() as (honest, seed, _):
            victim = honest[0]
            async with hostile(seed, victim.address, dial=False) as villain:
                muxed = await villain.dial()
                await muxed.secured_conn.write(header)
                with trio.fail_after(5):
                    await muxed.event_closed.wait()
                    await until_true(lambda: points(victim, peer_id_of_seed(seed)) > 0)

    run_trio(main)


@asynccontextmanager
async def tampering_proxy(
    target: PeerAddress, tamper: Callable[[int, bytes], bytes | None]
) -> AsyncIterator[PeerAddress]:
    """Relay connections to a node; ``tamper(offset, data)`` changes what goes there, None ends the connection."""

    async def pump(
        source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope, up: bool
    ) -> None:
        offset = 0
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in source:
                changed = tamper(offset, bytes(data)) if up else bytes(data)
                offset += len(data)
                if changed is None:
                    break
                await sink.send_all(bytes(changed))
        scope.cancel()

    async def relay(inbound: trio.SocketStream) -> None:
        outbound = await trio.open_tcp_stream("127.0.0.1", target.port)
        async with inbound, outbound, trio.open_nursery() as pumps:
            pumps.start_soon(pump, inbound, outbound, pumps.cancel_scope, True)
            pumps.start_soon(pump, outbound, inbound, pumps.cancel_scope, False)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, relay, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        yield PeerAddress.of("127.0.0.1", port, target.peer_id)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("mutation", ["cut", "flipped"])
def test_a_handshake_that_is_tampered_with_on_the_way_fails_alone(mutation: str) -> None:
    rng = random.Random(mutation)
    at = 0

    def tamper(offset: int, data: bytes) -> bytes | None:
        if not offset <= at < offset + len(data):
            return data
        if mutation == "cut":
            return None
        changed = bytearray(data)
        changed[at - offset] ^= 1 << rng.randrange(8)
        return bytes(changed)

    async def main() -> None:
        nonlocal at
        async with besieged() as (honest, seed, _):
            running = honest[0].network._running
            async with (
                tampering_proxy(honest[0].address, tamper) as proxied,
                hostile(seed, proxied, dial=False) as villain,
            ):
                for case in range(16):  # all along negotiation, handshake and the first muxer frames
                    at = case * 30 + rng.randrange(30)
                    with suppress(Exception), trio.move_on_after(5):
                        muxed = await villain.dial()
                        await end_of(await villain.stream("/ipfs/id/1.0.0"))
                        await muxed.close()
            await assert_unharmed(honest, running)

    run_trio(main)
