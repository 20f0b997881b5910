"""A replica on the bench, one input at a time: rounds, timeouts, guards, proposing, catching up (docs/protocol.md)."""

from dataclasses import replace

import pytest

from consensus.effects import (
    Behind,
    FetchBlock,
    Misbehaved,
    Persist,
    RequestPayload,
    Send,
    SetTimer,
)
from consensus.errors import LocalError
from consensus.inputs import (
    BlocksSynced,
    Executed,
    PayloadAvailable,
    PayloadOffered,
    PayloadPending,
    Started,
    TimerFired,
    TimerKind,
)
from consensus.messages import (
    BlocksMessage,
    ProposalMessage,
    SyncMessage,
    TimeoutMessage,
)
from consensus.types import TwoChain
from tests.unit.consensus.lab import (
    BATCH,
    CONFIG,
    GENESIS,
    GENESIS_QC,
    KEYS,
    LEADERS,
    NOW_MS,
    Bench,
    Chain,
    cc_of,
    commit_votes,
    expire,
    follower,
    line,
    of,
    qc_of,
    quorum_tc,
    sent,
    timeout_from,
    timeouts,
    votes,
)

# Rounds, timeouts and both liveness guards.


def test_a_late_qc_does_not_remove_the_tc_that_permits_the_round() -> None:
    chain, me = Chain(), follower(4)
    one = chain.block(GENESIS, 1)
    bench = Bench(me)
    bench.certificates(tc=quorum_tc(3, GENESIS_QC))
    assert bench.replica.round == 4
    bench.certificates(qc_of(one))
    (timeout, *_) = timeouts(expire(bench))
    assert (timeout.round, timeout.high_qc_round) == (4, 1)


def test_a_replayed_tc_does_not_replace_the_tc_that_permits_the_round() -> None:
    me = follower(4)
    bench = Bench(me)
    bench.certificates(tc=quorum_tc(3, GENESIS_QC))
    bench.certificates(tc=quorum_tc(2, GENESIS_QC))
    assert bench.replica.round == 4
    (timeout, *_) = timeouts(expire(bench))
    assert timeout.round == 4
    assert bench.replica.sync_info.last_tc == quorum_tc(3, GENESIS_QC)


def test_a_late_proposal_does_not_bring_back_an_older_tc() -> None:
    bench = Bench(follower(4))
    bench.certificates(tc=quorum_tc(3, GENESIS_QC))
    bench.propose(Chain().block(GENESIS, 2, tc=quorum_tc(1, GENESIS_QC)))
    assert bench.replica.sync_info.last_tc == quorum_tc(3, GENESIS_QC)
    (timeout, *_) = timeouts(expire(bench))
    assert timeout.round == 4


def test_the_leader_after_a_tc_proposes_with_that_tc_despite_a_late_qc() -> None:
    chain, leader = Chain(), LEADERS.index(4)
    one = chain.block(GENESIS, 1)
    bench = Bench(leader)
    if LEADERS.index(1) != leader:
        bench.propose(one)
    bench.certificates(tc=quorum_tc(3, GENESIS_QC))
    bench.certificates(qc_of(one), tc=quorum_tc(2, GENESIS_QC))
    (message,) = sent(bench.step(PayloadOffered(4, (), NOW_MS)), ProposalMessage)
    assert message.block.tc == quorum_tc(3, GENESIS_QC)
    assert message.block.qc == qc_of(one)
    voter = Bench(follower(4))
    voter.propose(one)
    assert [vote.block_id for vote in votes(voter.propose(message.block))] == [message.block.id]


def test_one_honest_timeout_is_enough_to_join_and_a_quorum_enters_the_next_round() -> None:
    bench = Bench(3)
    assert timeouts(bench.hear(timeout_from(0, 1, GENESIS_QC))) == []
    effects = bench.hear(timeout_from(1, 1, GENESIS_QC), 1)
    assert [timeout.round for timeout in timeouts(effects)] == [1]
    assert bench.replica.round == 2
    last_tc = bench.replica.sync_info.last_tc
    assert last_tc is not None
    assert last_tc.round == 1


def test_a_timeout_is_repeated_unchanged_until_the_round_changes() -> None:
    chain, bench = Chain(), Bench(follower(4))
    one = chain.block(GENESIS, 1)
    bench.certificates(tc=quorum_tc(3, GENESIS_QC))
    first = sent(expire(bench), TimeoutMessage)[0]
    bench.certificates(qc_of(one))
    again = sent(expire(bench), TimeoutMessage)[0]
    assert again.timeout == first.timeout
    assert again.high_qc == GENESIS_QC


