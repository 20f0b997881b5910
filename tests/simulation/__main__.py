"""Run many seeded schedules: `python -m tests.simulation --seed 7 --runs 100000 --jobs 2 --state sim.json`."""

import argparse
import gc
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from consensus.errors import ConsensusError
from tests.simulation.byzantine import KINDS
from tests.simulation.checker import Violation
from tests.simulation.code import code_digest
from tests.simulation.running import Chunk, run_chunks
from tests.simulation.schedule import Schedule, draw_schedule
from tests.simulation.totals import Progress, Totals, open_progress
from tests.simulation.world import run_one

CHUNK = 50
HEIGHTS_MEAN_MIN = 20
"""A campaign whose runs commit fewer blocks on average has tried too little and fails."""
RUNS_PER_COLLECTION = 4
TRACE = "trace"
"""Sum of digests over all effects of all steps, one for each run; the same wherever the runs do the same."""


@dataclass(frozen=True)
class Runs:
    """Runs a chunk of schedules; a violation ends neither it nor the campaign, unless `stop`."""

    seed: int
    only: str | None
    size: int | None
    stop: bool = False
    trace: bool = False

    def __call__(self, chunk: Chunk) -> Totals:
        totals, began = Totals(), time.process_time()
        # A run is full of cycles and all of it is garbage at its end: looking for garbage within it finds none.
        gc.disable()
        gc.freeze()
        for run in range(chunk[0], chunk[0] + chunk[1]):
            self._run(run, totals)
            if run % RUNS_PER_COLLECTION == 0:
                gc.collect()
            if self.stop and totals.violations:
                break
        gc.unfreeze()
        gc.enable()
        totals.seconds = time.process_time() - began
        return totals

    def _run(self, run: int, totals: Totals) -> None:
        totals.counts["schedules"] += 1
        try:
            schedule, counts, trace = run_one(self.seed, run, self.only, self.size, traced=self.trace)
        except (Violation, ConsensusError) as violation:
            totals.counts["violations"] += 1
            totals.violations.append((run, f"{type(violation).__name__}: {violation}"))
            return
        if self.trace:
            totals.counts[TRACE] += int(trace[:32], 16)
        recovery_ms = counts.pop("recovery ms")
        totals.slowest = max(totals.slowest, (recovery_ms, run))
        totals.counts.update(counts)
        totals.runs.update(_traits(schedule))


def _traits(schedule: Schedule) -> list[str]:
    """What a run counts as; a kind counts once however many are of it."""
    traits = [f"n={schedule.validators}", f"n={schedule.validators} Byzantine={len(schedule.misdeeds)}"]
    traits.extend(sorted(set(schedule.misdeeds)) or ["all honest"])
    flags = {
        "unequal stakes": schedule.stakes,
        "Ed25519": schedule.real_signatures,
        "clock drift": schedule.drift_ppm_max,
        "epochs": schedule.epoch_heights,
        "collectors among them": schedule.collectors,
    }
    return [*traits, *(name for name, on in flags.items() if on)]


def report(totals: Totals, work: Runs, seconds: float) -> str:
    """The result of a campaign in lines."""
    runs, counts = totals.counts["schedules"], totals.counts
    option = f" --only {work.only}" if work.only else ""
    option += f" --validators {work.size}" if work.size else ""
    lines = [
        f"schedules {runs}  violations {counts['violations']}  heights {counts['heights']}"
        f"  ({counts['heights'] / max(1, runs):.1f} a run)  commits on all nodes {counts['commits']}",
        f"slowest recovery after healing {totals.slowest[0]} ms of virtual time (run {totals.slowest[1]})",
        f"{seconds:.0f} s, {totals.seconds:.0f} s of CPU: {runs / max(totals.seconds, 1e-9):.1f} schedules and"
        f" {counts['steps'] / max(totals.seconds, 1e-9):.0f} steps per CPU second",
    ]
    trace = counts.pop(TRACE, None)
    if trace is not None:
        lines.append(f"trace {trace % (1 << 128):032x}")
    for run, what in totals.violations:
        lines.append(f"VIOLATION: {what}")
        lines.append(
            f"  replay: python -m tests.simulation --seed {work.seed} --first {run} --runs 1{option}"
        )
    lines.extend(f"  runs with {name:24} {count:>10}" for name, count in sorted(totals.runs.items()))
    lines.extend(f"  {name:34} {count:>10}" for name, count in sorted(counts.items()))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the schedules and print what came out; 1 after a violation, or when too little was committed to mean much."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=7, help="seed of all schedules")
    parser.add_argument("--runs", type=int, default=200, help="how many schedules")
    parser.add_argument("--first", type=int, default=0, help="number of the first schedule")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--state", type=Path, default=None, help="file to go on from, and to keep up to date")
    parser.add_argument("--only", choices=sorted(KINDS), default=None, help="as many of this kind as can be")
    parser.add_argument(
        "--validators", type=int, choices=(4, 7, 10), default=None, help="so many in every run"
    )
    parser.add_argument("--stop", action="store_true", help="end at the first violation, in one process")
    parser.add_argument("--trace", action="store_true", help="print a digest of every effect of every step")
    parser.add_argument(
        "--compiled", type=Path, default=None, help="run as machine code, made and kept in this folder"
    )
    options = parser.parse_args(arguments)
    if options.compiled is not None:
        # Only here: a copy in which rules are broken has no scripts.
        from tests.simulation.compiled import run_compiled

        run_compiled(options.compiled, _without_compiled(options))
    seed, only, end = options.seed, options.only, options.first + options.runs
    campaign = {
        "seed": seed,
        "first": options.first,
        "runs": options.runs,
        "only": only,
        "size": options.validators,
        "code": code_digest(),
    }
    progress = open_progress(campaign, options.state)
    began = time.monotonic()

    def say(chunk: Chunk, state: Progress) -> None:
        done = state.totals.counts
        if options.runs > CHUNK and len(state.done) % 20 == 0:
            elapsed = time.monotonic() - began
            print(
                f"{elapsed:8.0f} s  {done['schedules']:>8} runs, {done['violations']} violations", flush=True
            )

    size = options.runs if options.stop else CHUNK
    work = Runs(seed, only, options.validators, options.stop, options.trace)
    chunks = [(first, min(size, end - first)) for first in range(options.first, end, size)]
    totals = run_chunks(progress, chunks, work, options.jobs, say)
    print(f"seed {seed}, runs {options.first} to {end - 1}, {options.jobs} processes")
    print(report(totals, work, time.monotonic() - began))
    if totals.violations and options.runs == 1:
        print(draw_schedule(seed, options.first, only, options.validators))
    heights_min = HEIGHTS_MEAN_MIN * totals.counts["schedules"]
    # A single run or two say nothing about the mean.
    thin = options.runs >= CHUNK and totals.counts["heights"] < heights_min
    if thin:
        print(f"TOO LITTLE: fewer than {HEIGHTS_MEAN_MIN} blocks committed a run")
    return 1 if totals.violations or thin else 0


def _without_compiled(options: argparse.Namespace) -> list[str]:
    """The same arguments for the translated simulator, which works in another folder."""
    made: list[str] = []
    for name, value in vars(options).items():
        if name == "compiled" or value is None or value is False:
            continue
        made.append(f"--{name}")
        if value is not True:
            made.append(str(value.resolve() if isinstance(value, Path) else value))
    return made


if __name__ == "__main__":
    sys.exit(main())
