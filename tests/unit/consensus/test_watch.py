"""Who tells each half of the validators a story of its own is caught when a certificate of one reaches the other."""

import pytest

from consensus.effects import Effect, Misbehaved
from consensus.evidence import Offence, OffenceKind, evidence_from_bytes, verify_evidence
from consensus.messages import BlocksMessage, CommitVoteMessage, Message, VoteMessage
from tests.unit.consensus.lab import (
    CHAIN,
    GENESIS,
    GENESIS_QC,
    KEYS,
    LEADERS,
    Bench,
    Chain,
    cc_of,
    commit_vote_by,
    follower,
    line,
    of,
    qc_of,
    tc_of,
    timeout_from,
    vote_by,
)

LIAR = 2


def offences(effects: list[Effect]) -> list[Offence]:
    found = [fault.evidence for fault in of(effects, Misbehaved) if fault.evidence]
    return [verify_evidence(CHAIN, evidence_from_bytes(data)) for data in found]


def test_a_vote_for_one_block_beside_a_qc_with_its_authors_vote_for_another() -> None:
    chain, bench = Chain(), Bench(None)
    block, other = chain.block(GENESIS, 1), chain.block(GENESIS, 1, payload=(bytes([9]) * 32,))
    bench.hear(VoteMessage(vote_by(LIAR, other)), LIAR)
    assert offences(bench.certificates(qc_of(block))) == [Offence(KEYS[LIAR], 0, 1, OffenceKind.TWO_VOTES)]
    assert offences(bench.certificates(qc_of(block, (1, 2, 3)))) == []  # once is enough


def test_a_commit_vote_for_one_block_beside_a_cc_for_another() -> None:
    chain, bench = Chain(), Bench(None)
    block, other = chain.block(GENESIS, 1), chain.block(GENESIS, 1, payload=(bytes([9]) * 32,))
    bench.hear(CommitVoteMessage(commit_vote_by(LIAR, other), qc_of(other)), LIAR)
    found = offences(bench.certificates(cc=cc_of(block)))
    assert Offence(KEYS[LIAR], 0, 1, OffenceKind.TWO_COMMIT_VOTES) in found


def test_a_timeout_that_claims_one_qc_beside_a_tc_in_which_it_claims_another() -> None:
    chain, bench = Chain(), Bench(None)
    first = chain.block(GENESIS, 1)
    bench.certificates(qc_of(first))
    bench.hear(timeout_from(LIAR, 2, GENESIS_QC), LIAR)
    tc = tc_of(2, {0: qc_of(first), 1: qc_of(first), LIAR: qc_of(first)})
    assert offences(bench.certificates(tc=tc)) == [Offence(KEYS[LIAR], 0, 2, OffenceKind.TWO_TIMEOUTS)]


def test_two_proposals_of_which_the_second_is_fetched_because_it_was_certified() -> None:
    chain, bench = Chain(), Bench(follower(1))
    block, other = chain.block(GENESIS, 1), chain.block(GENESIS, 1, payload=(bytes([9]) * 32,))
    bench.propose(block)
    bench.certificates(qc_of(other))
    leader = KEYS[LEADERS.index(1)]
    found = offences(bench.hear(BlocksMessage((other,))))
    assert Offence(leader, 0, 1, OffenceKind.TWO_PROPOSALS) in found


def test_certificates_of_what_everybody_saw_accuse_nobody() -> None:
    chain, bench = Chain(), Bench(None)
    for block in line(chain, 4):
        bench.propose(block)
        for index in range(4):
            bench.hear(VoteMessage(vote_by(index, block)), index)
            bench.hear(CommitVoteMessage(commit_vote_by(index, block), qc_of(block)), index)
        bench.certificates(qc_of(block, (1, 2, 3)), cc=cc_of(block, (1, 2, 3)))
    assert of(bench.effects, Misbehaved) == []


CHAINS = Chain()
ONE = CHAINS.block(GENESIS, 1)
OTHER = CHAINS.block(GENESIS, 1, payload=(bytes([9]) * 32,))
TWO = CHAINS.block(ONE, 2)

PAIRS: dict[str, tuple[Message, Message, Offence]] = {
    "two commit votes": (
        CommitVoteMessage(commit_vote_by(LIAR, ONE), qc_of(ONE)),
        CommitVoteMessage(commit_vote_by(LIAR, OTHER), qc_of(OTHER)),
        Offence(KEYS[LIAR], 0, 1, OffenceKind.TWO_COMMIT_VOTES),
    ),
    "two timeouts": (
        timeout_from(LIAR, 2, qc_of(ONE)),
        timeout_from(LIAR, 2, GENESIS_QC),
        Offence(KEYS[LIAR], 0, 2, OffenceKind.TWO_TIMEOUTS),
    ),
    "a commit vote that a timeout hides": (
        CommitVoteMessage(commit_vote_by(LIAR, TWO), qc_of(TWO)),
        timeout_from(LIAR, 3, qc_of(ONE)),
        Offence(KEYS[LIAR], 0, 2, OffenceKind.TIMEOUT_BELOW_COMMIT_VOTE),
    ),
}


@pytest.mark.parametrize("turned", [False, True], ids=["in order", "turned round"])
@pytest.mark.parametrize("name", PAIRS)
def test_what_comes_in_messages_is_compared_whichever_comes_first(name: str, turned: bool) -> None:
    *pair, offence = PAIRS[name]
    bench = Bench(None)
    first, second = reversed(pair) if turned else pair
    assert offences(bench.hear(first, LIAR)) == []
    assert offences(bench.hear(second, LIAR)) == [offence]
    assert offences(bench.hear(second, LIAR)) == []
