"""The long quiet run: `python -m tests.chaos.soak --minutes 60 [--retain 512]`. Real daemons under a modest load, nobody disturbed.

Every ten seconds it notes what each daemon uses and how long transfers took to be final, as lines of a CSV file; at the end it
fits a straight line through what must not grow, and exits 1 where one climbs too fast, a node fell behind, or nodes differ.
With `--retain` the validators forget older blocks, and their databases are among what must not grow; the full node keeps all.
"""

import argparse
import csv
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

import trio

from node.devnet.network import PARAMS
from tests.chaos.census import Usage, usage
from tests.chaos.fleet import Fleet, running_fleet
from tests.chaos.load import Load

SAMPLE_S = 10.0
SENDERS = ("alice", "bob", "carol", "dave")
BATCH = 5
WARM_UP_PARTS = 4
"""The first quarter is not judged: caches, pools and the allocator fill."""

HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One daemon at `time_s` since the start; latencies are the network's in the interval before, -1 where none was final."""

    time_s: float
    node: str
    height: int
    executed: int
    finality_p50_ms: float
    finality_p99_ms: float
    usage: Usage

    def row(self) -> dict[str, object]:
        """The sample as one line of the CSV file."""
        own = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "usage"}
        return {**own, **asdict(self.usage)}


COLUMNS = [
    *(entry.name for entry in fields(Sample) if entry.name != "usage"),
    *(entry.name for entry in fields(Usage)),
]


@dataclass(frozen=True, slots=True)
class Bound:
    """How fast a column of `Usage` may climb in an hour, judged by a straight line, for every daemon."""

    column: str
    per_hour_max: float


MEBI = float(1 << 20)
BOUNDS = (
    Bound("anonymous_bytes", 32 * MEBI),
    Bound("worker_rss_bytes", 16 * MEBI),
    Bound("descriptors", 12.0),
    Bound("threads", 8.0),
    Bound("guard_bytes", 0.5),
    Bound("log_bytes", 4 * MEBI),
)
PRUNED_BOUND = Bound("tables_bytes", 4 * MEBI)
"""Besides, for a node that prunes."""
SNAPSHOT_HEIGHTS = 512


def slope_per_hour(points: Iterable[tuple[float, float]]) -> float:
    """Least-squares slope of (seconds, value), per hour; 0 for fewer than three points."""
    rows = list(points)
    if len(rows) < 3:
        return 0.0
    return statistics.linear_regression([at for at, _ in rows], [value for _, value in rows]).slope * HOUR_S


def judge(
    samples: Sequence[Sample], bounds: Sequence[Bound] = BOUNDS, pruning: Sequence[str] = ()
) -> list[str]:
    """What climbs faster than it may, per daemon; empty is good. `pruning` are the daemons that forget old blocks."""
    begin = max((sample.time_s for sample in samples), default=0.0) / WARM_UP_PARTS
    judged = [sample for sample in samples if sample.time_s >= begin]
    found = []
    for node in dict.fromkeys(sample.node for sample in judged):
        for bound in (*bounds, PRUNED_BOUND) if node in pruning else bounds:
            slope = slope_per_hour(
                (sample.time_s, float(getattr(sample.usage, bound.column)))
                for sample in judged
                if sample.node == node
            )
            if slope > bound.per_hour_max:
                found.append(
                    f"{node}: {bound.column} climbs by {slope:,.0f} an hour, over {bound.per_hour_max:,.0f}"
                )
    return found


