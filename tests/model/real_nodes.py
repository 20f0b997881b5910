"""The model's nodes beside real replicas: each gets the same inputs, and after each both must stand the same.

Three replicas are honest; the fourth key lies. What honest replicas sign is taken from what they send, and every certificate
is made of that and of the liar's signatures, so that it exists in the model exactly when it can be made.
"""

from dataclasses import dataclass, field, replace

from consensus import crypto
from consensus.effects import Effect, Persist, Send
from consensus.inputs import Input, MessageReceived, PayloadOffered, Started, TimerFired, TimerKind
from consensus.messages import (
    CommitVoteMessage,
    Message,
    ProposalMessage,
    SyncMessage,
    TimeoutMessage,
    VoteMessage,
)
from consensus.recovery import RecoveredState
from consensus.replica import Replica
from consensus.safety import SafetyRecord, record_from_bytes
from consensus.types import QC, Block, CommitCertificate, CommitProof, CommitVote, SyncInfo, Vote
from consensus.types import TC as RealTC
from consensus.verify import commit_vote_message, vote_message
from tests.model import node as model
from tests.unit.consensus.lab import (
    BEACONS,
    CHAIN,
    CONFIG,
    GENESIS,
    GENESIS_QC,
    KEYS,
    LEADERS,
    NOW_MS,
    SEEDS,
    VALIDATORS,
    VERIFIER,
    timeout_by,
)
from tests.unit.consensus.lab import Chain as Workshop

HONEST = 3
LIAR = 3
# The model has no clock: no proposal is too old, and nothing is fetched twice.
TIMELESS = replace(CONFIG, drift_ms_max=1 << 40, fetch_retry_ms=1 << 40, behind_heights_min=1 << 20)
ROUND_MS = 200_000
PROPOSE_MS = 2_000


@dataclass
class Store:
    """What `Persist` effects leave on disk."""

    record: SafetyRecord | None = None
    certificates: SyncInfo | None = None
    committed: Block = GENESIS
    proof: CommitProof | None = None
    reveals: tuple[tuple[int, bytes], ...] = ()
    blocks: dict[bytes, Block] = field(default_factory=dict)
    written: bool = False

    def write(self, effect: Persist) -> None:
        """Apply one write."""
        self.written = True
        if effect.record is not None:
            self.record = record_from_bytes(effect.record)
        self.certificates = effect.certificates or self.certificates
        for block_id in effect.forgotten:
            self.blocks.pop(block_id, None)
        self.blocks.update((block.id, block) for block in effect.blocks)
        if effect.committed:
            self.committed, self.proof, self.reveals = effect.committed[-1], effect.proof, effect.reveals

    def recovered(self) -> RecoveredState | None:
        """What a restarted process reads."""
        if not self.written:
            return None
        blocks = tuple(self.blocks.values())
        return RecoveredState(
            self.record, self.certificates, self.committed, self.proof, self.reveals, blocks, ()
        )


