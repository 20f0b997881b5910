"""A replica on the bench, one input at a time: committing, voting, header rules, equivocation (docs/protocol.md)."""

from dataclasses import replace
from typing import Any

import pytest

from consensus.effects import (
    Behind,
    Deliver,
    Diverged,
    FetchBlock,
    FetchPayload,
    Misbehaved,
    Persist,
    Send,
    SetTimer,
)
from consensus.evidence import Offence, OffenceKind, evidence_from_bytes, verify_evidence
from consensus.inputs import (
    BlocksSynced,
    Executed,
    PayloadAvailable,
    PayloadOffered,
    PayloadPending,
    PayloadRefused,
    Started,
    TimerFired,
    TimerKind,
)
from consensus.messages import (
    BlocksMessage,
    CommitVoteMessage,
    ProposalMessage,
    VoteMessage,
)
from consensus.sync import BEHIND_REPEAT_MS
from consensus.types import TwoChain
from tests.unit.consensus.lab import (
    BATCH,
    CHAIN,
    CONFIG,
    GENESIS,
    GENESIS_QC,
    KEYS,
    LEADERS,
    NOW_MS,
    Bench,
    Chain,
    cc_of,
    commit_vote_by,
    commit_votes,
    follower,
    line,
    of,
    qc_of,
    quorum_tc,
    signed_block,
    tc_of,
    vote_by,
    votes,
)

# Committing.


def test_a_two_chain_with_a_gap_commits_nothing() -> None:
    """The pair (D@2, E@4) is certified and linked, yet b@3 on p may be committed by others: D must not be."""
    chain, bench = Chain(), Bench(None)
    p = chain.block(GENESIS, 1)
    d = chain.block(GENESIS, 2, tc=quorum_tc(1, GENESIS_QC))
    b = chain.block(p, 3, tc=quorum_tc(2, qc_of(p)))
    e = chain.block(d, 4, tc=quorum_tc(3, qc_of(d)))
    for block in (p, d, b, e):
        bench.propose(block)
        bench.certificates(qc_of(block))
    assert bench.replica.high_qc == qc_of(e)
    assert bench.delivered() == []
    assert bench.replica.committed == GENESIS


def test_a_two_chain_of_consecutive_rounds_commits_the_parent() -> None:
    chain, bench = Chain(), Bench(None)
    one, two, three = line(chain, 3)
    for block in (one, two, three):
        bench.propose(block)
    assert bench.delivered() == [one.id]
    assert of(bench.effects, Deliver)[0].proof == TwoChain(qc_of(one), qc_of(two))
    bench.certificates(qc_of(three))
    assert bench.delivered() == [one.id, two.id]


def test_a_cc_commits_all_ancestors_oldest_first_and_each_once() -> None:
    chain, bench = Chain(), Bench(None)
    one = chain.block(GENESIS, 1)
    two = chain.block(one, 3, tc=quorum_tc(2, qc_of(one)))
    three = chain.block(two, 5, tc=quorum_tc(4, qc_of(two)))
    for block in (one, two, three):
        bench.propose(block)
    assert bench.delivered() == []
    bench.certificates(cc=cc_of(three))
    bench.certificates(cc=cc_of(three))
    bench.certificates(cc=cc_of(one))
    assert bench.delivered() == [one.id, two.id, three.id]


def test_commit_votes_of_a_quorum_commit() -> None:
    chain, bench = Chain(), Bench(None)
    (one,) = line(chain, 1)
    bench.propose(one)
    for index in range(3):
        assert bench.delivered() == []
        bench.hear(CommitVoteMessage(commit_vote_by(index, one), qc_of(one)), index)
    assert bench.delivered() == [one.id]
    assert bench.replica.high_cc == cc_of(one)


def test_one_author_counts_once() -> None:
    chain, bench = Chain(), Bench(None)
    (one,) = line(chain, 1)
    bench.propose(one)
    for _ in range(3):
        bench.hear(VoteMessage(vote_by(0, one)))
        bench.hear(CommitVoteMessage(commit_vote_by(1, one), qc_of(one)))
    assert bench.replica.round == 2
    assert bench.delivered() == []
    two = Bench(None)
    for _ in range(3):
        two.hear(VoteMessage(vote_by(0, one)))
    assert two.replica.round == 1


# Voting and effects.


def test_a_vote_is_persisted_before_it_is_sent() -> None:
    chain, bench = Chain(), Bench(follower(1))
    effects = bench.propose(line(chain, 1)[0])
    kinds = [type(effect) for effect in effects]
    assert kinds[:2] == [Persist, Send]
    persist = of(effects, Persist)[0]
    assert persist.sync
    assert persist.record is not None
    assert [block.round for block in persist.blocks] == [1]


