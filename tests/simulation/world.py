"""A cluster on one thread and a virtual clock; everything random comes from one seed."""

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from blake3 import blake3

from consensus import crypto
from consensus.beacon import BeaconChain
from consensus.config import ConsensusConfig
from consensus.crypto import Verifier
from consensus.digest import digest
from consensus.effects import Diverged, Effect
from consensus.messages import Message, decode_message, encode_message
from consensus.replica import Replica
from consensus.types import genesis_block
from consensus.validators import Validator, make_validator_set
from tests.simulation.byzantine import Equivocator, StaleClaimer
from tests.simulation.checker import Checker, Violation
from tests.simulation.deaths import Death, Fate, RandomFate
from tests.simulation.node import Node

CONFIG = ConsensusConfig(
    timeout_ms_base=400,
    timeout_ms_floor=250,
    timeout_ms_max=4_000,
    timeout_repeat_ms_max=400,
    heartbeat_ms=500,
    commit_grace_ms=30,
    lag_max=12,
    fetch_retry_ms=60,
    behind_heights_min=10,
)
BEACON_LENGTH = 512
START_MS = 1_000_000


@dataclass(frozen=True)
class Schedule:
    """What befalls a run.

    Attributes:
        name: of the run, and the seed of everything random in it.
        validators: how many.
        misdeed: "none", "equivocator" or "stale-claimer": what the last validator is.
        observers: full nodes without a key.
        chaos_ms: how long the network is bad; then it heals.
        calm_ms: how long after that the run goes on.
        loss, duplicates, replays: chances per message, in percent.
        delay_ms_max: longest delay of a message while the network is bad.
        partitions: how many, spread over the bad time.
        crashes: how many honest crashes, spread over the bad time.
        crash_in_step: chance per step with a write, in 1/10000, of an end in one of the manners of `deaths.Manner`.
        batches: payload batches born during the run.
        skew_ms_max: how far clocks may lie apart.
    """

    name: str
    validators: int
    misdeed: str
    observers: int
    chaos_ms: int
    calm_ms: int
    loss: int
    duplicates: int
    replays: int
    delay_ms_max: int
    partitions: int
    crashes: int
    crash_in_step: int
    batches: int
    skew_ms_max: int


def draw_schedule(seed: int, run: int) -> Schedule:
    """Draw the schedule of one run."""
    name = f"{seed}:{run}"
    rng = random.Random(f"schedule {name}")
    rough = rng.random() < 0.8
    return Schedule(
        name=name,
        validators=4,
        misdeed=rng.choice(("none", "equivocator", "stale-claimer", "equivocator", "stale-claimer")),
        observers=1 if rng.random() < 0.3 else 0,
        chaos_ms=rng.choice((2_000, 4_000, 8_000)),
        calm_ms=12_000,
        loss=rng.choice((0, 2, 10, 25)) if rough else 0,
        duplicates=rng.choice((0, 5)) if rough else 0,
        replays=rng.choice((0, 3)) if rough else 0,
        delay_ms_max=rng.choice((5, 20, 100, 400)),
        partitions=rng.choice((0, 1, 3)) if rough else 0,
        crashes=rng.choice((0, 1, 4)) if rough else 0,
        crash_in_step=rng.choice((0, 100, 500)) if rough else 0,
        batches=rng.choice((0, 5, 25)),
        skew_ms_max=rng.choice((0, 50, 500)),
    )


_VERIFIER = Verifier(1 << 17)
_SEEDS = sorted((digest("simulated-key", bytes([i])) for i in range(8)), key=crypto.public_key)
_BEACONS = [BeaconChain(digest("simulated-beacon", seed), BEACON_LENGTH) for seed in _SEEDS]


