"""Four replicas, one of them a liar, driven by Hypothesis: any order of events, shrunk to the shortest that breaks a rule.

The simulator plays long plausible stories; this machine searches short wild ones: any queued message may be delivered,
dropped or delivered again at any time, any timer may fire, any process may be killed between any two steps.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from consensus import crypto
from consensus.digest import digest
from consensus.effects import Deliver, Effect, Persist, RequestPayload, Send
from consensus.inputs import Executed, MessageReceived, PayloadOffered, Started, TimerFired, TimerKind
from consensus.messages import CommitVoteMessage, Message, ProposalMessage, TimeoutMessage, VoteMessage
from consensus.replica import Replica
from consensus.types import QC, CommitVote, Timeout, Vote
from consensus.verify import commit_vote_message, timeout_message, vote_message
from tests.profiles import examples
from tests.simulation.checker import Checker
from tests.simulation.disk import Disk
from tests.unit.consensus.lab import (
    BEACONS,
    CHAIN,
    CONFIG,
    GENESIS,
    KEYS,
    NOW_MS,
    SEEDS,
    VALIDATORS,
    VERIFIER,
)

HONEST = 3
QUEUE_MAX = 400


class ReplicaMachine(RuleBasedStateMachine):
    """Validators 0 to 2 are honest and run replicas; 3 signs whatever it sees, never the same way twice."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = NOW_MS
        self.checker = Checker(GENESIS.id)
        self.disks = [Disk(GENESIS) for _ in range(HONEST)]
        self.replicas: list[Replica] = []
        self.queue: list[tuple[int, int, Message]] = []
        self.executed = [0] * HONEST
        self.states = [{0: GENESIS.header.state_digest} for _ in range(HONEST)]
        self.blocks: dict[bytes, int] = {}
        self.qcs: list[QC] = []

    @initialize()
    def start(self) -> None:
        for index in range(HONEST):
            self.replicas.append(self.boot(index))
        for index in range(HONEST):
            self.feed(index, Started(self.now_ms))

    def boot(self, index: int) -> Replica:
        chain = self.disks[index].now.chain
        last = chain[-1] if chain else GENESIS
        self.checker.started(index, last.height, last.id)
        return Replica(
            VALIDATORS,
            GENESIS,
            CONFIG,
            seed=SEEDS[index],
            beacon=BEACONS[index],
            recovered=self.disks[index].recovered(CONFIG.lag_max + 1),
            verifier=VERIFIER,
        )

    def feed(
        self, index: int, event: Started | MessageReceived | TimerFired | PayloadOffered | Executed
    ) -> None:
        for effect in self.replicas[index].step(event):
            self.perform(index, effect)

    def perform(self, index: int, effect: Effect) -> None:
        match effect:
            case Persist():
                self.disks[index].write(effect)
                for block in effect.committed:
                    self.checker.committed(index, block)
            case Send(to=to, message=message):
                self.checker.sent(KEYS[index], message)
                for target in range(HONEST):
                    if target != index and to in (None, KEYS[target]):
                        self.queue.append((index, target, message))
                self.queue = self.queue[-QUEUE_MAX:]
                self.overhear(message)
            case RequestPayload(round=round_):
                self.feed(index, PayloadOffered(round_, (), self.now_ms))
            case Deliver():
                pass
            case _:
                pass

    def overhear(self, message: Message) -> None:
        """The liar reads everything: it learns blocks and certificates."""
        match message:
            case ProposalMessage(block=block):
                self.blocks[block.id] = block.height
                self.remember(block.qc)
                args = (0, block.round, block.id, block.qc.block_id, block.qc.round)
                signature = crypto.sign(SEEDS[3], vote_message(CHAIN, *args))
                self.lie(VoteMessage(Vote(*args, KEYS[3], signature)))
            case CommitVoteMessage(commit_vote=vote, qc=qc):
                self.remember(qc)
                made = (0, vote.round, vote.block_id, vote.height)
                signature = crypto.sign(SEEDS[3], commit_vote_message(CHAIN, *made))
                self.lie(CommitVoteMessage(CommitVote(*made, KEYS[3], signature), qc))
            case TimeoutMessage(timeout=timeout, high_qc=qc, last_tc=tc):
                self.remember(qc)
                lowest = self.qcs[0]
                signature = crypto.sign(SEEDS[3], timeout_message(CHAIN, 0, timeout.round, lowest.round))
                lied = Timeout(0, timeout.round, lowest.round, KEYS[3], signature)
                self.lie(TimeoutMessage(lied, lowest, tc, None))
            case _:
                pass

    def remember(self, qc: QC) -> None:
        if qc not in self.qcs:
            self.qcs.append(qc)

    def lie(self, message: Message) -> None:
        self.queue.extend((3, target, message) for target in range(HONEST))

    @precondition(lambda self: self.queue)
    @rule(data=st.data(), again=st.booleans())
    def deliver(self, data: st.DataObject, again: bool) -> None:
        """Deliver any queued message; keep it to deliver again, or not."""
        at = data.draw(st.integers(0, len(self.queue) - 1))
        sender, target, message = self.queue[at] if again else self.queue.pop(at)
        self.feed(target, MessageReceived(KEYS[sender], message, self.now_ms))

    @precondition(lambda self: self.queue)
    @rule()
    def deliver_all(self) -> None:
        """Deliver everything queued now, in order."""
        for sender, target, message in [self.queue.pop(0) for _ in range(len(self.queue))]:
            self.feed(target, MessageReceived(KEYS[sender], message, self.now_ms))

    @rule()
    def calm(self) -> None:
        """A spell of good network: leaders beat, everything arrives."""
        self.now_ms += 2_000
        for index in range(HONEST):
            self.feed(index, TimerFired(TimerKind.PROPOSE, self.now_ms))
        for _ in range(4):
            for sender, target, message in [self.queue.pop(0) for _ in range(len(self.queue))]:
                self.feed(target, MessageReceived(KEYS[sender], message, self.now_ms))

    @precondition(lambda self: self.queue)
    @rule(receiver=st.integers(0, HONEST - 1))
    def drop_for(self, receiver: int) -> None:
        """Lose everything on its way to one validator."""
        self.queue = [row for row in self.queue if row[1] != receiver]

    @rule(
        index=st.integers(0, HONEST - 1),
        kind=st.sampled_from(TimerKind),
        wait_ms=st.sampled_from((2_000, 80_000)),
    )
    def fire(self, index: int, kind: TimerKind, wait_ms: int) -> None:
        self.now_ms += wait_ms if kind is not TimerKind.FETCH else 0
        self.feed(index, TimerFired(kind, self.now_ms))

    @rule(index=st.integers(0, HONEST - 1), keep=st.integers(0, 2))
    def crash(self, index: int, keep: int) -> None:
        self.disks[index].crash(keep)
        stored = len(self.disks[index].now.chain)
        self.executed[index] = len(self.disks[index].now.executed)
        assert self.executed[index] <= stored
        self.replicas[index] = self.boot(index)
        self.feed(index, Started(self.now_ms))

    @rule(index=st.integers(0, HONEST - 1))
    def execute(self, index: int) -> None:
        """Execute one committed block."""
        height = self.executed[index] + 1
        chain = self.disks[index].now.chain
        if height > len(chain):
            return
        state = digest("simulated-state", b"".join(block.id for block in chain[:height]))
        self.executed[index] = height
        self.feed(index, Executed(height, chain[height - 1].id, state, bytes(32), self.now_ms))

    @invariant()
    def the_committed_prefix_never_diverges(self) -> None:
        """The checker raises as soon as anything is committed or signed twice; this adds the replicas' own view."""
        for index, replica in enumerate(self.replicas):
            height = replica.committed.height
            assert height == len(self.disks[index].now.chain)
            assert height == 0 or self.checker.agreed[height] == replica.committed.id
            assert not replica.diverged


ReplicaMachine.TestCase.settings = settings(max_examples=examples(50), stateful_step_count=50)
TestReplicaMachine = ReplicaMachine.TestCase
