"""Search the model and play its histories on the real code: `python -m tests.model --rounds 3`.

Prints what was searched and found; ends with 1 if an invariant broke, a state was dead, the code differed from the model, or a
rule could be taken away unnoticed.
"""

import argparse
import sys
import time
from collections import Counter

from tests.model import liveness
from tests.model.conformance import SIGHTS, Difference, walk
from tests.model.explore import Result, explore
from tests.model.necessity import NEEDED, NOT_FOR_SAFETY, without_rule, without_spare_rule
from tests.model.node import Guards
from tests.model.rules import Bounds, Rules


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the exhaustive safety search")
    parser.add_argument("--states", type=int, default=1 << 40, help="most states of one search")
    parser.add_argument("--liveness-rounds", type=int, default=1, help="rounds of the search for dead states")
    parser.add_argument("--liveness-states", type=int, default=20_000, help="most states of one such search")
    parser.add_argument("--walks", type=int, default=300, help="histories played on real replicas")
    parser.add_argument("--steps", type=int, default=120, help="steps of a history")
    parser.add_argument("--seed", type=int, default=0, help="first history")
    options = parser.parse_args()
    good = [
        safety(options.rounds, options.states),
        necessity(),
        alive(options.liveness_rounds, options.liveness_states),
        conformance(options.seed, options.walks, options.steps),
    ]
    return 0 if all(good) else 1


def told(result: Result) -> str:
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(result.kinds.items()))
    whole = "complete" if result.complete else "CUT OFF"
    return (
        f"{result.states:,} states ({result.hopeless:,} of them hopeless), {result.transitions:,} transitions ({kinds}), "
        f"depth {result.depth}, {result.seconds:.1f} s, {whole}: {result.broken or 'no invariant broken'}"
    )


def safety(rounds: int, states: int) -> bool:
    """Every history of three honest validators and a Byzantine one within the bound."""
    print(f"safety: n = 4, one Byzantine, all leaders and the network hostile, rounds 1 to {rounds}")
    print(
        "  invariants: no certified block beside a committed one; no TC below a CC; one certified block a round;"
    )
    print("  one statement a kind and round for each honest key")
    good = True
    rows = [Bounds(rounds=round_) for round_ in range(2, rounds + 1)]
    for bounds in (Bounds(rounds=2, tags=2, reduced=False), *rows):
        result = explore(bounds, Rules(), states_max=states)
        kind = "reduced" if bounds.reduced else "without reductions"
        print(
            f"  {bounds.rounds} rounds, {bounds.tags} block(s) a parent, {kind}: {told(result)}", flush=True
        )
        good = good and result.broken is None
    return good


def necessity() -> bool:
    """Each rule switched off."""
    print("necessity: each rule switched off")
    good = True
    for name, need in NEEDED.items():
        result = without_rule(name)
        found = f"after {result.depth} signatures" if result.broken else "NOTHING BREAKS"
        print(
            f"  {name}: {need.rounds} rounds, {result.states:,} states: {result.broken} {found}", flush=True
        )
        good = good and result.broken == need.broken
    for name in NOT_FOR_SAFETY:
        result = without_spare_rule(name, 2)
        print(f"  {name}: {told(result)}", flush=True)
        good = good and result.broken is None and result.complete
    return good


def alive(rounds: int, states: int) -> bool:
    """Every state within a bound recovers once the network is good; without a guard one does not."""
    print(
        f"liveness: from every state of rounds 1 to {rounds} all honest nodes commit a new block, the liar silent"
    )
    good = True
    for first in range(liveness.VALIDATORS):
        result = liveness.search(liveness.Bounds(rounds, first), Guards(), states)
        whole = "complete" if result.complete else "cut off"
        slowest = max(result.turns, default=0)
        print(
            f"  validator {first} leads first: {result.states:,} states, {result.transitions:,} transitions, depth {result.depth}, "
            f"{result.seconds:.1f} s, {whole}, slowest recovery {slowest} exchanges: {'DEAD STATE' if result.dead else 'none dead'}",
            flush=True,
        )
        good = good and result.dead is None
    for name, guards in (("late_qc", Guards(late_qc=False)), ("replayed_tc", Guards(replayed_tc=False))):
        result = liveness.search(liveness.Bounds(2), guards, states)
        print(f"  without {name}: {'dead after' if result.dead else 'NONE DEAD in'} {result.states:,} states")
        good = good and result.dead is not None
    return good


def conformance(seed: int, walks: int, steps: int) -> bool:
    """Random histories on the model and on real replicas."""
    print(
        f"conformance: {walks} histories of {steps} steps from seed {seed}, three real replicas beside the model"
    )
    began_s = time.perf_counter()
    kinds: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    differences = dead = 0
    for number in range(seed, seed + walks):
        try:
            history = walk(number, steps)
        except Difference as difference:
            differences += 1
            print(f"  DIFFERENCE: {difference}")
            continue
        kinds += history.kinds
        seen += history.sights
        if liveness.recovers(tuple(history.nodes), liveness.Bounds(0), Guards()) is None:
            dead += 1
            print(f"  DEAD STATE after history {number}")
    print(f"  steps: {', '.join(f'{kind} {count:,}' for kind, count in sorted(kinds.items()))}")
    for name in SIGHTS:
        print(f"  {seen[name]:8,}  {name}")
    print(f"  {differences} differences, {dead} dead states, {time.perf_counter() - began_s:.1f} s")
    return not differences and not dead


if __name__ == "__main__":
    sys.exit(main())