def test_effects_come_in_contract_order() -> None:
    chain, bench = Chain(), Bench(follower(1, 2, 3))
    order = [Persist, Send, Deliver]
    for block in line(chain, 3):
        effects = bench.propose(block)
        ranks = [order.index(type(effect)) if type(effect) in order else 3 for effect in effects]
        assert ranks == sorted(ranks)
        assert ranks.count(0) <= 1
    assert bench.delivered()


def test_votes_and_commit_votes_on_the_happy_path() -> None:
    chain, bench = Chain(), Bench(follower(1, 2))
    one, two = line(chain, 2)
    assert [vote.block_id for vote in votes(bench.propose(one))] == [one.id]
    effects = bench.propose(two)
    assert [vote.block_id for vote in votes(effects)] == [two.id]
    assert [vote.block_id for vote in commit_votes(effects)] == [one.id]


def test_four_replicas_commit_by_three_delays() -> None:
    """Proposal, votes, commit votes: after three exchanges everyone has delivered the block."""
    benches = [Bench(index) for index in range(4)]
    for bench in benches:
        bench.step(PayloadAvailable(BATCH, NOW_MS))
    leader = LEADERS.index(1)
    benches[leader].step(PayloadPending(True, NOW_MS))
    wave = [(leader, send) for send in of(benches[leader].step(PayloadOffered(1, (BATCH,), NOW_MS)), Send)]
    for _ in range(3):
        following: list[tuple[int, Send]] = []
        for sender, send in wave:
            for index, bench in enumerate(benches):
                if index != sender and send.to in (None, KEYS[index]):
                    following.extend((index, out) for out in of(bench.hear(send.message, sender), Send))
        wave = following
    for bench in benches:
        assert len(bench.delivered()) == 1
        assert of(bench.effects, Deliver)[0].blocks[0].header.payload == (BATCH,)


def test_a_missing_batch_gates_the_vote() -> None:
    chain, bench = Chain(), Bench(follower(1))
    block = chain.block(GENESIS, 1, payload=(BATCH,))
    effects = bench.propose(block)
    assert votes(effects) == []
    (fetch,) = of(effects, FetchPayload)
    assert fetch.digests == (BATCH,)
    assert fetch.sources == (block.header.proposer,)
    assert votes(bench.step(PayloadAvailable(bytes(32), NOW_MS))) == []
    assert [vote.block_id for vote in votes(bench.step(PayloadAvailable(BATCH, NOW_MS)))] == [block.id]


def test_a_missing_batch_is_asked_for_again_elsewhere() -> None:
    chain, bench = Chain(), Bench(follower(1))
    bench.propose(chain.block(GENESIS, 1, payload=(BATCH,)))
    bench.now_ms += CONFIG.fetch_retry_ms
    (again,) = of(bench.step(TimerFired(TimerKind.FETCH, bench.now_ms)), FetchPayload)
    assert len(again.sources) == 2


def test_an_invalid_batch_gets_no_vote() -> None:
    chain, bench = Chain(), Bench(follower(1))
    bench.propose(chain.block(GENESIS, 1, payload=(BATCH,)))
    assert votes(bench.step(PayloadRefused(BATCH, NOW_MS))) == []
    assert votes(bench.step(PayloadAvailable(BATCH, NOW_MS))) == []


def test_a_batch_named_by_an_uncommitted_ancestor_gets_no_vote() -> None:
    chain, bench = Chain(), Bench(follower(1, 2))
    bench.step(PayloadAvailable(BATCH, NOW_MS))
    one = chain.block(GENESIS, 1, payload=(BATCH,))
    two = chain.block(one, 2, payload=(BATCH,))
    bench.propose(one)
    assert votes(bench.propose(two)) == []


def test_a_vote_waits_for_execution_and_compares_it() -> None:
    chain, bench = Chain(), Bench(follower(1, 2, 3))
    one, two, _ = line(chain, 3)
    state, receipts = bytes([1]) * 32, bytes([2]) * 32
    claim: dict[str, Any] = {"executed_height": 1, "state_digest": state, "receipts_accumulator": receipts}
    three = chain.block(two, 3, **claim)
    bench.propose(one)
    bench.propose(two, None)
    assert votes(bench.propose(three, cc_of(one))) == []
    right = Executed(1, one.id, state, receipts, NOW_MS)
    assert [vote.block_id for vote in votes(bench.step(right))] == [three.id]


