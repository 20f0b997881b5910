"""Everything that a GPU can be asked, in one command: `python -m tests.machines.gpu` (`make gpu-check`).

The golden hashes by every CUDA backend under each environment, the suite's own CUDA tests, `openledger selfcheck --device cuda`,
then the speeds of `benchmarks.exact` and `benchmarks.attribution`. Where torch sees no CUDA device it says so and exits 0: nothing was
run, and nothing is claimed. Exits 1 if any part fails; a speed target that is missed is told by its part and fails nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.measuring import no_device
from tests.machines.__main__ import driver
from tests.machines.running import ROOT

TIMEOUT_S = 3600


@dataclass(frozen=True, slots=True)
class Part:
    """One command of the recipe; `must_pass` says that its exit code counts."""

    title: str
    module: str
    arguments: tuple[str, ...]
    must_pass: bool = True


PARTS = (
    Part("golden hashes, every CUDA backend and environment", "tests.machines", ("--device", "cuda")),
    Part(
        "tests of this folder, those for CUDA included",
        "pytest",
        ("-q", "-rs", "-m", "not slow", "tests/machines"),
    ),
    Part("the whole engine", "node.cli.main", ("selfcheck", "--device", "cuda")),
    Part("speed of a layer", "benchmarks.exact", ("--device", "cuda"), must_pass=False),
    Part("speed of the engine", "benchmarks.attribution", ("--device", "cuda")),
)


def main(arguments: Sequence[str]) -> int:
    """Run every part, whatever became of the one before; 1 if one that must pass did not."""
    argparse.ArgumentParser(prog="python -m tests.machines.gpu", description=__doc__).parse_args(arguments)
    if reason := no_device("cuda"):
        print(reason)
        return 0
    print(f"GPU {torch.cuda.get_device_name()}, driver {driver()}, torch {torch.__version__}", flush=True)
    failed = [part.title for part in PARTS if not _passes(part) and part.must_pass]
    print(f"\nFAILED: {'; '.join(failed)}" if failed else "\nevery part passed")
    return 1 if failed else 0


def _passes(part: Part) -> bool:
    print(f"\n== {part.title}: python -m {part.module} {' '.join(part.arguments)}", flush=True)
    command = [sys.executable, "-m", part.module, *part.arguments]
    try:
        return subprocess.run(command, cwd=ROOT, timeout=TIMEOUT_S, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"no end within {TIMEOUT_S} s")
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
