"""A handful of seeded schedules at every test run; `make sim` runs as many as one likes."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from consensus.crypto import SIGNATURE_BYTES
from consensus.evidence import SignedHeader, make_evidence, signed_header
from consensus.messages import VoteMessage
from consensus.types import Vote, header_id
from consensus.verify import proposal_message
from tests.simulation import world as world_module
from tests.simulation.__main__ import main
from tests.simulation.byzantine import KINDS
from tests.simulation.checker import Violation
from tests.simulation.deaths import Death, DirectedFate, Manner
from tests.simulation.schedule import Schedule, draw_schedule
from tests.simulation.signing import KeyedVerifier, keyed_hash
from tests.simulation.succession import KEYS, SEEDS, Succession
from tests.simulation.world import CONFIG, World, run_one

QUIET = Schedule(
    name="quiet",
    validators=4,
    misdeeds=(),
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
    for run in range(30):
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
    drawn = [draw_schedule(1, run) for run in range(200)]
    assert {misdeed for schedule in drawn for misdeed in schedule.misdeeds} == set(KINDS)
    assert any(schedule.crashes for schedule in drawn)
    assert any(schedule.partitions and schedule.loss for schedule in drawn)


def test_a_run_with_keyed_hashes_is_the_run_with_ed25519() -> None:
    """What stands in for signatures changes nothing that anybody decides."""
    digests = set()
    for real in (True, False):
        world = World(replace(draw_schedule(1, 3), real_signatures=real))
        world.run()
        digests.add(world.trace.hexdigest())
    assert len(digests) == 1


def test_a_keyed_hash_is_its_owners_alone() -> None:
    mine, other = KEYS[:2]
    verifier = KeyedVerifier({mine: SEEDS[0], other: SEEDS[1]})
    signature = keyed_hash(SEEDS[0], b"message")
    assert verifier(mine, b"message", signature)
    assert not verifier(other, b"message", signature)
    assert not verifier(mine, b"another", signature)
    assert not verifier(bytes(32), b"message", signature)
    assert len(signature) == SIGNATURE_BYTES


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_chain_holds_against_as_many_of_one_kind_as_can_be(kind: str) -> None:
    schedule = draw_schedule(1, 0)
    world = World(
        replace(schedule, name=f"only {kind}", validators=7, misdeeds=(kind, kind), stakes=(), epochs=0)
    )
    world.run()
    assert world.checker.top() >= 18


def test_contradictions_are_proven_and_never_against_an_honest_key() -> None:
    proven: set[str] = set()
    for kind in ("equivocator", "stale-claimer", "half-splitter"):
        guilty = World(
            replace(
                QUIET,
                name=f"evidence {kind}",
                validators=7,
                misdeeds=(kind, kind),
                real_signatures=False,
                heights_min=16,
            )
        )
        guilty.run()
        proven.update(name for name in guilty.counts if name.startswith("evidence of"))
    assert {"evidence of two_votes", "evidence of two_proposals", "evidence of timeout_below_vote"} <= proven
    world = World(replace(QUIET, name="evidence"))
    world.run()
    assert not [name for name in world.counts if name.startswith("evidence")]
    block = world.nodes[0].disk.now.chain[0]
    other = replace(block.header, timestamp_ms=block.header.timestamp_ms + 1)
    message = proposal_message(world.chain_id, 0, other.round, header_id(other))
    signature = world.sign(block.header.proposer, message)
    evidence = make_evidence(signed_header(block), SignedHeader(other, signature))
    with pytest.raises(Violation, match="evidence against an honest key"):
        world.judge(evidence.to_bytes())


CHANGING = replace(QUIET, name="epochs", validators=6, batches=30, epoch_heights=4, epochs=3, heights_min=24)


def test_every_node_goes_through_every_epoch_and_members_come_and_go() -> None:
    world = World(CHANGING)
    world.run()
    assert [node.epoch for node in world.nodes] == [3] * 7
    assert sorted(world.checker.ends) == [1, 2, 3]
    members = [{validator.id for validator in chosen.validators} for chosen in world.succession.sets]
    assert len({frozenset(row) for row in members}) > 1
    joined = set.union(*(after - before for before, after in pairwise(members)))
    signed = {(key, epoch) for key, _, epoch, _ in world.checker.signed}
    assert any(key in joined and epoch > 0 for key, epoch in signed)
    assert all(key in members[epoch] for key, epoch in signed)


@pytest.mark.parametrize("manner", [Manner.LOST_WRITE, Manner.SYNCED, Manner.SOME_SENT])
def test_nodes_that_die_around_an_epochs_end_follow_into_the_next(manner: Manner) -> None:
    """One node dies at each of a few writes of the first epoch's last rounds, and everybody with it."""
    ended = 0
    for write in range(14, 34, 4):
        world = World(replace(CHANGING, name=f"deaths {write}", chaos_ms=6_000))
        fate = DirectedFate(0, {write: Death(manner, 0, everywhere=write % 8 == 0)})
        world.fate = fate
        world.run()
        ended += len(fate.done)
        assert world.checker.epochs[0] == 3
    assert ended >= 3


