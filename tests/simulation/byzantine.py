"""Nodes named for their misdeed. Each holds a real key and sends what it likes; none is held to its word."""

from typing import TYPE_CHECKING

from consensus import crypto
from consensus.messages import (
    CommitVoteMessage,
    Message,
    ProposalMessage,
    SyncMessage,
    TimeoutMessage,
    VoteMessage,
)
from consensus.types import QC, TC, Block, CommitVote, SyncInfo, Timeout, Vote
from consensus.verify import commit_vote_message, timeout_message, vote_message
from tests.simulation.node import Node

if TYPE_CHECKING:
    from tests.simulation.world import World

MEMORY_MAX = 64


class Equivocator(Node):
    """One of two replicas under the same key, each talking to its own share of the others (the Twins method).

    Between them they propose, vote, commit-vote and time out twice in a round, each consistent in itself.
    """

    honest = False

    def hears(self, slot: int) -> bool:
        """Whether messages from `slot` reach this half, and its messages that slot."""
        other_half = self.slot >= self.world.twin_base
        return (slot in self.world.left_half) != other_half or self.world.rng.random() < 0.1

    def send(self, to: int | None, message: Message) -> None:
        for slot in self.world.targets(self.slot, to):
            if self.hears(slot):
                self.world.transmit(self.slot, slot, message)

    def receive(self, sender: int, message: Message) -> None:
        if self.hears(sender):
            super().receive(sender, message)


class StaleClaimer(Node):
    """Votes for everything, commit-votes for every QC, times out of every round claiming the oldest QC it knows, keeps
    its proposals from some, and replays old certificates at random.
    """

    honest = False

    def __init__(self, world: "World", slot: int, key_index: int | None) -> None:
        super().__init__(world, slot, key_index)
        self.qcs: list[QC] = []
        self.tcs: list[TC] = []
        self.blocks: dict[bytes, Block] = {}

    def send(self, to: int | None, message: Message) -> None:
        for slot in self.world.targets(self.slot, to):
            if self.world.rng.random() < 0.7:
                self.world.transmit(self.slot, slot, message)

    def receive(self, sender: int, message: Message) -> None:
        match message:
            case ProposalMessage(block=block):
                self.blocks[block.id] = block
                self._learn(block.qc, block.tc)
                self._vote(block)
                self._time_out(block.round)
            case TimeoutMessage(timeout=timeout, high_qc=qc, last_tc=tc):
                self._learn(qc, tc)
                self._time_out(timeout.round)
            case CommitVoteMessage(qc=qc):
                self._learn(qc, None)
                self._commit(qc)
            case SyncMessage(info=info):
                self._learn(info.high_qc, info.last_tc)
            case _:
                pass
        self._replay()
        super().receive(sender, message)

    def _learn(self, qc: QC, tc: TC | None) -> None:
        if qc not in self.qcs:
            self.qcs = [*self.qcs[-MEMORY_MAX:], qc]
        if tc is not None and tc not in self.tcs:
            self.tcs = [*self.tcs[-MEMORY_MAX:], tc]

    def _some(self, message: Message) -> None:
        """Send to a random half."""
        for slot in self.world.targets(self.slot, None):
            if self.world.rng.random() < 0.5:
                self.world.transmit(self.slot, slot, message)

    def _vote(self, block: Block) -> None:
        world, header, qc = self.world, block.header, block.qc
        args = (header.epoch, header.round, block.id, qc.block_id, qc.round)
        signature = crypto.sign(world.seeds[self.key_index or 0], vote_message(world.chain_id, *args))
        self._some(VoteMessage(Vote(*args, self.key, signature)))

    def _commit(self, qc: QC) -> None:
        block = self.blocks.get(qc.block_id)
        if block is None:
            return
        args = (qc.epoch, qc.round, qc.block_id, block.height)
        signature = crypto.sign(
            self.world.seeds[self.key_index or 0], commit_vote_message(self.world.chain_id, *args)
        )
        self._some(CommitVoteMessage(CommitVote(*args, self.key, signature), qc))

    def _time_out(self, round_: int) -> None:
        older = [qc for qc in self.qcs if qc.round < round_]
        if not older or self.world.rng.random() < 0.5:
            return
        qc = self.world.rng.choice(older)
        args = (qc.epoch, round_, qc.round)
        signature = crypto.sign(
            self.world.seeds[self.key_index or 0], timeout_message(self.world.chain_id, *args)
        )
        tc = self.world.rng.choice(self.tcs) if self.tcs else None
        self._some(TimeoutMessage(Timeout(*args, self.key, signature), qc, tc, None))

    def _replay(self) -> None:
        if self.world.rng.random() < 0.2 and self.qcs:
            tc = self.world.rng.choice(self.tcs) if self.tcs else None
            self._some(SyncMessage(SyncInfo(self.world.rng.choice(self.qcs), tc, None)))
