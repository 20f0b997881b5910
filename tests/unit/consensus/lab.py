"""A bench for consensus tests: four keys, and blocks and certificates made by hand."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from consensus import crypto
from consensus.beacon import BeaconChain
from consensus.config import ConsensusConfig
from consensus.crypto import Verifier
from consensus.digest import digest
from consensus.effects import Deliver, Effect, Send
from consensus.inputs import Input, MessageReceived, Started, TimerFired, TimerKind
from consensus.leaders import Leaders
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
from consensus.types import (
    QC,
    TC,
    Block,
    CommitCertificate,
    CommitVote,
    Header,
    SyncInfo,
    Timeout,
    Vote,
    genesis_block,
    genesis_qc,
    header_id,
)
from consensus.validators import Validator, make_validator_set
from consensus.verify import (
    Context,
    commit_vote_message,
    proposal_message,
    timeout_message,
    vote_message,
)

NOW_MS = 1_000_000
E = TypeVar("E")

SEEDS = sorted((digest("test-key", bytes([i])) for i in range(4)), key=crypto.public_key)
KEYS = [crypto.public_key(seed) for seed in SEEDS]
BEACONS = [BeaconChain(digest("test-beacon", seed), 64) for seed in SEEDS]
VALIDATORS = make_validator_set(
    0, [Validator(key, 1, beacon.anchor) for key, beacon in zip(KEYS, BEACONS, strict=True)]
)
CHAIN = digest("test-chain", b"")
GENESIS = genesis_block(CHAIN, digest("test-state", b""), timestamp_ms=NOW_MS - 1_000)
GENESIS_QC = genesis_qc(GENESIS)
LEADERS = Leaders(VALIDATORS)
VERIFIER = Verifier()
CONTEXT = Context(CHAIN, VALIDATORS, GENESIS_QC, VERIFIER)
CONFIG = ConsensusConfig()
QUORUM = (0, 1, 2)


def signed_block(header: Header, qc: QC, tc: TC | None, signer: int | None = None) -> Block:
    """Sign a header as its round's leader, or as somebody else."""
    index = LEADERS.index(header.round) if signer is None else signer
    message = proposal_message(header.chain_id, header.epoch, header.round, header_id(header))
    return Block(header, qc, tc, crypto.sign(SEEDS[index], message))


class Chain:
    """Blocks by hand; remembers each block's ancestors to know the next beacon reveal."""

    def __init__(self) -> None:
        self.parents: dict[bytes, Block] = {}

    def block(
        self,
        parent: Block,
        round_: int,
        /,
        *,
        tc: TC | None = None,
        payload: tuple[bytes, ...] = (),
        **changes: Any,
    ) -> Block:
        """Return a valid block on `parent` in `round_`, or one with some header fields changed."""
        leader = LEADERS.index(round_)
        reveals = 1
        ancestor = parent
        while ancestor.height > 0:
            reveals += ancestor.header.proposer == KEYS[leader]
            ancestor = self.parents[ancestor.id]
        header = Header(
            chain_id=CHAIN,
            epoch=0,
            round=round_,
            height=parent.height + 1,
            parent=parent.id,
            proposer=KEYS[leader],
            timestamp_ms=parent.header.timestamp_ms + 1,
            payload=payload,
            beacon_reveal=BEACONS[leader].preimage(reveals) or b"",
            executed_height=0,
            state_digest=GENESIS.header.state_digest,
            receipts_accumulator=GENESIS.header.receipts_accumulator,
        )
        header = replace(header, **changes)
        made = signed_block(header, qc_of(parent), tc)
        self.parents[made.id] = parent
        return made


def vote_by(index: int, block: Block) -> Vote:
    """One validator's vote for a block."""
    args = (0, block.round, block.id, block.qc.block_id, block.qc.round)
    return Vote(*args, KEYS[index], crypto.sign(SEEDS[index], vote_message(CHAIN, *args)))


def qc_of(block: Block, signers: Sequence[int] = QUORUM) -> QC:
    """A block's QC; genesis has its own."""
    if block.height == 0:
        return GENESIS_QC
    rows = tuple((index, vote_by(index, block).signature) for index in signers)
    return QC(0, block.round, block.id, block.qc.block_id, block.qc.round, rows)


def commit_vote_by(index: int, block: Block) -> CommitVote:
    """One validator's commit vote for a block."""
    args = (0, block.round, block.id, block.height)
    return CommitVote(*args, KEYS[index], crypto.sign(SEEDS[index], commit_vote_message(CHAIN, *args)))


