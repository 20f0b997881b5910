"""What was refused or is open is looked at again with the next message, though that says nothing new."""

from consensus.errors import SafetyRefusal
from consensus.inputs import Started
from consensus.messages import VoteMessage
from consensus.replica import Replica
from consensus.safety import SafetyRules
from consensus.types import QC, Block, CommitVote, Header, Vote
from tests.unit.consensus.lab import (
    CONFIG,
    CONTEXT,
    GENESIS,
    SEEDS,
    VALIDATORS,
    VERIFIER,
    Bench,
    Chain,
    commit_votes,
    follower,
    qc_of,
    vote_by,
    votes,
)


class AwayAtFirst(SafetyRules):
    """A signer that cannot be reached the first time it is asked for a vote, and for a commit vote."""

    def __init__(self, index: int) -> None:
        super().__init__(SEEDS[index], CONTEXT)
        self.asked = 0

    def sign_vote(self, block: Block) -> Vote:
        self._answer()
        return super().sign_vote(block)

    def sign_commit_vote(self, qc: QC, header: Header) -> CommitVote:
        self._answer()
        return super().sign_commit_vote(qc, header)

    def _answer(self) -> None:
        self.asked += 1
        if self.asked == 1:
            raise SafetyRefusal("nobody is there")


def _bench(signer: SafetyRules, index: int) -> Bench:
    bench = Bench(index, start=False)
    bench.replica = Replica(VALIDATORS, GENESIS, CONFIG, signer=signer, verifier=VERIFIER)
    return bench


def test_a_refused_vote_is_asked_for_again_with_the_next_message() -> None:
    block, me = Chain().block(GENESIS, 1), follower(1, 2, 3)
    bench = _bench(AwayAtFirst(me), me)
    bench.step(Started(bench.now_ms))
    assert votes(bench.propose(block)) == []
    again = bench.hear(VoteMessage(vote_by(0 if me else 1, block)))
    assert [vote.block_id for vote in votes(again)] == [block.id]


def test_a_refused_commit_vote_is_asked_for_again_with_the_next_message() -> None:
    block, me = Chain().block(GENESIS, 1), follower(1, 2, 3)
    signer = AwayAtFirst(me)
    bench = _bench(signer, me)
    bench.step(Started(bench.now_ms))
    signer.asked = 1
    assert len(votes(bench.propose(block))) == 1
    signer.asked = 0
    assert commit_votes(bench.certificates(qc_of(block))) == []
    again = bench.certificates(qc_of(block))
    assert [vote.block_id for vote in commit_votes(again)] == [block.id]
