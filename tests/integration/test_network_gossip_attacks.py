"""What a peer may make a node remember, verify, send and dial by GossipSub."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.peer.peerstore import issue_and_cache_local_record
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.validators import signature_validator
from libp2p.utils import encode_varint_prefixed
from libp2p.utils.varint import read_varint_prefixed_bytes

from node.network import hardening, peer_id_of_seed
from node.network.host import to_id
from node.network.router import message_id
from tests.unit.node_network.cluster import CHAIN, Node, open_mesh, quick, run_trio, seed_of, until_true
from tests.unit.node_network.villain import STRANGER, HostileHost, assert_serving, banned, hostile, points

TOPIC = f"/openledger/{CHAIN[:8].hex()}/tx/1"
VILLAIN = peer_id_of_seed(STRANGER)
NEVER = 1_000_000_000


class Listener:
    """Takes a victim's gossip stream and counts the messages on it, except while it is told not to listen."""

    def __init__(self) -> None:
        self.copies: Counter[bytes] = Counter()
        self.listening = trio.Event()
        self.listening.set()

    async def take(self, stream: Any) -> None:
        while True:
            await self.listening.wait()
            rpc = rpc_pb2.RPC.FromString(await read_varint_prefixed_bytes(stream))
            self.copies.update(message.data for message in rpc.publish)

    async def until_heard(self, data: bytes) -> None:
        await until_true(lambda: data in self.copies)


async def listen(villain: HostileHost, victim: Node) -> tuple[Listener, Any]:
    """Connect, subscribe, and return what is heard and the stream to talk on."""
    listener = Listener()
    villain.host.set_stream_handler(TProtocol(PROTOCOL_ID_V11), listener.take)
    await villain.dial()
    await victim.until_connected(VILLAIN)
    stream = await villain.stream(PROTOCOL_ID_V11)
    await say(stream, rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=TOPIC)]))
    pubsub = pubsub_of(victim)
    await until_true(lambda: to_id(VILLAIN) in pubsub.peer_topics.get(TOPIC, ()))
    await until_true(lambda: to_id(VILLAIN) in pubsub.peers)
    return listener, stream


async def say(stream: Any, rpc: Any) -> None:
    await stream.write(encode_varint_prefixed(rpc.SerializeToString()))


def pubsub_of(node: Node) -> Any:
    running = node.network._running
    assert running is not None
    return running.pubsub


def test_a_burst_waits_for_a_peer_that_is_slow_to_read() -> None:
    async def main() -> None:
        async with open_mesh(2) as (validators, _, _):
            victim = validators[0]
            async with hostile(STRANGER, victim.address, dial=False) as villain:
                listener, _ = await listen(villain, victim)
                listener.listening = trio.Event()
                burst = [b"message %d " % number + bytes(20_000) for number in range(200)]
                for message in burst:  # far more than the stream's window takes
                    await victim.network.publish("tx", message)
                listener.listening.set()
                for message in burst:
                    await listener.until_heard(message)

    run_trio(main)


def test_a_message_wanted_a_thousand_times_is_sent_once() -> None:
    async def main() -> None:
        async with open_mesh(2) as (validators, _, _):
            victim = validators[0]
            async with hostile(STRANGER, victim.address, dial=False) as villain:
                listener, stream = await listen(villain, victim)
                data = bytes(50_000)
                await victim.network.publish("tx", data)
                await listener.until_heard(data)
                mid = message_id(rpc_pb2.Message(data=data, topicIDs=[TOPIC]))
                greedy = rpc_pb2.RPC()
                for _ in range(4):
                    greedy.control.iwant.add().messageIDs.extend([mid] * 250)
                await say(stream, greedy)
                await until_true(lambda: listener.copies[data] > 1)
                await victim.network.publish("tx", b"last")
                await listener.until_heard(b"last")
                assert listener.copies[data] == 2
            await assert_heard_and_serving(validators)

    run_trio(main)


async def assert_heard_and_serving(validators: list[Node]) -> None:
    for validator in validators:
        while len(validator.network.gossip):
            validator.network.gossip.receive_nowait()
    await assert_serving(validators)


def test_an_answer_to_wishes_is_bounded_in_bytes() -> None:
    async def main() -> None:
        async with open_mesh(2) as (validators, _, _):
            victim = validators[0]
            async with hostile(STRANGER, victim.address, dial=False) as villain:
                listener, stream = await listen(villain, victim)
                large = [bytes([number]) * 800_000 for number in range(8)]
                wanted = rpc_pb2.RPC()
                for data in large:
                    await victim.network.publish("tx", data)
                    await listener.until_heard(data)
                    wanted.control.iwant.add().messageIDs.append(
                        message_id(rpc_pb2.Message(data=data, topicIDs=[TOPIC]))
                    )
                await say(stream, wanted)
                await until_true(lambda: max(listener.copies.values()) > 1)
                await victim.network.publish("tx", b"last")
                await listener.until_heard(b"last")
                again = sum(count - 1 for count in listener.copies.values())
                assert again * 800_000 <= 4 * 1024 * 1024

    run_trio(main)


