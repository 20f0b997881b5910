"""Does this machine compute what every other one computes? Backends against the oracle, then golden hashes.

`openledger selfcheck` shows the result; `attribution.machine.prepare` runs the first part at each start.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from attribution import exact
from attribution.errors import ExactError
from attribution.exact.backends import BackendReport, chosen_backend
from attribution.exact.products import PRODUCTS
from attribution.golden import CASES, Case, Materials, golden_hashes

SPEED_SHAPE = (256, 256, 256)
"""(M, K, N) of the product that is timed."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check: what was computed, by which backend, and whether it is what it must be.

    `backend` is "" where none takes part. `found` and `expected` are hashes in hex ("" where the check compares with the oracle); `problem` says in words what is
    wrong ("" if nothing). `speed` is in `unit`; 0 where the check has none.
    """

    name: str
    backend: str
    problem: str
    found: str
    expected: str
    elapsed_us: int
    speed: float
    unit: str

    @property
    def passed(self) -> bool:
        """Whether the machine did right."""
        return not self.problem


def checks(device: str = "cpu", quick: bool = False) -> Iterator[Check]:
    """Every backend of `device` ("cpu" or "cuda") against the oracle, then each golden case by each backend.

    `quick` leaves out training and the index. The backend in force is the same afterwards; a backend that the oracle
    refuses is not tried on the golden cases. Raises GoldenUnusable, BadModel.
    """
    expected = golden_hashes()
    reports = [r for r in exact.selfcheck(strict=False) if r.device == device]
    for report in reports:
        yield _against_oracle(report)
    usable = [r.name for r in reports if r.failed_case is None and r.name in exact.BACKENDS]
    cases = [case for case in CASES if case.quick or not quick]
    for name in usable:
        # A backend's own: what one made must not be what the next one is given.
        materials = Materials(device)
        for case in cases:
            if case.by_backend:
                yield _against_golden(case, name, materials, expected[case.name])
    for case in cases:
        if not case.by_backend:
            yield _against_golden(case, None, Materials(device), expected[case.name])


def _against_oracle(report: BackendReport) -> Check:
    problem = "" if report.failed_case is None else f"differs from the oracle: {report.failed_case}"
    if report.name.startswith("kernels"):
        problem = problem.replace("the oracle", "the torch paths")
        return Check("kernels = torch paths", "fused", problem, "", "", report.elapsed_us, 0.0, "")
    if report.name not in PRODUCTS:
        return Check("functions = oracle", "", problem, "", "", report.elapsed_us, 0.0, "")
    speed = _gflops(report.name) if not problem else 0.0
    return Check("products = oracle", report.name, problem, "", "", report.elapsed_us, speed, "GFLOP/s")


def _gflops(backend: str) -> float:
    m, k, n = SPEED_SHAPE
    a, b = torch.ones(m, k), torch.ones(k, n)
    exact.matmul(a, b, backend=backend)
    started = time.perf_counter_ns()
    exact.matmul(a, b, backend=backend)
    return 2.0 * m * k * n / max(1, time.perf_counter_ns() - started)


def _against_golden(case: Case, backend: str | None, materials: Materials, expected: str) -> Check:
    before = chosen_backend()
    started = time.perf_counter_ns()
    found, problem = "", ""
    try:
        exact.set_backend(backend)
        found = case.compute(materials)
    except (ExactError, RuntimeError, ValueError) as error:
        # RuntimeError: torch's own, such as a kernel that refuses a shape or a device without memory.
        problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    finally:
        exact.set_backend(before)
    elapsed_us = (time.perf_counter_ns() - started) // 1000
    if not problem and found != expected:
        problem = "the hash differs"
    speed = case.tokens * 1e6 / elapsed_us if case.tokens and elapsed_us else 0.0
    unit = "tokens/s" if speed else ""
    return Check(case.name, backend or "", problem, found, expected, elapsed_us, speed, unit)
