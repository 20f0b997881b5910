"""Starting the nodes of a devnet, waiting until they are one network, watching them, ending them.

A node that dies later is mentioned and left dead: what a network of four does without one of its validators is what
there is to see, and whoever restarts it by hand must find its home free.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from node.devnet.errors import NetworkNotReady, NodeDied
from node.devnet.layout import Layout
from node.devnet.network import Network, NodePlan
from node.devnet.processes import Child, bound_log, child_environment, last_lines, reap, spawn, stop
from node.home import write_atomic

READY_SECONDS_MAX = 90.0
POLL_SECONDS = 0.25
LOG_CHECK_SECONDS = 5.0

Notify = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class NodeView:
    """What readiness looks at: a node's executed height, and how many peers it is connected to."""

    height: int
    peers: int


Probe = Callable[[str], Awaitable[NodeView | None]]
"""Asks the node at an RPC URL; None where it does not answer (yet)."""


class Fleet:
    """The running nodes, in the order of the network's plan."""

    def __init__(self, network: Network, children: Sequence[Child], notify: Notify) -> None:
        self.network = network
        self.children = tuple(children)
        self._notify = notify
        self._starting = True
        self._death = trio.Event()

    async def wait_ready(self, probe: Probe, seconds_max: float = READY_SECONDS_MAX) -> dict[str, NodeView]:
        """Return every node's view once all have executed a block and see their peers.

        Raises `NodeDied` as soon as one ends, `NetworkNotReady` at the deadline.
        """
        views: dict[str, NodeView] = {}
        with trio.move_on_after(seconds_max):
            while missing := [node for node in self.network.nodes if not self._is_ready(node, views)]:
                self._refuse_death()
                for node in missing:
                    view = await probe(node.rpc_url)
                    if view is not None:
                        views[node.name] = view
                with trio.move_on_after(POLL_SECONDS):
                    await self._death.wait()
            self._starting = False
            return views
        waiting = ", ".join(
            f"{node.name} ({_describe(views.get(node.name))})"
            for node in self.network.nodes
            if not self._is_ready(node, views)
        )
        log = next(child.log for child in self.children if child.name == waiting.split(" ")[0])
        raise NetworkNotReady(seconds_max, waiting, log, last_lines(log))

    def _is_ready(self, node: NodePlan, views: Mapping[str, NodeView]) -> bool:
        view = views.get(node.name)
        others = len(self.network.validators) - (1 if node.validator else 0)
        return view is not None and view.height >= 1 and view.peers >= others

    def _refuse_death(self) -> None:
        for child in self.children:
            if child.code is not None:
                raise NodeDied(child.name, child.code, child.log, last_lines(child.log))

    async def watch(self) -> None:
        """Notice the end of nodes, until cancelled."""
        with trio.open_signal_receiver(signal.SIGCHLD) as signals:
            self._mention(reap(self.children))
            async for _ in signals:
                self._mention(reap(self.children))

    async def keep_logs_bounded(self) -> None:
        """Cut logs that grow past their limit, until cancelled."""
        while True:
            for child in self.children:
                bound_log(child.log)
            await trio.sleep(LOG_CHECK_SECONDS)

    def _mention(self, gone: Sequence[Child]) -> None:
        if gone:
            self._death.set()
        for child in gone:
            code = child.popen.returncode
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            if not self._starting:
                self._notify(f"{child.name} ended ({how}); the network goes on without it")


@asynccontextmanager
async def run_nodes(network: Network, notify: Notify) -> AsyncIterator[Fleet]:
    """Start every node of the network; end them all with the context, within 3 s and a kill.

    To be entered in the main thread (see `node.devnet.processes`).
    """
    children: list[Child] = []
    try:
        for node in network.nodes:
            command = [sys.executable, "-m", "node.cli.main", "start", "--home", str(node.home.root)]
            children.append(spawn(node.name, command, node.home.logs_path / "node.log", child_environment()))
        fleet = Fleet(network, children, notify)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fleet.watch)
            nursery.start_soon(fleet.keep_logs_bounded)
            yield fleet
            nursery.cancel_scope.cancel()
    finally:
        await stop(children)


def write_devnet_json(layout: Layout, fleet: Fleet) -> None:
    """Write ``devnet.json``: the processes and the accounts, atomically."""
    nodes = [
        {
            "home": str(node.home.root),
            "pid": child.pid,
            "rpc_url": node.rpc_url,
            "peer_id": node.peer_id,
            "validator": node.validator,
        }
        for node, child in zip(fleet.network.nodes, fleet.children, strict=True)
    ]
    accounts = [
        {"name": account.name, "address": account.address.hex(), "secret_key_file": str(account.path)}
        for account in fleet.network.accounts
    ]
    document = {"nodes": nodes, "accounts": accounts}
    write_atomic(layout.devnet_json, json.dumps(document, indent=2).encode() + b"\n", mode=0o600)


def _describe(view: NodeView | None) -> str:
    return "no answer" if view is None else f"height {view.height}, {view.peers} peers"
