"""Four machines in one process with what a daemon really runs: its driver, its store, LevelDB, and the safety guard.

The other simulator has a driver and a disk of its own; here both are the node's, in real time. A machine dies at a
chosen write: what LevelDB had not synced is cut from its log, also in the middle of a record, and the machine starts
again from its files as a daemon does.
"""

import os
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from consensus.digest import digest
from consensus.effects import FetchBlock, FetchPayload, Persist, RequestPayload
from consensus.inputs import Executed, MessageReceived, PayloadAvailable, PayloadPending
from consensus.messages import BlocksMessage, decode_message
from consensus.replica import Replica
from consensus.types import Block
from node.clock import now_ms
from node.driver import Driver, DriverPorts
from node.epochs import EpochRow
from node.ledger.entries import ValidatorSet
from node.startup import recovered_state
from node.storage.chain import ChainStore, ExecutedHead, Outcome
from node.storage.database import Database
from node.storage.errors import SigningKeyElsewhere
from node.storage.guard import SafetyGuard, first_mark
from tests.simulation.checker import Checker
from tests.simulation.deaths import Death, Manner
from tests.simulation.world import CONFIG, World

FAST = replace(
    CONFIG,
    timeout_ms_base=300,
    timeout_ms_floor=200,
    timeout_repeat_ms_max=150,
    heartbeat_ms=40,
    commit_grace_ms=5,
    fetch_retry_ms=20,
    behind_heights_min=1_000,
)
LISTEN_MS = 60
RESTART_S = 0.02
LTHASH, ACCUMULATOR = bytes(8), bytes(8)


class PowerCut(Exception):
    """The machine goes dark here."""


class CutGuard(SafetyGuard):
    """A guard that the power may not let finish."""

    machine: "Machine"

    def note(self, data: bytes) -> None:
        if self.machine.dies(Manner.TORN_WRITE, Manner.LOST_WRITE, Manner.WRITTEN):
            raise PowerCut
        super().note(data)


class CutStore(ChainStore):
    """A store whose machine may die at any write."""

    def __init__(self, database: Database, machine: "Machine") -> None:
        super().__init__(database)
        self.machine = machine

    def persist(self, effect: Persist) -> None:
        machine = self.machine
        machine.next_write(effect)
        if machine.dies(Manner.BEFORE_WRITE):
            raise PowerCut
        begin = machine.log_bytes()
        for block in effect.committed:
            machine.cluster.checker.committed(machine.slot, block)
        super().persist(effect)
        machine.wrote(begin, synced=effect.sync)
        if machine.dies(
            Manner.SYNCED, *(() if effect.sync else (Manner.TORN_WRITE, Manner.LOST_WRITE, Manner.WRITTEN))
        ):
            raise PowerCut


@dataclass
class Cluster:
    """What the machines share: keys and genesis, the wire, the judge."""

    folder: Path
    world: World
    checker: Checker
    machines: list["Machine"] = field(default_factory=list)

    def receivers(self, sender: "Machine", to: bytes | None) -> list["Machine"]:
        return [
            machine
            for machine in self.machines
            if machine.key != sender.key and (to is None or machine.key == to) and machine.driver is not None
        ]


