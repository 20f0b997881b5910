"""How the benchmarks measure: interleaved runs, the least CPU time of each, peak memory, and what the machine is."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

RUNS_MAX = 200
INT8_FLAGS = ("avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
"""Features by which a processor multiplies int8 numbers in hardware, as the kernel names them."""

_STATUS = Path("/proc/self/status")
_REFS = Path("/proc/self/clear_refs")


def set_up(device: str) -> None:
    """One thread, no autograd, and binary32 products in binary32."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False


def least(
    runs: Mapping[str, Callable[[], object]],
    device: str,
    seconds: float,
    count_min: int = 3,
    warm: bool = False,
) -> dict[str, float]:
    """Least seconds of each of `runs`, taken in turn so that what disturbs one disturbs all: of CPU (one thread), of a GPU by the clock.

    Each runs once unmeasured, then `count_min` times, and on until all together took `seconds` by the clock. With `warm` every measured run
    follows one of its own, so that short ones do not pay for what the others left in the caches.
    """
    clock = time.perf_counter if device == "cuda" else time.process_time
    for run in runs.values():
        run()
    wait(device)
    found = dict.fromkeys(runs, float("inf"))
    began, count = time.perf_counter(), 0
    while count < count_min or (time.perf_counter() - began < seconds and count < RUNS_MAX):
        for name, run in runs.items():
            if warm:
                run()
                wait(device)
            started = clock()
            run()
            wait(device)
            found[name] = min(found[name], clock() - started)
        count += 1
    return found


def wait(device: str) -> None:
    """Let the device come to its end; a CPU is there already."""
    if device == "cuda":
        torch.cuda.synchronize()


def forget_peak(device: str) -> None:
    """Start the counts of `peak_bytes` and `device_peak_bytes` anew, the first where Linux lets a process do so."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        _REFS.write_text("5")
    except OSError:
        return


def peak_bytes() -> int:
    """Most memory that this process held since `forget_peak` (elsewhere: since it began)."""
    if _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_peak_bytes(device: str) -> int:
    """Most of a GPU's memory that torch held for tensors since `forget_peak`; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else 0


def machine(device: str) -> dict[str, object]:
    """What decides the figures: processor and its int8 units, device, torch, load."""
    fields: dict[str, str] = {}
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.is_file() else ():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    facts: dict[str, object] = {
        "cpu": fields.get("model name", "unknown"),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "int8_units": [flag for flag in INT8_FLAGS if flag in flags],
        "avx512": "avx512f" in flags,
        "torch": torch.__version__,
        "device": device,
        "load_average": round(os.getloadavg()[0], 2),
    }
    if device == "cuda":
        facts |= {
            "gpu": torch.cuda.get_device_name(),
            "cuda": str(torch.version.cuda),
            "compute_capability": ".".join(map(str, torch.cuda.get_device_capability())),
        }
    return facts


def no_device(device: str) -> str:
    """Why nothing can be run on `device`; empty where it can."""
    if device == "cuda" and not torch.cuda.is_available():
        return f"skipped: torch {torch.__version__} sees no CUDA device"
    return ""
