"""Weights of 7 bits by rows of 14 on a unit for int8 tiles: each 14-bit integer is 128 h + l, and both limbs meet the same tile of weights.

|h| and |l| are at most 64, and so is a weight: a sum of K products stays within int32 for K < 2^19. Sums are joined in binary64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from attribution.exact.fused.amx import (
    CONFIGURATION_BYTES,
    SUMS_AT_ONCE,
    TILE_BYTES,
    TILE_ROWS,
    configure,
    multiply,
    release,
    usable,
)
from attribution.exact.fused.compiling import kernel, part
from attribution.exact.fused.products import PAIRS_7, add_bias, add_low, scale_tile
from attribution.exact.fused.vector import (
    COLUMNS,
    ROWS,
    WIDE_PANELS,
    join_limbs,
    join_limbs_short,
    row_bytes,
    split_limbs,
)

USABLE = usable()
"""Whether these kernels may be called; where not, they are never compiled."""
WIDTH_MAX = 1 << 18
"""Numbers contracted at most."""
SHORT_WIDTH_MAX = 2 * PAIRS_7
"""Numbers whose sum of products stays within int32, limbs joined."""
# Rows whose limbs stay in the second-level cache while every panel passes over them: 96 rows of 2,048 numbers are 384 KiB.
_CHUNK = 96
_PALETTE = 1
_OF_WEIGHTS = 6  # and 7: whatever the rows are, these hold sixteen


def panels_for(columns: int, width: int) -> NDArray[np.int8]:
    """Room for `columns` by `width` weights: panels for `pack_panels`, a multiple of `WIDE_PANELS` of them."""
    panels = WIDE_PANELS * -(-columns // (WIDE_PANELS * COLUMNS))
    return np.empty((panels, -(-width // TILE_BYTES), TILE_ROWS, COLUMNS, 4), np.int8)


def short_range(width: int, scales: NDArray[np.float64]) -> NDArray[np.float64]:
    """(least, most) of a row's power of two for which a sum of `width` products may be rounded before it is scaled, in binary32.

    |sum| < 2^31 is an int32 then, and neither it times that power, nor that times one of `scales`, leaves binary32's normal range.
    """
    if width > SHORT_WIDTH_MAX or not scales.size:
        return np.array([np.inf, 0.0])
    least, most = min(1.0, float(scales.min())), max(1.0, float(scales.max()))
    return np.array([2.0**-126 / least, 2.0**96 / most])


@kernel
def pack_panels(w: Any, panels: Any) -> Any:
    """Weights w (N, K), int8, contracted along K: panels int8 (panels, blocks, 16, 16, 4), zeros beyond."""
    n, k = w.shape
    for p in range(panels.shape[0]):
        for b in range(panels.shape[1]):
            for i in range(TILE_ROWS):
                for j in range(COLUMNS):
                    for part_of in range(4):
                        row, column = p * COLUMNS + j, b * TILE_BYTES + 4 * i + part_of
                        inside = row < n and column < k
                        panels[p, b, i, j, part_of] = w[row, column] if inside else np.int8(0)


@part
def shapes(rows: Any, told: Any) -> Any:
    """The configuration of tiles for up to sixteen rows: eight tiles of 64 bytes a row."""
    for i in range(told.size):
        told[i] = 0
    told[0] = _PALETTE
    for tile in range(8):
        told[16 + 2 * tile] = TILE_BYTES
        told[48 + tile] = rows if tile < _OF_WEIGHTS else TILE_ROWS


@part
def split_rows(q: Any, width: Any, limbs: Any) -> Any:
    """Rows q (M, width or more), int16, as limbs int8 (row tiles, blocks, 2, 16, 64), zeros beyond the width."""
    last = np.zeros(TILE_BYTES, np.int16)
    tile_bytes = TILE_ROWS * TILE_BYTES
    for i in range(q.shape[0]):
        row = q.ctypes.data + i * q.strides[0]
        at = limbs.ctypes.data + (i // TILE_ROWS) * limbs.strides[0] + (i % TILE_ROWS) * TILE_BYTES
        for b in range(limbs.shape[1]):
            start = b * TILE_BYTES
            if start + TILE_BYTES <= width:
                split_limbs(row + 2 * start, at, at + tile_bytes)
            else:
                for j in range(width - start):
                    last[j] = q[i, start + j]
                split_limbs(last.ctypes.data, at, at + tile_bytes)
            at += 2 * tile_bytes


@part
def join_rows(
    sums: Any,
    panel: Any,
    count: Any,
    a_scale: Any,
    row: Any,
    w_scale: Any,
    w_short: Any,
    all_short: Any,
    column: Any,
    last: Any,
    out: Any,
) -> Any:
    """Round `count` rows of one panel's exact sums into out at (row, column), each times its two powers of two first.

    w_short holds w_scale in binary32, for rows that `short_range` lets be rounded at once; `last` (16, 16) is room.
    """
    width = min(COLUMNS, out.shape[1] - column)
    high = sums.ctypes.data + panel * sums.strides[0]
    low = high + 2 * sums.strides[0]
    units, short = w_scale.ctypes.data + 8 * column, w_short.ctypes.data + 4 * column
    at, step = out.ctypes.data + row * out.strides[0] + 4 * column, out.strides[0]
    if width < COLUMNS:
        at, step = last.ctypes.data, 4 * COLUMNS
    for r in range(count):
        unit, ahead = a_scale[row + r], 4 * COLUMNS * r
        if all_short:
            join_limbs_short(high + ahead, low + ahead, np.float32(unit), short, at + r * step)
        else:
            join_limbs(high + ahead, low + ahead, unit, units, at + r * step)
    if width < COLUMNS:
        for r in range(count):
            for j in range(width):
                out[row + r, column + j] = last[r, j]


@part
def all_between(between: Any, scales: Any, start: Any, stop: Any) -> Any:
    """Whether each of these rows' powers of two lies in `between`."""
    least, most = scales[start], scales[start]
    for i in range(start + 1, stop):
        least, most = min(least, scales[i]), max(most, scales[i])
    return between[0] <= least and most <= between[1]


