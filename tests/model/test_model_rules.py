"""The rules hold in every history within a bound, and each is needed."""

from functools import cache

import pytest

from tests.model.explore import explore
from tests.model.necessity import FORK, NEEDED, NOT_FOR_SAFETY, without_rule, without_spare_rule
from tests.model.rules import RULE_NAMES, Bounds, Rules, without


@pytest.mark.parametrize(
    ("bounds", "states"),
    [
        (Bounds(rounds=2), 247),
        (Bounds(rounds=3), 12_773),
        (Bounds(rounds=2, reduced=False), 6_649),
        pytest.param(Bounds(rounds=2, tags=2, reduced=False), 85_542, marks=pytest.mark.slow),
        pytest.param(Bounds(rounds=3, reduced=False), None, marks=pytest.mark.slow),
        pytest.param(Bounds(rounds=4), 643_403, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_no_history_breaks_an_invariant(bounds: Bounds, states: int | None) -> None:
    result = explore(bounds, Rules())
    assert (result.broken, result.complete) == (None, True)
    assert states in (None, result.states), "the model changed: say so where its figures are written"
    assert min(result.kinds[kind] for kind in ("vote", "commit", "timeout")) > 0


@pytest.mark.parametrize("name", [name for name in NEEDED if NEEDED[name].rounds == 2])
def test_without_the_rule_the_chain_breaks(name: str) -> None:
    assert without_rule(name).broken == NEEDED[name].broken


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NEEDED if NEEDED[name].rounds > 2])
def test_without_the_rule_the_chain_breaks_in_more_rounds(name: str) -> None:
    assert without_rule(name).broken == NEEDED[name].broken


@cache
def with_all_rules() -> int:
    return explore(Bounds(rounds=2, reduced=False), Rules()).transitions


@pytest.mark.parametrize("name", NOT_FOR_SAFETY)
def test_what_safety_does_not_rest_on_breaks_nothing(name: str) -> None:
    result = without_spare_rule(name, 2)
    assert (result.broken, result.complete) == (None, True)
    assert result.transitions > with_all_rules(), "the rule forbids nothing within this bound"


def test_every_rule_is_needed_or_says_what_it_is_for() -> None:
    assert sorted((*NEEDED, *NOT_FOR_SAFETY)) == sorted(RULE_NAMES)


def test_a_reduced_search_finds_what_a_full_one_finds() -> None:
    """Reductions leave out histories, never the last one that breaks something."""
    for name in ("cc_quorum", "kinds_apart", "commit_above_highest_timeout", "skip_needs_tc"):
        full = explore(Bounds(rounds=2, reduced=False), without(name), judged=frozenset({FORK}))
        assert (full.broken, without_rule(name).broken) == (FORK, FORK)
