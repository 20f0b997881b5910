"""The mutation test in short: a few rules are broken here; `make mutants` breaks all of them."""

import pytest

from tests.simulation import mutants
from tests.simulation.mutants import NOTHING, ROOT, caught_by, main
from tests.simulation.mutations import MUTANTS

NAMED = 9
"""The seven that the design names, less the one of the TC's high round that stands twice, and the two liveness guards."""


def test_every_mutant_is_one_edit_of_one_place_and_there_are_enough() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 110
    assert sum(mutant.named for mutant in MUTANTS) >= NAMED
    for mutant in MUTANTS:
        text = (ROOT / "consensus" / mutant.file).read_text()
        assert text.count(mutant.old) == 1, mutant.name
        assert mutant.old != mutant.new
        assert not mutant.quick or (ROOT / "tests/unit/consensus" / mutant.quick).exists()


@pytest.mark.timeout(240)
def test_the_fast_ones_are_caught(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--fast", "--tools", "directed", "--jobs", "1"]) == 0
    assert f"{len(mutants.FAST)} mutants, 0 survive" in capsys.readouterr().out


@pytest.mark.timeout(240)
def test_a_mutant_that_breaks_nothing_survives_and_fails_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mutants, "MUTANTS", (NOTHING,))
    assert main(["--tools", "random", "--runs", "2"]) == 1
    assert "SURVIVES: nothing" in capsys.readouterr().out
    assert main(["--only", "no such name"]) == 1


@pytest.mark.timeout(240)
def test_random_search_finds_a_quorum_of_half_the_stake() -> None:
    (mutant,) = [mutant for mutant in MUTANTS if mutant.name == "half of the stake is a quorum"]
    found = caught_by(mutant, ("random",), mutants.Effort(runs=20, seed=11, scenarios=0), every=False)
    assert "random" in found