def test_nothing_is_remembered_of_topics_that_are_made_up() -> None:
    async def main() -> None:
        async with open_mesh(2) as (validators, _, _):
            victim = validators[0]
            router = pubsub_of(victim).router
            async with hostile(STRANGER, victim.address, dial=False) as villain:
                _, stream = await listen(villain, victim)
                rpc = rpc_pb2.RPC()
                for number in range(30):
                    rpc.control.prune.add(topicID=f"made up {number}", backoff=1 << 40)
                    rpc.control.graft.add(topicID=f"made up {number}")
                    rpc.control.ihave.add(topicID=f"made up {number}").messageIDs.append(b"x")
                await say(stream, rpc)
                await until_true(lambda: points(victim, VILLAIN) > 0)
                await assert_serving(validators)
                assert not [topic for topic in router.back_off if topic.startswith("made up")]
                for kept in (router.ihave_message_limits, router.graft_flood_tracking):
                    assert not [topic for topic in kept[to_id(VILLAIN)] if topic.startswith("made up")]

    run_trio(main)


def test_peers_that_a_prune_names_are_not_dialled() -> None:
    async def main() -> None:
        async with open_mesh(2) as (validators, _, _):
            victim = validators[0]
            async with (
                hostile(STRANGER, victim.address, dial=False) as villain,
                hostile(seed_of(201), victim.address, dial=False) as decoy,
            ):
                _, stream = await listen(villain, victim)
                rpc = rpc_pb2.RPC()
                rpc.control.prune.add(topicID=TOPIC, backoff=1).peers.add(
                    peerID=decoy.host.get_id().to_bytes(),
                    signedPeerRecord=issue_and_cache_local_record(decoy.host),
                )
                await say(stream, rpc)
                router = pubsub_of(victim).router
                await until_true(lambda: to_id(VILLAIN) in router.back_off.get(TOPIC, ()))
                await assert_serving(validators)
                assert not decoy.host.get_network().get_connections()

    run_trio(main)


def test_subscribing_again_and_again_does_not_replay_again_and_again() -> None:
    async def main() -> None:
        async with open_mesh(2, limits=quick(ban_points=NEVER)) as (validators, _, _):
            victim = validators[0]
            async with hostile(STRANGER, victim.address, dial=False) as villain:
                listener, stream = await listen(villain, victim)
                await victim.network.publish("tx", b"recent")
                await listener.until_heard(b"recent")
                rpc = rpc_pb2.RPC()
                for number in range(60):
                    rpc.subscriptions.add(subscribe=bool(number % 2), topicid=TOPIC)
                for _ in range(4):
                    await say(stream, rpc)
                with trio.fail_after(20):
                    await until_true(lambda: points(victim, VILLAIN) > 0)
                await assert_heard_and_serving(validators)
                assert listener.copies[b"recent"] <= 12

    run_trio(main)


def test_forged_signatures_are_not_verified_once_their_sender_is_banned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verified = 0

    def counting(message: Any) -> bool:
        nonlocal verified
        verified += message.data.startswith(b"forged")
        return bool(signature_validator(message))

    monkeypatch.setattr(hardening, "signature_validator", counting)

    async def main() -> None:
        async with open_mesh(2) as (validators, _, _):
            victim = validators[0]
            async with hostile(STRANGER, victim.address) as villain:
                stream = await villain.stream(PROTOCOL_ID_V11)
                rpc = rpc_pb2.RPC()
                for number in range(1000):
                    rpc.publish.add(
                        from_id=to_id(VILLAIN).to_bytes(),
                        data=b"forged %d" % number,
                        seqno=b"1",
                        topicIDs=[TOPIC],
                        signature=bytes(64),
                    )
                await say(stream, rpc)
                await until_true(lambda: banned(victim, VILLAIN))
                await victim.until_event(VILLAIN, connected=False)
                await assert_serving(validators)
            assert 0 < verified <= 20

    run_trio(main)


def test_more_messages_than_a_peers_rate_are_ignored_before_their_signatures_are_verified() -> None:
    async def main() -> None:
        limits = quick(gossip_per_s=1, gossip_burst=20)
        async with open_mesh(1, full_nodes=1, limits=limits) as ((victim,), (author,), _):
            for number in range(100):
                await author.network.publish("tx", b"%d" % number, timeout_s=60)
            pubsub = pubsub_of(victim)
            await until_true(lambda: pubsub.ignored_messages >= 70)
            assert len(victim.network.gossip) <= 30
            assert points(victim, author.peer_id) == 0
            assert victim.connected_to(author.peer_id)

    run_trio(main)


def test_the_router_keeps_nothing_of_forwarded_messages_but_its_bounded_cache() -> None:
    async def main() -> None:
        async with open_mesh(2, full_nodes=1) as (validators, (author,), _):
            for number in range(20):
                await author.network.publish("tx", b"%d" % number, timeout_s=60)
            with trio.fail_after(30):
                for _ in range(20):
                    await validators[0].network.gossip.receive()
            router = pubsub_of(validators[0]).router
            assert not router.equivocation_detection
            assert not router.recent_message_deliveries

    run_trio(main)