@kernel
def group_limbs(
    a: Any,
    width: Any,
    a_scale: Any,
    w: Any,
    w_scale: Any,
    w_short: Any,
    between: Any,
    bias: Any,
    low: Any,
    out: Any,
) -> Any:
    """`products.group` for 7-bit weights in panels of `pack_panels`: a (M, width or more) int16.

    w_scale and w_short, binary64 and binary32, have a power of two for every column of every panel; `between` is what `short_range` says of them.
    """
    rows, columns = out.shape
    panels, blocks = (columns + COLUMNS - 1) // COLUMNS, w.shape[1]
    height = min(_CHUNK, rows)
    limbs = np.empty(((height + TILE_ROWS - 1) // TILE_ROWS, blocks, 2, TILE_ROWS, TILE_BYTES), np.int8)
    sums = np.empty((SUMS_AT_ONCE, TILE_ROWS, COLUMNS), np.int32)
    told = np.empty(CONFIGURATION_BYTES, np.uint8)
    small, wide = np.empty((ROWS, COLUMNS), np.int32), np.empty((ROWS, COLUMNS), np.float64)
    last = np.empty((TILE_ROWS, COLUMNS), np.float32)
    short = np.empty(limbs.shape[0], np.bool_)
    configured, adapted = 0, low[2].shape[0] > 0
    for start in range(0, rows, _CHUNK):
        stop = min(rows, start + _CHUNK)
        split_rows(a[start:stop], width, limbs)
        for i in range(start, stop, TILE_ROWS):
            short[(i - start) // TILE_ROWS] = all_between(between, a_scale, i, min(stop, i + TILE_ROWS))
        for p in range(0, panels, 2):
            first = w.ctypes.data + p * w.strides[0]
            second = first + w.strides[0] if p + 1 < panels else first
            for i in range(start, stop, TILE_ROWS):
                count = min(TILE_ROWS, stop - i)
                if count != configured:
                    shapes(count, told)
                    configure(told.ctypes.data)
                    configured = count
                tile = (i - start) // TILE_ROWS
                at = limbs.ctypes.data + tile * limbs.strides[0]
                multiply(at, first, second, blocks, sums.ctypes.data)
                for panel in range(min(2, panels - p)):
                    column = (p + panel) * COLUMNS
                    join_rows(
                        sums, panel, count, a_scale, i, w_scale, w_short, short[tile], column, last, out
                    )
                    if bias.size:
                        add_bias(bias, i, count, column, out)
                    if adapted:
                        add_low(low, i, count, p + panel, small, wide, out)
    release()


@kernel
def row_group(
    a: Any,
    width: Any,
    a_scale: Any,
    w: Any,
    w_scale: Any,
    bias: Any,
    low: Any,
    out: Any,
) -> Any:
    """`group_limbs` for one row, without limbs and without the unit, which takes longer to wake up than so little work: at most `SHORT_WIDTH_MAX` wide."""
    columns, fours = out.shape[1], (width + 3) // 4
    row = np.zeros(4 * fours, np.int16)
    for k in range(width):
        row[k] = a[0, k]
    several = np.empty((WIDE_PANELS, COLUMNS), np.int32)
    small, wide = np.empty((ROWS, COLUMNS), np.int32), np.empty((ROWS, COLUMNS), np.float64)
    for p in range((columns + COLUMNS - 1) // COLUMNS):
        if p % WIDE_PANELS == 0:
            at = w.ctypes.data + p * w.strides[0]
            row_bytes(row.ctypes.data, at, w.strides[0], fours, several.ctypes.data)
        first = p * COLUMNS
        within = min(COLUMNS, columns - first)
        scale_tile(several, p % WIDE_PANELS, 1, within, a_scale, 0, w_scale, first, out)
        if bias.size:
            add_bias(bias, 0, 1, first, out)
        if low[2].shape[0] > 0:
            add_low(low, 0, 1, p, small, wide, out)
