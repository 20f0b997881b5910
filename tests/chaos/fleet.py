"""The daemons of one devnet as processes that a trio program starts, signals, watches and compares.

Every node's event stream is followed from the first block on, across restarts, into one `Witness`: whatever a test waits for,
it waits for these events or for the end of a process.
"""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from node.devnet.layout import claim_home
from node.devnet.network import CANDIDATE_PREFIX, PARAMS, Network, NodePlan, create_network
from node.devnet.processes import Child, child_environment, last_lines, spawn
from node.keys import load_seed, public_key
from node.ledger.params import Params
from node.storage.guard import SafetyGuard
from tests.chaos.rpc import NodeSilent, call, follow
from tests.chaos.signers import SignerSeat
from tests.chaos.witness import Witness

DAEMON = "node.cli.main"
START_S_MAX = 150.0
END_S_MAX = 30.0
RETRY_S = 0.1
"""Between two tries to connect to a node that starts: its port cannot be waited for."""


class NotInTime(Exception):
    """What was waited for did not happen."""

    def __init__(self, what: str, timeout_s: float) -> None:
        super().__init__(f"{what}: not within {timeout_s:g} s")


@dataclass(slots=True)
class Seat:
    """One node's place: its plan, the module that runs in it, further arguments, its process and how far it was followed.

    `usual` is the module that runs there when nothing is wrong; `signer` holds its key, if anybody but the daemon does. `up` is set once its RPC answers; `stopped` while the process stands still by SIGSTOP. What a `hostile` one says counts for nothing.
    """

    plan: NodePlan
    module: str = DAEMON
    usual: str = DAEMON
    arguments: tuple[str, ...] = ()
    signer: SignerSeat | None = None
    child: Child | None = None
    after: str = "0"
    started: trio.Event = field(default_factory=trio.Event)
    up: trio.Event = field(default_factory=trio.Event)
    stopped: bool = False
    hostile: bool = False

    @property
    def log(self) -> Path:
        """What the daemon writes to standard error."""
        return self.plan.home.logs_path / "node.log"

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self.child is not None and self.child.popen.poll() is None

    @property
    def candidate(self) -> bool:
        """Whether it has a seat in no epoch unless it joins."""
        return self.plan.name.startswith(CANDIDATE_PREFIX)

    def consensus_key(self) -> bytes:
        """The validator id, wherever its key is; of a validator or a candidate."""
        if self.signer is not None:
            return bytes.fromhex(self.signer.public)
        return public_key(load_seed(self.plan.home.consensus_key_path))

    def last_commit_vote(self) -> tuple[int, int]:
        """Epoch and round of the last commit vote that its key signed, wherever the key is; (0, 0) before the first."""
        home = self.plan.home if self.signer is None else self.signer.place.home
        try:
            mark = SafetyGuard(home.safety_guard_path).mark
        except FileNotFoundError:
            return 0, 0  # a candidate that has not started
        return mark.epoch, mark.rounds[4]

    def said(self, since: int = 0) -> str:
        """Its log from a byte on."""
        with self.log.open("rb") as file:
            file.seek(since)
            return file.read().decode("utf-8", "replace")


Listen = Callable[[str, dict[str, Any]], None]
"""Told of each transaction that a node executed: the node's name, the event's members."""