class Workbench:
    """Real replicas, the real form of every model block, and everything that was signed."""

    def __init__(self) -> None:
        self.now_ms = NOW_MS
        self.workshop = Workshop()
        self.blocks: dict[model.Block, Block] = {model.GENESIS: GENESIS}
        self.names: dict[bytes, model.Block] = {GENESIS.id: model.GENESIS}
        self.votes: dict[tuple[int, bytes], Vote] = {}
        self.commits: dict[tuple[int, bytes], CommitVote] = {}
        self.timeouts: dict[tuple[int, model.Timeout], TimeoutMessage] = {}
        self.proposals: dict[model.Block, ProposalMessage] = {}
        self.stores = [Store() for _ in range(HONEST)]
        self.replicas = [self._boot(place) for place in range(HONEST)]
        for place in range(HONEST):
            self.step(place, Started(self.now_ms))

    def _boot(self, place: int) -> Replica:
        return Replica(
            VALIDATORS,
            GENESIS,
            TIMELESS,
            seed=SEEDS[place],
            beacon=BEACONS[place],
            recovered=self.stores[place].recovered(),
            verifier=VERIFIER,
        )

    def leader(self, round_: int) -> int:
        """Who leads a round."""
        return LEADERS.index(round_)

    def step(self, place: int, event: Input) -> list[Effect]:
        """Give one input, store what is to be stored, keep what is sent."""
        effects = self.replicas[place].step(event)
        for effect in effects:
            if isinstance(effect, Persist):
                self.stores[place].write(effect)
            elif isinstance(effect, Send):
                self._overhear(place, effect.message)
        return effects

    def hear(self, place: int, message: Message, sender: int = LIAR) -> None:
        """Deliver one message."""
        self.step(place, MessageReceived(KEYS[sender], message, self.now_ms))

    def _overhear(self, place: int, message: Message) -> None:
        match message:
            case ProposalMessage(block=block):
                self.workshop.parents[block.id] = self.blocks[self.names[block.header.parent]]
                tc = None if block.tc is None else self.name_tc(block.tc)
                parent = self.names[block.header.parent]
                # One block of an honest leader in a round: no tag tells it from another.
                name = model.Block(block.round, parent, 0, tc)
                self.know(name, block)
                self.proposals.setdefault(name, message)
            case VoteMessage(vote=vote):
                self.votes[place, vote.block_id] = vote
            case CommitVoteMessage(commit_vote=vote):
                self.commits[place, vote.block_id] = vote
            case TimeoutMessage(timeout=timeout, high_qc=qc, last_tc=tc, high_cc=cc):
                said = model.Timeout(
                    timeout.round,
                    self.names[qc.block_id],
                    None if tc is None else self.name_tc(tc),
                    None if cc is None else self.names[cc.block_id],
                )
                self.timeouts[place, said] = message
            case _:
                pass

    def know(self, name: model.Block, block: Block) -> None:
        """Note the real form of a model block."""
        self.blocks[name] = block
        self.names[block.id] = name

    def name_tc(self, tc: RealTC) -> model.TC:
        """The model's form of a TC."""
        return model.TC(tc.round, self.names[tc.high_qc.block_id])

    # --- what the liar can make ---

    def lie(self, name: model.Block) -> None:
        """The liar proposes a block in a round it leads."""
        if name.parent is None or self.leader(name.round) != LIAR:
            raise ValueError("the liar leads its own rounds only")
        parent = self.blocks[name.parent]
        tc = None if name.tc is None else self.tc(name.tc, None)
        stamp = parent.header.timestamp_ms + 1 + len(self.blocks)
        made = self.workshop.block(parent, name.round, tc=tc, timestamp_ms=stamp)
        block = Block(made.header, self.qc(name.parent), tc, made.signature)
        self.know(name, block)
        self.proposals[name] = ProposalMessage(block, None)

    def qc(self, name: model.Block) -> QC:
        """The QC of a block."""
        if name == model.GENESIS:
            return GENESIS_QC
        block = self.blocks[name]
        rows = [
            (index, vote.signature) for (index, block_id), vote in self.votes.items() if block_id == block.id
        ]
        rows.append((LIAR, self.lied_vote(block).signature))
        return QC(0, block.round, block.id, block.qc.block_id, block.qc.round, tuple(sorted(rows)))

    def lied_vote(self, block: Block) -> Vote:
        """The liar's vote."""
        said = (0, block.round, block.id, block.qc.block_id, block.qc.round)
        return Vote(*said, KEYS[LIAR], crypto.sign(SEEDS[LIAR], vote_message(CHAIN, *said)))

    def lied_commit(self, block: Block) -> CommitVote:
        """The liar's commit vote."""
        said = (0, block.round, block.id, block.height)
        return CommitVote(*said, KEYS[LIAR], crypto.sign(SEEDS[LIAR], commit_vote_message(CHAIN, *said)))

    def cc(self, name: model.Block) -> CommitCertificate:
        """The CC of a block."""
        block = self.blocks[name]
        rows = [
            (index, vote.signature)
            for (index, block_id), vote in self.commits.items()
            if block_id == block.id
        ]
        rows.append((LIAR, self.lied_commit(block).signature))
        return CommitCertificate(0, block.round, block.id, block.height, tuple(sorted(rows)))

    def tc(self, name: model.TC, signers: tuple[int, ...] | None) -> RealTC:
        """A TC that claims exactly this high QC: of two honest timeouts at most as high, the liar claiming the rest."""
        said: dict[int, TimeoutMessage] = {}
        for (place, timeout), message in self.timeouts.items():
            if timeout.round == name.round and timeout.high.round <= name.high.round:
                said[place] = message
        chosen = sorted(said)[:2] if signers is None else sorted(signers)
        rows = [(place, said[place].timeout.high_qc_round, said[place].timeout.signature) for place in chosen]
        qc = self.qc(name.high)
        rows.append((LIAR, qc.round, timeout_by(LIAR, name.round, qc).signature))
        return RealTC(0, name.round, tuple(rows), qc)

    def lied_timeout(self, round_: int, high: model.Block) -> TimeoutMessage:
        """The liar's timeout."""
        qc = self.qc(high)
        return TimeoutMessage(timeout_by(LIAR, round_, qc), qc, None, None)

    # --- inputs ---

    def give_qc(self, place: int, name: model.Block) -> None:
        """Certificates alone are taken only where they are news; an older one rides on a timeout of a past round."""
        real = self.replicas[place]
        if name.round > real.high_qc.round:
            self.hear(place, SyncMessage(SyncInfo(self.qc(name), None, None)))
        else:
            self.hear(place, self.lied_timeout(real.round - 1, name))

    def give_votes(self, place: int, name: model.Block) -> None:
        """Every vote there is for a block, one by one, the liar's last."""
        block = self.blocks[name]
        for (author, block_id), vote in sorted(self.votes.items(), key=lambda row: row[0]):
            if block_id == block.id:
                self.hear(place, VoteMessage(vote), author)
        self.hear(place, VoteMessage(self.lied_vote(block)))

    def give_tc(self, place: int, name: model.TC) -> None:
        """A TC alone."""
        self.hear(place, SyncMessage(SyncInfo(GENESIS_QC, self.tc(name, None), None)))

    def give_cc(self, place: int, name: model.Block) -> None:
        """A CC alone."""
        self.hear(place, SyncMessage(SyncInfo(GENESIS_QC, None, self.cc(name))))

    def give_commits(self, place: int, name: model.Block) -> None:
        """Every commit vote there is for a block, one by one, the liar's last."""
        block, qc = self.blocks[name], self.qc(name)
        for (author, block_id), vote in sorted(self.commits.items(), key=lambda row: row[0]):
            if block_id == block.id:
                self.hear(place, CommitVoteMessage(vote, qc), author)
        self.hear(place, CommitVoteMessage(self.lied_commit(block), qc))

    def timer(self, place: int) -> None:
        """The round's timer ends."""
        self.now_ms += ROUND_MS
        self.step(place, TimerFired(TimerKind.ROUND, self.now_ms))

    def propose(self, place: int) -> None:
        """The leader owes a block, and is offered nothing to put in."""
        self.now_ms += PROPOSE_MS
        self.step(place, TimerFired(TimerKind.PROPOSE, self.now_ms))
        self.step(place, PayloadOffered(self.replicas[place].round, (), self.now_ms))

    def crash(self, place: int) -> None:
        """The process ends, and starts again from what is stored."""
        self.replicas[place] = self._boot(place)
        self.step(place, Started(self.now_ms))

    # --- what a replica stands like, in the model's words ---

    def seen(self, place: int) -> dict[str, object]:
        """The abstraction of one replica."""
        core = self.replicas[place]._core
        if core.safety is None:
            raise ValueError("an observer has no record")
        record, info, names = core.safety.record, core.sync_info, self.names
        vote, commit, timeout = record.last_vote, record.last_commit_vote, record.last_timeout
        qc = record.last_timeout_qc
        return {
            "record": model.Record(
                record.last_voted,
                record.lock,
                record.highest_timeout,
                record.last_proposed,
                None if vote is None else names[vote.block_id],
                None if commit is None else names[commit.block_id],
                None if timeout is None or qc is None else (timeout.round, names[qc.block_id]),
            ),
            "current": core.round,
            "high": names[info.high_qc.block_id],
            "tc": None if info.last_tc is None else self.name_tc(info.last_tc),
            "cc": None if info.high_cc is None else names[info.high_cc.block_id],
            "root": names[core.root.id],
            "tree": {names[key] for key in core.tree.nodes if key != core.root.id},
            "certified": {names[key] for key, row in core.tree.nodes.items() if row.qc is not None},
            "orphans": {names[key] for key in core.orphans},
            "first": {round_: names[block.id] for round_, block in core.proposals.items()},
            "wanted": {names[key] for key in core.block_fetches.entries},
            "gave_up": core.timed_out_ms is not None,
            "votes": {names[key] for index, key in self.votes if index == place},
            "commits": {names[key] for index, key in self.commits if index == place},
            "timeouts": {said for index, said in self.timeouts if index == place},
        }


def told(node: model.Node) -> dict[str, object]:
    """A model node in the same form."""
    return {
        "record": node.record,
        "current": node.current,
        "high": node.high,
        "tc": node.tc,
        "cc": node.cc,
        "root": node.root,
        "tree": set(node.tree),
        "certified": set(node.certified),
        "orphans": set(node.orphans),
        "first": {block.round: block for block in node.first},
        "wanted": set(node.wanted),
        "gave_up": node.gave_up,
        "votes": set(node.votes),
        "commits": set(node.commits),
        "timeouts": set(node.timeouts),
    }
