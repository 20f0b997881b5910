"""Real hosts on loopback, all honest: frames, requests, gossip, reconnection, shutdown."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from node.network import (
    ListenFailed,
    NetworkNotRunning,
    NoGossipPeers,
    PayloadTooLarge,
    PeerUnavailable,
    RequestRefused,
    RequestTimeout,
    ResponseTooLarge,
    UnknownPeer,
    UnknownTopic,
    peer_id_of_seed,
)
from node.network.errors import REFUSED_BUSY, REFUSED_INTERNAL, REFUSED_TOO_LARGE
from tests.unit.node_network.cluster import (
    Node,
    config_of,
    mesh_for,
    open_mesh,
    quick,
    receive_gossip,
    receive_payloads,
    run_trio,
    seed_of,
    sorted_seeds,
    start_node,
    until_true,
)


def test_frames_arrive_both_ways_in_order_joined_into_few_writes() -> None:
    async def main() -> None:
        async with open_mesh(2) as ((low, high), _, _):
            for sender, receiver in ((low, high), (high, low)):
                sent = [b"%d" % number for number in range(2000)]
                for payload in sent:
                    assert sender.network.send(receiver.peer_id, 5, payload)
                assert await receive_payloads(receiver, 2000) == sent
                status = sender.status(receiver.peer_id)
                assert status is not None
                assert status.frames_out == 2000
                assert status.writes_out <= 20

    run_trio(main)


def test_a_broadcast_reaches_every_mesh_peer_and_no_full_node() -> None:
    async def main() -> None:
        async with open_mesh(4, full_nodes=1) as (validators, (full,), _):
            assert validators[0].network.broadcast(9, b"vote") == 3
            for node in validators[1:]:
                frame = await node.network.frames.receive()
                assert (frame.peer_id, frame.kind, frame.payload) == (validators[0].peer_id, 9, b"vote")
            assert full.network.broadcast(9, b"vote") == 0
            with pytest.raises(UnknownPeer):
                full.network.send(validators[0].peer_id, 9, b"vote")
            assert len(full.network.frames) == 0

    run_trio(main)


def test_a_newcomer_joins_the_mesh_of_a_running_network_and_one_leaves_it() -> None:
    """The newcomer dials everyone and is configured nowhere; who left is a peer like any other."""

    async def main() -> None:
        async with open_mesh(2, full_nodes=1) as ((low, high), (newcomer,), _):
            everyone = [low, high, newcomer]
            for node in everyone:
                node.network.set_mesh(other.peer_id for other in everyone)
            for sender in everyone:
                assert sender.network.broadcast(9, sender.peer_id.encode()) == 2
            for node in everyone:
                others = {other.peer_id.encode() for other in everyone if other is not node}
                assert set(await receive_payloads(node, 2)) == others
            for node in (low, newcomer):
                node.network.set_mesh([low.peer_id, newcomer.peer_id])
            with pytest.raises(UnknownPeer):
                low.network.send(high.peer_id, 9, b"vote")
            assert newcomer.network.broadcast(9, b"alone") == 1
            assert await receive_payloads(low, 1) == [b"alone"]
            assert await low.network.request(high.peer_id, 1, b"ab", 20) == b"ba"

    run_trio(main)


def test_frames_of_the_largest_size_arrive_and_larger_ones_are_refused_here() -> None:
    async def main() -> None:
        async with open_mesh(2) as ((low, high), _, _):
            bytes_max = low.network.config.limits.frame_bytes_max
            payloads = [bytes([number]) * bytes_max for number in range(3)]
            for payload in payloads:
                assert low.network.send(high.peer_id, 0, payload, bulk=True)
            assert await receive_payloads(high, 3) == payloads
            with pytest.raises(PayloadTooLarge):
                low.network.broadcast(0, bytes(bytes_max + 1))

    run_trio(main)


def test_frames_queued_before_the_peer_is_up_arrive() -> None:
    async def main() -> None:
        seeds = sorted_seeds(2)
        async with trio.open_nursery() as nursery:
            low = await start_node(
                nursery, config_of(seeds[0], mesh=mesh_for(seeds[0], seeds, {}), limits=quick())
            )
            high_mesh = mesh_for(seeds[1], seeds, {seeds[0]: low.address})
            low.network.broadcast(1, b"early")
            high = await start_node(nursery, config_of(seeds[1], mesh=high_mesh, limits=quick()))
            assert await receive_payloads(high, 1) == [b"early"]
            nursery.cancel_scope.cancel()

    run_trio(main)


def test_a_full_inbox_holds_one_peer_back_but_not_another() -> None:
    async def main() -> None:
        async with open_mesh(3, limits=quick(inbox_frames_max=50)) as ((a, b, c), _, _):
            for number in range(5000):
                a.network.send(c.peer_id, 1, b"a%d" % number)
            b.network.send(c.peer_id, 1, b"b")
            frames = [await c.network.frames.receive() for _ in range(120)]
            assert b"b" in [frame.payload for frame in frames]
            from_a = [frame.payload for frame in frames if frame.peer_id == a.peer_id]
            from_a += [
                frame.payload
                for frame in [await c.network.frames.receive() for _ in range(4096 - len(from_a))]
            ]
            assert from_a == [
                b"a%d" % number for number in range(5000 - 4096, 5000)
            ]  # the queue's oldest gave way
            status = a.status(c.peer_id)
            assert status is not None
            assert status.frames_dropped == 5000 - 4096

    run_trio(main)


def test_requests_are_answered_at_any_size_up_to_the_limit() -> None:
    async def main() -> None:
        async with open_mesh(1, full_nodes=1) as ((server,), (client,), _):
            request = client.network.request
            assert await request(server.peer_id, 1, b"abc", 20) == b"cba"
            assert await request(server.peer_id, 1, b"", 20) == b""
            big = bytes(range(256)) * 4096
            assert await request(server.peer_id, 1, big, 20) == big[::-1]
            size = server.network.config.limits.response_bytes_max
            assert len(await request(server.peer_id, 2, size.to_bytes(4, "big"), 20)) == size
            assert await server.network.request(client.peer_id, 1, b"abc", 20) == b"cba"

    run_trio(main)


def test_many_requests_at_once_are_all_answered() -> None:
    async def main() -> None:
        async with open_mesh(1, full_nodes=1) as ((server,), (client,), _):
            answers: set[bytes] = set()

            async def ask(number: int) -> None:
                answers.add(await client.network.request(server.peer_id, 1, b"%03d" % number, 30))

            async with trio.open_nursery() as nursery:
                for number in range(60):
                    nursery.start_soon(ask, number)
            assert answers == {(b"%03d" % number)[::-1] for number in range(60)}

    run_trio(main)


def test_refusals_and_failures_of_requests_are_typed() -> None:
    async def main() -> None:
        async with open_mesh(1, full_nodes=1) as ((server,), (client,), _):
            request = client.network.request
            with pytest.raises(RequestRefused, match="not today") as refusal:
                await request(server.peer_id, 3, b"", 20)
            assert (refusal.value.code, refusal.value.peer_id) == (77, server.peer_id)
            with pytest.raises(RequestRefused) as refusal:
                await request(server.peer_id, 4, b"", 20)
            assert refusal.value.code == REFUSED_INTERNAL
            assert "secret" not in refusal.value.text
            with pytest.raises(RequestRefused) as refusal:
                await request(server.peer_id, 2, (9 * 1024 * 1024).to_bytes(4, "big"), 20)
            assert refusal.value.code == REFUSED_TOO_LARGE
            with pytest.raises(RequestTimeout):
                await request(server.peer_id, 9, b"", 0.3)
            with pytest.raises(PayloadTooLarge):
                await request(server.peer_id, 1, bytes(2 * 1024 * 1024), 20)
            with pytest.raises(PeerUnavailable):
                await request(peer_id_of_seed(seed_of(77)), 1, b"", 20)
            assert await request(server.peer_id, 1, b"still here", 20) == b"ereh llits"

    run_trio(main)


def test_an_answer_over_the_askers_limit_is_not_read() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            server = await start_node(nursery, config_of(seed_of(1)))
            limits = quick(response_bytes_max=1000)
            client = await start_node(nursery, config_of(seed_of(2), gossip=[server.address], limits=limits))
            await client.until_connected(server.peer_id)
            with pytest.raises(ResponseTooLarge):
                await client.network.request(server.peer_id, 2, (1001).to_bytes(4, "big"), 20)
            nursery.cancel_scope.cancel()

    run_trio(main)


def test_a_server_refuses_more_requests_at_once_than_its_limit() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            server = await start_node(
                nursery, config_of(seed_of(1), limits=replace(quick(), served_per_peer_max=2))
            )
            client = await start_node(nursery, config_of(seed_of(2), gossip=[server.address], limits=quick()))
            await client.until_connected(server.peer_id)
            codes: list[int] = []

            async def ask_in_vain() -> None:
                try:
                    await client.network.request(server.peer_id, 9, b"", 20)
                except RequestRefused as refusal:
                    codes.append(refusal.code)
                    asking.cancel_scope.cancel()

            async with trio.open_nursery() as asking:
                for _ in range(3):
                    asking.start_soon(ask_in_vain)
            assert codes == [REFUSED_BUSY]
            nursery.cancel_scope.cancel()

    run_trio(main)


def test_gossip_of_a_full_node_reaches_all_validators_at_once_after_connecting_and_back() -> None:
    async def main() -> None:
        async with open_mesh(4) as (validators, _, nursery):
            addresses = [validator.address for validator in validators]
            full = await start_node(nursery, config_of(seed_of(50), gossip=addresses, limits=quick()))
            await full.network.publish("tx", b"first", timeout_s=60)  # waits for the first subscriber itself
            for validator in validators:
                message = await validator.network.gossip.receive()
                assert (message.topic, message.data) == ("tx", b"first")
            await validators[2].network.publish("block", b"announced", timeout_s=60)
            for node in (full, *validators[:2], validators[3]):
                message = await node.network.gossip.receive()
                assert (message.topic, message.data) == ("block", b"announced")
            assert len(validators[2].network.gossip) == 0  # nobody hears his own words

    run_trio(main)


def test_a_burst_of_300_gossip_messages_reaches_everyone() -> None:
    async def main() -> None:
        async with open_mesh(4, full_nodes=1) as (validators, (full,), nursery):
            burst = {b"message %d " % number + bytes(500) for number in range(300)}

            for message in burst:
                nursery.start_soon(full.network.publish, "tx", message, 60)
            for validator in validators:
                assert await receive_gossip(validator, 300) == burst

    run_trio(main)


def test_the_largest_gossip_message_arrives_and_a_larger_one_is_refused_here() -> None:
    async def main() -> None:
        async with open_mesh(2, full_nodes=1) as (validators, (full,), _):
            bytes_max = full.network.config.limits.gossip_bytes_max
            await full.network.publish("tx", bytes(bytes_max), timeout_s=60)
            for validator in validators:
                assert len((await validator.network.gossip.receive()).data) == bytes_max
            with pytest.raises(PayloadTooLarge):
                await full.network.publish("tx", bytes(bytes_max + 1))
            with pytest.raises(UnknownTopic):
                await full.network.publish("votes", b"")

    run_trio(main)


def test_large_messages_replayed_to_a_newcomer_do_not_mix_with_new_ones() -> None:
    async def main() -> None:
        async with open_mesh(1, full_nodes=1) as ((validator,), _, nursery):
            messages = [bytes([number]) * 800_000 for number in range(8)]
            for message in messages[:4]:
                await validator.network.publish("tx", message, timeout_s=60)
            newcomer = await start_node(
                nursery, config_of(seed_of(60), gossip=[validator.address], limits=quick())
            )
            await validator.until_connected(newcomer.peer_id)
            for message in messages[4:]:
                await validator.network.publish("tx", message, timeout_s=60)
            assert await receive_gossip(newcomer, 8) == set(messages)
            status = newcomer.status(validator.peer_id)
            assert status is not None
            assert status.points == 0
            assert len(newcomer.events) == 1

    run_trio(main)


def test_a_message_without_room_is_left_unseen_and_arrives_when_published_again() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            busy = await start_node(nursery, config_of(seed_of(1), limits=quick(gossip_inbox_messages_max=1)))
            author = await start_node(nursery, config_of(seed_of(2), gossip=[busy.address], limits=quick()))
            running = busy.network._running
            assert running is not None
            await author.network.publish("tx", b"fills the inbox", timeout_s=60)
            await author.network.publish("tx", b"no room", timeout_s=60)
            pubsub = running.pubsub
            await until_true(lambda: pubsub.ignored_messages > 0)
            assert (await busy.network.gossip.receive()).data == b"fills the inbox"
            await author.network.publish("tx", b"no room", timeout_s=60)
            assert (await busy.network.gossip.receive()).data == b"no room"
            nursery.cancel_scope.cancel()

    run_trio(main)


def test_publishing_the_same_bytes_again_sends_them_again_and_delivers_them_once() -> None:
    async def main() -> None:
        async with open_mesh(1, full_nodes=1) as ((validator,), (full,), _):

            def sent_bytes() -> int:
                status = full.status(validator.peer_id)
                return 0 if status is None else status.bytes_out

            message = bytes(100_000)
            await full.network.publish("tx", message, timeout_s=60)
            assert (await validator.network.gossip.receive()).data == message
            before = sent_bytes()
            for _ in range(5):
                await full.network.publish("tx", message, timeout_s=60)
            await until_true(lambda: sent_bytes() - before >= 5 * len(message))
            await full.network.publish("tx", b"last", timeout_s=60)
            assert (await validator.network.gossip.receive()).data == b"last"

    run_trio(main)


def test_publishing_to_nobody_says_so() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            lonely = await start_node(nursery, config_of(seed_of(1)))
            with pytest.raises(NoGossipPeers):
                await lonely.network.publish("tx", b"hello", timeout_s=0.05)
            nursery.cancel_scope.cancel()

    run_trio(main)


def test_gossip_the_validator_rejects_is_not_delivered_and_costs_the_forwarder() -> None:
    async def main() -> None:
        async with open_mesh(1, full_nodes=1) as ((validator,), (full,), _):
            await full.network.publish("tx", b"bad", timeout_s=60)
            await full.network.publish("tx", b"good", timeout_s=60)
            assert (await validator.network.gossip.receive()).data == b"good"
            status = validator.status(full.peer_id)
            assert status is not None
            assert status.points > 0

    run_trio(main)


def test_a_peer_that_died_and_came_back_is_connected_again_and_heard() -> None:
    async def main() -> None:
        async with open_mesh(3, full_nodes=1) as (validators, (full,), nursery):
            victim, others = validators[0], validators[1:]  # everyone dials the first
            config = replace(victim.network.config, listen_port=victim.address.port)
            await victim.stop()
            for node in (*others, full):
                await node.until_event(victim.peer_id, connected=False)
            others[0].network.broadcast(1, b"meanwhile")
            assert await receive_payloads(others[1], 1) == [b"meanwhile"]
            await until_dial_failed(others[0], victim.peer_id)

            reborn = await start_node(nursery, config)
            for node in (*others, full):
                await node.until_event(reborn.peer_id, connected=True, count=2)
            await reborn.until_connected(*(node.peer_id for node in (*others, full)))
            others[0].network.send(reborn.peer_id, 1, b"welcome")
            assert b"welcome" in [*await receive_payloads(reborn, 1), *await receive_payloads(reborn, 1)]
            reborn.network.broadcast(1, b"thanks")
            assert await receive_payloads(others[0], 1) == [b"thanks"]
            await full.network.publish("tx", b"news", timeout_s=60)
            assert b"news" in await receive_gossip(reborn, 1)
            assert await full.network.request(reborn.peer_id, 1, b"ab", 20) == b"ba"

    run_trio(main)


async def until_dial_failed(node: Node, peer_id: str) -> None:
    """libp2p then refuses to dial the peer for a minute unless told otherwise."""
    running = node.network._running
    assert running is not None
    blocked = running.host.get_network()._negative_peer_cache
    await until_true(lambda: bool(blocked.is_blocked(peer_id)))


def test_nodes_of_different_chains_do_not_talk() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            ours = await start_node(nursery, config_of(seed_of(1)))
            other_chain = config_of(seed_of(2), gossip=[ours.address], chain_id=bytes(32), limits=quick())
            theirs = await start_node(nursery, other_chain)
            await theirs.until_connected(ours.peer_id)
            with pytest.raises(PeerUnavailable):
                await theirs.network.request(ours.peer_id, 1, b"", 20)
            with pytest.raises(NoGossipPeers):
                await theirs.network.publish("tx", b"", timeout_s=0.5)
            nursery.cancel_scope.cancel()

    run_trio(main)


def test_a_port_in_use_is_a_typed_error() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            first = await start_node(nursery, config_of(seed_of(1)))
            with pytest.RaisesGroup(ListenFailed):
                async with trio.open_nursery() as failing:
                    await start_node(failing, config_of(seed_of(2), port=first.address.port))
            nursery.cancel_scope.cancel()

    run_trio(main)


def test_shutdown_is_quick_and_frees_the_port() -> None:
    async def main() -> None:
        async with open_mesh(3, full_nodes=1) as (validators, _, nursery):
            config = replace(validators[0].network.config, listen_port=validators[0].address.port)
            began_s = trio.current_time()
            await validators[0].stop()
            assert trio.current_time() - began_s < 2
            with pytest.raises(NetworkNotRunning):
                await validators[0].network.publish("tx", b"")
            assert not any(status.connected for status in validators[0].network.peers())
            again = await start_node(nursery, config)
            assert again.address == validators[0].address

    run_trio(main)
