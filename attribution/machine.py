"""How a process that calls this package is set up: threads, device, and a check that this machine's arithmetic is right."""

from __future__ import annotations

import torch

from attribution import exact
from attribution.errors import BackendRefused
from attribution.exact.backends import BackendReport, backend_for, devices, family_for


def prepare(device: str, backend: str = "auto", threads: int = 1) -> str:
    """Set threads and backend of this process, hold its arithmetic against the oracle, and return the device to use.

    `device` is "cpu", "cuda" or "auto": CUDA where there is one whose every check passes, else the CPU. Nothing here
    changes a bit of any result. Raises BackendRefused where the device computes wrongly, UnknownBackend.
    """
    set_up(threads)
    reports = exact.selfcheck(strict=False)
    used = device
    if device == "auto":
        used = "cuda" if "cuda" in devices() and not _failures(reports, "cuda") else "cpu"
    for report in _failures(reports, used):
        raise BackendRefused(report.name, report.failed_case or "")
    if backend != "auto":
        exact.set_backend(f"cuda-{backend}" if used == "cuda" else backend)
    return used


def set_up(threads: int) -> None:
    """Threads change speed, never a bit; gradients are this package's own, so autograd records nothing."""
    torch.set_num_threads(max(1, threads))
    torch.set_grad_enabled(False)


def describe(device: str) -> dict[str, str | int]:
    """What decides which kernels run on `device` ("cpu" or "cuda") in this process."""
    facts: dict[str, str | int] = {
        "torch": torch.__version__,
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": device,
    }
    if device == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
    try:
        place = torch.device(device)
        facts |= {"products_by": backend_for(place), "weights_by": family_for(place)}
    except exact.UnknownBackend as error:
        facts["products_by"] = str(error)
    return facts


def _failures(reports: tuple[BackendReport, ...], device: str) -> list[BackendReport]:
    return [report for report in reports if report.device == device and report.failed_case is not None]
