"""What many runs add up to: counts that add, the slowest recovery, and what was violated; kept in a file to go on from."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STATE_VERSION = 1
VIOLATIONS_MAX = 20
"""Violations listed; those past it are counted."""


@dataclass
class Totals:
    """Results of a set of runs; `add` joins two sets.

    Attributes:
        counts: what happened, by name.
        runs: number of runs by what they were, `(n=4)` and `(equivocator)` among it.
        slowest: (virtual ms from the healing to the recovery of the last honest node, number of the run).
        violations: (number of the run, what happened).
        seconds: CPU seconds of the runs.
    """

    counts: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    slowest: tuple[int, int] = (0, -1)
    violations: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, other: "Totals") -> None:
        """Take another set's results in."""
        self.counts.update(other.counts)
        self.runs.update(other.runs)
        self.slowest = max(self.slowest, other.slowest)
        room = VIOLATIONS_MAX - len(self.violations)
        self.violations.extend(other.violations[:room])
        self.seconds += other.seconds

    def to_json(self) -> dict[str, Any]:
        """Plain values for the state file."""
        return {
            "counts": dict(self.counts),
            "runs": dict(self.runs),
            "slowest": list(self.slowest),
            "violations": [list(row) for row in self.violations],
            "seconds": self.seconds,
        }


def totals_from_json(obj: dict[str, Any]) -> Totals:
    """Read `Totals.to_json`."""
    return Totals(
        Counter(obj["counts"]),
        Counter(obj["runs"]),
        (obj["slowest"][0], obj["slowest"][1]),
        [(row[0], row[1]) for row in obj["violations"]],
        obj["seconds"],
    )


@dataclass
class Progress:
    """Which chunks of a campaign are done, on disk after each if it has a file.

    Attributes:
        campaign: what is run; a file of another campaign is refused.
        done: first runs of the chunks that are finished.
        totals: their results.
    """

    campaign: dict[str, Any]
    path: Path | None = None
    done: set[int] = field(default_factory=set)
    totals: Totals = field(default_factory=Totals)

    def note(self, first: int, totals: Totals) -> None:
        """Add a finished chunk; the file is replaced whole, so that a killed campaign has the one or the other."""
        self.done.add(first)
        self.totals.add(totals)
        if self.path is None:
            return
        state = {
            "version": STATE_VERSION,
            "campaign": self.campaign,
            "done": sorted(self.done),
            "totals": self.totals.to_json(),
        }
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(state))
        fresh.replace(self.path)


def open_progress(campaign: dict[str, Any], path: Path | None) -> Progress:
    """Go on from a state file, or begin.

    Raises:
        ValueError: the file is of another campaign or version.
    """
    if path is None or not path.exists():
        return Progress(campaign, path)
    state = json.loads(path.read_text())
    if state["version"] != STATE_VERSION or state["campaign"] != campaign:
        raise ValueError(f"{path} is of another campaign: {state['campaign']}")
    return Progress(campaign, path, set(state["done"]), totals_from_json(state["totals"]))
