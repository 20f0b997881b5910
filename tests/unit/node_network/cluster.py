"""Networks on loopback for tests: real libp2p hosts, ports chosen by the system, no sleeping."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import trio

from node.network import (
    Limits,
    NetworkConfig,
    PeerAddress,
    PeerEvent,
    PeerStatus,
    RequestRefused,
    check_peer_id,
    peer_id_of_seed,
)
from node.network.network import Network

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CHAIN = bytes(range(32))
UNKNOWN_PORT = 1  # for peers that dial us and are never dialled
PATIENCE_S = 120.0

T = TypeVar("T")


def run_trio(test: Callable[[], Awaitable[None]]) -> None:
    """Run an asynchronous test; a hang fails it, and what one task raised is raised without its nurseries' groups."""

    async def bounded() -> None:
        with trio.fail_after(PATIENCE_S):
            await test()

    try:
        trio.run(bounded)
    except BaseExceptionGroup as group:
        fault: BaseException = group
        while isinstance(fault, BaseExceptionGroup) and len(fault.exceptions) == 1:
            fault = fault.exceptions[0]
        raise fault from None


def seed_of(number: int) -> bytes:
    return bytes([number]) * 32


def sorted_seeds(count: int, first: int = 1) -> list[bytes]:
    """Seeds in the order of their peer ids: each node dials those before it."""
    seeds = [seed_of(number) for number in range(first, first + count)]
    return sorted(seeds, key=lambda seed: check_peer_id(peer_id_of_seed(seed)))


@dataclass
class Node:
    """A network under test, what its peers did, and a scope that kills it."""

    network: Network
    address: PeerAddress
    scope: trio.CancelScope
    stopped: trio.Event
    events: list[PeerEvent] = field(default_factory=list)
    changed: trio.Event = field(default_factory=trio.Event)

    @property
    def peer_id(self) -> str:
        return self.network.peer_id

    def note(self, event: PeerEvent) -> None:
        self.events.append(event)
        self.changed.set()
        self.changed = trio.Event()

    def status(self, peer_id: str) -> PeerStatus | None:
        return next((status for status in self.network.peers() if status.peer_id == peer_id), None)

    def connected_to(self, peer_id: str) -> bool:
        status = self.status(peer_id)
        return status is not None and status.connected

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition that only peer events change."""
        while not condition():
            await self.changed.wait()

    async def until_connected(self, *peer_ids: str) -> None:
        await self.until(lambda: all(map(self.connected_to, peer_ids)))

    async def until_event(self, peer_id: str, connected: bool, count: int = 1) -> None:
        await self.until(
            lambda: sum(e.peer_id == peer_id and e.connected is connected for e in self.events) >= count
        )

    async def stop(self) -> None:
        self.scope.cancel()
        await self.stopped.wait()


async def answer(peer_id: str, kind: int, payload: bytes) -> bytes:
    """The request handler of every test node; kinds name what it does."""
    if kind == 1:
        return payload[::-1]
    if kind == 2:
        return bytes(int.from_bytes(payload, "big"))
    if kind == 3:
        raise RequestRefused(77, "not today")
    if kind == 4:
        raise LookupError("a secret of this machine")
    await trio.sleep_forever()
    raise AssertionError


def valid(topic: str, data: bytes) -> bool:
    return not data.startswith(b"bad")


async def start_node(nursery: trio.Nursery, config: NetworkConfig) -> Node:
    """Start one node inside a nursery."""
    scope, stopped = trio.CancelScope(), trio.Event()
    holder: list[Node] = []
    network = Network(
        config, on_request=answer, validate_gossip=valid, on_peer=lambda event: holder[0].note(event)
    )
    node = Node(network, PeerAddress.of("127.0.0.1", UNKNOWN_PORT, network.peer_id), scope, stopped)
    holder.append(node)

    async def run(task_status: trio.TaskStatus[PeerAddress]) -> None:
        try:
            with scope:
                await network.run(task_status=task_status)
        finally:
            stopped.set()

    node.address = await nursery.start(run)
    return node


def config_of(
    seed: bytes,
    *,
    mesh: list[PeerAddress] | None = None,
    gossip: list[PeerAddress] | None = None,
    limits: Limits | None = None,
    allowed: frozenset[str] | None = None,
    port: int = 0,
    chain_id: bytes = CHAIN,
) -> NetworkConfig:
    return NetworkConfig(
        key_seed=seed,
        chain_id=chain_id,
        listen_port=port,
        mesh_peers=tuple(mesh or ()),
        gossip_peers=tuple(gossip or ()),
        allowed=allowed,
        limits=limits or Limits(),
    )


def quick(**changes: int) -> Limits:
    """Limits whose waiting times suit tests."""
    return replace(Limits(), redial_delay_ms_min=50, redial_delay_ms_max=500, **changes)


def mesh_for(seed: bytes, seeds: list[bytes], known: dict[bytes, PeerAddress]) -> list[PeerAddress]:
    """Addresses of the other nodes of a mesh; those not started yet will dial us."""
    return [
        known.get(other) or PeerAddress.of("127.0.0.1", UNKNOWN_PORT, peer_id_of_seed(other))
        for other in seeds
        if other != seed
    ]


@asynccontextmanager
async def open_mesh(
    count: int, *, limits: Limits | None = None, full_nodes: int = 0
) -> AsyncIterator[tuple[list[Node], list[Node], trio.Nursery]]:
    """Start a connected mesh of validators and full nodes connected to all of them."""
    seeds = sorted_seeds(count)
    known: dict[bytes, PeerAddress] = {}
    validators: list[Node] = []
    async with trio.open_nursery() as nursery:
        for seed in seeds:
            config = config_of(seed, mesh=mesh_for(seed, seeds, known), limits=limits or quick())
            node = await start_node(nursery, config)
            known[seed] = node.address
            validators.append(node)
        full = [
            await start_node(
                nursery, config_of(seed_of(100 + i), gossip=list(known.values()), limits=limits or quick())
            )
            for i in range(full_nodes)
        ]
        for node in validators:
            await node.until_connected(*(other.peer_id for other in validators if other is not node))
        for node in full:
            await node.until_connected(*(validator.peer_id for validator in validators))
        yield validators, full, nursery
        nursery.cancel_scope.cancel()


async def until_true(condition: Callable[[], bool]) -> None:
    """Wait for something inside the adapter that announces itself to nobody."""
    while not condition():  # noqa: ASYNC110 - there is no event to wait for
        await trio.sleep(0.01)


async def receive_payloads(node: Node, count: int) -> list[bytes]:
    return [(await node.network.frames.receive()).payload for _ in range(count)]


async def receive_gossip(node: Node, count: int) -> set[bytes]:
    """Receive until ``count`` different messages arrived."""
    seen: set[bytes] = set()
    while len(seen) < count:
        seen.add((await node.network.gossip.receive()).data)
    return seen
