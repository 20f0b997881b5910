"""Which exact ways of multiplying this machine may use, and the check that admits them.

The choice changes speed, never a bit. A backend that disagrees with the integer oracle on the probe below
is left out of BACKENDS, so that nobody is ever penalised for a kernel's bug.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attribution.errors import BackendRefused, UnknownBackend
from attribution.exact import elementary, fused
from attribution.exact.oracle import oracle_matmul
from attribution.exact.oracle_functions import (
    oracle_cos_sin,
    oracle_exp,
    oracle_fsum,
    oracle_log,
    oracle_sigmoid,
    oracle_sqrt,
    oracle_squares,
)
from attribution.exact.products import PRODUCTS, matmul_with
from attribution.exact.random import uniform_floats, uniform_integers
from attribution.exact.reductions import fsum, sum_of_squares


@dataclass(frozen=True, slots=True)
class BackendReport:
    """What `selfcheck` saw of one backend: the first case it got wrong (None: all right) and the time taken.

    `name` is a backend's, or "functions on <device>"; `device` is "cpu" or "cuda".
    """

    name: str
    device: str
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
        # Below 2^-126: a machine that flushes subnormal results to zero fails here and nowhere else.
        ("underflow", torch.full((1, 3), 3.0 * 2.0**-75), torch.full((3, 1), 5.0 * 2.0**-68)),
        ("vectors", _random("row", 1, 65), _random("column", 65, 1)),
    ]


def selfcheck(names: tuple[str, ...] | None = None, strict: bool = True) -> tuple[BackendReport, ...]:
    """Hold each named backend against the integer oracle; without names all that this machine could have, and the functions.

    Raises BackendRefused for the first one that is wrong, unless `strict` is False.
    """
    cases = [(case, a, b, oracle_matmul(a, b)) for case, a, b in probe_cases()]
    reports = []
    for name in names if names is not None else _candidates():
        reports.append(_check(name, cases))
    if names is None:
        reports.extend(_check_functions(device) for device in devices())
        if "fused" in BACKENDS:
            reports.append(_check_kernels())
    for report in reports:
        if strict and report.failed_case is not None:
            raise BackendRefused(report.name, report.failed_case)
    return tuple(reports)


def _check(name: str, cases: list[tuple[str, Tensor, Tensor, Tensor]]) -> BackendReport:
    if name not in PRODUCTS:
        raise UnknownBackend(name, BACKENDS)
    started = time.perf_counter_ns()
    failed = None
    for case, a, b, truth in cases:
        try:
            right = torch.equal(matmul_with(name, a, b).cpu().view(torch.int32), truth.view(torch.int32))
        except Exception:
            # A kernel that is missing, refuses these shapes or cannot be compiled here: as unusable as a wrong one.
            right = False
        if not right:
            failed = case
            break
    return BackendReport(name, PRODUCTS[name][0], failed, (time.perf_counter_ns() - started) // 1000)


def function_cases() -> list[tuple[str, Callable[[Tensor], Tensor], Tensor, list[float]]]:
    """(name, function, arguments on the CPU, what plain numbers give): random ones, edges and subnormals."""
    x = torch.from_numpy(uniform_floats(0, "selfcheck functions", 300)) * 40.0
    x = torch.cat([x, torch.tensor([0.0, -0.0, 80.0, -80.0, 1e30, -1e30, 0.5, -0.5])])
    positive = torch.cat([x.abs() + 2.0**-20, torch.tensor([2.0**-126, 2.0**100, 1.4142135, 1.4142137])])
    roots = torch.cat([positive, torch.tensor([0.0, 2.0**-149, 3.0 * 2.0**-149, 1.0 - 2.0**-24])])
    wide = x.clamp(-2e4, 2e4).double() * 17.0
    rows = torch.cat([x[:296].view(8, 37), x[:296].view(8, 37) * 2.0**-120, torch.full((1, 37), 2.0e30)])
    numbers, angles, lists = x.tolist(), [oracle_cos_sin(v) for v in wide.tolist()], rows.tolist()
    return [
        ("exp", elementary.exp, x, [oracle_exp(v) for v in numbers]),
        ("sigmoid", elementary.sigmoid, x, [oracle_sigmoid(v) for v in numbers]),
        ("sqrt", elementary.sqrt, roots, [oracle_sqrt(v) for v in roots.tolist()]),
        ("log", elementary.log, positive.double(), [oracle_log(v) for v in positive.tolist()]),
        ("cos", lambda a: elementary.cos_sin(a)[0], wide, [cos for cos, _ in angles]),
        ("sin", lambda a: elementary.cos_sin(a)[1], wide, [sin for _, sin in angles]),
        ("fsum", lambda a: fsum(a)[:, 0], rows, [oracle_fsum(v) for v in lists]),
        ("squares", lambda a: sum_of_squares(a)[:, 0], rows, [oracle_squares(v) for v in lists]),
    ]


def _check_functions(device: str) -> BackendReport:
    started = time.perf_counter_ns()
    failed = None
    for case, function, arguments, truth in function_cases():
        found = function(arguments.to(device)).cpu().double()
        if not torch.equal(found, torch.tensor(truth, dtype=torch.float64)):
            failed = case
            break
    return BackendReport(f"functions on {device}", device, failed, (time.perf_counter_ns() - started) // 1000)


def _check_kernels() -> BackendReport:
    """Every fused kernel against the torch path, which the other checks hold against plain integers."""
    from attribution.exact.fused import probe

    started, before = time.perf_counter_ns(), _chosen
    try:
        failed = probe.first_difference(set_backend, "fp64" if "fp64" in BACKENDS else "fp32")
    finally:
        set_backend(before)
    return BackendReport("kernels on cpu", "cpu", failed, (time.perf_counter_ns() - started) // 1000)


def _random(label: str, rows: int, columns: int) -> Tensor:
    q = uniform_integers(0, f"selfcheck {label}", rows * columns, 1 << 15).astype("float32") - 16384.0
    e = uniform_integers(0, f"selfcheck {label} exponent", rows * columns, 8).astype("float32")
    return (torch.from_numpy(q) * torch.from_numpy(2.0**-e)).view(rows, columns)


def _candidates() -> tuple[str, ...]:
    there = (name for name, (device, _) in PRODUCTS.items() if device in devices())
    return tuple(name for name in there if name != "fused" or fused.ready())


def devices() -> tuple[str, ...]:
    """Kinds of devices that this machine can use."""
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


BACKENDS: tuple[str, ...] = ()
BACKENDS = tuple(r.name for r in selfcheck(_candidates(), strict=False) if r.failed_case is None)
_chosen: str | None = None
# Of products by weights of 7 bits, on a CPU.
_BY_SPEED = ("fused", "fp32")


def set_backend(name: str | None) -> None:
    """Choose the backend of this process (None: the default for each device). Raises UnknownBackend."""
    global _chosen
    if name is not None and name not in BACKENDS:
        raise UnknownBackend(name, BACKENDS)
    _chosen = name


def chosen_backend() -> str | None:
    """What `set_backend` was told last."""
    return _chosen


def backend_for(device: torch.device) -> str:
    """The backend in force for tensors on `device`."""
    return _default(device) if _chosen is None else _chosen


def _default(device: torch.device) -> str:
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


def fused_serves(x: Tensor) -> bool:
    """Whether fused kernels are the way in force where x lies."""
    return family_for(x.device) == "fused"


def family_for(device: torch.device) -> str:
    """How products by frozen 7-bit weights are computed on `device`: "fused" (and all that lies between them), "fp32", "fp64" or "int8".

    A backend chosen for another device does not count: binary32 parts on CUDA, say, could run as TF32, which no check
    of the CPU's kernels has seen. Measured on a Zen 3 core at width 128: binary32 parts 90 GFLOP/s, binary64 42, int8
    without VNNI 3.
    """
    if _chosen is not None and PRODUCTS[_chosen][0] == device.type:
        return _chosen.removeprefix("cuda-")
    if device.type == "cpu":
        for name in _BY_SPEED:
            if name in BACKENDS:
                return name
    return _default(device).removeprefix("cuda-")