class Machine:
    """One validator's machine; `deaths` are the ends of its lives to come, each at a write counted from its start."""

    def __init__(self, cluster: Cluster, slot: int, index: int, folder: Path) -> None:
        self.cluster, self.slot, self.index, self.folder = cluster, slot, index, folder
        self.key = cluster.world.keys[index]
        self.honest = True
        self.deaths: deque[tuple[int, Death]] = deque()
        self.driver: Driver | None = None
        self.stopped: SigningKeyElsewhere | None = None
        self.on = True
        self.lives = 0
        self.living = False
        self._scope = trio.CancelScope()
        self._writes = 0
        self._death: Death | None = None
        self._torn: tuple[int, int] = (0, 0)
        self._durable = 0
        self._queue: deque[Block] = deque()
        cluster.machines.append(self)

    # --- life ---

    async def live(self) -> None:
        """Live, die, and live again, until switched off or stopped by a foreign signature."""
        self.living = True
        while self.on:
            with ExitStack() as stack:
                store = self._boot(stack)
                self._scope = trio.CancelScope()
                try:
                    with self._scope:
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(self._run)
                            self._execute(store)
                except* PowerCut:
                    pass
                except* SigningKeyElsewhere as errors:
                    self.on = False
                    (self.stopped,) = errors.exceptions  # type: ignore[assignment]
                self.driver = None
            self._cut_log()
            await trio.sleep(RESTART_S)
        self.living = False

    async def _run(self) -> None:
        if self.driver is not None:
            self.driver.tell(PayloadPending(True, now_ms()))
            await self.driver.run()

    def switch_off(self) -> None:
        """Pull the plug, for good unless `on` is set again and `live` started anew."""
        self.on = False
        self._scope.cancel()

    def _boot(self, stack: ExitStack) -> CutStore:
        world, checker = self.cluster.world, self.cluster.checker
        self.lives += 1
        self._writes, self._death, self._torn = 0, None, (0, 0)
        database = Database(self.folder / "chain")
        stack.callback(database.close)
        store = CutStore(database, self)
        path = self.folder / "safety.guard"
        if store.chain_id() is None:
            head = ExecutedHead(
                0, world.genesis.id, world.genesis.header.state_digest, bytes(32), LTHASH, ACCUMULATOR
            )
            store.create(world.chain_id, world.genesis, {}, head)
            path.write_bytes(first_mark(world.chain_id, 0))
        guard = CutGuard(path)
        guard.machine = self
        guard.check(store.safety_record(), str(self.folder))
        store.guard = guard
        self._durable = self.log_bytes()
        state = recovered_state(store, EpochRow(0, world.genesis, ValidatorSet(()), (), None), FAST)
        checker.started(self.slot, state.committed.height, state.committed.id)
        self._queue = deque()
        for height in range(store.executed().height + 1, state.committed.height + 1):
            block = store.block_at(height)
            assert block is not None
            self._queue.append(block)
        replica = Replica(
            world.validators,
            world.genesis,
            FAST,
            seed=world.seeds[self.index],
            beacon=world.beacons[self.index],
            recovered=state,
        )
        ports = DriverPorts(
            send=self._send,
            deliver=lambda blocks: self._deliver(store, blocks),
            offer_payload=lambda request: self._offer(store, request),
            fetch_payload=lambda effect: self._fetch_payload(store, effect),
            fetch_block=self._fetch_block,
            behind=lambda effect: None,
            misbehaved=lambda effect: None,
            help_epoch=lambda effect: None,
        )
        self.driver = Driver(replica, store, ports, listen_ms=LISTEN_MS)
        self.store = store
        return store

    # --- death ---

    def next_write(self, effect: Persist) -> None:
        """Count a write, and take up the end of this life if it is due."""
        self._writes += 1
        if self.deaths and self.deaths[0][0] <= self._writes and self._death is None:
            self._death = self.deaths.popleft()[1]

    def dies(self, *manners: Manner) -> bool:
        return self._death is not None and self._death.manner in manners

    def log_bytes(self) -> int:
        return sum(path.stat().st_size for path in (self.folder / "chain").glob("*.log"))

    def wrote(self, begin: int, *, synced: bool) -> None:
        """Note where the last write lies in the log, and up to where the log is durable."""
        self._torn = (begin, self.log_bytes())
        if synced and not self.dies(Manner.TORN_WRITE, Manner.LOST_WRITE):
            self._durable = self.log_bytes()

    def _cut_log(self) -> None:
        """Take from the log what did not survive; other machines, and those switched off, lose all that is unsynced."""
        death, self._death = self._death, None
        if death is not None and death.everywhere:
            for other in self.cluster.machines:
                if other is not self:
                    other._scope.cancel()
        if death is not None and death.manner is Manner.WRITTEN:
            return
        keep = self._durable
        if death is not None and death.manner is Manner.TORN_WRITE and self._torn[1]:
            keep = max(keep, sum(self._torn) // 2)
        (log,) = (self.folder / "chain").glob("*.log")
        os.truncate(log, min(keep, log.stat().st_size))

    # --- ports ---

    def _send(self, to: bytes | None, data: bytes) -> None:
        message = decode_message(data)
        if self.honest:
            self.cluster.checker.sent(self.key, message)
        receivers = self.cluster.receivers(self, to)
        dying = self.dies(Manner.SOME_SENT)
        for machine in receivers[: (len(receivers) + 1) // 2] if dying else receivers:
            if machine.driver is not None:
                machine.driver.offer(MessageReceived(self.key, message, now_ms()))
        if dying:
            raise PowerCut

    def _deliver(self, store: CutStore, blocks: tuple[Block, ...]) -> None:
        if self.dies(Manner.ALL_SENT):
            raise PowerCut
        self._queue.extend(blocks)
        self._execute(store)

    def _execute(self, store: CutStore) -> None:
        """Execute what is delivered, as long as its batches are here or with somebody."""
        while self._queue and self.driver is not None:
            block = self._queue[0]
            if not all(self._bring(store, batch) for batch in block.header.payload):
                return
            self._queue.popleft()
            state = digest("simulated-state", store.executed().state_digest + block.id)
            receipts = digest("simulated-receipts", state)
            head = ExecutedHead(block.height, block.id, state, receipts, LTHASH, ACCUMULATOR)
            store.record_execution(head, {}, Outcome(state, bytes(32), receipts, ()), {})
            self.driver.tell(Executed(block.height, block.id, state, receipts, now_ms()))

    def _offer(self, store: CutStore, request: RequestPayload) -> tuple[bytes, ...]:
        if request.empty_only or request.round % 2:
            return ()
        batch = digest("simulated-batch", self.key + request.round.to_bytes(8, "big") + request.parent_id)
        store.put_batch(batch, b"batch")
        return (batch,)

    def _bring(self, store: CutStore, batch: bytes) -> bool:
        if store.batch(batch) is not None:
            return True
        sources = self.cluster.receivers(self, None)
        if not any(machine.store.batch(batch) for machine in sources):
            return False
        store.put_batch(batch, b"batch")
        return True

    def _fetch_payload(self, store: CutStore, effect: FetchPayload) -> None:
        for batch in effect.digests:
            if self.driver is not None and self._bring(store, batch):
                self.driver.tell(PayloadAvailable(batch, now_ms()))

    def _fetch_block(self, effect: FetchBlock) -> None:
        for machine in self.cluster.receivers(self, None):
            if machine.driver is None or self.driver is None:
                continue
            chain = list(machine.driver.replica.uncommitted_chain(effect.block_id, effect.known_height))
            below = machine.store.block(chain[0].header.parent if chain else effect.block_id)
            while below is not None and below.height > effect.known_height:
                chain.insert(0, below)
                below = machine.store.block(below.header.parent)
            if chain:
                self.driver.offer(MessageReceived(machine.key, BlocksMessage(tuple(chain[-16:])), now_ms()))


def make_cluster(folder: Path, world: World) -> Cluster:
    """Four machines, not yet living."""
    cluster = Cluster(folder, world, Checker(world.genesis.id))
    for index in range(4):
        Machine(cluster, index, index, folder / f"machine-{index}")
    return cluster
