"""One process that computes the golden hashes and says what it ran on: `python -m tests.machines.compute DEVICE BACKEND`.

Its last line is `RESULT` and JSON. What MKL and oneDNN print about themselves comes before it.
"""

from __future__ import annotations

import json
import os
import sys
import time

import torch

from attribution import exact
from attribution.golden import CASES, Materials


def main(device: str, backend: str) -> None:
    torch.set_grad_enabled(False)
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    torch.set_num_threads(threads)
    if device == "cpu":
        _provoke_libraries()
    started = time.perf_counter()
    exact.set_backend(backend)
    materials = Materials(device)
    hashes = {case.name: case.compute(materials) for case in CASES}
    result = {
        "hashes": hashes,
        "backend": backend,
        "backends": exact.BACKENDS,
        "refused": [r.name for r in exact.selfcheck(strict=False) if r.failed_case is not None],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds": time.perf_counter() - started,
    }
    if device == "cuda":
        result |= {
            "gpu": torch.cuda.get_device_name(),
            "cuda": torch.version.cuda,
            "compute_capability": ".".join(map(str, torch.cuda.get_device_capability())),
        }
    print(f"RESULT {json.dumps(result)}")


def _provoke_libraries() -> None:
    """Make MKL name its level (one product) and oneDNN its own (one convolution, which torch gives to oneDNN)."""
    x = torch.ones(16, 16)
    if torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        with torch.backends.mkl.verbose(torch.backends.mkl.VERBOSE_ON):  # type: ignore[no-untyped-call]
            torch.mm(x, x)
    torch.nn.functional.conv2d(torch.ones(4, 16, 16, 16), torch.ones(16, 16, 5, 5))


if __name__ == "__main__":
    main(*sys.argv[1:])
