"""What the tests of the fused kernels share: the two ways side by side, and numbers that reach the ends of the range."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from attribution import exact
from attribution.exact import fused
from attribution.exact.backends import BACKENDS
from attribution.exact.random import uniform_floats

needs_kernels = pytest.mark.skipif(
    "fused" not in BACKENDS, reason="no kernels: numba, and `python -m attribution.exact.fused`"
)
PLAIN = "fp64"

assert fused.INSTALLED or "fused" not in BACKENDS


def bits(x: Tensor) -> Tensor:
    return (x + 0.0).contiguous().view(torch.int32) if x.dtype == torch.float32 else x


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(bits(a), bits(b))


def outcome(backend: str, compute: Callable[[], list[Tensor]]) -> list[Tensor] | str:
    """What `compute` gives by a backend, or the name of its refusal."""
    exact.set_backend(backend)
    try:
        return compute()
    except exact.NotRepresentable as refusal:
        return type(refusal).__name__
    finally:
        exact.set_backend(None)


def agree(compute: Callable[[], list[Tensor]]) -> bool:
    """Whether the fused kernels and the torch path give the same bits, or both refuse."""
    plain, found = outcome(PLAIN, compute), outcome("fused", compute)
    if isinstance(plain, str) or isinstance(found, str):
        return plain == found
    return len(plain) == len(found) and all(same(a, b) for a, b in zip(plain, found, strict=True))


def drawn(seed: int, label: str, *shape: int) -> Tensor:
    """Floats in (-1, 1)."""
    size = 1
    for n in shape:
        size *= n
    return torch.from_numpy(uniform_floats(seed, label, size)).view(shape)


def scaled(x: Tensor, powers: list[int]) -> Tensor:
    """x, its rows (the first axis) times powers of two taken in turn."""
    rows = [powers[i % len(powers)] for i in range(x.shape[0])]
    factor = torch.tensor([2.0**e for e in rows], dtype=torch.float64).float()
    return x * factor.view(-1, *[1] * (x.dim() - 1))


POWERS = st.lists(
    st.integers(-12, 12)
    | st.sampled_from([-149, -140, -126, -113, -100, -99, -70, 40, 63, 80, 99, 100, 101, 127]),
    min_size=1,
    max_size=6,
)
"""Exponents of rows: mostly of everyday size, and the edges of what is representable."""
EVERYDAY = st.lists(st.integers(-9, 9), min_size=1, max_size=5)
