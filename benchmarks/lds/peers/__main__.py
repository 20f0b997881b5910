"""What of the peers is installed, and their speed beside the exact engine's.

python -m benchmarks.lds.peers [--speed] [--width 128|576] [--records 64] [--runs 3] [--json]

Their quality is measured by `python -m benchmarks.lds`, in the same run as everybody's. Speed is CPU time for one more record on the
shipped base with a random adapter of rank 8, records of 96 random bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from benchmarks.lds.peers import PeerUnavailable


def installed() -> dict[str, str]:
    """Version of every package, or why there is none."""
    from benchmarks.lds.peers import methods, processes

    found = {}
    for package in dict.fromkeys(peer.package for peer in methods.PEERS):
        try:
            found[package] = processes.found(processes.interpreter(), package)
        except PeerUnavailable as error:
            found[package] = str(error)
    return found


def main(arguments: Sequence[str]) -> int:
    """Print what was asked for; a missing peer is no failure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lds.peers", description=__doc__)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--records", type=int, default=64, help="the larger of the two sizes timed")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--width", type=int, default=128, choices=(128, 576), help="576: two random layers")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.records < 32 or not 1 <= options.runs <= 20:
        parser.error("--records is at least 32, --runs 1 to 20")
    versions = installed()
    document: dict[str, object] = {"installed": versions}
    if not options.json:
        for package, version in versions.items():
            print(f"{package:12} {version}", flush=True)
    if options.speed:
        from attribution.checkpoint import load_base
        from attribution.models import BASE_PATH
        from benchmarks.attribution import drawn_adapter, texts, wide_base
        from benchmarks.lds.peers import speed
        from benchmarks.measuring import machine, set_up

        set_up("cpu")
        base = load_base(BASE_PATH) if options.width == 128 else wide_base(2, "cpu")
        records = tuple(texts(base, options.records, 96))
        sizes = (options.records // 4, options.records)
        rows = speed.measure(base, drawn_adapter(base), records, sizes, options.runs)
        document |= {
            "machine": machine("cpu"),
            "width": options.width,
            "sizes": sizes,
            "target": speed.TARGET,
            "per_example": rows,
        }
        if not options.json:
            print(speed.show(rows))
    if options.json:
        print(json.dumps(document))
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(sys.argv[1:]))
