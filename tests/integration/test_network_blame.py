"""Who is held to account: peers for what they send, never for what goes wrong here."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import structlog.testing
import trio
from libp2p.custom_types import TProtocol

from node.network import (
    LocalNetworkError,
    PayloadTooLarge,
    PeerAddress,
    PeerEvent,
    PeerUnavailable,
    RequestRefused,
    RequestTimeout,
    peer_id_of_seed,
)
from node.network.errors import REFUSED_INTERNAL, REFUSED_TIMEOUT, RemoteProtocolError
from node.network.network import Network
from tests.unit.node_network.cluster import (
    CHAIN,
    UNKNOWN_PORT,
    Node,
    config_of,
    mesh_for,
    open_mesh,
    quick,
    run_trio,
    seed_of,
    sorted_seeds,
    start_node,
    until_true,
)
from tests.unit.node_network.villain import STRANGER, hostile, points

REQUEST = f"/openledger/{CHAIN[:8].hex()}/request/1"


async def full_disk(*_: object) -> bytes:
    raise OSError(errno.ENOSPC, "no space left on device")


def broken_validator(topic: str, data: bytes) -> bool:
    raise OSError(errno.EIO, "input/output error")


def broken_observer(event: PeerEvent) -> None:
    raise OSError(errno.ENOSPC, "no space left on device")


def test_what_fails_in_this_node_costs_no_peer_anything() -> None:
    """Full disk, broken validator and observer, late handlers, full inboxes, full queues, impatience."""

    async def main() -> None:
        seeds = sorted_seeds(2)
        limits = quick(
            served_timeout_ms=200, inbox_frames_max=5, inbox_wait_ms_max=100, send_queue_frames_max=50
        )
        failing = Network(
            replace(config_of(seeds[0], mesh=mesh_for(seeds[0], seeds, {}), limits=limits)),
            on_request=full_disk,
            validate_gossip=broken_validator,
            on_peer=broken_observer,
        )
        async with trio.open_nursery() as nursery:
            address = await nursery.start(failing.run)
            peer = await start_node(
                nursery,
                config_of(seeds[1], mesh=mesh_for(seeds[1], seeds, {seeds[0]: address}), limits=limits),
            )
            await peer.until_connected(failing.peer_id)

            with pytest.raises(RequestRefused) as refusal:  # its disk is full
                await peer.network.request(failing.peer_id, 1, b"", 20)
            assert refusal.value.code == REFUSED_INTERNAL
            await peer.network.publish("tx", b"fine", timeout_s=20)  # its validator is broken
            await until_true(lambda: ignored(failing) > 0)
            for number in range(1000):  # nobody consumes its frames, and its peer's queue runs over
                peer.network.send(failing.peer_id, 1, b"%d" % number)
            await until_true(lambda: failing.frames.dropped_items > 20)
            with pytest.raises(RequestTimeout):  # it is impatient, and its peer is slow
                await failing.request(peer.peer_id, 9, b"", 0.05)
            with pytest.raises(RequestRefused) as refusal:  # its peer gives up by itself
                await failing.request(peer.peer_id, 9, b"", 20)
            assert refusal.value.code == REFUSED_TIMEOUT
            with pytest.raises(PayloadTooLarge):
                failing.send(peer.peer_id, 1, bytes(5 * 1024 * 1024))
            with pytest.raises(PeerUnavailable):
                await failing.request(peer_id_of_seed(seed_of(99)), 1, b"", 20)

            now_s = trio.current_time()
            assert failing._standings.points(peer.peer_id, now_s) == 0
            assert points(peer, failing.peer_id) == 0
            assert [event.connected for event in peer.events] == [True]
            nursery.cancel_scope.cancel()

    with structlog.testing.capture_logs() as lines:
        run_trio(main)
    failures = {line["event"] for line in lines if line["log_level"] == "error"}
    assert failures == {"request handler failed", "gossip validator failed", "peer observer failed"}


def ignored(network: Network) -> int:
    return 0 if network._running is None else network._running.pubsub.ignored_messages


def test_a_connection_cut_in_the_middle_of_a_frame_or_a_request_costs_nothing() -> None:
    async def main() -> None:
        async with open_mesh(1) as ((victim,), _, _):
            villain_id = peer_id_of_seed(STRANGER)
            async with hostile(STRANGER, victim.address) as villain:
                stream = await villain.stream(REQUEST)
                await stream.write(b"\0\0\0\x09")
                await villain.stream(REQUEST)  # answered after what was said before
                await stream.muxed_conn.secured_conn.close()
                await victim.until_event(villain_id, connected=False)
            assert points(victim, villain_id) == 0

    run_trio(main)


REFUSAL_WITHOUT_END = b"\x01" + (100_000).to_bytes(4, "big") + bytes(1000)
ANSWER_TOO_LONG = b"\x00" + (2).to_bytes(4, "big") + b"abc"


@pytest.mark.parametrize("answer", [REFUSAL_WITHOUT_END, ANSWER_TOO_LONG], ids=["refusal", "too-long"])
def test_a_malformed_answer_is_held_against_who_gave_it(answer: bytes) -> None:
    async def misanswer(stream: Any) -> None:
        await stream.read(100)
        await stream.write(answer)
        await stream.close_write()

    async def main() -> None:
        async with open_mesh(1) as ((asker,), _, _):
            villain_id = peer_id_of_seed(STRANGER)
            async with hostile(STRANGER, asker.address, dial=False) as villain:
                villain.host.set_stream_handler(TProtocol(REQUEST), misanswer)
                await villain.dial()
                await asker.until_connected(villain_id)
                with pytest.raises(PeerUnavailable):
                    await asker.network.request(villain_id, 1, b"", 20)
                assert points(asker, villain_id) > 0

    run_trio(main)


def test_an_honest_peer_that_dies_in_every_way_is_never_held_to_account() -> None:
    async def main() -> None:
        async with open_mesh(2, full_nodes=1) as ((low, high), (full,), nursery):
            config = high.network.config
            payload = bytes(1024 * 1024)
            for _ in range(3):  # frames, requests and gossip are under way when it goes
                async with trio.open_nursery() as busy:
                    for _ in range(4):
                        busy.start_soon(ask_quietly, high, low.peer_id, payload)
                        high.network.broadcast(1, payload)
                    await trio.sleep(0.02)
                    await high.stop()
                await low.until_event(high.peer_id, connected=False)
                high = await start_node(nursery, config)
                await high.until_connected(low.peer_id)
            assert points(low, high.peer_id) == 0
            assert points(low, full.peer_id) == 0

    run_trio(main)


async def ask_quietly(node: Node, peer_id: str, payload: bytes) -> None:
    try:
        await node.network.request(peer_id, 1, payload, 0.5)
    except (PeerUnavailable, RequestTimeout, LocalNetworkError):
        return


def test_what_may_cost_a_peer_is_one_kind_of_error_and_local_errors_are_another() -> None:
    local: list[Callable[[], object]] = [
        lambda: PeerAddress.parse("nonsense"),
        lambda: PeerAddress.of("127.0.0.1", UNKNOWN_PORT, "nonsense"),
        lambda: config_of(b"short"),
    ]
    for fails in local:
        with pytest.raises(LocalNetworkError):
            fails()
    assert not issubclass(LocalNetworkError, RemoteProtocolError)
    assert not issubclass(RemoteProtocolError, LocalNetworkError)
