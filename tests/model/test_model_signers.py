"""The real signers do what the model's rules say: on random histories, and where a rule less would break the chain."""

import random

import pytest

from tests.model.necessity import NEEDED, without_rule
from tests.model.real_signers import RealSigners, conceivable
from tests.model.rules import (
    Action,
    Bounds,
    Rules,
    actions,
    may_commit,
    may_time_out,
    may_vote,
    violation,
)

BOUNDS = Bounds(rounds=4, tags=2, reduced=False)


def walk(seed: int, steps: int) -> tuple[int, int, int]:
    """A random history; returns how many steps it took, and how many requests were granted and refused."""
    chance = random.Random(seed)
    real = RealSigners(BOUNDS)
    granted = refused = taken = 0
    for _ in range(steps):
        known = real.known()
        place = chance.randrange(3)
        allowed = set(actions(real.state, place, known, BOUNDS, Rules()))
        every = conceivable(BOUNDS, known)
        for action in chance.sample(every, min(6, len(every))):
            given = real.probe(place, action)
            assert given == (action in allowed), (seed, place, action, real.state)
            granted, refused = granted + given, refused + (not given)
        if allowed:
            # The lowest rounds first, or a walk skips to the end of the bound at once.
            best = sorted(
                allowed, key=lambda row: (chance.random() < 0.3, row.kind != "vote", chance.random())
            )
            real.perform(place, best[0])
            taken += 1
    return taken, granted, refused


def test_real_signers_grant_and_refuse_what_the_model_does() -> None:
    rows = [walk(seed, 30) for seed in range(12)]
    assert sum(row[0] for row in rows) > 100
    assert sum(row[1] for row in rows) > 30
    assert sum(row[2] for row in rows) > 300


def allowed_by_the_rules(real: RealSigners, place: int, action: Action) -> bool:
    known, signer, rules = real.known(), real.model[place], Rules()
    blocks = BOUNDS.blocks if action.kind == "crash" else real.bounds.blocks
    if action.kind == "vote":
        parent = blocks.parents[action.subject]
        linked = action.qc_round == blocks.rounds[parent] and bool((known.certified | 1) >> parent & 1)
        return linked and may_vote(signer, blocks.rounds[action.subject], action.qc_round, known, rules)
    if action.kind == "commit":
        certified = bool(known.certified >> action.subject & 1)
        return may_commit(signer, blocks.rounds[action.subject], certified, rules)
    if action.qc_round not in known.qc_rounds:
        return False
    return may_time_out(signer, action.subject, action.qc_round, known, rules)


QUICK = ("skip_tc_of_round_before", "skip_extends_tc_high", "timeout_once", "qc_quorum")


@pytest.mark.parametrize(
    "name",
    [
        name if need.rounds == 2 or name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name, need in NEEDED.items()
    ],
)
def test_a_history_that_breaks_the_chain_without_a_rule_is_stopped_by_the_real_signers(name: str) -> None:
    bounds = Bounds(rounds=NEEDED[name].rounds)
    found = without_rule(name, keep_paths=True)
    real, stopped = RealSigners(bounds), False
    places = [0, 1, 2]  # which real signer stands where in the model's sorted state
    for step, state in found.trace:
        if step is None:
            continue
        index, action = step
        if action.kind == "crash":
            stopped = True  # a record is never forgotten; the next signatures show that it holds
            break
        place = places[index]
        may = allowed_by_the_rules(real, place, action)
        assert real.probe(place, action) == may, (name, action)
        if not may:
            stopped = True
            break
        real.perform(place, action)
        places.sort(key=lambda place: real.model[place])
        if [real.model[place] for place in places] != list(state):
            stopped = True  # the weakened rules remember less
            places = _matched(real, places, state)
    # Where no signer could know (a certificate counted wrongly), the true counting sees nothing wrong.
    assert stopped or violation(real.state, real.known(), bounds, Rules()) is None


def _matched(real: RealSigners, places: list[int], state: tuple[object, ...]) -> list[int]:
    """Which real signer has signed what each of the model's has, whatever they remember."""
    left, found = list(places), []
    for signer in state:
        signed = tuple(signer)[4:] if isinstance(signer, tuple) else ()
        place = next(place for place in left if tuple(real.model[place])[4:] == signed)
        left.remove(place)
        found.append(place)
    return found
