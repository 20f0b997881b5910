"""Five real replicas under four keys, in lockstep: what a scenario says, then a good network to see that they go on."""

from collections import deque
from dataclasses import dataclass

from consensus import crypto
from consensus.beacon import BeaconChain
from consensus.config import ConsensusConfig
from consensus.digest import digest
from consensus.effects import Deliver, Effect, FetchBlock, Misbehaved, Persist, RequestPayload, Send
from consensus.evidence import evidence_from_bytes, verify_evidence
from consensus.inputs import (
    Executed,
    Input,
    MessageReceived,
    PayloadOffered,
    Started,
    TimerFired,
    TimerKind,
)
from consensus.messages import (
    BlocksMessage,
    CommitVoteMessage,
    Message,
    ProposalMessage,
    TimeoutMessage,
    VoteMessage,
)
from consensus.replica import Replica
from consensus.types import Block, genesis_block
from consensus.validators import Validator, make_validator_set
from consensus.verify import make_context
from tests.simulation.checker import Checker, Violation
from tests.simulation.signing import Scheme, in_force
from tests.twins.scenarios import HONEST, KEYS, REPLICAS, TWINS, Round, Scenario

NOW_MS = 1_000_000
CONFIG = ConsensusConfig()
IDLE_MS = CONFIG.heartbeat_ms + 1
PATIENCE_MS = CONFIG.timeout_ms_max + 1
STEPS_MAX = 5_000
"""Steps in one phase; a phase that needs more goes on for ever."""
HEALING_PHASES_MAX = 16
GROWTH_MIN = 1

_SEEDS = sorted((digest("twins-key", bytes([i])) for i in range(KEYS)), key=crypto.public_key)
_PUBLIC = [crypto.public_key(seed) for seed in _SEEDS]
_BEACONS = [BeaconChain(digest("twins-beacon", seed), 64) for seed in _SEEDS]
_SET = make_validator_set(
    0, [Validator(key, 1, beacon.anchor) for key, beacon in zip(_PUBLIC, _BEACONS, strict=True)]
)
_CHAIN = digest("twins-chain", b"")
_GENESIS = genesis_block(_CHAIN, digest("twins-state", b""), timestamp_ms=NOW_MS - 1_000)
_SCHEME = Scheme(dict(zip(_PUBLIC, _SEEDS, strict=True)), real=False, verifier=crypto.Verifier())
_KINDS = {
    "proposals": ProposalMessage,
    "votes": VoteMessage,
    "commit votes": CommitVoteMessage,
    "timeouts": TimeoutMessage,
}
CONNECTED = (0,) * REPLICAS


def key_of(replica: int) -> int:
    """Key of a replica: the twins share the first."""
    return max(0, replica - 1)


class ScriptedLeaders:
    """Leaders of the first rounds as the scenario says, then in turn."""

    def __init__(self, scenario: Scenario) -> None:
        self._scripted = tuple(part.leader for part in scenario)

    def index(self, round_: int) -> int:
        """Return the key that leads a round."""
        return self._scripted[round_ - 1] if round_ <= len(self._scripted) else round_ % KEYS


@dataclass
class Result:
    """What a scenario came to: blocks committed in it and after it, phases until it went on, offences proven."""

    commits_within: int
    commits: int
    phases: int
    offences: int
    steps: int


