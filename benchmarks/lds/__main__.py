"""Linear datamodelling score and counterfactual removal, ours, baselines and peers on the same work.

python -m benchmarks.lds [--seeds 3] [--subsets 24] [--queries 64] [--methods TEXT ...] [--state DIR] [--quick] [--json]

What was trained and scored stays in --state, so that a killed run goes on and a second one prints in seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

QUICK = {"records_each": 4, "queries": 3, "unrelated": 4, "epochs": 2, "batch_size": 4}


def main(arguments: Sequence[str]) -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lds", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="works, numbered from --first-seed")
    parser.add_argument(
        "--first-seed", type=int, default=1, help="from 100 on are those methods were picked on"
    )
    parser.add_argument("--subsets", type=int, default=24, help="half-subsets retrained per seed")
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument(
        "--methods", nargs="*", default=[], help="only methods whose name contains one of these"
    )
    parser.add_argument("--no-peers", action="store_true", help="leave out the libraries of others")
    parser.add_argument("--no-removal", action="store_true", help="leave out retraining without top records")
    parser.add_argument("--trained", action="store_true", help="train nothing: only what is in --state")
    parser.add_argument("--state", type=Path, default=Path(tempfile.gettempdir()) / "openledger-lds")
    parser.add_argument("--quick", action="store_true", help="a little of each, to see that it runs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)

    from benchmarks.lds.report import document, show
    from benchmarks.lds.running import chosen, run_seed
    from benchmarks.lds.statistics import RESAMPLES
    from benchmarks.lds.work import Settings
    from benchmarks.measuring import machine, set_up

    set_up("cpu")
    settings = (
        replace(Settings(queries=options.queries), **QUICK)
        if options.quick
        else Settings(queries=options.queries)
    )
    seeds, subsets = (1, 3) if options.quick else (options.seeds, options.subsets)
    results = [
        run_seed(
            settings,
            options.first_seed + k,
            subsets,
            options.state,
            chosen(options.methods),
            not options.no_removal,
            not options.no_peers,
            not options.trained,
        )
        for k in range(seeds)
    ]
    found = document(results, machine("cpu"), 20 if options.quick else RESAMPLES)
    print(json.dumps(found)) if options.json else show(found)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(sys.argv[1:]))
