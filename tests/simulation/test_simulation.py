"""A handful of seeded schedules at every test run; `make sim` runs as many as one likes."""

from dataclasses import replace
from itertools import pairwise

import pytest

from tests.simulation.checker import Violation
from tests.simulation.world import CONFIG, Schedule, World, draw_schedule, run_one

QUIET = Schedule(
    name="quiet",
    validators=4,
    misdeed="none",
    observers=1,
    chaos_ms=3_000,
    calm_ms=6_000,
    loss=0,
    duplicates=0,
    replays=0,
    delay_ms_max=10,
    partitions=0,
    crashes=0,
    crash_in_step=0,
    batches=20,
    skew_ms_max=0,
)


def test_seeded_schedules_hold() -> None:
    for run in range(40):
        run_one(1, run)


def test_a_run_replays_exactly() -> None:
    first, second, other = run_one(3, 4), run_one(3, 4), run_one(3, 5)
    assert first == second
    assert first[2] != other[2]


def test_a_quiet_network_commits_every_batch_on_every_node_without_a_timeout() -> None:
    world = World(QUIET)
    world.run()
    assert world.counts["stalled"] == world.counts["misbehaved"] == 0
    for node in world.nodes:
        committed = {batch for block in node.disk.now.chain for batch in block.header.payload}
        assert len(committed) == QUIET.batches
        assert node.replica is not None
        assert node.replica.round <= node.replica.committed.height + 2


def test_an_idle_chain_beats_at_least_every_heartbeat() -> None:
    world = World(replace(QUIET, name="idle", batches=0))
    world.run()
    chain = world.nodes[0].disk.now.chain
    times = [block.header.timestamp_ms for block in chain]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps
    # The first rounds are slower: the nodes do not all start at once.
    assert max(gaps[2:]) <= CONFIG.heartbeat_ms + 100


@pytest.mark.parametrize("slot", range(4))
def test_the_chain_goes_on_without_any_one_validator(slot: int) -> None:
    world = World(replace(QUIET, name=f"dead {slot}", calm_ms=9_000))
    dead = world.nodes[slot]
    world.at(world.now + 1_000, dead.crash_for_good)
    world.run()
    heights = [len(node.disk.now.chain) for node in world.nodes if node is not dead]
    assert min(heights) > len(dead.disk.now.chain) + 5


def test_the_checker_sees_a_fork_a_gap_and_a_double_signature() -> None:
    """The judge itself is tested: runs of honest nodes must trip it when their story is altered."""
    world = World(replace(QUIET, name="judge"))
    world.run()
    chain, checker = world.nodes[0].disk.now.chain, world.checker
    forked = replace(chain[0], header=replace(chain[0].header, timestamp_ms=1))
    checker.started(0, 0, world.genesis.id)
    with pytest.raises(Violation, match="two different blocks"):
        checker.committed(0, forked)
    checker.started(0, 0, world.genesis.id)
    with pytest.raises(Violation, match="after 0"):
        checker.committed(0, chain[1])
    checker.started(0, 1, chain[0].id)
    with pytest.raises(Violation, match="no child"):
        checker.committed(0, replace(chain[1], header=replace(chain[1].header, parent=bytes(32))))
    with pytest.raises(Violation, match="stands at"):
        checker.alive(0, 1, 3)


def test_schedules_differ_and_cover_every_misdeed() -> None:
    drawn = [draw_schedule(1, run) for run in range(60)]
    assert {schedule.misdeed for schedule in drawn} == {"none", "equivocator", "stale-claimer"}
    assert any(schedule.crashes for schedule in drawn)
    assert any(schedule.partitions and schedule.loss for schedule in drawn)
