"""Run many seeded schedules: `python -m tests.simulation --seed 7 --runs 200`."""

import argparse
import sys
import time
from collections import Counter

from tests.simulation.checker import Violation
from tests.simulation.world import draw_schedule, run_one


def main(arguments: list[str] | None = None) -> int:
    """Run the schedules, print the counts, return 1 at the first violation."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=7, help="seed of all schedules")
    parser.add_argument("--runs", type=int, default=200, help="how many schedules")
    parser.add_argument("--first", type=int, default=0, help="number of the first schedule")
    options = parser.parse_args(arguments)
    totals: Counter[str] = Counter()
    began = time.monotonic()
    for run in range(options.first, options.first + options.runs):
        try:
            schedule, counts, _ = run_one(options.seed, run)
        except Violation as violation:
            print(f"VIOLATION: {violation}")
            print(f"replay: python -m tests.simulation --seed {options.seed} --first {run} --runs 1")
            print(draw_schedule(options.seed, run))
            return 1
        totals.update(counts)
        totals[f"runs with {schedule.misdeed}"] += 1
    seconds = time.monotonic() - began
    print(f"seed {options.seed}: {options.runs} runs, no violation, {options.runs / seconds:.1f} runs/s")
    for name, count in sorted(totals.items()):
        print(f"  {name:24} {count:>10}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
