"""Makes certificates out of what it has: signatures of others where they do not belong, and not enough of them."""

from dataclasses import replace

from consensus.messages import CommitVoteMessage, Message, ProposalMessage, SyncMessage, TimeoutMessage
from consensus.types import QC, TC, CommitCertificate, SyncInfo
from tests.simulation.byzantine.liar import Liar


class CertificateForger(Liar):
    """Sends QCs, TCs and CCs that prove nothing, each broken in one of the ways a careless verifier would let pass."""

    def misbehave(self, message: Message) -> None:
        rng = self.world.rng
        if not self.qcs or rng.random() < 0.7:
            return
        qc = rng.choice(self.qcs)
        if qc.round == 0:
            return
        forged = rng.choice((self._repeated, self._lifted, self._thin, self._moved, self._foreign))(qc)
        if rng.random() < 0.5:
            self.some(SyncMessage(SyncInfo(forged, None, None)))
        else:
            self.some(SyncMessage(SyncInfo(qc, self._timeouts(message, qc), self._commits(forged))))
        block = self.blocks.get(forged.block_id)
        if block is not None:
            cast = self.commit_vote_for(forged, block.height)
            self.some(CommitVoteMessage(cast.commit_vote, forged))
        if isinstance(message, ProposalMessage):
            self.some(ProposalMessage(replace(message.block, qc=forged), None))

    def _repeated(self, qc: QC) -> QC:
        """One signature as often as a quorum needs."""
        size = len(self.world.keys)
        return replace(qc, round=qc.round + 1, signatures=(qc.signatures[0],) * size)

    def _lifted(self, qc: QC) -> QC:
        """The signatures of another round."""
        return replace(qc, round=qc.round + self.world.rng.randint(1, 3))

    def _thin(self, qc: QC) -> QC:
        """One signer too few."""
        return replace(qc, signatures=qc.signatures[1:])

    def _moved(self, qc: QC) -> QC:
        """The signatures under each other's names."""
        rows = [row[1] for row in qc.signatures]
        moved = tuple(
            (row[0], signature) for row, signature in zip(qc.signatures, rows[1:] + rows[:1], strict=True)
        )
        return replace(qc, signatures=moved)

    def _foreign(self, qc: QC) -> QC:
        """Another block in place of the certified one, signed by itself under every name."""
        others = [block for block in self.blocks.values() if block.id != qc.block_id]
        if not others:
            return self._lifted(qc)
        block = self.world.rng.choice(others)
        own = self.vote_for(block).vote.signature
        rows = tuple((index, own) for index in range(len(self.world.keys)))
        return QC(qc.epoch, block.round, block.id, block.qc.block_id, block.qc.round, rows)

    def _commits(self, qc: QC) -> CommitCertificate:
        """Votes passed off as commit votes."""
        block = self.blocks.get(qc.block_id)
        height = 1 if block is None else block.height
        return CommitCertificate(qc.epoch, qc.round, qc.block_id, height, qc.signatures)

    def _timeouts(self, message: Message, qc: QC) -> TC | None:
        """A TC with a lower QC than its signers claim, or with claims that they did not sign."""
        known = message.last_tc if isinstance(message, TimeoutMessage) else None
        if known is None:
            return None
        if self.world.rng.random() < 0.5:
            return replace(known, high_qc=qc)
        lower = tuple((index, qc.round, signature) for index, _, signature in known.entries)
        return replace(known, entries=lower, high_qc=qc)
