"""Hostile peers for tests: they speak the transport properly and then say what they like; victims in processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import multiaddr
import trio
from libp2p.custom_types import TProtocol

from node.network import Limits, PeerAddress, peer_id_of_seed
from node.network.host import build_host, close_host, to_id
from tests.unit.node_network.cluster import (
    CHAIN,
    Node,
    config_of,
    open_mesh,
    receive_payloads,
    run_trio,
    seed_of,
    until_true,
)

STRANGER = seed_of(200)


class HostileHost:
    """A libp2p host that speaks the transport properly and then says what it likes."""

    def __init__(self, host: Any, target: PeerAddress) -> None:
        self.host = host
        self.target = to_id(target.peer_id)
        self.address = target

    async def dial(self) -> Any:
        """Return the muxed connection to the target."""
        swarm = self.host.get_network()
        swarm.unblock_peer(self.target)
        self.host.get_peerstore().add_addrs(self.target, [multiaddr.Multiaddr(self.address.multiaddr)], 3600)
        connections = await swarm.dial_peer(self.target)
        return connections[0].muxed_conn

    async def stream(self, protocol: str) -> Any:
        return await self.host.new_stream(self.target, [TProtocol(protocol)])

    async def redial(self, victim: Node) -> None:
        """Connect again, unless still connected; the victim must have noticed that the last connection is gone."""
        if self.host.get_network().get_connections(self.target):
            return
        own_id = str(self.host.get_id())
        await until_true(lambda: not victim.connected_to(own_id))
        await self.dial()
        await victim.until_connected(own_id)

    async def raw_stream(self) -> Any:
        """Open a stream without negotiating a protocol."""
        return await self.host.get_network().new_stream(self.target)


@asynccontextmanager
async def hostile(seed: bytes, target: PeerAddress, *, dial: bool = True) -> AsyncIterator[HostileHost]:
    """Run a hostile host, connected to its target unless it shall dial later."""
    config = config_of(seed)
    host = build_host(config, 0, lambda peer_id: True, lambda peer_id, points, reason: None)
    async with host.run(listen_addrs=[multiaddr.Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        villain = HostileHost(host, target)
        try:
            if dial:
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


async def talk_raw(address: PeerAddress, said: bytes) -> bytes:
    """Say something on a bare TCP connection and return all that is answered."""
    stream = await trio.open_tcp_stream("127.0.0.1", address.port)
    answered = b""
    async with stream:
        with suppress(trio.BrokenResourceError):  # it may be cut off before it has said all of it
            await stream.send_all(said)
            await stream.send_eof()
        with trio.move_on_after(20):
            try:
                while data := await stream.receive_some(65536):
                    answered += data
                    if b"na\n" in answered:
                        break
            except trio.BrokenResourceError:
                return answered
    return answered


NODE_SCRIPT = """
import json, structlog, sys, trio
from node.network import Limits, NetworkConfig, PeerAddress
from node.network.network import Network
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))  # standard output is for the address
seed, chain, limits = bytes.fromhex(sys.argv[1]), bytes.fromhex(sys.argv[2]), json.loads(sys.argv[3])
targets = tuple(map(PeerAddress.parse, sys.argv[4:]))
async def on_request(peer_id, kind, payload): return payload
async def main():
    config = NetworkConfig(key_seed=seed, chain_id=chain, gossip_peers=targets, limits=Limits(**limits))
    network = Network(config, on_request=on_request, validate_gossip=lambda topic, data: True)
    async with trio.open_nursery() as nursery:
        print(await nursery.start(network.run), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()
trio.run(main)
"""


async def spawn_node(seed: bytes, *targets: PeerAddress, **limits: int) -> subprocess.Popen[bytes]:
    """Start a node in a process of its own; it prints its address and ends with its standard input."""
    root = Path(__file__).parents[3]
    arguments = [seed.hex(), CHAIN.hex(), json.dumps(limits), *map(str, targets)]
    return await trio.to_thread.run_sync(
        lambda: subprocess.Popen(
            [sys.executable, "-W", "error", "-c", NODE_SCRIPT, *arguments],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    )


@dataclass
class Victim:
    """A node in a process of its own."""

    address: PeerAddress
    process: subprocess.Popen[bytes]

    def resident_bytes(self) -> int:
        """What the process holds of the machine's memory now."""
        return self._memory_bytes("VmRSS:")

    def peak_bytes(self) -> int:
        """The most that it ever held."""
        return self._memory_bytes("VmHWM:")

    def _memory_bytes(self, name: str) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024


@asynccontextmanager
async def victim_process(**limits: int) -> AsyncIterator[Victim]:
    """Run a node in a process; it must not have written anything to standard error, whatever was done to it."""
    process = await spawn_node(seed_of(250), **limits)
    try:
        assert process.stdout is not None
        line = await trio.to_thread.run_sync(process.stdout.readline)
        yield Victim(PeerAddress.parse(line.decode().strip()), process)
        _, err = await trio.to_thread.run_sync(lambda: process.communicate(input=b"", timeout=30))
        assert (process.returncode, err) == (0, b"")
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(process.wait)
        close_pipes(process)


def close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
