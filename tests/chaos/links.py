"""A TCP relay for each ordered pair of nodes, on loopback: where a dialler believes its peer to listen.

Cutting works on bytes that run from one node to another, whoever dialled. *Silence* holds them back, as a dropped packet would:
connections stay, nothing arrives, and what was held arrives at the end. *Reset* ends connections and refuses new ones. *Slow*
ways take a while for each piece.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

import trio

from node.config import load_config
from node.devnet.ports import free_ports
from node.network.address import PeerAddress
from tests.chaos.fleet import Fleet

HOST = "127.0.0.1"
PIECE_BYTES = 64 * 1024

Pair = tuple[str, str]
"""From a node, to a node."""


@dataclass(slots=True)
class Links:
    """All relays; `ports` by (dialler, listener), `targets` where the listeners really are, by name."""

    ports: dict[Pair, int]
    targets: dict[str, int]
    _silent: set[Pair] = field(default_factory=set)
    _severed: set[Pair] = field(default_factory=set)
    _slow_s: dict[Pair, float] = field(default_factory=dict)
    _changed: trio.Event = field(default_factory=trio.Event)
    _connections: dict[trio.CancelScope, Pair] = field(default_factory=dict)

    # --- what faults do ---

    def silence(self, pairs: Iterable[Pair]) -> None:
        """Hold back what runs from each first to each second node."""
        self._silent |= set(pairs)

    def sever(self, pairs: Iterable[Pair]) -> None:
        """End connections between the nodes of each pair and refuse new ones, whoever dials."""
        for source, target in pairs:
            self._severed |= {(source, target), (target, source)}
        for scope, pair in self._connections.items():
            if pair in self._severed:
                scope.cancel()

    def slow(self, pairs: Iterable[Pair], delay_s: float) -> None:
        """Let what runs from each first to each second node wait for so long, and what follows it meanwhile go with it."""
        self._slow_s.update(dict.fromkeys(pairs, delay_s))

    def heal(self) -> None:
        """Let everything pass."""
        self._silent.clear()
        self._severed.clear()
        self._slow_s.clear()
        self._changed.set()
        self._changed = trio.Event()

    # --- the relays ---

    async def run(self) -> None:
        """Serve all relays until cancelled."""
        async with trio.open_nursery() as nursery:
            for pair, port in self.ports.items():
                nursery.start_soon(partial(trio.serve_tcp, partial(self._relay, pair), port, host=HOST))

    async def _relay(self, pair: Pair, near: trio.SocketStream) -> None:
        dialler, listener = pair
        with trio.CancelScope() as scope:
            self._connections[scope] = pair
            try:
                if pair in self._severed:
                    return
                await self._opened((dialler, listener))
                far = await trio.open_tcp_stream(HOST, self.targets[listener])
                async with far, trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, near, far, (dialler, listener), nursery.cancel_scope)
                    nursery.start_soon(self._pump, far, near, (listener, dialler), nursery.cancel_scope)
            except OSError:
                return  # nobody listens there
            finally:
                del self._connections[scope]

    async def _pump(
        self, source: trio.SocketStream, sink: trio.SocketStream, way: Pair, scope: trio.CancelScope
    ) -> None:
        try:
            while data := await source.receive_some(PIECE_BYTES):
                await self._opened(way)
                if way in self._slow_s:
                    await trio.sleep(self._slow_s[way])
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()  # one direction ended: neither side sends half-closed streams

    async def _opened(self, way: Pair) -> None:
        while way in self._silent:
            await self._changed.wait()


def lay_links(fleet: Fleet) -> Links:
    """Relays for all pairs, and in each seat the arguments that make its daemon dial them."""
    configs = {
        name: load_config(seat.plan.home.config_path, environment={}).network
        for name, seat in fleet.seats.items()
    }
    names = {seat.plan.peer_id: name for name, seat in fleet.seats.items()}
    pairs = [(dialler, listener) for dialler in configs for listener in configs if dialler != listener]
    ports = dict(zip(pairs, free_ports(len(pairs)), strict=True))
    for name, section in configs.items():
        for key in ("mesh_peers", "gossip_peers"):
            peers = [PeerAddress.parse(text) for text in getattr(section, key)]
            texts = [
                str(PeerAddress.of(HOST, ports[name, names[peer.peer_id]], peer.peer_id)) for peer in peers
            ]
            fleet.seats[name].arguments += ("--set", f"network.{key}={','.join(texts)}") if texts else ()
    return Links(ports, {name: section.listen_port for name, section in configs.items()})
