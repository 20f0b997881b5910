"""Which exact ways of multiplying this machine may use, and the check that admits them.

The choice changes speed, never a bit. A backend that disagrees with the integer oracle on the probe below
is left out of BACKENDS, so that nobody is ever penalised for a kernel's bug.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from attribution.errors import BackendRefused, UnknownBackend
from attribution.exact.oracle import oracle_matmul
from attribution.exact.products import PRODUCTS, matmul_with
from attribution.exact.random import uniform_integers


@dataclass(frozen=True, slots=True)
class BackendReport:
    """What `selfcheck` saw of one backend: the first case it got wrong (None: all right) and the time taken."""

    name: str
    failed_case: str | None
    elapsed_us: int


def probe_cases() -> list[tuple[str, Tensor, Tensor]]:
    """Small operands with the extremes: full-range limbs, one sign, subnormals, huge and zero rows, odd shapes."""
    full = torch.full((17, 300), 8191.0)
    same_sign = torch.cat([full, -full, full * 2.0**-113, torch.zeros(1, 300)])
    limb_edge = torch.tensor([64.0, -64.0, 63.0, -65.0, 8128.0, -8128.0, 8191.0, -8191.0]).repeat(33)
    return [
        ("same sign", same_sign[::7].contiguous(), full.t()[:, :3].contiguous()),
        ("limb edges", limb_edge.view(2, 132), limb_edge.view(2, 132).flip(0).t().contiguous()),
        ("random", _random("left", 3, 131), _random("right", 131, 5)),
        ("subnormal", torch.full((2, 9), 2.0**-149) * 3.0, _random("scale", 9, 2)),
        ("huge", torch.full((1, 8), 2.0**100), torch.full((8, 2), 1.5 * 2.0**20)),
        ("vectors", _random("row", 1, 65), _random("column", 65, 1)),
    ]


def selfcheck(names: tuple[str, ...] | None = None, strict: bool = True) -> tuple[BackendReport, ...]:
    """Hold each named backend (all that this machine could have) against the integer oracle.

    Raises BackendRefused for the first one that is wrong, unless `strict` is False.
    """
    cases = [(case, a, b, oracle_matmul(a, b)) for case, a, b in probe_cases()]
    reports = []
    for name in names if names is not None else _candidates():
        report = _check(name, cases)
        if strict and report.failed_case is not None:
            raise BackendRefused(name, report.failed_case)
        reports.append(report)
    return tuple(reports)


def _check(name: str, cases: list[tuple[str, Tensor, Tensor, Tensor]]) -> BackendReport:
    if name not in PRODUCTS:
        raise UnknownBackend(name, BACKENDS)
    started = time.perf_counter_ns()
    failed = None
    for case, a, b, truth in cases:
        try:
            right = torch.equal(matmul_with(name, a, b).cpu().view(torch.int32), truth.view(torch.int32))
        except RuntimeError:
            # A kernel that is missing or refuses these shapes here: as unusable as a wrong one.
            right = False
        if not right:
            failed = case
            break
    return BackendReport(name, failed, (time.perf_counter_ns() - started) // 1000)


def _random(label: str, rows: int, columns: int) -> Tensor:
    q = uniform_integers(0, f"selfcheck {label}", rows * columns, 1 << 15).astype("float32") - 16384.0
    e = uniform_integers(0, f"selfcheck {label} exponent", rows * columns, 8).astype("float32")
    return (torch.from_numpy(q) * torch.from_numpy(2.0**-e)).view(rows, columns)


def _candidates() -> tuple[str, ...]:
    cuda = torch.cuda.is_available()
    return tuple(name for name, (device, _) in PRODUCTS.items() if device == "cpu" or cuda)


BACKENDS: tuple[str, ...] = ()
BACKENDS = tuple(r.name for r in selfcheck(strict=False) if r.failed_case is None)
_chosen: str | None = None


def set_backend(name: str | None) -> None:
    """Choose the backend of this process (None: the default for each device). Raises UnknownBackend."""
    global _chosen
    if name is not None and name not in BACKENDS:
        raise UnknownBackend(name, BACKENDS)
    _chosen = name


def backend_for(device: torch.device) -> str:
    """The backend in force for tensors on `device`."""
    if _chosen is not None:
        return _chosen
    order = ("cuda-int8", "cuda-fp64") if device.type == "cuda" else ("fp64", "fp32", "int8")
    for name in order:
        if name in BACKENDS:
            return name
    raise UnknownBackend(f"default for {device.type}", BACKENDS)


def matmul(a: Tensor, b: Tensor, backend: str | None = None) -> Tensor:
    """Exact product of a (M, K) and b (K, N), float32, as float32 (M, N) on a's device.

    a is quantised by row, b by column (14 bits); every backend gives the same bits; no negative zeros. M, K and
    N may be 0 or 1. Raises NotRepresentable (see `quantise`), ShapeMismatch, UnknownBackend.
    """
    name = backend if backend is not None else backend_for(a.device)
    if name not in BACKENDS:
        raise UnknownBackend(name, BACKENDS)
    return matmul_with(name, a, b)


def family_for(device: torch.device) -> str:
    """How products by frozen 7-bit weights are computed on `device`: "fp32", "fp64" or "int8".

    Measured on a Zen 3 core at width 128: binary32 parts 90 GFLOP/s, binary64 42, int8 without VNNI below 3.
    """
    if _chosen is not None:
        return _chosen.removeprefix("cuda-")
    if device.type == "cpu" and "fp32" in BACKENDS:
        return "fp32"
    return backend_for(device).removeprefix("cuda-")
