"""Liars about the past."""

from consensus.messages import CommitVoteMessage, Message, ProposalMessage, SyncMessage, TimeoutMessage
from consensus.types import QC, SyncInfo
from tests.simulation.byzantine.liar import Liar


class StaleClaimer(Liar):
    """Votes for everything, commit-votes for every QC, times out of every round claiming the oldest QC it knows, keeps
    its proposals from some, and replays old certificates at random.
    """

    def send(self, to: int | None, message: Message) -> None:
        for slot in self.world.targets(self.slot, to):
            if self.world.rng.random() < 0.7:
                self.world.transmit(self.slot, slot, message)

    def misbehave(self, message: Message) -> None:
        rng = self.world.rng
        match message:
            case ProposalMessage(block=block):
                self.some(self.vote_for(block))
                self._time_out(block.round)
            case TimeoutMessage(timeout=timeout):
                self._time_out(timeout.round)
            case CommitVoteMessage(qc=qc):
                self._commit(qc)
            case _:
                pass
        if rng.random() < 0.2 and self.qcs:
            tc = rng.choice(self.tcs) if self.tcs else None
            self.some(SyncMessage(SyncInfo(rng.choice(self.qcs), tc, None)))

    def _commit(self, qc: QC) -> None:
        block = self.blocks.get(qc.block_id)
        if block is not None:
            self.some(self.commit_vote_for(qc, block.height))

    def _time_out(self, round_: int) -> None:
        older = [qc for qc in self.qcs if qc.round < round_]
        if not older or self.world.rng.random() < 0.5:
            return
        tc = self.world.rng.choice(self.tcs) if self.tcs else None
        self.some(self.timeout_of(round_, self.world.rng.choice(older), tc))


class StaleVoter(Liar):
    """Votes and commit-votes for blocks of past rounds, long after it voted, or timed out, above them."""

    def misbehave(self, message: Message) -> None:
        rng = self.world.rng
        if not self.blocks or rng.random() < 0.6:
            return
        block = rng.choice(list(self.blocks.values()))
        self.some(self.vote_for(block))
        certified = [qc for qc in self.qcs if qc.block_id in self.blocks]
        if certified:
            qc = rng.choice(certified)
            self.some(self.commit_vote_for(qc, self.blocks[qc.block_id].height))