def test_whoever_executed_what_is_not_committed_here_is_asked_for_its_proof() -> None:
    """Found by run 72533 of seed 9: a liar showed a certificate late, to some; it made a two-chain that no message carries."""
    chain, bench = Chain(), Bench(follower(1, 3, 4))
    one = chain.block(GENESIS, 1)
    hidden = chain.block(one, 2)
    three = chain.block(one, 3, tc=quorum_tc(2, qc_of(one)))
    state, receipts = bytes([1]) * 32, bytes([2]) * 32
    claim: dict[str, Any] = {"executed_height": 1, "state_digest": state, "receipts_accumulator": receipts}
    four = chain.block(three, 4, **claim)
    bench.propose(one)
    assert of(bench.propose(three), Behind) == []
    effects = bench.propose(four)
    assert votes(effects) == []
    assert of(effects, Behind) == [Behind(0, 1, (four.header.proposer,))]
    # Asked again where nothing came, but not sooner than half a second later.
    (timer,) = [t for t in of(effects, SetTimer) if t.kind is TimerKind.FETCH]
    assert timer.at_ms == bench.now_ms + BEHIND_REPEAT_MS
    assert of(bench.certificates(qc_of(three)), Behind) == []
    bench.now_ms += BEHIND_REPEAT_MS
    assert len(of(bench.step(TimerFired(TimerKind.FETCH, bench.now_ms)), Behind)) == 1
    proof = TwoChain(qc_of(one), qc_of(hidden))
    bench.step(BlocksSynced(four.header.proposer, (one,), proof, bench.now_ms))
    assert bench.delivered() == [one.id]
    effects = bench.step(Executed(1, one.id, state, receipts, bench.now_ms))
    assert [vote.block_id for vote in votes(effects)] == [four.id]
    assert of(effects, Behind) == []


@pytest.mark.parametrize("field", ["state_digest", "receipts_accumulator"])
def test_a_different_execution_gets_no_vote(field: str) -> None:
    chain, bench = Chain(), Bench(follower(1, 2, 3))
    one, two, _ = line(chain, 3)
    own = {"state_digest": bytes([1]) * 32, "receipts_accumulator": bytes([2]) * 32}
    claim: dict[str, Any] = {"executed_height": 1, **own, field: bytes([9]) * 32}
    three = chain.block(two, 3, **claim)
    for block in (one, two):
        bench.propose(block)
    bench.certificates(cc=cc_of(one))
    bench.step(Executed(1, one.id, **own, now_ms=NOW_MS))
    effects = bench.propose(three)
    assert votes(effects) == []
    (diverged,) = of(effects, Diverged)
    assert (diverged.height, diverged.committed) == (1, False)
    assert not bench.replica.diverged


def test_contradicting_a_committed_claim_stops_voting() -> None:
    chain, bench = Chain(), Bench(follower(4))
    one, two, _ = line(chain, 3)
    three = chain.block(
        two, 3, executed_height=1, state_digest=bytes([1]) * 32, receipts_accumulator=bytes([2]) * 32
    )
    for block in (one, two, three):
        bench.propose(block)
    bench.certificates(cc=cc_of(three))
    effects = bench.step(Executed(1, one.id, bytes([9]) * 32, bytes([2]) * 32, NOW_MS))
    assert [diverged.committed for diverged in of(effects, Diverged)] == [True]
    assert bench.replica.diverged
    four = chain.block(
        three, 4, executed_height=1, state_digest=bytes([9]) * 32, receipts_accumulator=bytes([2]) * 32
    )
    assert votes(bench.propose(four)) == []


def test_a_block_too_far_above_its_execution_is_empty() -> None:
    chain, config = Chain(), replace(CONFIG, lag_max=2)
    bench = Bench(None, config=config)
    blocks = line(chain, 2)
    for block in blocks:
        bench.propose(block)
    full = chain.block(blocks[-1], 3, payload=(BATCH,))
    assert [fault.reason for fault in of(bench.propose(full), Misbehaved)] == ["payload while execution lags"]


@pytest.mark.parametrize("drift_ms", [CONFIG.drift_ms_max + 1, -CONFIG.drift_ms_max - 1])
def test_a_timestamp_far_from_the_clock_gets_no_vote(drift_ms: int) -> None:
    chain = Chain()
    block = chain.block(GENESIS, 1)
    bench = Bench(follower(1), start=False)
    bench.now_ms = block.header.timestamp_ms + drift_ms
    bench.step(Started(bench.now_ms))
    assert votes(bench.propose(block)) == []
    near = Bench(follower(1), start=False)
    near.now_ms = block.header.timestamp_ms + drift_ms - (1 if drift_ms > 0 else -1)
    near.step(Started(near.now_ms))
    assert len(votes(near.propose(block))) == 1


# Header rules.


