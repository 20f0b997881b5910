"""A js-libp2p node against a node of ours: noise, yamux, identify, ping, a request, and gossip both ways (StrictSign).

Needs Node.js and `npm ci` in this folder (`make interop` does both).
"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from node.network.framing import encode_header
from node.wire import Announcement, encode_announcement
from tests.unit.node_network.cluster import Node, open_mesh, quick, run_trio, until_true

FOLDER = Path(__file__).parent
NODE = shutil.which("node")
ANSWER_S_MAX = 30.0

pytestmark = [
    pytest.mark.skipif(NODE is None, reason="Node.js is not installed"),
    pytest.mark.skipif(
        not (FOLDER / "node_modules").is_dir(), reason="js-libp2p is not installed: run `make interop`"
    ),
]


@dataclass
class JsPeer:
    """The other side: takes commands, reports events."""

    process: trio.Process
    events: trio.MemoryReceiveChannel[dict[str, Any]]
    peer_id: str = ""
    passed_over: list[dict[str, Any]] = field(default_factory=list)

    async def until(self, did: str) -> dict[str, Any]:
        """Return the next event of a kind; others are kept for whoever waits for them, a failure is raised."""
        for event in self.passed_over:
            if event["did"] == did:
                self.passed_over.remove(event)
                return event
        with trio.fail_after(ANSWER_S_MAX):
            async for event in self.events:
                assert event["did"] != "failed", event
                if event["did"] == did:
                    return event
                self.passed_over.append(event)
        raise EOFError(f"the js node ended before it {did}")

    async def order(self, *words: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(" ".join(words).encode() + b"\n")
        return await self.until(words[0])

    async def publish(self, topic: str, data: bytes) -> None:
        """Publish, again and again until somebody is known to have subscribed."""
        with trio.fail_after(ANSWER_S_MAX):
            while not (await self.order("publish", topic, data.hex()))["peers"]:  # noqa: ASYNC110 - see cluster.py
                await trio.sleep(0.2)


async def read_events(stdout: trio.abc.ReceiveStream, events: trio.MemorySendChannel[dict[str, Any]]) -> None:
    buffer = b""
    async with events:
        async for data in stdout:
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                await events.send(json.loads(line))


@asynccontextmanager
async def js_peer(node: Node) -> AsyncIterator[JsPeer]:
    """Start a js node that connects to ours and subscribes to all its topics."""
    assert NODE is not None
    topics = [node.network.config.topic_name(topic) for topic in node.network.config.topics]
    process = await trio.lowlevel.open_process(
        [NODE, str(FOLDER / "peer.mjs"), str(node.address), *topics],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    send, receive = trio.open_memory_channel[dict[str, Any]](1000)
    assert process.stdout is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_events, process.stdout, send)
        try:
            peer = JsPeer(process, receive)
            connected = await peer.until("connected")
            assert connected["peer"] == node.peer_id
            assert (connected["encryption"], connected["muxer"]) == ("/noise", "/yamux/1.0.0")
            await until_true(lambda: bool(strangers(node)))
            peer.peer_id = strangers(node)[0]
            yield peer
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        await pipe.aclose()
            nursery.cancel_scope.cancel()


def strangers(node: Node) -> list[str]:
    return [status.peer_id for status in node.network.peers() if status.connected and not status.mesh]


def points(node: Node, peer_id: str) -> int:
    return node.network._standings.points(peer_id, trio.current_time())


def test_a_js_node_connects_pings_asks_hears_announcements_and_is_heard() -> None:
    async def main() -> None:
        async with open_mesh(2) as ((ours, other), _, _), js_peer(ours) as js:
            for _ in range(3):
                assert (await js.order("ping"))["ms"] >= 0

            said = encode_header(1, 5) + b"hello"
            answer = bytes.fromhex(
                (await js.order("request", ours.network.config.request_protocol, said.hex()))["hex"]
            )
            assert answer == struct.pack("!BI", 0, 5) + b"olleh"

            announcement = encode_announcement(Announcement(7, bytes(range(32))))
            for node in (ours, other):  # one of them only forwards what the other says
                data = announcement + node.peer_id.encode()
                await node.network.publish("block", data, timeout_s=ANSWER_S_MAX)
                heard = await js.until("message")
                assert heard["topic"] == ours.network.config.topic_name("block")
                assert (bytes.fromhex(heard["hex"]), heard["signed"]) == (data, True)
                assert heard["from"] == node.peer_id

            topic = ours.network.config.topic_name("tx")
            await js.publish(topic, b"from js")
            for node in (ours, other):
                while (message := await node.network.gossip.receive()).topic != "tx":
                    pass
                assert message.data == b"from js"
            assert points(ours, js.peer_id) == 0  # an honest js node is never held to account

    run_trio(main)


def test_a_js_node_that_sends_bad_messages_loses_its_standing_and_then_its_connection() -> None:
    async def main() -> None:
        async with open_mesh(2, limits=quick(points_decay_per_s=0)) as ((ours, other), _, _):
            async with js_peer(ours) as js:
                topic = ours.network.config.topic_name("tx")
                await js.publish(topic, b"bad")
                await until_true(lambda: points(ours, js.peer_id) > 0)
                before = points(ours, js.peer_id)
                await js.order("garbage", ours.network.config.request_protocol, "ffffffff01")
                await ours.until_event(js.peer_id, connected=False)  # that was an oversized frame
                assert before < ours.network.config.limits.ban_points
                await js.until("disconnected")
            assert len(other.network.gossip) == 0  # what is bad was not passed on
            other.network.broadcast(1, b"alive")
            assert (await ours.network.frames.receive()).payload == b"alive"

    run_trio(main)
