"""Real replicas stand as the model says after every step of random histories, and no history leaves them dead."""

from collections import Counter

import pytest

from tests.model import liveness
from tests.model.conformance import SIGHTS, Difference, walk
from tests.model.node import Guards

WALKS = 60
STEPS = 100


def play(guards: Guards) -> None:
    for seed in range(WALKS):
        walk(seed, STEPS, guards)


def test_replicas_do_what_the_model_does_and_recover() -> None:
    seen: Counter[str] = Counter()
    for seed in range(WALKS):
        history = walk(seed, STEPS)
        seen += history.sights
        assert liveness.recovers(tuple(history.nodes), liveness.Bounds(0), Guards()) is not None, seed
    assert set(seen) == set(SIGHTS), sorted(set(SIGHTS) - set(seen))


@pytest.mark.parametrize(
    "guards",
    [Guards(late_qc=False), Guards(replayed_tc=False), Guards(joins=False), Guards(certificates_first=False)],
    ids=["late_qc", "replayed_tc", "joins", "certificates_first"],
)
def test_a_model_without_a_rule_is_told_apart_from_the_code(guards: Guards) -> None:
    with pytest.raises(Difference):
        play(guards)


@pytest.mark.parametrize("first", [0, 3])
def test_no_state_is_dead(first: int) -> None:
    result = liveness.search(liveness.Bounds(1, first), Guards(), 10_000)
    assert result.complete
    assert result.dead is None
    assert result.states > 1_000


@pytest.mark.slow
@pytest.mark.parametrize("first", range(4))
def test_no_state_of_two_rounds_is_dead(first: int) -> None:
    assert liveness.search(liveness.Bounds(2, first), Guards(), 60_000).dead is None


@pytest.mark.parametrize(
    "guards", [Guards(late_qc=False), Guards(replayed_tc=False)], ids=["late_qc", "replayed_tc"]
)
def test_without_a_guard_the_chain_stops_for_ever(guards: Guards) -> None:
    assert liveness.search(liveness.Bounds(2), guards, 10_000).dead is not None
