"""Votes to all or to a collector; the timer's base, which follows commits and nothing else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.config import ConsensusConfig
from consensus.effects import Deliver, Persist, RequestPayload, Send, SetTimer
from consensus.inputs import PayloadAvailable, PayloadOffered, TimerFired, TimerKind
from consensus.messages import CommitVoteMessage, ProposalMessage, TimeoutMessage, VoteMessage
from tests.profiles import examples
from tests.simulation.disk import Disk
from tests.unit.consensus.epoch_lab import NOW_MS, Table, make_set
from tests.unit.consensus.lab import (
    BATCH,
    GENESIS,
    GENESIS_QC,
    KEYS,
    LEADERS,
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
    vote_by,
    votes,
)

COLLECTOR = ConsensusConfig(vote_fanout="collector")


# Collector.


def test_a_collectors_vote_goes_to_the_next_leader_alone_and_its_timeout_to_all() -> None:
    bench = Bench(follower(1, 2), config=COLLECTOR)
    effects = bench.propose(Chain().block(GENESIS, 1))
    (send,) = [send for send in of(effects, Send) if isinstance(send.message, VoteMessage)]
    assert send.to == KEYS[LEADERS.index(2)]
    bench.now_ms += 100_000
    effects = bench.step(TimerFired(TimerKind.ROUND, bench.now_ms))
    assert [send.to for send in of(effects, Send) if isinstance(send.message, TimeoutMessage)] == [None]


def test_a_collectors_vote_goes_to_the_next_leader_alone_after_a_restart_too() -> None:
    me, disk = follower(1, 2), Disk(GENESIS)
    bench = Bench(me, config=COLLECTOR)
    for persist in of(bench.propose(Chain().block(GENESIS, 1)), Persist):
        disk.write(persist)
    again = Bench(me, config=COLLECTOR, recovered=disk.recovered(1))
    assert [send.to for send in of(again.effects, Send)] == [KEYS[LEADERS.index(2)]]


def test_the_next_leader_keeps_its_own_vote_and_sends_none() -> None:
    bench = Bench(LEADERS.index(2), config=COLLECTOR)
    effects = bench.propose(Chain().block(GENESIS, 1))
    assert votes(effects) == []
    assert bench.replica.round == 1
    for index in [index for index in range(4) if index != LEADERS.index(2)][:2]:
        bench.hear(VoteMessage(vote_by(index, Chain().block(GENESIS, 1))), index)
    assert bench.replica.round == 2


def test_a_collector_that_heard_of_a_certificate_sends_no_commit_vote() -> None:
    chain, bench = Chain(), Bench(follower(1, 2, 3), config=COLLECTOR)
    for block in line(chain, 3):
        bench.propose(block)
    assert sent(bench.effects, VoteMessage)
    assert commit_votes(bench.effects) == []
    assert bench.delivered()


def test_a_certificate_that_only_its_collector_has_goes_out_with_a_commit_vote_or_a_proposal() -> None:
    """An idle collector spreads it by its commit vote; one that is about to propose does so by its block."""
    chain = Chain()
    one = chain.block(GENESIS, 1)
    me = LEADERS.index(2)
    others = [index for index in range(4) if index != me]
    idle = Bench(me, config=COLLECTOR)
    idle.propose(one)
    for index in others[:2]:
        idle.hear(VoteMessage(vote_by(index, one)), index)
    (spread,) = sent(idle.effects, CommitVoteMessage)
    assert spread.qc.block_id == one.id
    full = chain.block(GENESIS, 1, payload=(BATCH,))
    busy = Bench(me, config=COLLECTOR)
    busy.step(PayloadAvailable(BATCH, busy.now_ms))
    busy.propose(full)
    for index in others[:2]:
        busy.hear(VoteMessage(vote_by(index, full)), index)
    assert of(busy.effects, RequestPayload)
    busy.step(PayloadOffered(2, (), busy.now_ms))
    (message,) = sent(busy.effects, ProposalMessage)
    assert message.block.qc.block_id == full.id
    assert sent(busy.effects, CommitVoteMessage) == []


def test_among_collectors_a_batch_is_final_in_five_delays_and_not_at_the_next_heartbeat() -> None:
    table = Table((make_set(0, (0, 1, 2, 3)),), (), lambda index: COLLECTOR)
    table.batches = table.batches[:1]
    table.run(lambda: all(host.chain[-1].header.payload or len(host.chain) > 1 for host in table.hosts))
    assert all(host.chain[1].header.payload == table.batches for host in table.hosts)
    assert table.now_ms == NOW_MS  # nothing waited for a timer


@pytest.mark.parametrize("away", range(4))
def test_collectors_make_progress_without_any_one_of_four(away: int) -> None:
    table = Table((make_set(0, (0, 1, 2, 3)),), (), lambda index: COLLECTOR)
    table.cut = {away}
    present = [host for host in table.hosts if host.index != away]
    table.run(lambda: all(len(host.chain) > 8 for host in present))
    assert len({tuple(host.chain[:8]) for host in present}) == 1


def test_a_fanout_of_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="vote_fanout"):
        ConsensusConfig(vote_fanout="some")  # type: ignore[arg-type]


# The timer.


def patience_ms(bench: Bench) -> int:
    """How long the round that just began is waited for, with a block in flight."""
    timers = [timer for timer in of(bench.effects, SetTimer) if timer.kind is TimerKind.ROUND]
    assert timers[-1].at_ms is not None
    return timers[-1].at_ms - bench.now_ms


@given(st.lists(st.integers(0, 30_000), max_size=12))
@settings(max_examples=examples(40))
def test_the_base_moves_with_commits_at_most_by_two_and_never_below_its_floor(delays: list[int]) -> None:
    """A block in flight is given the base itself, as long as every round commits."""
    config = ConsensusConfig(timeout_ms_base=2_000, timeout_ms_floor=700, timeout_ms_max=20_000)
    bench, chain, parent = Bench(0, config=config), Chain(), GENESIS
    base = config.timeout_ms_base
    for delay_ms in delays:
        bench.now_ms += 1
        block = chain.block(parent, parent.round + 1, payload=(BATCH,), timestamp_ms=bench.now_ms)
        bench.propose(block)
        assert patience_ms(bench) == base
        bench.now_ms += delay_ms
        bench.certificates(qc_of(block))
        effects = bench.certificates(cc=cc_of(block))
        assert of(effects, Deliver)
        wanted = 4 * delay_ms + config.timeout_ms_floor
        base = max(config.timeout_ms_floor, min(max(base // 2, min(wanted, base * 2)), config.timeout_ms_max))
        parent = block
    probe = chain.block(parent, parent.round + 1, timestamp_ms=bench.now_ms + 1)
    bench.propose(probe)
    assert patience_ms(bench) == base


def test_rounds_without_a_commit_lengthen_the_wait_and_leave_the_base_alone() -> None:
    bench, chain = Bench(0), Chain()
    for round_ in range(1, 9):
        bench.now_ms += 50
        bench.certificates(tc=quorum_tc(round_, GENESIS_QC))
    block = chain.block(GENESIS, 9, tc=quorum_tc(8, GENESIS_QC), timestamp_ms=bench.now_ms)
    bench.propose(block)
    assert patience_ms(bench) == ConsensusConfig().timeout_ms_base * 6**7 // 5**7
    bench.certificates(qc_of(block), cc=cc_of(block))
    after = chain.block(block, 10, timestamp_ms=bench.now_ms + 1)
    bench.propose(after)
    # Committed at once: half of the base would be less than the floor.
    assert patience_ms(bench) == ConsensusConfig().timeout_ms_floor


def test_an_empty_block_that_waited_for_the_next_heartbeat_does_not_slow_the_timer() -> None:
    """Without commit votes an empty block is final only with the next one: that says nothing about the network."""
    bench, chain = Bench(follower(1, 2, 3), config=COLLECTOR), Chain()
    one = chain.block(GENESIS, 1)
    bench.propose(one)
    bench.now_ms += 5_000
    two = chain.block(one, 2, timestamp_ms=bench.now_ms)
    bench.propose(two)
    bench.now_ms += 5_000
    three = chain.block(two, 3, timestamp_ms=bench.now_ms)
    bench.propose(three)
    assert bench.delivered() == [one.id]
    assert patience_ms(bench) == COLLECTOR.timeout_ms_base
    assert of(expire(bench), Send)
