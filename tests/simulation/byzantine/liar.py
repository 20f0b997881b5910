"""What liars share: they read everything, remember certificates and blocks, and sign without rules."""

from typing import TYPE_CHECKING

from consensus.messages import (
    CommitVoteMessage,
    Message,
    ProposalMessage,
    SyncMessage,
    TimeoutMessage,
    VoteMessage,
)
from consensus.types import QC, TC, Block, CommitVote, Timeout, Vote
from consensus.verify import commit_vote_message, timeout_message, vote_message
from tests.simulation.node import Node

if TYPE_CHECKING:
    from tests.simulation.world import World

MEMORY_MAX = 64


class Liar(Node):
    """A replica that keeps up with the chain, beside which a subclass says what it likes."""

    honest = False

    def __init__(self, world: "World", slot: int, key_index: int | None) -> None:
        super().__init__(world, slot, key_index)
        self.qcs: list[QC] = []
        self.tcs: list[TC] = []
        self.blocks: dict[bytes, Block] = {}

    def receive(self, sender: int, message: Message) -> None:
        match message:
            case ProposalMessage(block=block):
                self.learn(block.qc, block.tc, block)
            case TimeoutMessage(high_qc=qc, last_tc=tc):
                self.learn(qc, tc)
            case CommitVoteMessage(qc=qc):
                self.learn(qc)
            case SyncMessage(info=info):
                self.learn(info.high_qc, info.last_tc)
            case _:
                pass
        # Liars that answer each other's lies would talk for ever: three of them say more than one thing to each that they hear.
        if self.world.nodes[sender].honest:
            self.misbehave(message)
        super().receive(sender, message)

    def misbehave(self, message: Message) -> None:
        """Say something untrue on the occasion of a message."""

    def learn(self, qc: QC, tc: TC | None = None, block: Block | None = None) -> None:
        """Remember certificates and blocks, the latest ones; what is known is most likely among the very last."""
        if qc not in self.qcs[:-9:-1]:
            self.qcs = [*self.qcs[-MEMORY_MAX:], qc]
        if tc is not None and tc not in self.tcs[:-9:-1]:
            self.tcs = [*self.tcs[-MEMORY_MAX:], tc]
        if block is not None:
            self.blocks[block.id] = block
            if len(self.blocks) > MEMORY_MAX:
                del self.blocks[next(iter(self.blocks))]

    def some(self, message: Message, share: float = 0.5) -> None:
        """Send to a random part of the others."""
        for slot in self.world.targets(self.slot, None):
            if self.world.rng.random() < share:
                self.world.transmit(self.slot, slot, message)

    def vote_for(self, block: Block) -> VoteMessage:
        """Sign a vote, whatever was signed before."""
        args = (block.header.epoch, block.round, block.id, block.qc.block_id, block.qc.round)
        return VoteMessage(Vote(*args, self.key, self.sign(vote_message(self.world.chain_id, *args))))

    def commit_vote_for(self, qc: QC, height: int) -> CommitVoteMessage:
        """Sign a commit vote, whatever was signed before."""
        args = (qc.epoch, qc.round, qc.block_id, height)
        signature = self.sign(commit_vote_message(self.world.chain_id, *args))
        return CommitVoteMessage(CommitVote(*args, self.key, signature), qc)

    def timeout_of(self, round_: int, qc: QC, tc: TC | None = None) -> TimeoutMessage:
        """Sign a timeout with any QC."""
        args = (qc.epoch, round_, qc.round)
        signature = self.sign(timeout_message(self.world.chain_id, *args))
        return TimeoutMessage(Timeout(*args, self.key, signature), qc, tc, None)

    def sign(self, message: bytes) -> bytes:
        """Sign anything with the own key."""
        return self.world.sign(self.key, message)
