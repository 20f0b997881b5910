"""Golden hashes over every combination of the kernels that this processor has: `python -m tests.machines`; on a GPU: `... --device cuda`.

Prints what each process ran on and which levels this processor lacks (nothing is claimed of those). Exits 1 when a hash
differs from attribution/models/golden.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence

import torch

from attribution.exact import BACKENDS
from attribution.exact.products import PRODUCTS
from attribution.golden import CASES, GOLDEN_PATH, Materials, golden_hashes
from tests.machines.levels import BACKEND, LEVELS, Choice, covering, every, lacking, processor, supported
from tests.machines.running import Outcome, run, run_all

CUDA_SETTINGS: tuple[Choice, ...] = (
    {},
    {"NVIDIA_TF32_OVERRIDE": "1", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"},
    {"CUBLAS_WORKSPACE_CONFIG": ":16:8", "CUDA_LAUNCH_BLOCKING": "1"},
)
"""Environments under which the same hashes must come out of a GPU."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.machines", description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--covering", action="store_true", help="only a set that covers every pair, as the tests do"
    )
    parser.add_argument(
        "--lacking", action="store_true", help="also levels that this processor lacks and falls back from"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--write", action="store_true", help="write the golden file, on purpose")
    options = parser.parse_args(arguments)
    if options.write:
        return write()
    if options.device == "cuda":
        return cuda()
    name, features = processor()
    levels = {name: list(values) for name, values in LEVELS.items()}
    factors = levels if options.lacking else supported(features)
    factors[BACKEND] = cpu_backends()
    choices = covering(factors) if options.covering else every(factors)
    print(f"{name}, torch {torch.__version__}; {len(choices)} processes")
    print(
        f"this processor lacks, so nothing is said of: {', '.join(lacking(features)) or 'nothing'}",
        flush=True,
    )
    return report(run_all(choices, options.jobs))


def cpu_backends() -> list[str]:
    """The backends for the CPU that passed this process's start-up check."""
    return [name for name in BACKENDS if PRODUCTS[name][0] == "cpu"]


def cuda() -> int:
    """Every CUDA backend under each of `CUDA_SETTINGS`."""
    if not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no CUDA device: nothing was run")
        return 1
    print(
        f"{torch.cuda.get_device_name()}, driver {driver()}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    )
    names = [name for name in PRODUCTS if PRODUCTS[name][0] == "cuda"]
    print(
        f"backends that passed the start-up check: {', '.join(n for n in names if n in BACKENDS) or 'none'}"
    )
    choices = [{**settings, BACKEND: name} for name in names for settings in CUDA_SETTINGS]
    return report(run(choice, "cuda") for choice in choices)


def driver() -> str:
    """The driver's version as nvidia-smi tells it."""
    if shutil.which("nvidia-smi") is None:
        return "unknown (no nvidia-smi)"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\n")[0]


def report(outcomes: Iterable[Outcome]) -> int:
    """Print every outcome and each hash that differs; 1 if any does."""
    golden, started = golden_hashes(), time.monotonic()
    count = wrong = 0
    levels: dict[str, set[str]] = {"ATen": set(), "MKL": set(), "oneDNN": set(), "threads": set()}
    for outcome in outcomes:
        count += 1
        differing = sorted(name for name in golden if outcome.hashes.get(name) != golden[name])
        wrong += bool(differing)
        print(f"  {'DIFFERS' if differing else 'ok':8}{outcome.line()}", flush=True)
        for name in differing:
            print(f"            {name}: {outcome.hashes.get(name, 'nothing')}, golden {golden[name]}")
        if not outcome.error:
            for key, value in zip(
                levels, (outcome.capability, outcome.mkl, outcome.onednn, str(outcome.threads)), strict=True
            ):
                levels[key].add(value)
    for name, digest in golden.items():
        print(f"  {name:11} {digest}")
    took = "; ".join(f"{name}: {', '.join(sorted(values))}" for name, values in levels.items())
    print(f"took effect: {took}")
    print(f"{count - wrong} of {count} processes gave the golden hashes ({time.monotonic() - started:.0f} s)")
    return 1 if wrong or not count else 0


def write() -> int:
    """Compute the golden hashes here, with the default backends, and replace the file."""
    torch.set_grad_enabled(False)
    materials = Materials("cpu")
    document = {
        "about": "Golden hashes of attribution/golden.py. They change on purpose only: python -m tests.machines --write",
        "hashes": {case.name: case.compute(materials) for case in CASES},
    }
    GOLDEN_PATH.write_text(f"{json.dumps(document, indent=2)}\n")
    print(f"wrote {GOLDEN_PATH}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
