"""Weights of 7 bits on a unit for int8 tiles: the bits of exact integers at every size around a tile, at both ends of the range, or not used at all."""

from __future__ import annotations

import ctypes
import platform
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from attribution.exact.backends import BACKENDS
from attribution.exact.random import uniform_integers

if "fused" not in BACKENDS:
    pytest.skip("no kernels: numba, and `python -m attribution.exact.fused`", allow_module_level=True)

from attribution.exact.fused import amx, limbs
from attribution.exact.fused.compiling import numba
from attribution.exact.fused.layers import LimbWeights, Rows, Weights

needs_unit = pytest.mark.skipif(not limbs.USABLE, reason="no unit for int8 tiles (AMX)")
TOP, W_TOP = 8192, 64


def integers(label: str, rows: int, columns: int, top: int) -> NDArray[np.int64]:
    """Whole numbers up to `top` in magnitude, every third of them one of the two ends."""
    drawn = uniform_integers(0, f"limbs {label}", rows * columns, 2 * top + 1).astype(np.int64) - top
    drawn[::3] = np.where(drawn[::3] < 0, -top, top)
    return drawn.reshape(rows, columns)


def product(
    q: NDArray[np.int64], w: NDArray[np.int64], row_powers: NDArray[Any], powers: NDArray[Any]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(found, expected) of rows times weights with exponents: the second by 64-bit integers and one conversion."""
    kept = torch.from_numpy(w).to(torch.int8)
    made = Weights.of(kept, torch.from_numpy(np.ldexp(1.0, powers)), None)
    assert isinstance(made, LimbWeights)
    scale = torch.from_numpy(np.ldexp(1.0, row_powers)).view(-1, 1)
    rows = Rows.taken(torch.from_numpy(q).float(), scale)
    found = made.times(rows, None, torch.empty(q.shape[0], w.shape[0])).numpy()
    exact = (q @ w.T).astype(np.float64) * np.ldexp(1.0, row_powers)[:, None] * np.ldexp(1.0, powers)
    with np.errstate(over="ignore"):
        return found, exact.astype(np.float32)


@needs_unit
@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 95, 96, 97, 200])
@pytest.mark.parametrize("columns", [1, 15, 16, 17, 33, 64, 65, 97])
def test_every_size_around_a_tile_gives_the_exact_sums_rounded_once(rows: int, columns: int) -> None:
    for width in (1, 3, 4, 63, 64, 65, 130):
        q, w = integers("rows", rows, width, TOP), integers("weights", columns, width, W_TOP)
        powers = np.arange(columns) % 12 - 9
        found, expected = product(q, w, np.arange(rows) % 7 - 5, powers)
        assert np.array_equal(found, expected), width


@needs_unit
@pytest.mark.parametrize("width", [4094, 4095, 4096, 9000])
@pytest.mark.parametrize("rows", [1, 3])
def test_sums_of_one_sign_up_to_and_beyond_int32_are_exact(width: int, rows: int) -> None:
    for sign in (1, -1):
        q = np.full((rows, width), TOP)
        w = np.full((2, width), sign * W_TOP)
        found, expected = product(q, w, np.zeros(rows, np.int64), np.zeros(2, np.int64))
        assert np.array_equal(found, expected)


@needs_unit
def test_rows_are_rounded_before_they_are_scaled_only_where_that_is_one_rounding() -> None:
    """A sum of 31 bits, and small ones, with every power of two a row can have, by the least and the largest of weights."""
    q = np.vstack([np.full((1, 4094), TOP), integers("edges", 3, 4094, TOP)])
    q[1, 1:] = 0  # one product: subnormal at the lower end, where rounding comes after scaling
    w = integers("edge weights", 4, 4094, W_TOP)
    w[0] = W_TOP
    powers = np.array([-37, 8, -37, 8])
    for row_power in [*range(-112, -70), *range(78, 100)]:
        found, expected = product(q, w, np.full(4, row_power), powers)
        assert np.array_equal(found, expected), row_power


@needs_unit
def test_weights_too_wide_for_the_unit_take_the_other_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limbs, "WIDTH_MAX", 20)
    for width, kind in ((20, LimbWeights), (21, Weights)):
        kept = torch.ones(3, width, dtype=torch.int8)
        assert type(Weights.of(kept, None, None)) is kind


def test_without_the_unit_and_for_14_bits_the_other_kernels_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(Weights.of(torch.ones(3, 5, dtype=torch.int16), None, None)) is Weights
    monkeypatch.setattr(limbs, "USABLE", False)
    assert type(Weights.of(torch.ones(3, 5, dtype=torch.int8), None, None)) is Weights


def test_the_unit_is_used_where_compiler_and_system_both_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(numba.config, "CPU_FEATURES", "+avx2,+amx-int8,+amx-tile")
    asked: list[tuple[int, ...]] = []

    def system(answer: int) -> Any:
        def syscall(*arguments: int) -> int:
            asked.append(arguments)
            return answer

        return lambda name: SimpleNamespace(syscall=syscall)

    monkeypatch.setattr(ctypes, "CDLL", system(0))
    assert amx.usable()
    monkeypatch.setattr(ctypes, "CDLL", system(-1))
    assert not amx.usable()
    assert asked == [(158, 0x1023, 18)] * 2
    monkeypatch.setattr(ctypes, "CDLL", system(0))
    monkeypatch.setattr(numba.config, "CPU_FEATURES", "+avx2,-amx-int8,+amx-tile")
    assert not amx.usable()
    monkeypatch.setattr(numba.config, "CPU_FEATURES", "+amx-int8,+amx-tile")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert not amx.usable()
    assert len(asked) == 2