class Cluster:
    """Runs one scenario; raises `Violation` when something must not be."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.now_ms = NOW_MS
        self.groups = CONNECTED
        self.drop: type | None = None
        self.deaf = 0
        self.checker = Checker(_GENESIS.id)
        self.wire: deque[tuple[int, int, Message]] = deque()
        self.chains: list[list[Block]] = [[] for _ in range(REPLICAS)]
        self.states = [_GENESIS.header.state_digest] * REPLICAS
        self.inbox: deque[tuple[int, Input]] = deque()
        self.steps = 0
        self.offences: set[bytes] = set()
        leaders = ScriptedLeaders(scenario)
        self.replicas = [self._replica(index, leaders) for index in range(REPLICAS)]
        for index in range(REPLICAS):
            self.checker.started(index, 0, _GENESIS.id)
            # The twins' clocks differ, so that what both propose differs.
            self.feed(index, Started(self.clock(index)))

    @staticmethod
    def _replica(index: int, leaders: ScriptedLeaders) -> Replica:
        key = key_of(index)
        context = make_context(_SET, _GENESIS, _SCHEME.verifier)
        replica = Replica(
            _SET,
            _GENESIS,
            CONFIG,
            signer=_SCHEME.rules(_SEEDS[key], context, None),
            beacon=_BEACONS[key],
            verifier=_SCHEME.verifier,
        )
        # Twins chooses leaders freely; no validator set can say that.
        replica._core.leaders = leaders  # type: ignore[assignment]
        return replica

    def clock(self, index: int) -> int:
        """A replica's clock."""
        return self.now_ms + index

    def run(self) -> Result:
        """Play the rounds, mend the network, and require that every honest replica commits more, on one chain."""
        for part in self.scenario:
            self._phase(part)
        within = self.checker.top()
        heights = [len(self.chains[index]) for index in HONEST]
        goal = max(heights) + GROWTH_MIN
        for phase in range(1, HEALING_PHASES_MAX + 1):
            self._phase(Round(0, CONNECTED))
            if all(len(self.chains[index]) >= goal for index in HONEST):
                return Result(within, self.checker.top(), phase, len(self.offences), self.steps)
        raise Violation(f"no progress after the network was mended: heights {heights}, goal {goal}")

    def _phase(self, part: Round) -> None:
        """A heartbeat, all that follows from it, and then the timeouts of those whom it brought no further."""
        self.groups, self.deaf = part.groups, part.deaf
        self.drop = _KINDS.get(part.drop)
        began, before = self.steps, [replica.round for replica in self.replicas]
        self.now_ms += IDLE_MS
        for kind in (TimerKind.FETCH, TimerKind.PROPOSE):
            for index in range(REPLICAS):
                self.feed(index, TimerFired(kind, self.clock(index)))
        self._settle(began)
        stuck = [index for index in range(REPLICAS) if self.replicas[index].round == before[index]]
        if stuck:
            self.now_ms += PATIENCE_MS
            for index in stuck:
                self.feed(index, TimerFired(TimerKind.ROUND, self.clock(index)))
            self._settle(began)

    def _settle(self, began: int) -> None:
        while self.wire:
            sender, receiver, message = self.wire.popleft()
            if self.steps - began > STEPS_MAX:
                raise Violation("a phase does not come to rest")
            if self._passes(sender, receiver, message):
                source = _PUBLIC[key_of(sender)]
                self.feed(receiver, MessageReceived(source, message, self.clock(receiver)))

    def _passes(self, sender: int, receiver: int, message: Message) -> bool:
        if self.drop is not None and receiver == self.deaf and isinstance(message, self.drop):
            return False
        return self.groups[sender] == self.groups[receiver]

    def feed(self, index: int, event: Input) -> None:
        """Step a replica, and what its own driver answers at once."""
        pending: deque[Input] = deque([event])
        while pending:
            self.steps += 1
            for effect in self.replicas[index].step(pending.popleft()):
                self._perform(index, effect, pending)

    def _perform(self, index: int, effect: Effect, pending: deque[Input]) -> None:
        match effect:
            case Persist():
                for block in effect.committed:
                    self.chains[index].append(block)
                    if index in HONEST:
                        self.checker.committed(index, block)
            case Send(to=to, message=message):
                self._send(index, to, message)
            case Deliver(blocks=blocks):
                for block in blocks:
                    self.states[index] = digest("twins-state", self.states[index] + block.id)
                    pending.append(
                        Executed(block.height, block.id, self.states[index], bytes(32), self.clock(index))
                    )
            case RequestPayload(round=round_):
                pending.append(PayloadOffered(round_, (), self.clock(index)))
            case FetchBlock(block_id=block_id, known_height=known, sources=sources):
                self._fetch(index, block_id, known, sources)
            case Misbehaved(evidence=evidence) if evidence:
                self._judge(evidence)
            case _:
                pass

    def _send(self, index: int, to: bytes | None, message: Message) -> None:
        if index in HONEST:
            self.checker.sent(_PUBLIC[key_of(index)], message)
        for receiver in range(REPLICAS):
            if key_of(receiver) != key_of(index) and to in (None, _PUBLIC[key_of(receiver)]):
                self.wire.append((index, receiver, message))

    def _fetch(self, index: int, block_id: bytes, known: int, sources: tuple[bytes, ...]) -> None:
        for source in range(REPLICAS):
            if _PUBLIC[key_of(source)] not in sources or source == index:
                continue
            if self.groups[source] != self.groups[index]:
                continue
            chain = list(self.replicas[source].uncommitted_chain(block_id, known))
            below = chain[0].header.parent if chain else block_id
            stored = self.chains[source]
            found = next((block for block in stored if block.id == below), None)
            if found is not None:
                chain = [*stored[known : found.height], *chain]
            if chain:
                self.wire.append((source, index, BlocksMessage(tuple(chain[-16:]))))

    def _judge(self, evidence: bytes) -> None:
        """Only the twins' key can be proven guilty."""
        offence = verify_evidence(_CHAIN, evidence_from_bytes(evidence))
        if offence.author != _PUBLIC[key_of(TWINS[0])]:
            raise Violation("evidence against an honest key")
        self.offences.add(evidence)


def run_scenario(scenario: Scenario) -> Result:
    """Run one scenario from genesis. Raises `Violation`."""
    with in_force(_SCHEME):
        return Cluster(scenario).run()