def test_no_vote_and_no_commit_vote_after_the_timeout() -> None:
    chain, bench = Chain(), Bench(follower(1))
    (one,) = line(chain, 1)
    assert timeouts(expire(bench))
    bench.now_ms = NOW_MS
    assert votes(bench.propose(one)) == []
    assert commit_votes(bench.certificates(qc_of(one))) == []
    assert bench.replica.round == 2


def test_a_laggard_that_times_out_of_a_past_round_is_helped_but_not_flooded() -> None:
    chain, bench = Chain(), Bench(follower(1, 2, 3))
    for block in line(chain, 3):
        bench.propose(block)
    effects = bench.hear(timeout_from(0, 1, GENESIS_QC))
    helped = [send for send in of(effects, Send) if isinstance(send.message, SyncMessage)]
    assert [send.to for send in helped] == [KEYS[0]]
    assert sent(bench.hear(timeout_from(0, 2, GENESIS_QC, quorum_tc(1, GENESIS_QC))), SyncMessage) == []


def test_timeouts_grow_by_a_fifth_per_round_without_commit_up_to_the_limit() -> None:
    bench = Bench(0)
    waits = []
    for round_ in range(3, 40):
        bench.now_ms += 1
        effects = bench.certificates(tc=quorum_tc(round_, GENESIS_QC))
        (timer,) = [effect for effect in of(effects, SetTimer) if effect.kind is TimerKind.ROUND]
        assert timer.at_ms is not None
        waits.append(timer.at_ms - bench.now_ms)
    assert waits[0] == CONFIG.timeout_ms_base * 36 // 25
    assert waits == sorted(waits)
    assert waits[-1] == CONFIG.timeout_ms_max


# Proposing.


def test_an_idle_leader_beats_within_two_seconds() -> None:
    bench = Bench(LEADERS.index(1))
    timers = {timer.kind: timer.at_ms for timer in of(bench.effects, SetTimer)}
    assert timers[TimerKind.PROPOSE] == NOW_MS + CONFIG.heartbeat_ms <= NOW_MS + 2_000
    bench.now_ms += CONFIG.heartbeat_ms
    (request,) = of(bench.step(TimerFired(TimerKind.PROPOSE, bench.now_ms)), RequestPayload)
    assert (request.round, request.parent_id, request.empty_only) == (1, GENESIS.id, False)
    (message,) = sent(bench.step(PayloadOffered(1, (), bench.now_ms)), ProposalMessage)
    assert message.block.header.payload == ()


def test_a_leader_with_payload_asks_at_once_and_stays_idle_when_offered_nothing() -> None:
    bench = Bench(LEADERS.index(1))
    assert len(of(bench.step(PayloadPending(True, NOW_MS)), RequestPayload)) == 1
    assert sent(bench.step(PayloadOffered(1, (), NOW_MS)), ProposalMessage) == []
    assert len(of(bench.step(PayloadPending(True, NOW_MS)), RequestPayload)) == 1
    (message,) = sent(bench.step(PayloadOffered(1, (BATCH,), NOW_MS)), ProposalMessage)
    assert message.block.header.payload == (BATCH,)
    assert sent(bench.step(PayloadOffered(1, (bytes(32),), NOW_MS)), ProposalMessage) == []


def test_a_proposal_follows_from_its_parent() -> None:
    chain, leader = Chain(), LEADERS.index(2)
    (one,) = line(chain, 1)
    bench = Bench(leader)
    bench.propose(one)
    bench.certificates(qc_of(one))
    bench.step(PayloadPending(True, NOW_MS))
    (message,) = sent(bench.step(PayloadOffered(2, (BATCH,), NOW_MS)), ProposalMessage)
    assert (message.block.height, message.block.header.parent, message.block.tc) == (2, one.id, None)
    voter = Bench(follower(1, 2))
    voter.propose(one)
    voter.step(PayloadAvailable(BATCH, NOW_MS))
    assert [vote.block_id for vote in votes(voter.propose(message.block))] == [message.block.id]


def test_uncommitted_payload_is_named_in_the_request_and_not_proposed_twice() -> None:
    chain, leader = Chain(), LEADERS.index(2)
    one = chain.block(GENESIS, 1, payload=(BATCH,))
    bench = Bench(leader)
    bench.step(PayloadAvailable(BATCH, NOW_MS))
    bench.step(PayloadPending(True, NOW_MS))
    bench.propose(one)
    (request,) = of(bench.certificates(qc_of(one)), RequestPayload)
    assert request.uncommitted_payload == (BATCH,)
    fresh = bytes([6]) * 32
    (message,) = sent(bench.step(PayloadOffered(2, (BATCH, fresh), NOW_MS)), ProposalMessage)
    assert message.block.header.payload == (fresh,)


