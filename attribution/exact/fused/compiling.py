"""How kernels are compiled: no fast mathematics, no threads of their own. Importing this imports numba (0.4 s of CPU); only kernels do."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeVar, cast

from attribution.exact.fused.kept import folder_in, places

Function = TypeVar("Function", bound=Callable[..., Any])

numba: Any = importlib.import_module("numba")
_binding: Any = importlib.import_module("llvmlite.binding")
FOLDER = folder_in(places())
"""Where machine code is kept; None where nothing can be written."""
if FOLDER is not None:
    numba.config.CACHE_DIR = str(FOLDER)


def features() -> frozenset[str]:
    """Instruction sets that the compiler may use, by LLVM's names: those that were asked for, else the processor's."""
    asked = numba.config.CPU_FEATURES
    if asked is None and numba.config.CPU_NAME is not None:
        return frozenset()
    asked = _binding.get_host_cpu_features().flatten() if asked is None else asked
    return frozenset(name[1:] for name in asked.split(",") if name.startswith("+"))


def kernel(function: Function) -> Function:
    """Compile a function that Python calls; its machine code is kept. The GIL is released while it runs."""
    return cast("Function", compiled(function, FOLDER is not None))


def part(function: Function) -> Function:
    """Compile a function that only kernels call."""
    return cast("Function", compiled(function, False))


def compiled(function: Callable[..., Any], keep: bool) -> Any:
    """The function as machine code, made at its first call or read from where it is kept."""
    # Without `fastmath` LLVM neither reorders floating operations nor contracts a * b + c; numpy's error model divides as IEEE does.
    return numba.njit(cache=keep, nogil=True, error_model="numpy", fastmath=False, parallel=False)(function)
