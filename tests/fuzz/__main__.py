"""`python -m tests.fuzz [--seconds 60] [--target NAME ...] [--engine mutation|atheris] [--seed N]`.

Prints the inputs tried for each target; what was found is saved under tests/fuzz/found, where the tests replay it. Exits 1
where something was found. atheris (the extra `fuzz`) guides the search by coverage; without it inputs are mutated by
a seed. `--limits` prints the table of docs/limits.md instead.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence

from tests.fuzz.campaign import guided, keep, search
from tests.fuzz.limits import render
from tests.fuzz.targets import targets


def main(arguments: Sequence[str]) -> int:
    """Fuzz the chosen targets, one after another."""
    usable = importlib.util.find_spec("atheris") is not None
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--target", action="append", default=[], metavar="NAME", help="one of --list")
    parser.add_argument(
        "--engine", choices=("mutation", "atheris"), default="atheris" if usable else "mutation"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="name the targets and end")
    parser.add_argument("--limits", action="store_true", help="print docs/limits.md and end")
    options = parser.parse_args(arguments)
    known = targets()
    if options.list or options.limits:
        print("\n".join(known) if options.list else render(), end="\n" if options.list else "")
        return 0
    unknown = set(options.target) - set(known)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}; see --list")
    if options.engine == "atheris" and not usable:
        parser.error("atheris is not installed; --engine mutation needs nothing")
    total = found = 0
    for name in options.target or known:
        target = known[name]
        if options.engine == "atheris":
            report = guided(target, options.seed, options.seconds)
        else:
            report = search(target, options.seed, sys.maxsize, options.seconds)
        print(report.line(), flush=True)
        total += report.inputs
        found += len(report.findings)
        kept = keep(name, report.findings.values())
        for finding, path in zip(report.findings.values(), kept, strict=True):
            print(f"  {finding.error}\n  saved as {path}")
    print(f"{total:,} inputs with {options.engine}, {found} found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
