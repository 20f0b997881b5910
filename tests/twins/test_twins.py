"""Twins in the test run: the list of scenarios is right, a sample of it holds, and broken rules are noticed."""

from itertools import product
from pathlib import Path

import pytest

from consensus.validators import ValidatorSet
from tests.simulation.checker import Violation
from tests.twins.__main__ import main
from tests.twins.cluster import run_scenario
from tests.twins.scenarios import (
    _TABLES,
    CHOICES,
    HONEST,
    RENAMINGS,
    all_count,
    canonical,
    choices_of,
    drawn,
    listed,
    round_of,
    scenario_of,
)

STRIDE = 173
"""A prime: the sample walks through all leaders and partitions. About 150 scenarios."""
FORK = (28, 44, 28)
"""With half of the stake for a quorum, these partitions let both halves commit."""


def test_of_all_scenarios_exactly_the_least_of_each_symmetric_family_is_listed() -> None:
    families = {
        min(tuple(table[choice] for choice in choices) for table in _TABLES)
        for choices in product(range(CHOICES), repeat=2)
    }
    assert set(canonical(2)) == families
    assert len(_TABLES) == RENAMINGS
    assert all(sorted(table) == list(range(CHOICES)) for table in _TABLES)


def test_three_rounds_have_so_many_scenarios() -> None:
    assert (all_count(3), len(listed(3))) == (262_144, 25_740)
    numbers = listed(3)
    assert [choices_of(numbers[at], 3) for at in (0, 777, -1)] == [
        choices for at, choices in enumerate(canonical(3)) if at in (0, 777, len(numbers) - 1)
    ]


def test_a_sample_of_three_rounds_holds_and_the_twins_are_proven_guilty() -> None:
    numbers = listed(3)
    results = [run_scenario(scenario_of(choices_of(number, 3))) for number in numbers[::STRIDE]]
    assert len(results) > 140
    assert sum(result.offences > 0 for result in results) > len(results) // 3
    assert sum(result.commits_within for result in results) > len(results)


def test_deeper_scenarios_with_drops_hold() -> None:
    scenarios = [drawn(1, number, 6) for number in range(25)]
    assert {part.drop for scenario in scenarios for part in scenario} > {"votes", "timeouts"}
    assert all(run_scenario(scenario).commits > 0 for scenario in scenarios)


def test_a_scenario_replays_exactly() -> None:
    assert run_scenario(drawn(2, 5, 4)) == run_scenario(drawn(2, 5, 4))


def test_half_of_the_stake_for_a_quorum_forks_the_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(self: ValidatorSet, stake: int) -> bool:
        return 2 * stake >= self.total_stake

    scenario = scenario_of(FORK)
    assert run_scenario(scenario).commits > 0
    monkeypatch.setattr(ValidatorSet, "is_quorum", half)
    with pytest.raises(Violation, match="two different blocks are committed"):
        run_scenario(scenario)


def test_a_chain_that_stands_still_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ValidatorSet, "is_quorum", lambda self, stake: stake >= self.total_stake + 1)
    with pytest.raises(Violation, match="no progress"):
        run_scenario(scenario_of((0,)))


def test_partitions_name_every_way_to_split_five_replicas_in_two() -> None:
    assert len({round_of(choice).groups for choice in range(16)}) == 16
    assert {round_of(choice).leader for choice in range(CHOICES)} == {0, 1, 2, 3}
    assert HONEST == (2, 3, 4)


def test_a_campaign_goes_on_where_it_was_stopped_and_fails_on_a_violation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "twins.json"
    arguments = ["--rounds", "2", "--stride", "60", "--resume", str(state)]
    assert main(arguments) == 0
    once = state.read_text()
    capsys.readouterr()
    assert main(arguments) == 0
    assert state.read_text() == once
    assert "scenarios 9  violations 0" in capsys.readouterr().out
    with pytest.raises(ValueError, match="another campaign"):
        main(["--rounds", "1", "--resume", str(state)])
    monkeypatch.setattr(ValidatorSet, "is_quorum", lambda self, stake: stake >= self.total_stake + 1)
    assert main(["--rounds", "1", "--stride", "8"]) == 1
    assert "VIOLATION" in capsys.readouterr().out
