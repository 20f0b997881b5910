"""A cluster on one thread and a virtual clock; everything random comes from one seed."""

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from blake3 import blake3

from consensus.config import ConsensusConfig
from consensus.crypto import Verifier
from consensus.digest import digest
from consensus.effects import Diverged, Effect
from consensus.errors import CodecError
from consensus.evidence import evidence_from_bytes, verify_evidence
from consensus.messages import Message, decode_message, encode_message
from consensus.replica import Replica
from consensus.types import Block, Header, genesis_block, header_id, is_boundary
from consensus.verify import Context, make_context
from tests.simulation.byzantine import KINDS
from tests.simulation.byzantine.equivocator import Equivocator
from tests.simulation.byzantine.splitter import Cabal
from tests.simulation.chances import chances
from tests.simulation.checker import Checker, Violation
from tests.simulation.deaths import Death, Fate, RandomFate
from tests.simulation.node import Node
from tests.simulation.schedule import Schedule, draw_schedule
from tests.simulation.signing import Scheme, in_force
from tests.simulation.succession import KEYS, SEEDS, Succession, beacon_of

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
START_MS = 1_000_000
TAPE_MAX = 400
"""Messages that a network which replays remembers."""
EVENTS_MAX = 250_000
"""Some six thousand are usual. A storm of messages is a fault, of the protocol or of this simulator, and no reason to wait for ever."""
RECODED = 1 / 64
"""How often a message goes through its wire format on its way."""


GROWTH_MIN = 3
"""A node has recovered once it has all that was committed when the network healed, and so many blocks more."""
CHANCES_MIN = 2 * GROWTH_MIN
"""Chances that a healed network must have had before a node may be blamed for standing still (`chances`)."""
CALM_TIMES_MAX = 6
"""So many times the usual calm is waited for chances."""
PPM = 1_000_000

_VERIFIER = Verifier(1 << 17)