def test_the_checker_sees_epochs_that_part_and_signatures_of_an_epoch_that_is_over() -> None:
    world = World(replace(CHANGING, name="epoch judge"))
    world.run()
    checker, node = world.checker, world.nodes[0]
    start = node.disk.start
    with pytest.raises(Violation, match="never committed"):
        checker.entered(0, replace(start, header=replace(start.header, parent=bytes(32))))
    below = replace(start.header, height=1, parent=checker.agreed[1])
    with pytest.raises(Violation, match="two different blocks begin epoch"):
        checker.entered(0, replace(start, header=below))
    late = next(vote for vote in checker.signed if vote[1] == "vote" and vote[2] == 0)
    with pytest.raises(Violation, match="after it signed in a later one"):
        checker.sent(late[0], VoteMessage(Vote(0, 99, bytes(32), bytes(32), 98, late[0], bytes(64))))


def test_collectors_and_others_mix() -> None:
    for collectors in (1, 2, 4):
        world = World(replace(QUIET, name=f"collectors {collectors}", collectors=collectors))
        world.run()
        assert world.counts["stalled"] == 0
        assert world.checker.top() >= 10


def test_a_campaign_goes_on_where_it_was_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "sim.json"
    arguments = ["--seed", "3", "--runs", "3", "--state", str(state)]
    assert main(arguments) == 0
    stored = state.read_text()
    assert main(arguments) == 0
    assert state.read_text() == stored
    assert "schedules 3  violations 0" in capsys.readouterr().out
    with pytest.raises(ValueError, match="another campaign"):
        main(["--seed", "4", "--runs", "3", "--state", str(state)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.simulation.__main__.code_digest", lambda: "of an edited file")
        with pytest.raises(ValueError, match="another campaign"):
            main(arguments)


def test_a_campaign_with_a_violation_or_too_few_commits_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def thin(*arguments: object, **options: object) -> tuple[Schedule, Counter[str], str]:
        return QUIET, Counter({"heights": 19, "recovery ms": 0}), ""

    def broken(*arguments: object, **options: object) -> tuple[Schedule, Counter[str], str]:
        raise Violation("a fork")

    monkeypatch.setattr("tests.simulation.__main__.run_one", thin)
    assert main(["--runs", "60"]) == 1
    assert "TOO LITTLE" in capsys.readouterr().out
    monkeypatch.setattr("tests.simulation.__main__.run_one", broken)
    assert main(["--runs", "2"]) == 1
    assert "replay: python -m tests.simulation --seed 7 --first 0 --runs 1" in capsys.readouterr().out


def test_several_liars_do_not_talk_with_each_other_for_ever() -> None:
    _, counts, _ = run_one(7, 4305)  # three of ten; once they did
    assert counts["events"] < 20_000


def test_a_run_that_does_not_end_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world_module, "EVENTS_MAX", 100)
    with pytest.raises(Violation, match="does not end"):
        World(QUIET).run()


def test_dishonest_validators_never_lead_more_than_half_of_the_rounds() -> None:
    for number in range(200):
        drawn = Succession(f"draw {number}", (1,) * 5, dishonest=1, changes=2, drawn_leaders=True)
        for validators in drawn.sets[1:]:
            turns = {row.id: row.leader_weight or row.stake for row in validators.validators}
            assert 2 * turns.get(KEYS[4], 0) <= sum(turns.values())
