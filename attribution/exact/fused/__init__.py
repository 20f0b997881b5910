"""Fused kernels for CPUs: the same numbers in fewer passes, by 16-bit integer products and loops compiled with numba.

numba is optional, and so are its kernels where it is: `python -m attribution.exact.fused` compiles them once (half a minute of CPU) and
holds them against the torch paths; from then on processes of this machine use them. Anywhere else the torch paths give the same bytes, and
numba is not even imported: no start ever waits for a compiler. docs/exact-arithmetic.md, section 12, says why each kernel is exact.
"""

from __future__ import annotations

from attribution.exact.fused.kept import INSTALLED, ready

__all__ = ["INSTALLED", "ready"]
