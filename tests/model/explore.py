"""Breadth-first search over everything that can be signed: each state once, honest validators interchangeable."""

import time
from collections import Counter
from dataclasses import dataclass, field

from tests.model.rules import (
    Action,
    Bounds,
    Rules,
    State,
    actions,
    facts,
    hopeless,
    initial,
    perform,
    violation,
)

Step = tuple[int, Action]
"""Which validator, in the order of the state before the step, and what it signs."""


@dataclass
class Result:
    """What a search found.

    Attributes:
        states: states seen, up to symmetry.
        transitions: signatures tried.
        depth: signatures on the longest shortest path.
        seconds: how long it took.
        complete: False when `states_max` ended it.
        broken: the first invariant broken, or None.
        trace: the shortest history that breaks it: the states, and the action before each but the first.
        kinds: transitions by kind.
    """

    states: int = 0
    transitions: int = 0
    depth: int = 0
    seconds: float = 0.0
    complete: bool = True
    broken: str | None = None
    trace: list[tuple[Step | None, State]] = field(default_factory=list)
    hopeless: int = 0
    kinds: Counter[str] = field(default_factory=Counter)


def explore(
    bounds: Bounds,
    rules: Rules,
    *,
    states_max: int = 1 << 62,
    judged: frozenset[str] | None = None,
    keep_paths: bool = False,
) -> Result:
    """Search everything within the bounds, or up to the first violation.

    Honest validators are interchangeable, so a state is kept with its signers in sorted order. Nothing is hashed away: the set
    holds whole states. `judged` limits which invariants count; `keep_paths` remembers how each state was reached, for the trace.
    """
    began_s = time.perf_counter()
    result = Result()
    prune = bounds.reduced and rules == Rules()
    start = initial(bounds)
    seen: set[State] = {start}
    before: dict[State, tuple[State, Step]] = {}
    level = [start]
    while level and result.broken is None and result.complete:
        following: list[State] = []
        for state in level:
            known = facts(state, bounds, rules)
            broken = violation(state, known, bounds, rules)
            if broken is not None and (judged is None or broken in judged):
                result.broken = broken
                result.trace = _path(state, before)
                break
            if prune and hopeless(state, known, bounds):
                result.hopeless += 1
                continue
            for index, signer in enumerate(state):
                if index and signer == state[index - 1]:
                    continue
                for action in actions(state, index, known, bounds, rules):
                    result.transitions += 1
                    result.kinds[action.kind] += 1
                    changed = list(state)
                    changed[index] = perform(signer, action, bounds, rules)
                    changed.sort()
                    after = tuple(changed)
                    if after not in seen:
                        seen.add(after)
                        following.append(after)
                        if keep_paths:
                            before[after] = (state, (index, action))
            if len(seen) > states_max:
                result.complete = False
                break
        level = following
        result.depth += bool(following)
    result.states = len(seen)
    result.seconds = time.perf_counter() - began_s
    return result


def _path(state: State, before: dict[State, tuple[State, Step]]) -> list[tuple[Step | None, State]]:
    path: list[tuple[Step | None, State]] = []
    while state in before:
        earlier, step = before[state]
        path.append((step, state))
        state = earlier
    return [(None, state), *reversed(path)]
