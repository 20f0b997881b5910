"""`python -m tests.fuzz.atheris_child TARGET [libFuzzer options] CORPUS`: one target, coverage-guided, until libFuzzer ends."""

from __future__ import annotations

import importlib
import sys
from typing import Any


def main() -> None:
    """Instrument our packages as they are imported, then hand over to libFuzzer."""
    atheris: Any = importlib.import_module("atheris")  # an extra: not there in an ordinary environment
    with atheris.instrument_imports(include=["consensus", "node", "attribution"]):
        from tests.fuzz.target import judge
        from tests.fuzz.targets import targets

        target = targets()[sys.argv[1]]  # here, since some targets import what they need when they are made

    def once(data: bytes) -> None:
        judge(target, data)

    atheris.Setup([sys.argv[0], *sys.argv[2:]], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