# Catching up.


def test_a_proposal_with_an_unknown_parent_fetches_it_from_the_sender_then_from_signers() -> None:
    chain, bench = Chain(), Bench(None)
    one, two = line(chain, 2)
    (fetch,) = of(bench.propose(two), FetchBlock)
    assert (fetch.block_id, fetch.known_height, fetch.sources) == (one.id, 0, (KEYS[LEADERS.index(2)],))
    bench.now_ms += CONFIG.fetch_retry_ms
    (again,) = of(bench.step(TimerFired(TimerKind.FETCH, bench.now_ms)), FetchBlock)
    assert set(again.sources) <= set(KEYS)
    assert len(again.sources) == 2
    bench.hear(BlocksMessage((one,)))
    assert [block.id for block in bench.replica.uncommitted_chain(two.id, 0)] == [one.id, two.id]


def test_fetched_ancestors_connect_and_commit() -> None:
    chain, bench = Chain(), Bench(None)
    blocks = line(chain, 10)
    bench.propose(blocks[-1])
    bench.hear(BlocksMessage(tuple(blocks[:-1])))
    assert bench.delivered() == [block.id for block in blocks[:-2]]


def test_blocks_nobody_asked_for_are_ignored() -> None:
    chain, bench = Chain(), Bench(None)
    (one,) = line(chain, 1)
    assert bench.hear(BlocksMessage((one,))) == []
    assert bench.replica.uncommitted_chain(one.id, 0) == ()


def test_a_node_far_behind_asks_for_a_range_and_takes_it() -> None:
    chain, bench = Chain(), Bench(None)
    blocks = line(chain, 30)
    (behind,) = of(bench.certificates(qc_of(blocks[-1]), cc=cc_of(blocks[-1])), Behind)
    assert (behind.committed_height, behind.target_height) == (0, 30)
    bench.step(
        BlocksSynced(KEYS[0], tuple(blocks[:20]), TwoChain(qc_of(blocks[19]), qc_of(blocks[20])), NOW_MS)
    )
    assert bench.delivered() == [block.id for block in blocks[:20]]
    bench.step(BlocksSynced(KEYS[0], tuple(blocks[15:]), cc_of(blocks[-1]), NOW_MS))
    assert bench.delivered() == [block.id for block in blocks]


def test_a_committed_range_without_links_or_proof_is_refused() -> None:
    chain = Chain()
    blocks = line(chain, 6)
    fork = chain.block(blocks[1], 4, tc=quorum_tc(3, qc_of(blocks[1])))
    for rows, proof in (
        (blocks[:4], cc_of(blocks[4])),
        (blocks[:4], cc_of(blocks[3], signers=(0, 1))),
        (blocks[1:4], cc_of(blocks[3])),
        ([*blocks[:2], *blocks[3:5]], cc_of(blocks[4])),
        ([*blocks[:2], fork], TwoChain(qc_of(fork), qc_of(blocks[4]))),
        ([*blocks[:2], replace(blocks[2], qc=qc_of(blocks[1], signers=(0, 1)))], cc_of(blocks[2])),
    ):
        bench = Bench(None)
        effects = bench.step(BlocksSynced(KEYS[1], tuple(rows), proof, NOW_MS))
        assert [fault.peer for fault in of(effects, Misbehaved)] == [KEYS[1]]
        assert bench.delivered() == []


def test_an_observer_follows_and_sends_nothing() -> None:
    chain, bench = Chain(), Bench(None)
    for block in line(chain, 5):
        bench.propose(block)
    expire(bench)
    bench.hear(timeout_from(0, 1, GENESIS_QC))
    assert len(bench.delivered()) == 3
    assert of(bench.effects, Send) == []
    assert of(bench.effects, RequestPayload) == []
    assert all(not persist.sync for persist in of(bench.effects, Persist))


# The driver's contract.


def test_a_driver_that_breaks_the_contract_is_told() -> None:
    with pytest.raises(LocalError):
        Bench(0, start=False).step(TimerFired(TimerKind.ROUND, NOW_MS))
    with pytest.raises(LocalError):
        Bench(0).step(Started(NOW_MS))
    with pytest.raises(LocalError):
        Bench(0).step(Executed(1, GENESIS.id, bytes(32), bytes(32), NOW_MS))