@pytest.mark.parametrize(
    "changes",
    [
        {"chain_id": bytes(32)},
        {"height": 3},
        {"height": 1},
        {"timestamp_ms": 0},
        {"proposer": KEYS[LEADERS.index(1)]},
        {"beacon_reveal": bytes(32)},
        {"executed_height": 2},
        {"parent": GENESIS.id},
        {"payload": tuple(bytes([i]) * 32 for i in range(65))},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_broken_header_never_enters(changes: dict[str, Any]) -> None:
    chain, bench = Chain(), Bench(follower(1, 2))
    (one,) = line(chain, 1)
    bench.propose(one)
    broken = chain.block(one, 2, **changes)
    effects = bench.hear(ProposalMessage(broken, None))
    assert votes(effects) == []
    assert of(effects, Misbehaved)
    bench.certificates(qc_of(broken))
    assert bench.replica.uncommitted_chain(broken.id, 0) == ()


def test_a_proposal_signed_by_another_than_the_leader_is_refused() -> None:
    chain, bench = Chain(), Bench(follower(1))
    (one,) = line(chain, 1)
    forged = signed_block(one.header, one.qc, None, signer=follower(1))
    assert [fault.reason for fault in of(bench.hear(ProposalMessage(forged, None)), Misbehaved)] == [
        "bad signature"
    ]


def test_executed_height_never_falls() -> None:
    chain, bench = Chain(), Bench(None)
    one, two, _ = line(chain, 3)
    three = chain.block(two, 3, executed_height=2)
    four = chain.block(three, 4, executed_height=1)
    for block in (one, two, three, four):
        bench.propose(block)
    assert [fault.reason for fault in of(bench.effects, Misbehaved)] == ["executed height falls"]


def test_a_tc_is_attached_exactly_when_rounds_were_skipped() -> None:
    chain = Chain()
    for block in (
        chain.block(GENESIS, 1, tc=quorum_tc(1, GENESIS_QC)),
        chain.block(GENESIS, 2),
        chain.block(GENESIS, 3, tc=quorum_tc(1, GENESIS_QC)),
    ):
        assert [fault.reason for fault in of(Bench(None).propose(block), Misbehaved)]


def test_a_proposal_that_hides_the_highest_qc_of_its_tc_is_refused() -> None:
    chain, bench = Chain(), Bench(follower(1, 2, 3))
    (one,) = line(chain, 1)
    bench.propose(one)
    tc = tc_of(2, {0: GENESIS_QC, 1: GENESIS_QC, 2: qc_of(one)})
    effects = bench.propose(chain.block(GENESIS, 3, tc=tc))
    assert votes(effects) == []
    assert [fault.reason for fault in of(effects, Misbehaved)] == ["extends less than the TC's highest QC"]


# Equivocation.


def test_a_second_proposal_of_a_round_is_evidence_and_gets_no_vote() -> None:
    chain, bench = Chain(), Bench(follower(1))
    one = chain.block(GENESIS, 1)
    other = chain.block(GENESIS, 1, timestamp_ms=one.header.timestamp_ms + 1)
    assert len(votes(bench.propose(one))) == 1
    effects = bench.propose(other)
    assert votes(effects) == []
    (fault,) = of(effects, Misbehaved)
    assert (fault.peer, fault.reason) == (one.header.proposer, "two proposals in a round")
    offence = verify_evidence(CHAIN, evidence_from_bytes(fault.evidence))
    assert offence == Offence(one.header.proposer, 0, 1, OffenceKind.TWO_PROPOSALS)
    assert of(bench.propose(other), Misbehaved) == []


def test_a_certified_second_proposal_is_fetched_and_committed() -> None:
    chain, bench = Chain(), Bench(None)
    one = chain.block(GENESIS, 1)
    other = chain.block(GENESIS, 1, timestamp_ms=one.header.timestamp_ms + 1)
    bench.propose(one)
    (fetch,) = of(bench.certificates(qc_of(other), cc=cc_of(other)), FetchBlock)
    assert fetch.block_id == other.id
    bench.hear(BlocksMessage((other,)))
    assert bench.delivered() == [other.id]


def test_two_votes_of_one_author_are_evidence() -> None:
    chain, bench = Chain(), Bench(None)
    one = chain.block(GENESIS, 1)
    other = chain.block(GENESIS, 1, timestamp_ms=one.header.timestamp_ms + 1)
    bench.hear(VoteMessage(vote_by(2, one)))
    (fault,) = of(bench.hear(VoteMessage(vote_by(2, other))), Misbehaved)
    assert (fault.peer, fault.reason) == (KEYS[2], "two votes in a round")
    offence = verify_evidence(CHAIN, evidence_from_bytes(fault.evidence))
    assert offence == Offence(KEYS[2], 0, 1, OffenceKind.TWO_VOTES)


def test_a_forged_vote_blames_the_sender_and_not_the_author() -> None:
    chain, bench = Chain(), Bench(None)
    (one,) = line(chain, 1)
    forged = replace(vote_by(2, one), author=KEYS[1])
    (fault,) = of(bench.hear(VoteMessage(forged), sender=3), Misbehaved)
    assert (fault.peer, fault.reason) == (KEYS[3], "bad signature")
