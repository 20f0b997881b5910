from dataclasses import replace
from functools import partial

import pytest

from consensus.messages import CommitVoteMessage, Message, VoteMessage
from tests.simulation.chances import chances
from tests.simulation.checker import Violation
from tests.simulation.node import Node
from tests.simulation.succession import KEYS, first_set
from tests.simulation.test_simulation import QUIET
from tests.simulation.world import World, run_one


def test_a_chance_is_three_rounds_on_end_of_those_who_are_able() -> None:
    turns = first_set((1, 1, 1, 1), bytes(32))  # one after the other, round one by the first
    assert chances(turns, set(KEYS[:4]), 1, 12) == 10
    assert chances(turns, set(KEYS[:3]), 1, 12) == 3
    assert chances(turns, set(KEYS[:3]), 2, 12) == 2
    assert chances(turns, set(KEYS[:2]), 1, 400) == 0
    assert chances(turns, set(KEYS[:4]), 5, 6) == 0


def test_a_liar_that_is_drawn_twelve_times_on_end_only_delays() -> None:
    """Found by a campaign: the leaders drawn left no chance in the usual calm, and the chain went on with the first."""
    schedule, counts, _ = run_one(7, 19896)
    assert schedule.misdeeds == ("silent-leader",)
    assert counts["longer calms"] == 1
    assert not counts["without a fair chance"]
    assert counts["recovery ms"] > schedule.calm_ms


def test_rounds_that_do_not_go_on_are_no_excuse() -> None:
    world = World(replace(QUIET, name="cut for ever", calm_ms=12_000))
    world.at(world.now + QUIET.chaos_ms, lambda: setattr(world, "cut", lambda one, other: True))
    with pytest.raises(Violation, match="stands at height"):
        world.run()
    assert not world.counts["longer calms"]


def test_who_stands_still_through_its_chances_is_blamed() -> None:
    """Votes go to the next leader alone, and nobody ever makes a certificate of them."""
    world = World(replace(QUIET, name="no certificates", calm_ms=12_000, collectors=4))
    receive = type(world.nodes[0]).receive

    def deaf_to_votes(node: Node, sender: int, message: Message) -> None:
        if not (world.healed and isinstance(message, VoteMessage | CommitVoteMessage)):
            receive(node, sender, message)

    for node in world.nodes:
        node.receive = partial(deaf_to_votes, node)  # type: ignore[method-assign]
    with pytest.raises(Violation, match="stands at height"):
        world.run()
    assert world.counts["longer calms"] <= 1


def test_an_observer_whose_first_hint_of_an_epoch_is_a_liars_asks_others_soon() -> None:
    """Found by a campaign: it asked the liar first, then nobody for two seconds, and ended seven blocks behind."""
    schedule, counts, _ = run_one(7, 20672)
    assert schedule.misdeeds == ("equivocator",)
    assert schedule.observers == 1
    assert counts["heights"] >= 20


def test_a_certificate_shown_late_and_to_some_leaves_nobody_behind() -> None:
    """Found by a campaign: two of three honest nodes committed by a two-chain that nothing carried to the third, which never voted again."""
    schedule, counts, _ = run_one(9, 72533)
    assert schedule.misdeeds == ("half-splitter",)
    assert counts["heights"] >= 20
    assert counts["recovery ms"] < 2_000