class World:
    """Clock, network and fate of one run."""

    def __init__(
        self, schedule: Schedule, config: ConsensusConfig = CONFIG, honest_kind: type[Node] = Node
    ) -> None:
        self.schedule = schedule
        self.config = config
        self.rng = random.Random(f"world {schedule.name}")
        self.fate: Fate = RandomFate(schedule.crash_in_step, self.rng)
        self.honest_kind = honest_kind
        self.restart_ms_max = 1_500
        self.now = START_MS
        self.healed = False
        self.counts: Counter[str] = Counter()
        self.trace = blake3()
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0

        size = schedule.validators
        everyone = sorted(_SEEDS[:size], key=crypto.public_key)
        self.seeds = everyone
        self.keys = [crypto.public_key(seed) for seed in everyone]
        beacons = dict(zip(_SEEDS, _BEACONS, strict=True))
        self.beacons = [beacons[seed] for seed in everyone]
        self.validators = make_validator_set(
            0,
            [Validator(key, 1, beacon.anchor) for key, beacon in zip(self.keys, self.beacons, strict=True)],
        )
        self.chain_id = digest("simulated-chain", b"")
        self.genesis = genesis_block(
            self.chain_id, digest("simulated-state", b""), 0, START_MS - 1, digest("simulated-receipts", b"")
        )
        self.checker = Checker(self.genesis.id)
        self.twin_base = size + schedule.observers
        self.left_half = {slot for slot in range(size) if self.rng.random() < 0.5}
        self.nodes = self._make_nodes()
        spread = schedule.skew_ms_max
        self.skew = [self.rng.randint(0, spread) for _ in self.nodes]
        self.groups: dict[int, int] | None = None
        self.past: list[tuple[int, int, Message]] = []

    def _make_nodes(self) -> list[Node]:
        size, misdeed = self.schedule.validators, self.schedule.misdeed
        honest = self.honest_kind
        kinds = {"none": honest, "equivocator": Equivocator, "stale-claimer": StaleClaimer}
        nodes: list[Node] = [honest(self, slot, slot) for slot in range(size - 1)]
        nodes.append(kinds[misdeed](self, size - 1, size - 1))
        nodes.extend(honest(self, size + i, None) for i in range(self.schedule.observers))
        if misdeed == "equivocator":
            nodes.append(Equivocator(self, self.twin_base, size - 1))
        return nodes

    # Clock and events.

    def at(self, at_ms: int, action: Callable[[], None]) -> None:
        """Do something at a virtual time; ties go in the order of asking."""
        self._order += 1
        heapq.heappush(self._events, (at_ms, self._order, action))

    def after(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Do something after a delay."""
        self.at(self.now + delay_ms, action)

    def clock(self, slot: int) -> int:
        """What a node's clock shows."""
        return self.now + self.skew[slot]

    def run(self) -> None:
        """Run the whole schedule, then require that every honest node made progress after the network healed."""
        schedule = self.schedule
        heal_ms = START_MS + schedule.chaos_ms
        for node in self.nodes:
            self.after(self.rng.randint(0, 50), node.start)
        for _ in range(schedule.partitions):
            self.at(START_MS + self.rng.randint(0, schedule.chaos_ms), self._partition)
        for _ in range(schedule.crashes):
            slot = self.rng.choice([node.slot for node in self.nodes if node.honest])
            node = self.nodes[slot]
            self.at(START_MS + self.rng.randint(100, schedule.chaos_ms), partial(self.crash, node))
        for number in range(schedule.batches):
            born = START_MS + self.rng.randint(0, schedule.chaos_ms + schedule.calm_ms // 2)
            self.at(born, partial(self._new_batch, number))
        self.at(heal_ms, self._heal)
        self._run_until(heal_ms + 1)
        top = self.checker.top()
        heights = {node.slot: self.checker.tips.get(node.slot, (0, b""))[0] for node in self.nodes}
        self._run_until(heal_ms + schedule.calm_ms)
        for node in self.nodes:
            if node.honest:
                self.checker.alive(node.slot, heights[node.slot], 3)
                self.checker.kept(node.slot, top)
        tips = [self.checker.tips[node.slot][0] for node in self.nodes if node.honest]
        if max(tips) - min(tips) > 6:
            raise Violation(f"honest nodes end far apart: heights {tips}")
        for node in self.nodes:
            if node.honest and any(isinstance(report, Diverged) for report in node.reports):
                raise Violation(f"node {node.slot} reports diverged execution")
        self.counts["heights"] += max(tips)
        self.counts["rounds"] += max(node.replica.round for node in self.nodes if node.replica)
        self.counts["commits"] += self.checker.commits
        self.trace.update(repr(sorted(self.checker.agreed.items())).encode())

    def _run_until(self, end_ms: int) -> None:
        while self._events and self._events[0][0] < end_ms:
            at_ms, _, action = heapq.heappop(self._events)
            self.now = max(self.now, at_ms)
            action()
            self.counts["events"] += 1

    # Processes.

    def make_replica(self, node: Node) -> Replica:
        """Build a node's replica from its disk."""
        index = node.key_index
        return Replica(
            self.validators,
            self.genesis,
            self.config,
            seed=None if index is None else self.seeds[index],
            beacon=None if index is None else self.beacons[index],
            recovered=node.disk.recovered(self.config.lag_max + 1),
            verifier=_VERIFIER,
        )

    def death(self, node: Node, effects: list[Effect]) -> Death | None:
        """Decide whether, and how, a process ends in the step whose effects these are."""
        return None if self.healed or not node.honest else self.fate(node, effects)

    def die(self, node: Node, kept: int, *, everywhere: bool) -> None:
        """End one process, or all at once; all have come back a while later."""
        self.counts["ends at a write"] += 1
        self.crash(node, kept)
        if everywhere:
            self.counts["power cuts"] += 1
            for other in self.nodes:
                self.crash(other, kept)

    def crash(self, node: Node, kept: int | None = None) -> None:
        """Kill a node now, with so many of its unsynced writes kept; it comes back later."""
        if node.replica is None or self.healed:
            return
        self.counts["crashes"] += 1
        node.crash(self.rng.randint(0, 4) if kept is None else kept)
        self.after(
            self.rng.randint(10, self.restart_ms_max), lambda: node.start() if node.replica is None else None
        )

    def _heal(self) -> None:
        self.healed = True
        self.groups = None
        for node in self.nodes:
            if node.replica is None and not node.dead:
                node.start()

    def _partition(self) -> None:
        if self.healed:
            return
        self.counts["partitions"] += 1
        groups = self.rng.choice((2, 2, 3))
        self.groups = {node.slot: self.rng.randrange(groups) for node in self.nodes}
        mine = self.groups

        def mend() -> None:
            if self.groups is mine:
                self.groups = None

        self.after(self.rng.randint(200, 2_500), mend)

    # Network.

    def slots(self, key: bytes) -> list[int]:
        """Slots of a validator: two for an equivocator."""
        return [node.slot for node in self.nodes if node.key == key]

    def targets(self, sender: int, to: int | None) -> list[int]:
        """Slots a message goes to; observers hear all broadcasts, as full nodes do by gossip."""
        own = self.nodes[sender].key
        if to is not None:
            return self.slots(self.keys[to])
        return [node.slot for node in self.nodes if node.slot != sender and (not own or node.key != own)]

    def broadcast(self, sender: int, to: int | None, message: Message) -> None:
        """Send as an honest node does."""
        for slot in self.targets(sender, to):
            self.transmit(sender, slot, message)

    def delay_ms(self) -> int:
        """Draw how long something takes on the network."""
        if self.healed:
            return self.rng.randint(1, 10)
        return self.rng.randint(1, self.schedule.delay_ms_max)

    def cut(self, one: int, other: int) -> bool:
        """Whether the network loses what is sent between two nodes now."""
        if self.healed:
            return False
        if self.groups is not None and self.groups[one] != self.groups[other]:
            return True
        return self.rng.randrange(100) < self.schedule.loss

    def transmit(self, sender: int, slot: int, message: Message) -> None:
        """Put one message on the wire; it may be lost, doubled, delayed, or come again much later."""
        self.counts["messages"] += 1
        if self.rng.randrange(64) == 0:
            message = decode_message(encode_message(message))
        if len(self.past) < 400:
            self.past.append((sender, slot, message))
        else:
            self.past[self.rng.randrange(400)] = (sender, slot, message)
        if self.rng.randrange(100) < self.schedule.replays:
            self.counts["replayed"] += 1
            self._deliver(*self.rng.choice(self.past))
        if self.cut(sender, slot):
            self.counts["lost"] += 1
            return
        self._deliver(sender, slot, message)
        if not self.healed and self.rng.randrange(100) < self.schedule.duplicates:
            self._deliver(sender, slot, message)

    def _deliver(self, sender: int, slot: int, message: Message) -> None:
        self.after(self.delay_ms(), lambda: self.nodes[slot].receive(sender, message))

    # Requests between drivers.

    def request_block(self, asker: int, source: int, block_id: bytes, known: int) -> None:
        """Ask a validator for a block; the answer comes back as a message."""
        for slot in self.slots(self.keys[source]):
            if not self.cut(asker, slot):
                self.after(self.delay_ms(), partial(self._serve_block, asker, slot, block_id, known))

    def _serve_block(self, asker: int, slot: int, block_id: bytes, known: int) -> None:
        answer = self.nodes[slot].serve_block(block_id, known)
        if answer is not None:
            self.counts["blocks served"] += 1
            self.transmit(slot, asker, answer)

    def request_range(self, asker: int, source: int) -> None:
        """Ask a validator for committed blocks by height."""
        self.counts["range requests"] += 1
        node, slot = self.nodes[asker], self.slots(self.keys[source])[0]
        if node.replica is None or self.cut(asker, slot):
            return
        answer = self.nodes[slot].serve_range(node.replica.committed.height)
        if answer is not None:
            node.later(2 * self.delay_ms(), answer)

    def request_batch(self, asker: int, source: int, batch: bytes) -> None:
        """Ask a validator for a batch."""
        for slot in self.slots(self.keys[source]):
            if batch in self.nodes[slot].batches and not self.cut(asker, slot):
                node = self.nodes[asker]
                self.after(2 * self.delay_ms(), partial(node.add_batch, batch))

    def request_batch_anywhere(self, asker: int, batch: bytes) -> None:
        """Ask every validator for a batch that is committed."""
        for source in range(len(self.keys)):
            self.request_batch(asker, source, batch)

    # Payload and ledger.

    def _new_batch(self, number: int) -> None:
        """A batch is born at one node and spreads to the others, some late, some never by themselves."""
        batch = digest("simulated-batch", f"{self.schedule.name} {number}".encode())
        origin = self.rng.randrange(self.schedule.validators)
        if self.nodes[origin].replica is None:
            self.after(100, partial(self._new_batch, number))
            return
        self.nodes[origin].add_batch(batch)
        for node in self.nodes:
            if node.slot != origin and not self.cut(origin, node.slot):
                self.after(self.rng.choice((1, 5, 50, 600)), partial(node.add_batch, batch))

    def execution_ms(self) -> int:
        """Draw how long executing a block takes."""
        return self.rng.choice((1, 2, 5, 80))

    def index_of(self, key: bytes) -> int:
        """Validator index of a key."""
        return self.keys.index(key)


def run_one(seed: int, run: int) -> tuple[Schedule, Counter[str], str]:
    """Run one schedule; return it, its counts and a digest of what was committed. Raises `Violation`."""
    schedule = draw_schedule(seed, run)
    world = World(schedule)
    world.run()
    return schedule, world.counts, world.trace.hexdigest()
