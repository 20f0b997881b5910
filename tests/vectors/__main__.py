"""`python -m tests.vectors [--check | --write]`: exits 1 where a file is not what the code computes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tests.vectors.files import documents
from tests.vectors.notation import FOLDER


def main(arguments: Sequence[str]) -> int:
    """Check the files against the code, or write them."""
    parser = argparse.ArgumentParser(prog="python -m tests.vectors", description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--check", action="store_true", help="compare (the default)")
    which.add_argument(
        "--write", action="store_true", help="write the files: a change of the protocol, on purpose"
    )
    options = parser.parse_args(arguments)
    made = documents()
    differing = [
        name
        for name, text in made.items()
        if not (FOLDER / name).is_file() or (FOLDER / name).read_text() != text
    ]
    stale = sorted({path.name for path in FOLDER.glob("*.json")} - set(made))
    if options.write:
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
