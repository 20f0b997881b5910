"""Factors' second moments, and factors turned by their bases, in one kernel each: what `attribution.whitening.bases` defines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribution.exact.fused.compiling import kernel, part
from attribution.exact.fused.grids import quantise_row
from attribution.exact.fused.layers import array, require
from attribution.exact.fused.products import PAIRS_14, add_tile, clear, pack_across, pack_along, pack_integers
from attribution.exact.fused.vector import COLUMNS, ROWS

Array = NDArray[Any]
_ZERO = np.float32(0.0)


@dataclass(frozen=True, slots=True)
class PackedBases:
    """One factor's bases for `turn`: the narrow one contracted along its rows, the wide one (or none) along its columns.

    Packed int32 (panels, pairs, 16), two 14-bit integers each, and float32 powers of two.
    """

    narrow: Array
    narrow_scale: Array
    wide: Array
    wide_scale: Array

    @classmethod
    def of(cls, narrow: Tensor, wide: Tensor | None) -> PackedBases:
        """Quantise the bases, float32 (rank, rank) and (wide, wide). Raises NotRepresentable."""
        rank, width = len(narrow), 0 if wide is None else len(wide)
        packed, scale = _panels(rank), np.empty(rank, np.float32)
        require(pack_across(array(narrow), packed, 0, 0, scale))
        packed_wide, wide_scale = _panels(width), np.empty(width, np.float32)
        if wide is not None:
            require(pack_along(array(wide), packed_wide, wide_scale))
        return cls(packed, scale, packed_wide, wide_scale)

    def turned(self, gradients: Tensor) -> Tensor:
        """``wide (G narrow)`` of every example's factor, float32 (examples, wide, rank). Raises NotRepresentable."""
        out = torch.empty(gradients.shape)
        require(
            turn(array(gradients), self.narrow, self.narrow_scale, self.wide, self.wide_scale, out.numpy())
        )
        return out


def second_moments(gradient: Tensor, both: bool) -> Tensor:
    """`attribution.whitening.bases.moments` of (examples, wide, rank): int64, of the narrow side, then (`both`) of the wide one."""
    _, wide, rank = gradient.shape
    out = np.empty(rank * rank + (wide * wide if both else 0), np.int64)
    narrow_sums, wide_sums = out[: rank * rank].reshape(rank, rank), out[rank * rank :].reshape(-1, wide)
    require(side_moments(array(gradient), narrow_sums, wide_sums))
    return torch.from_numpy(out)


def _panels(size: int) -> Array:
    return np.zeros((-(-size // COLUMNS), (size + 1) // 2, COLUMNS), np.int32)


@part
def squared(rows: Any, out: Any) -> Any:
    """Rows times their transpose: int16 (N, K) with an even K, int64 (N, N); |sums| <= 2^53."""
    size = rows.shape[0]
    packed = np.empty(((size + COLUMNS - 1) // COLUMNS, rows.shape[1] // 2, COLUMNS), np.int32)
    sums, total = np.empty((ROWS, COLUMNS), np.int32), np.empty((ROWS, COLUMNS), np.float64)
    pack_integers(rows, packed)
    for p in range(packed.shape[0]):
        panel, first = packed.ctypes.data + p * packed.strides[0], p * COLUMNS
        # The rest is the same numbers, mirrored.
        for start in range(first, size, ROWS):
            few = min(ROWS, size - start)
            clear(total)
            at = rows.ctypes.data + start * rows.strides[0]
            add_tile(few, at, rows.strides[0], panel, packed.shape[1], PAIRS_14, sums, total)
            for i in range(few):
                for j in range(min(COLUMNS, size - first)):
                    found = np.int64(total[i, j])
                    out[start + i, first + j] = found
                    out[first + j, start + i] = found


@kernel
def side_moments(g: Any, narrow: Any, wide: Any) -> Any:
    """Second moments of factors g (examples, W, R), each quantised as one row: int64 narrow (R, R), and wide (W, W) unless it is empty."""
    examples, width, ranks = g.shape
    tall = np.zeros((width, examples * ranks + examples * ranks % 2), np.int16)
    thin = np.zeros((ranks, examples * width + examples * width % 2), np.int16)
    flat = np.empty(width * ranks, np.int16)
    for e in range(examples):
        if quantise_row(g[e].reshape(width * ranks), flat) < 0:
            return False
        for w in range(width):
            for r in range(ranks):
                value = flat[w * ranks + r]
                tall[w, e * ranks + r] = value
                thin[r, e * width + w] = value
    squared(thin, narrow)
    if wide.shape[0] > 0:
        squared(tall, wide)
    return True


@kernel
def turn(g: Any, narrow: Any, narrow_scale: Any, wide: Any, wide_scale: Any, out: Any) -> Any:
    """Factors g (examples, W, R) times a narrow base, then a wide one (no panels: none) times that, to out; False if a row has no form.

    Each product is fl32(sum), then times the row's power of two and the column's, in binary32 each, without negative zeros.
    """
    examples, width, ranks = g.shape
    q, unit = np.empty((width, 2 * narrow.shape[1]), np.int16), np.empty(width, np.float32)
    sums, total = np.empty((ROWS, COLUMNS), np.int32), np.empty((ROWS, COLUMNS), np.float64)
    # Rank by rank, so that the second contraction runs along rows.
    half = np.empty((examples * ranks, width), np.float32)
    for e in range(examples):
        for w in range(width):
            unit[w] = quantise_row(g[e, w], q[w])
            if unit[w] < 0:
                return False
        for start in range(0, width, ROWS):
            few = min(ROWS, width - start)
            at, step = q.ctypes.data + start * q.strides[0], q.strides[0]
            for p in range(narrow.shape[0]):
                clear(total)
                panel = narrow.ctypes.data + p * narrow.strides[0]
                add_tile(few, at, step, panel, narrow.shape[1], PAIRS_14, sums, total)
                for j in range(min(COLUMNS, ranks - p * COLUMNS)):
                    r = p * COLUMNS + j
                    for i in range(few):
                        rounded = np.float32(total[i, j]) * unit[start + i] * narrow_scale[r]
                        half[e * ranks + r, start + i] = rounded + _ZERO
    if wide.shape[0] == 0:
        for e in range(examples):
            for w in range(width):
                for r in range(ranks):
                    out[e, w, r] = half[e * ranks + r, w]
        return True
    rows = examples * ranks
    tall, grids = np.empty((rows, 2 * wide.shape[1]), np.int16), np.empty(rows, np.float32)
    for k in range(rows):
        grids[k] = quantise_row(half[k], tall[k])
        if grids[k] < 0:
            return False
    for p in range(wide.shape[0]):
        panel = wide.ctypes.data + p * wide.strides[0]
        for start in range(0, rows, ROWS):
            few = min(ROWS, rows - start)
            clear(total)
            at = tall.ctypes.data + start * tall.strides[0]
            add_tile(few, at, tall.strides[0], panel, wide.shape[1], PAIRS_14, sums, total)
            for i in range(few):
                e, r = (start + i) // ranks, (start + i) % ranks
                for j in range(min(COLUMNS, width - p * COLUMNS)):
                    w = p * COLUMNS + j
                    rounded = np.float32(total[i, j]) * grids[start + i] * wide_scale[w]
                    out[e, w, r] = rounded + _ZERO
    return True
