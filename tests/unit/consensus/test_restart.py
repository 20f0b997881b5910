"""Killed after any write, between any two steps: a replica starts again, keeps its word, and the chain goes on."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from consensus.effects import Deliver, Effect, Persist, Send, SetTimer
from consensus.inputs import Executed, PayloadAvailable, PayloadOffered, Started, TimerFired, TimerKind
from consensus.messages import ProposalMessage, VoteMessage
from consensus.recovery import RecoveredState
from consensus.safety import record_from_bytes
from consensus.types import Block
from tests.simulation.disk import Disk
from tests.unit.consensus.lab import (
    CONFIG,
    GENESIS,
    KEYS,
    LEADERS,
    NOW_MS,
    Bench,
    Chain,
    cc_of,
    commit_votes,
    follower,
    of,
    qc_of,
    quorum_tc,
    sent,
    timeouts,
    votes,
)

BATCH = bytes([5]) * 32


@dataclass
class Script:
    """A short run of one replica: the inputs, made so that it votes, commit-votes, times out and commits."""

    me: int
    acts: list[Callable[[Bench], list[Effect]]] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)


def expire(bench: Bench) -> list[Effect]:
    bench.now_ms += 100_000
    effects = bench.step(TimerFired(TimerKind.ROUND, bench.now_ms))
    bench.now_ms = NOW_MS
    return effects


def script() -> Script:
    chain = Chain()
    one = chain.block(GENESIS, 1, payload=(BATCH,))
    two = chain.block(one, 2)
    four = chain.block(two, 4, tc=quorum_tc(3, qc_of(two)))
    five = chain.block(four, 5)
    run = Script(follower(1, 2, 4), blocks=[one, two, four, five])
    run.acts = [
        lambda bench: bench.step(PayloadAvailable(BATCH, NOW_MS)),
        lambda bench: bench.propose(one),
        lambda bench: bench.propose(two),
        lambda bench: bench.certificates(qc_of(two)),
        expire,
        lambda bench: bench.propose(four, cc_of(one)),
        lambda bench: bench.step(Executed(1, one.id, bytes([1]) * 32, bytes([2]) * 32, bench.now_ms)),
        lambda bench: bench.propose(five),
        lambda bench: bench.certificates(qc_of(five), cc=cc_of(five)),
    ]
    return run


def writes(effects: list[Effect], disk: Disk) -> None:
    for persist in of(effects, Persist):
        disk.write(persist)


def statements(effects: list[Effect]) -> set[tuple[object, ...]]:
    made: set[tuple[object, ...]] = {("vote", vote.round, vote.block_id) for vote in votes(effects)}
    made |= {("commit", vote.round, vote.block_id) for vote in commit_votes(effects)}
    made |= {("timeout", timeout.round, timeout.high_qc_round) for timeout in timeouts(effects)}
    return made


def test_the_script_exercises_every_kind_of_signature() -> None:
    run, disk = script(), Disk(GENESIS)
    bench = Bench(run.me)
    for act in run.acts:
        writes(act(bench), disk)
    kinds = {statement[0] for statement in statements(bench.effects)}
    assert kinds == {"vote", "commit", "timeout"}
    assert bench.delivered() == [block.id for block in run.blocks]


@pytest.mark.parametrize("cut", range(10))
def test_a_restart_at_any_point_contradicts_nothing_and_delivers_the_rest(cut: int) -> None:
    """Before the cut one process, after it another from the disk; in between everything arrives a second time."""
    run, disk = script(), Disk(GENESIS)
    bench = Bench(run.me)
    for act in run.acts[:cut]:
        writes(act(bench), disk)
    before = statements(bench.effects)
    delivered = len(disk.now.chain)
    again = Bench(run.me, recovered=disk.recovered(CONFIG.lag_max + 1))
    writes(again.effects, disk)
    assert again.replica.committed.height == delivered
    for act in run.acts:
        try:
            writes(act(again), disk)
        finally:
            after = statements(again.effects)
    for kind, round_, what in before | after:
        same = {other for other in before | after if other[:2] == (kind, round_)}
        assert same == {(kind, round_, what)}
    assert [block.id for block in disk.now.chain] == [block.id for block in run.blocks]


def test_what_was_signed_last_is_said_again_after_a_restart() -> None:
    """All may have lost power after voting and before sending: the round must not be lost with it."""
    chain, disk, me = Chain(), Disk(GENESIS), follower(1)
    one = chain.block(GENESIS, 1)
    bench = Bench(me)
    effects = bench.propose(one)
    writes(effects, disk)
    again = Bench(me, recovered=disk.recovered(1))
    assert votes(again.effects) == votes(effects)
    assert of(again.effects, Persist) == []


def test_a_quorum_that_lost_power_after_voting_goes_on() -> None:
    chain = Chain()
    one = chain.block(GENESIS, 1)
    revived = []
    for index in range(4):
        disk, bench = Disk(GENESIS), Bench(index)
        writes(bench.propose(one), disk)
        revived.append(Bench(index, recovered=disk.recovered(1)))
    said = [(index, vote) for index in range(4) for vote in votes(revived[index].effects)]
    assert len(said) == 4
    for bench in revived:
        for index, vote in said:
            bench.hear(VoteMessage(vote), index)
        assert bench.replica.round == 2


def test_a_leader_sends_its_stored_block_again_instead_of_another() -> None:
    leader, disk = LEADERS.index(1), Disk(GENESIS)
    bench = Bench(leader)
    bench.now_ms += CONFIG.heartbeat_ms
    bench.step(TimerFired(TimerKind.PROPOSE, bench.now_ms))
    effects = bench.step(PayloadOffered(1, (), bench.now_ms))
    (message,) = sent(effects, ProposalMessage)
    writes(effects, disk)
    again = Bench(leader, recovered=disk.recovered(1))
    assert [said.block for said in sent(again.effects, ProposalMessage)] == [message.block]
    again.now_ms += CONFIG.heartbeat_ms
    effects = again.step(TimerFired(TimerKind.PROPOSE, again.now_ms))
    effects += again.step(PayloadOffered(1, (BATCH,), again.now_ms))
    assert sent(effects, ProposalMessage) == []


def test_the_record_is_enough_even_if_everything_else_was_lost() -> None:
    chain, me = Chain(), follower(1)
    one = chain.block(GENESIS, 1)
    other = chain.block(GENESIS, 1, timestamp_ms=one.header.timestamp_ms + 1)
    (persist,) = of(Bench(me).propose(one), Persist)
    assert persist.record is not None
    bare = RecoveredState(record_from_bytes(persist.record), None, GENESIS, None, (), (), ())
    assert votes(Bench(me, recovered=bare).propose(other)) == []


def test_a_recovered_observer_goes_on_from_its_last_block() -> None:
    chain, disk, bench = Chain(), Disk(GENESIS), Bench(None)
    blocks = [GENESIS]
    for round_ in range(1, 7):
        blocks.append(chain.block(blocks[-1], round_))
    for block in blocks[1:5]:
        writes(bench.propose(block), disk)
    again = Bench(None, recovered=disk.recovered(1))
    assert again.replica.committed.height == 2
    for block in blocks[5:]:
        again.propose(block)
    known = {block.id for block in blocks[3:5]}
    for deliver in of(again.effects, Deliver):
        known -= {block.id for block in deliver.blocks}
    assert not known


def test_timers_are_set_at_the_start() -> None:
    kinds = {timer.kind for timer in of(Bench(0).effects, SetTimer)}
    assert TimerKind.ROUND in kinds
    assert all(timer.kind is not TimerKind.ROUND for timer in of(Bench(None).effects, SetTimer))
    assert of(Bench(0).effects, Send) == []
    assert Started(NOW_MS).now_ms == NOW_MS
    assert len(KEYS) == 4
