"""Runs `tests.machines.compute` in processes of their own and reads what came out."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.machines.levels import BACKEND, Choice, environment

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 240
_MKL = re.compile(r"MKL_VERBOSE oneMKL.* architecture (.*?) ?(?:enabled )?processors")
_ONEDNN = re.compile(r"^onednn_verbose,.*info,cpu,isa:(.*)$", re.MULTILINE)
_PRIMITIVE = re.compile(r"^onednn_verbose,.*primitive,exec,cpu,(\w+),([^,]+),", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One process: what was asked of it, its hashes, and the levels that it says took effect.

    `primitives` counts the oneDNN kernels that the engine's own products ran, by name.
    """

    choice: Choice
    hashes: dict[str, str]
    capability: str
    mkl: str
    onednn: str
    threads: int
    primitives: dict[str, int] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""

    def line(self) -> str:
        """What was asked and what took effect, in one line."""
        asked = " ".join(f"{name.split('_')[0].lower()}={level}" for name, level in self.choice.items())
        if self.error:
            return f"{asked}: {self.error}"
        used = ", ".join(f"{name} x{n}" for name, n in sorted(self.primitives.items())) or "not used"
        took = (
            f"ATen {self.capability}, MKL {self.mkl}, oneDNN {self.onednn} ({used}), {self.threads} thread(s)"
        )
        return f"{asked} -> {took}, {self.seconds:.1f} s"


def run(choice: Choice, device: str = "cpu") -> Outcome:
    """The golden hashes in one process with the choice's environment."""
    command = [sys.executable, "-m", "tests.machines.compute", device, choice[BACKEND]]
    variables = environment(choice) | {"ONEDNN_VERBOSE": "1", "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Outcome(choice, {}, "", "", "", 0, error=f"no end within {TIMEOUT_S} s")
    last = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not last:
        return Outcome(
            choice, {}, "", "", "", 0, error=f"exit {done.returncode}: {done.stderr.strip()[-400:]}"
        )
    result = json.loads(last[-1].removeprefix("RESULT "))
    mkl, onednn = _MKL.search(done.stdout), _ONEDNN.search(done.stdout)
    primitives: dict[str, int] = {}
    for kind, kernel in _PRIMITIVE.findall(done.stdout):
        if kind in ("matmul", "inner_product"):
            primitives[kernel] = primitives.get(kernel, 0) + 1
    facts = {
        name: str(result[name]) for name in ("torch", "gpu", "cuda", "compute_capability") if name in result
    }
    return Outcome(
        choice,
        result["hashes"],
        result["capability"],
        mkl[1] if mkl else "silent",
        onednn[1] if onednn else "silent",
        result["threads"],
        primitives,
        facts | {"refused": ", ".join(result["refused"])},
        result["seconds"],
    )


def run_all(choices: Sequence[Choice], jobs: int) -> Iterator[Outcome]:
    """Every choice's outcome in order, `jobs` processes at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(run, choices)