class World:
    """Clock, network and fate of one run."""

    def __init__(
        self, schedule: Schedule, config: ConsensusConfig = CONFIG, honest_kind: type[Node] = Node
    ) -> None:
        self.schedule = schedule
        self.config = config
        self.collecting = replace(config, vote_fanout="collector")
        self.rng = random.Random(f"world {schedule.name}")
        self.fate: Fate = RandomFate(schedule.crash_in_step, self.rng)
        self.honest_kind = honest_kind
        self.restart_ms_max = 1_500
        self.now = START_MS
        self.healed = False
        self.counts: Counter[str] = Counter()
        self.events = self.steps = self.messages = 0  # counted apart: every event adds to them
        self.trace = blake3()
        self.traced = False
        self.recovery_ms = 0
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0

        size = schedule.validators
        self.seeds, self.keys = SEEDS[:size], KEYS[:size]
        self.beacons = [beacon_of(index, 0) for index in range(size)]
        self._index = {key: index for index, key in enumerate(self.keys)}
        self._seed_of = dict(zip(self.keys, self.seeds, strict=True))
        self.scheme = Scheme(self._seed_of, real=schedule.real_signatures, verifier=_VERIFIER)
        stakes = schedule.stakes or (1,) * size
        self.succession = Succession(
            schedule.name,
            stakes,
            len(schedule.misdeeds),
            schedule.epochs,
            drawn_leaders=schedule.drawn_leaders,
        )
        self.validators = self.succession.sets[0]
        self.chain_id = digest("simulated-chain", b"")
        self.genesis = genesis_block(
            self.chain_id, digest("simulated-state", b""), 0, START_MS - 1, digest("simulated-receipts", b"")
        )
        self._contexts: dict[bytes, Context] = {}
        self.checker = Checker(self.genesis.id)
        self.cabal = Cabal()
        self.twin_base = size + schedule.observers
        self.left_half = {slot for slot in range(size) if self.rng.random() < 0.5}
        self.nodes = self._make_nodes()
        self._slots = {key: [node.slot for node in self.nodes if node.key == key] for key in self.keys}
        self._hearers = [
            [
                other.slot
                for other in self.nodes
                if other is not node and (not node.key or other.key != node.key)
            ]
            for node in self.nodes
        ]
        spread, drift = schedule.skew_ms_max, schedule.drift_ppm_max
        self.skew = [self.rng.randint(0, spread) for _ in self.nodes]
        self.rate = [PPM + self.rng.randint(-drift, drift) for _ in self.nodes]
        self.groups: dict[int, int] | None = None
        self.past: list[tuple[int, int, Message]] = []

    def _make_nodes(self) -> list[Node]:
        schedule, honest = self.schedule, self.honest_kind
        size, misdeeds = schedule.validators, schedule.misdeeds
        kinds = [honest] * (size - len(misdeeds)) + [KINDS[misdeed] for misdeed in misdeeds]
        nodes: list[Node] = [kind(self, slot, slot) for slot, kind in enumerate(kinds)]
        nodes.extend(honest(self, size + i, None) for i in range(schedule.observers))
        twins = [slot for slot, kind in enumerate(kinds) if kind is Equivocator]
        nodes.extend(Equivocator(self, self.twin_base + i, slot) for i, slot in enumerate(twins))
        return nodes

    def sign(self, key: bytes, message: bytes) -> bytes:
        """Sign anything as a liar does; only for the owner of the key."""
        return self.scheme.sign(self._seed_of[key], message)

    def id_of(self, header: Header) -> bytes:
        """A header's block id."""
        return header_id(header)

    def judge(self, evidence: bytes) -> None:
        """Evidence that a node reports must convince anybody, and be against nobody who is honest."""
        offence = verify_evidence(self.chain_id, evidence_from_bytes(evidence))
        if self._index[offence.author] < self.schedule.validators - len(self.schedule.misdeeds):
            raise Violation(f"evidence against an honest key: {offence.kind.name}")
        self.counts[f"evidence of {offence.kind.name.lower()}"] += 1

    # Clock and events.

    def at(self, at_ms: int, action: Callable[[], None]) -> None:
        """Do something at a virtual time; ties go in the order of asking."""
        self._order += 1
        heapq.heappush(self._events, (at_ms, self._order, action))

    def after(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Do something after a delay."""
        self.at(self.now + delay_ms, action)

    def clock(self, slot: int) -> int:
        """What a node's clock shows: it was set wrong, and it runs at a rate of its own."""
        return START_MS + (self.now - START_MS) * self.rate[slot] // PPM + self.skew[slot]

    def when(self, slot: int, clock_ms: int) -> int:
        """The virtual time at which a node's clock shows `clock_ms`, at the earliest a moment from now."""
        ahead = -(-(clock_ms - self.clock(slot)) * PPM // self.rate[slot])
        return max(self.now + 1, self.now + ahead)

    def run(self) -> None:
        """Run the whole schedule, then require that every honest node made progress after the network healed."""
        with in_force(self.scheme):
            self._run()

    def _run(self) -> None:
        schedule = self.schedule
        heal_ms = START_MS + schedule.chaos_ms
        for node in self.nodes:
            self.after(self.rng.randint(0, 50), node.start)
        for _ in range(schedule.partitions):
            self.at(START_MS + self.rng.randint(0, schedule.chaos_ms), self._partition)
        for _ in range(schedule.crashes):
            slot = self.rng.choice([node.slot for node in self.nodes if node.honest])
            node = self.nodes[slot]
            self.at(START_MS + self.rng.randint(100, max(101, schedule.chaos_ms)), partial(self.crash, node))
        for number in range(schedule.batches):
            born = START_MS + self.rng.randint(0, schedule.chaos_ms + schedule.calm_ms // 2)
            self.at(born, partial(self._new_batch, number))
        self.at(heal_ms, self._heal)
        self._run_until(heal_ms + 1)
        top = self.checker.top()
        heights = {node.slot: self.checker.tips.get(node.slot, (0, b""))[0] for node in self.nodes}
        goals = {slot: max(top, height + GROWTH_MIN) for slot, height in heights.items()}
        growth_min = GROWTH_MIN if self._recover(heal_ms, goals) else 0
        for node in self.nodes:
            if node.honest:
                self.checker.alive(node.slot, heights[node.slot], growth_min)
                self.checker.kept(node.slot, top)
        tips = [self.checker.tips[node.slot][0] for node in self.nodes if node.honest]
        if max(tips) - min(tips) > 6:
            raise Violation(f"honest nodes end far apart: heights {tips}")
        for node in self.nodes:
            if node.honest and any(isinstance(report, Diverged) for report in node.reports):
                raise Violation(f"node {node.slot} reports diverged execution")
        self.counts.update(events=self.events, steps=self.steps, messages=self.messages)
        self.counts["heights"] += max(tips)
        self.counts["rounds"] += max(node.replica.round for node in self.nodes if node.replica)
        self.counts["commits"] += self.checker.commits
        self.counts["epoch changes"] += len(self.checker.ends)
        self.trace.update(repr(sorted(self.checker.agreed.items())).encode())

    def _recover(self, heal_ms: int, goals: dict[int, int]) -> bool:
        """Run the healed network until its nodes can be judged; False if for all that time there was no fair chance.

        Who has not recovered is given more time for as long as the rounds go on and their leaders allow nothing.
        """
        calm_ms = self.schedule.calm_ms
        healed = before = self._places()
        for calm in range(1, CALM_TIMES_MAX + 1):
            self._run_calm(heal_ms, heal_ms + calm * calm_ms, goals)
            now = self._places()
            stuck = any(place <= before.get(slot, (0, 0)) for slot, place in now.items())
            if not self._behind(goals) or stuck or self._chances(healed, now) >= CHANCES_MIN:
                return True
            self.counts["longer calms"] += 1
            before = now
        self.counts["without a fair chance"] += 1
        return False

    def _behind(self, goals: dict[int, int]) -> list[int]:
        """Slots of the honest nodes that have not recovered."""
        tips = self.checker.tips
        return [node.slot for node in self.nodes if node.honest and tips[node.slot][0] < goals[node.slot]]

    def _places(self) -> dict[int, tuple[int, int]]:
        """Epoch and round of each honest node, by slot."""
        return {
            node.slot: (node.epoch, node.replica.round) for node in self.nodes if node.honest and node.replica
        }

    def _chances(self, healed: dict[int, tuple[int, int]], now: dict[int, tuple[int, int]]) -> int:
        """How often since the network healed a block was sure to be committed, in the epoch of the last node."""
        slot, (epoch, round_) = min(now.items(), key=lambda row: row[1])
        first_epoch, first = healed.get(slot, (0, 0))
        able = {node.key for node in self.nodes if node.honest}
        members = self.succession.sets[epoch]
        return chances(members, able, first + 1 if first_epoch == epoch else 1, round_)

    def _run_calm(self, heal_ms: int, end_ms: int, goals: dict[int, int]) -> None:
        """Run on a healed network until every honest node has recovered and the chain is long enough, or time is up."""
        heights_min = self.schedule.heights_min
        behind = self._behind(goals)
        seen = -1
        while self._events and self._events[0][0] < end_ms:
            self._next_event()
            if self.checker.commits == seen:
                continue
            seen = self.checker.commits
            behind = [slot for slot in behind if self.checker.tips[slot][0] < goals[slot]]
            if behind:
                continue
            self.recovery_ms = self.recovery_ms or self.now - heal_ms
            if heights_min is None:
                self._run_until(end_ms)
            elif self.checker.top() >= heights_min and self._together():
                return

    def _together(self) -> bool:
        tips = [self.checker.tips[node.slot][0] for node in self.nodes if node.honest]
        return max(tips) - min(tips) <= 2

    def _run_until(self, end_ms: int) -> None:
        while self._events and self._events[0][0] < end_ms:
            self._next_event()

    def _next_event(self) -> None:
        at_ms, _, action = heapq.heappop(self._events)
        self.now = max(self.now, at_ms)
        action()
        self.events += 1
        if self.events > EVENTS_MAX:
            raise Violation(f"the run does not end: {self.events} events by {self.now - START_MS} ms")

    def note(self, slot: int, effects: list[Effect]) -> None:
        """Take all effects of a step into the trace, messages and signatures among them."""
        self.trace.update(repr((slot, self.now, effects)).encode())

    # Processes.

    def make_replica(self, node: Node) -> Replica:
        """Build a node's replica from its disk."""
        index, epoch = node.key_index, node.epoch
        beacon = None if index is None else self.succession.beacon(epoch, index)
        recovered = node.disk.recovered(self.config.lag_max + 1)
        record = None if recovered is None else recovered.record
        return Replica(
            self.succession.sets[epoch],
            node.disk.start,
            self.collecting if node.slot < self.schedule.collectors else self.config,
            signer=None
            if index is None or beacon is None
            else self.scheme.rules(self.seeds[index], self.context_of(node), record),
            beacon=beacon,
            recovered=recovered,
            verifier=self.scheme.verifier,
        )

    def context_of(self, node: Node) -> Context:
        """What signatures are checked with in a node's epoch."""
        start = node.disk.start
        known = self._contexts.get(start.id)
        if known is None:
            known = make_context(self.succession.sets[start.header.epoch], start, self.scheme.verifier)
            self._contexts[start.id] = known
        return known

    def next_set_after(self, start: Block, block: Block) -> bytes:
        """What the ledger says after a block of the epoch rooted in `start`: the next set's hash once it is frozen."""
        epoch = block.header.epoch
        if epoch == self.schedule.epochs or is_boundary(block.header):
            return b""
        frozen = block.height >= start.height + self.schedule.epoch_heights
        return self.succession.sets[epoch + 1].hash if frozen else b""

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
        return self._slots[key]

    def targets(self, sender: int, to: int | None) -> list[int]:
        """Slots a message goes to; observers hear all broadcasts, as full nodes do by gossip."""
        return self._hearers[sender] if to is None else self.slots(self.keys[to])

    def broadcast(self, sender: int, to: int | None, message: Message) -> None:
        """Send as an honest node does."""
        for slot in self.targets(sender, to):
            self.transmit(sender, slot, message)

    def delay_ms(self) -> int:
        """Draw how long something takes on the network."""
        if self.healed:
            return 1 + int(self.rng.random() * 10)
        return 1 + int(self.rng.random() * self.schedule.delay_ms_max)

    def cut(self, one: int, other: int) -> bool:
        """Whether the network loses what is sent between two nodes now."""
        if self.healed:
            return False
        if self.groups is not None and self.groups[one] != self.groups[other]:
            return True
        return self.chance(self.schedule.loss)

    def chance(self, percent: int) -> bool:
        """Draw whether something of this chance happens."""
        return percent > 0 and 100 * self.rng.random() < percent

    def transmit(self, sender: int, slot: int, message: Message) -> None:
        """Put one message on the wire; it may be lost, doubled, delayed, or come again much later."""
        self.messages += 1
        if self.rng.random() < RECODED:
            try:
                message = decode_message(encode_message(message))
            except CodecError:
                self.counts["undecodable"] += 1
                return
        if self.schedule.replays:
            self._tape(sender, slot, message)
        if self.cut(sender, slot):
            self.counts["lost"] += 1
            return
        self._deliver(sender, slot, message)
        if not self.healed and self.chance(self.schedule.duplicates):
            self._deliver(sender, slot, message)

    def _tape(self, sender: int, slot: int, message: Message) -> None:
        """Keep a message for a replay, and perhaps replay one."""
        if len(self.past) < TAPE_MAX:
            self.past.append((sender, slot, message))
        else:
            self.past[int(self.rng.random() * TAPE_MAX)] = (sender, slot, message)
        if self.chance(self.schedule.replays):
            self.counts["replayed"] += 1
            self._deliver(*self.rng.choice(self.past))

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
            if (
                batch in self.nodes[slot].batches
                and self.nodes[slot].gives(batch, asker)
                and not self.cut(asker, slot)
            ):
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
        return self._index[key]


def run_one(
    seed: int, run: int, only: str | None = None, size: int | None = None, *, traced: bool = False
) -> tuple[Schedule, Counter[str], str]:
    """Run one schedule; return it, its counts and a digest of what was committed, or of all that was done if `traced`.

    Raises:
        Violation: something that must hold did not.
    """
    schedule = draw_schedule(seed, run, only, size)
    world = World(schedule)
    world.traced = traced
    world.run()
    world.counts["recovery ms"] = world.recovery_ms
    return schedule, world.counts, world.trace.hexdigest()