def cc_of(block: Block, signers: Sequence[int] = QUORUM) -> CommitCertificate:
    """A block's commit certificate."""
    rows = tuple((index, commit_vote_by(index, block).signature) for index in signers)
    return CommitCertificate(0, block.round, block.id, block.height, rows)


def timeout_by(index: int, round_: int, qc: QC) -> Timeout:
    """One validator's timeout."""
    message = timeout_message(CHAIN, 0, round_, qc.round)
    return Timeout(0, round_, qc.round, KEYS[index], crypto.sign(SEEDS[index], message))


def timeout_from(index: int, round_: int, qc: QC, tc: TC | None = None) -> TimeoutMessage:
    """One validator's timeout message."""
    return TimeoutMessage(timeout_by(index, round_, qc), qc, tc, None)


def tc_of(round_: int, qcs: dict[int, QC]) -> TC:
    """A TC of the given signers with the QC each claims."""
    entries = tuple(
        (index, qc.round, timeout_by(index, round_, qc).signature) for index, qc in sorted(qcs.items())
    )
    return TC(0, round_, entries, max(qcs.values(), key=lambda qc: qc.round))


def quorum_tc(round_: int, qc: QC) -> TC:
    """A TC whose signers all claim the same QC."""
    return tc_of(round_, dict.fromkeys(QUORUM, qc))


class Bench:
    """One replica and everything it did."""

    def __init__(
        self,
        index: int | None,
        *,
        config: ConsensusConfig = CONFIG,
        recovered: RecoveredState | None = None,
        start: bool = True,
    ) -> None:
        self.now_ms = NOW_MS
        self.effects: list[Effect] = []
        self.replica = Replica(
            VALIDATORS,
            GENESIS,
            config,
            seed=None if index is None else SEEDS[index],
            beacon=None if index is None else BEACONS[index],
            recovered=recovered,
            verifier=VERIFIER,
        )
        if start:
            self.step(Started(self.now_ms))

    def step(self, event: Input) -> list[Effect]:
        """Give one input; return and remember its effects."""
        effects = self.replica.step(event)
        self.effects.extend(effects)
        return effects

    def hear(self, message: Message, sender: int = 0) -> list[Effect]:
        """Give one message."""
        return self.step(MessageReceived(KEYS[sender], message, self.now_ms))

    def propose(self, block: Block, cc: CommitCertificate | None = None) -> list[Effect]:
        """Give a proposal, from its leader."""
        return self.hear(ProposalMessage(block, cc), LEADERS.index(block.round))

    def certificates(
        self, qc: QC = GENESIS_QC, tc: TC | None = None, cc: CommitCertificate | None = None
    ) -> list[Effect]:
        """Give certificates alone."""
        return self.hear(SyncMessage(SyncInfo(qc, tc, cc)))

    def delivered(self) -> list[bytes]:
        """Ids of all blocks delivered so far."""
        return [block.id for deliver in of(self.effects, Deliver) for block in deliver.blocks]


def of(effects: Sequence[object], kind: type[E]) -> list[E]:
    """Effects of one kind."""
    return [effect for effect in effects if isinstance(effect, kind)]


def sent(effects: Sequence[Effect], kind: type[E]) -> list[E]:
    """Messages of one kind among the sends."""
    return [send.message for send in of(effects, Send) if isinstance(send.message, kind)]


def votes(effects: Sequence[Effect]) -> list[Vote]:
    """Votes sent."""
    return [message.vote for message in sent(effects, VoteMessage)]


def commit_votes(effects: Sequence[Effect]) -> list[CommitVote]:
    """Commit votes sent."""
    return [message.commit_vote for message in sent(effects, CommitVoteMessage)]


def timeouts(effects: Sequence[Effect]) -> list[Timeout]:
    """Timeouts sent."""
    return [message.timeout for message in sent(effects, TimeoutMessage)]


def follower(*rounds: int) -> int:
    """Index of a validator that leads none of the rounds."""
    leading = {LEADERS.index(round_) for round_ in rounds}
    return next(index for index in range(4) if index not in leading)


BATCH = bytes([5]) * 32


def line(chain: Chain, length: int, parent: Block = GENESIS) -> list[Block]:
    blocks = [parent]
    for _ in range(length):
        blocks.append(chain.block(blocks[-1], blocks[-1].round + 1))
    return blocks[1:]


def expire(bench: Bench) -> list[Effect]:
    """Let the round timer run out, whenever it is set to."""
    bench.now_ms += 200_000
    return bench.step(TimerFired(TimerKind.ROUND, bench.now_ms))