class Fleet:
    """All seats of a network, validators first, then the full node, then candidates, which are not started."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.seats = {node.name: Seat(node) for node in network.nodes}
        self.witness = Witness()
        self.listeners: list[Listen] = []
        self._pulse = trio.Event()

    @property
    def validators(self) -> list[str]:
        """Names of the genesis's validators."""
        return [name for name, seat in self.seats.items() if seat.plan.validator]

    @property
    def live(self) -> list[str]:
        """Names of the honest nodes that run and do not stand still."""
        return [
            name
            for name, seat in self.seats.items()
            if seat.running and not seat.stopped and not seat.hostile
        ]

    def url(self, name: str) -> str:
        """Where a node's RPC answers."""
        return self.seats[name].plan.rpc_url

    # --- processes ---

    def start(
        self, name: str, wrapper: Sequence[str] = (), settings: Mapping[str, str] | None = None
    ) -> None:
        """Start a node's daemon, under the command `wrapper` if there is one, with `settings` for this start. Main thread only."""
        seat = self.seats[name]
        home = str(seat.plan.home.root)
        command = [*wrapper, sys.executable, "-m", seat.module, "start", "--home", home, *seat.arguments]
        own = {} if seat.signer is None else seat.signer.settings
        for key, value in {**own, **(settings or {})}.items():
            command += ["--set", f"{key}={value}"]
        seat.child = spawn(name, command, seat.log, child_environment())
        seat.up = trio.Event()
        seat.started.set()

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a running daemon."""
        seat = self.seats[name]
        if seat.running and seat.child is not None:
            seat.stopped = number == signal.SIGSTOP or (seat.stopped and number != signal.SIGCONT)
            seat.child.popen.send_signal(number)

    async def ended(self, name: str, timeout_s: float = END_S_MAX) -> int:
        """Wait for the end of a node's process and return its code, negative for a signal; raises `NotInTime`."""
        seat = self.seats[name]
        child = seat.child
        if child is None:
            raise RuntimeError(f"{name} was never started")
        if child.popen.poll() is None:
            descriptor = os.pidfd_open(child.pid)
            try:
                with trio.move_on_after(timeout_s):
                    await trio.lowlevel.wait_readable(descriptor)
            finally:
                os.close(descriptor)
        try:
            code = child.popen.wait(0)
        except subprocess.TimeoutExpired:
            raise NotInTime(f"the end of {name}", timeout_s) from None
        seat.stopped = False
        seat.started = trio.Event() if seat.child is child else seat.started
        return code

    async def kill(self, *names: str) -> None:
        """SIGKILL to all of them at once, then wait for their ends."""
        for name in names:
            self.signal(name, signal.SIGKILL)
        for name in names:
            await self.ended(name)

    async def up(self, name: str, timeout_s: float = START_S_MAX) -> None:
        """Wait until a started node's RPC answers; raises `NotInTime`, with the log's end where it ended instead."""
        seat = self.seats[name]
        with trio.move_on_after(timeout_s):
            while not seat.up.is_set():
                if not seat.running:
                    raise NotInTime(f"{name} ended at its start:\n{last_lines(seat.log)}", timeout_s)
                with trio.move_on_after(1.0):
                    await seat.up.wait()
            return
        raise NotInTime(f"{name}'s RPC", timeout_s)

    # --- watching ---

    async def watch(self, name: str) -> None:
        """Follow one node for ever."""
        seat = self.seats[name]
        while True:
            await seat.started.wait()
            try:
                await call(self.url(name), "status")
                seat.up.set()
                await follow(self.url(name), seat.after, lambda *event: self._take(seat, *event))
            except NodeSilent:
                pass
            await trio.sleep(RETRY_S)

    def _take(self, seat: Seat, kind: str, place: str, members: dict[str, Any]) -> None:
        name = seat.plan.name
        seat.after = place or seat.after
        if seat.hostile:
            return
        match kind:
            case "block":
                self.witness.block(name, members["height"], members["block_hash"], members["state_digest"])
            case "transaction":
                self.witness.transaction(name, members["tx_hash"], members["height"], members["status"])
                for listen in self.listeners:
                    listen(name, members)
        self._pulse.set()
        self._pulse = trio.Event()

    async def until(self, what: str, done: Callable[[], bool], timeout_s: float) -> float:
        """Wait for events until `done`; returns the seconds it took, raises `NotInTime`."""
        begin = trio.current_time()
        with trio.move_on_after(timeout_s):
            while not done():
                await self._pulse.wait()
            return trio.current_time() - begin
        raise NotInTime(what, timeout_s)

    def height(self) -> int:
        """The highest height that any node told of."""
        return max(self.witness.heights.values(), default=0)


@asynccontextmanager
async def running_fleet(
    root: Path,
    validators: int,
    accounts: Sequence[str],
    prepare: Callable[[Fleet, trio.Nursery], None],
    *,
    candidates: int = 0,
    params: Params = PARAMS,
) -> AsyncIterator[Fleet]:
    """A devnet whose nodes, but for its candidates, have all executed a block. Kills all at the end.

    `prepare` may change seats before they start, and start tasks that run as long as the fleet.
    """
    with claim_home(root) as layout:
        fleet = Fleet(create_network(layout, validators, accounts, candidates=candidates, params=params))
        first = [name for name, seat in fleet.seats.items() if not seat.candidate]
        async with trio.open_nursery() as nursery:
            prepare(fleet, nursery)
            try:
                for seat in fleet.seats.values():
                    if seat.signer is not None:
                        seat.signer.start()
                for name in fleet.seats:
                    nursery.start_soon(fleet.watch, name)
                for name in first:
                    fleet.start(name)
                for name in first:
                    await fleet.up(name)
                await fleet.until(
                    "a block everywhere", lambda: set(first) <= fleet.witness.heights.keys(), START_S_MAX
                )
                yield fleet
            finally:
                nursery.cancel_scope.cancel()
                for seat in fleet.seats.values():
                    if seat.child is not None:
                        seat.child.popen.kill()
                        seat.child.popen.wait()
                    if seat.signer is not None:
                        seat.signer.close()
