"""Run Twins scenarios: `python -m tests.twins --rounds 3 --shard 0/2 --resume twins.json`, or `--random 5000 --rounds 6`."""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from consensus.errors import ConsensusError
from tests.simulation.checker import Violation
from tests.simulation.running import Chunk, run_chunks
from tests.simulation.totals import Progress, Totals, open_progress
from tests.twins.cluster import run_scenario
from tests.twins.scenarios import Scenario, all_count, choices_of, drawn, listed, scenario_of

CHUNK = 100


@dataclass(frozen=True)
class Scenarios:
    """Numbered scenarios: every `stride`-th of the list, or with `stride` 0 drawn ones; one chunk after another."""

    rounds: int
    stride: int
    seed: int
    stop: bool = False

    def at(self, number: int) -> Scenario:
        """Return one scenario."""
        if not self.stride:
            return drawn(self.seed, number, self.rounds)
        return scenario_of(choices_of(listed(self.rounds)[number * self.stride], self.rounds))

    def __call__(self, chunk: Chunk) -> Totals:
        totals, began = Totals(), time.process_time()
        for number in range(chunk[0], chunk[0] + chunk[1]):
            totals.counts["scenarios"] += 1
            try:
                result = run_scenario(self.at(number))
            except (Violation, ConsensusError) as violation:
                totals.counts["violations"] += 1
                totals.violations.append((number, f"{type(violation).__name__}: {violation}"))
                if self.stop:
                    break
                continue
            totals.slowest = max(totals.slowest, (result.phases, number))
            totals.counts["commits"] += result.commits
            totals.counts["commits before mending"] += result.commits_within
            totals.counts["with a commit before mending"] += result.commits_within > 0
            totals.counts["with the twins proven guilty"] += result.offences > 0
            totals.counts["steps"] += result.steps
        totals.seconds = time.process_time() - began
        return totals


def report(totals: Totals, work: Scenarios, seconds: float) -> str:
    """The result of a campaign in lines."""
    counts = totals.counts
    lines = [
        f"scenarios {counts['scenarios']}  violations {counts['violations']}  commits {counts['commits']}",
        f"longest until all go on: {totals.slowest[0]} phases after mending (scenario {totals.slowest[1]})",
        f"{seconds:.0f} s, {totals.seconds:.0f} s of CPU:"
        f" {counts['scenarios'] / max(totals.seconds, 1e-9):.1f} scenarios per CPU second",
    ]
    for number, what in totals.violations:
        lines.append(f"VIOLATION: {what}")
        lines.append(f"  scenario {number}: {work.at(number)}")
    lines.extend(f"  {name:34} {count:>10}" for name, count in sorted(counts.items()))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the scenarios of a shard and print what came out; 1 after a violation."""
    parser = argparse.ArgumentParser(prog="python -m tests.twins", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds with a partition each")
    parser.add_argument(
        "--shard", default="0/1", help="I/N: every chunk whose number leaves I when divided by N"
    )
    parser.add_argument("--stride", type=int, default=1, help="of the list only every so many-th")
    parser.add_argument(
        "--random", type=int, default=0, help="so many drawn scenarios, with drops, not the list"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of drawn scenarios")
    parser.add_argument("--first", type=int, default=0, help="number of the first scenario")
    parser.add_argument("--limit", type=int, default=None, help="at most so many scenarios")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument(
        "--resume", type=Path, default=None, help="file to go on from, and to keep up to date"
    )
    parser.add_argument("--stop", action="store_true", help="end at the first violation, in one process")
    options = parser.parse_args(arguments)
    share, shares = (int(part) for part in options.shard.split("/"))
    work = Scenarios(options.rounds, 0 if options.random else options.stride, options.seed, options.stop)
    if options.random:
        size = options.random
        print(f"{size} drawn scenarios of {options.rounds} rounds, seed {options.seed}")
    else:
        kept = len(listed(options.rounds))
        size = -(-kept // options.stride)
        print(
            f"{options.rounds} rounds: {all_count(options.rounds)} scenarios, {kept} without symmetric ones;"
            f" {size} with stride {options.stride}, shard {options.shard}"
        )
    end = size if options.limit is None else min(size, options.first + options.limit)
    unit = max(CHUNK, end) if options.stop else CHUNK
    chunks = [(first, min(unit, end - first)) for first in range(options.first, end, unit)]
    chunks = [chunk for chunk in chunks if chunk[0] // CHUNK % shares == share]
    campaign = {
        "rounds": options.rounds,
        "stride": work.stride,
        "seed": options.seed,
        "random": options.random,
        "shard": options.shard,
        "first": options.first,
        "end": end,
    }
    progress, began = open_progress(campaign, options.resume), time.monotonic()

    def say(chunk: Chunk, state: Progress) -> None:
        if len(state.done) % 20 == 0:
            done = state.totals.counts
            elapsed = time.monotonic() - began
            print(
                f"{elapsed:8.0f} s  {done['scenarios']:>8} scenarios, {done['violations']} violations",
                flush=True,
            )

    totals = run_chunks(progress, chunks, work, options.jobs, say)
    print(report(totals, work, time.monotonic() - began))
    return 1 if totals.violations else 0


if __name__ == "__main__":
    sys.exit(main())