def percentile(values: Sequence[float], part: float) -> float:
    """The nearest-rank percentile; -1 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else -1.0


def sample(fleet: Fleet, load: Load, time_s: float) -> list[Sample]:
    """One line for each daemon that runs."""
    latencies = list(load.latencies_s)
    load.latencies_s.clear()
    p50, p99 = (round(percentile(latencies, part) * 1000, 1) for part in (0.50, 0.99))
    found = []
    for name, seat in fleet.seats.items():
        used = usage(seat)
        if used is not None:
            height = fleet.witness.heights.get(name, 0)
            found.append(Sample(round(time_s, 1), name, height, len(fleet.witness.executed), p50, p99, used))
    return found


async def soak(
    root: Path, out: Path, validators: int, minutes: float, rate: float, seed: int, retain: int
) -> int:
    """Run it; returns the exit status."""
    samples: list[Sample] = []
    pruning: list[str] = []

    def prepare(fleet: Fleet, _nursery: trio.Nursery) -> None:
        pruning.extend(fleet.validators if retain else ())
        for name in pruning:
            fleet.seats[name].arguments += ("--set", f"storage.retain_heights={retain}")

    params = replace(PARAMS, snapshot_heights=SNAPSHOT_HEIGHTS) if retain else PARAMS
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        async with running_fleet(root, validators, SENDERS, prepare, params=params) as fleet:
            load = Load(fleet, seed)
            begin = trio.current_time()
            async with trio.open_nursery() as nursery:
                for name in SENDERS:
                    account = fleet.network.account(name)
                    nursery.start_soon(load.send, account, rate / len(SENDERS), BATCH)
                while (now := trio.current_time() - begin) < minutes * 60:
                    await trio.sleep(min(SAMPLE_S, minutes * 60 - now))
                    rows = sample(fleet, load, trio.current_time() - begin)
                    writer.writerows(row.row() for row in rows)
                    file.flush()
                    samples += rows
                nursery.cancel_scope.cancel()
            faults = [*fleet.witness.violations, *behind(fleet), *judge(samples, pruning=pruning)]
            report(fleet, load, samples, minutes)
    for fault in faults:
        print(f"  FAILED: {fault}")
    return 1 if faults else 0


BEHIND_HEIGHTS_MAX = 20


def behind(fleet: Fleet) -> list[str]:
    """Nodes that ended or lag at the end of an undisturbed run."""
    return [
        f"{name} {'lags' if seat.running else 'ended'}, at height {fleet.witness.heights.get(name, 0)} of {fleet.height()}"
        for name, seat in fleet.seats.items()
        if not seat.running or fleet.witness.heights.get(name, 0) + BEHIND_HEIGHTS_MAX < fleet.height()
    ]


def report(fleet: Fleet, load: Load, samples: Sequence[Sample], minutes: float) -> None:
    """Print what the curves come to."""
    executed = len(fleet.witness.executed)
    print(
        f"{minutes:g} minutes, {len(fleet.seats)} daemons: {fleet.height()} blocks, {executed} transactions executed, "
        f"{load.accepted} accepted, {load.refused} refused, {load.silent} calls unanswered"
    )
    begin = max((row.time_s for row in samples), default=0.0) / WARM_UP_PARTS
    judged = [row for row in samples if row.time_s >= begin]
    p50 = [row.finality_p50_ms for row in judged if row.finality_p50_ms >= 0]
    p99 = [row.finality_p99_ms for row in judged if row.finality_p99_ms >= 0]
    print(f"finality: median p50 {percentile(p50, 0.5):.0f} ms, worst p99 {max(p99, default=-1):.0f} ms")
    print(f"{'node':12} {'column':22} {'first':>14} {'last':>14} {'per hour':>14}")
    for node in fleet.seats:
        rows = [row for row in judged if row.node == node]
        for entry in fields(Usage):
            points = [(row.time_s, float(getattr(row.usage, entry.name))) for row in rows]
            if points:
                first, last = points[0][1], points[-1][1]
                print(
                    f"{node:12} {entry.name:22} {first:14,.0f} {last:14,.0f} {slope_per_hour(points):14,.0f}"
                )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--validators", type=int, default=4)
    parser.add_argument("--rate", type=float, default=20.0, metavar="TX_PER_S")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--retain", type=int, default=0, metavar="HEIGHTS", help="validators prune; 0: nobody"
    )
    parser.add_argument("--home", type=Path, help="kept; without it a temporary one, removed at the end")
    parser.add_argument("--out", type=Path, default=Path("soak.csv"))
    options = parser.parse_args(arguments)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="openledger-soak-") as folder:
        home = options.home or Path(folder) / "home"
        run = partial(
            soak,
            home,
            options.out,
            options.validators,
            options.minutes,
            options.rate,
            options.seed,
            options.retain,
        )
        status = trio.run(run)
    print(f"{time.monotonic() - begin:.0f} s; samples in {options.out}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
