"""`python -m tests.vectors [--check | --write | --check-attribution FILE]`: exits 1 where something differs.

The first two are about our code: whether a file is what it computes. The last one is about somebody else's: whether the steps in FILE are
those of ``attribution.json``. It needs neither torch nor our packages.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.vectors import comparing

FOLDER = Path(__file__).parent


def main(arguments: Sequence[str]) -> int:
    """Check the files against the code, or write them, or check a file of results. 2 where that file is none."""
    parser = argparse.ArgumentParser(prog="python -m tests.vectors", description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--check", action="store_true", help="compare (the default)")
    which.add_argument(
        "--write", action="store_true", help="write the files: a change of the protocol, on purpose"
    )
    which.add_argument(
        "--check-attribution",
        metavar="FILE",
        type=Path,
        help="compare another implementation's results, in the form of attribution.json, step by step",
    )
    options = parser.parse_args(arguments)
    if options.check_attribution is not None:
        return check_attribution(options.check_attribution)
    return check_files(write=options.write)


def check_attribution(path: Path) -> int:
    """Compare a file of results with ``attribution.json`` and print what differs."""
    try:
        lines, equal = comparing.check(path)
    except comparing.ResultsInvalid as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0 if equal else 1


def check_files(*, write: bool) -> int:
    """Compare the files with what the code computes, or write them."""
    # Only here: who checks another implementation has none of our dependencies.
    from tests.vectors.files import documents

    made = documents()
    differing = [
        name
        for name, text in made.items()
        if not (FOLDER / name).is_file() or (FOLDER / name).read_text() != text
    ]
    stale = sorted({path.name for path in FOLDER.glob("*.json")} - set(made))
    if write:
        for name in differing:
            (FOLDER / name).write_text(made[name])
        for name in stale:
            (FOLDER / name).unlink()
        print(f"wrote {', '.join(differing) or 'nothing'}; removed {', '.join(stale) or 'nothing'}")
        return 0
    for name in (*differing, *stale):
        print(f"{name} is not what the code computes; if that is meant, `python -m tests.vectors --write`")
    print(f"{len(made) - len(differing)} of {len(made)} files as they were")
    return 1 if differing or stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
