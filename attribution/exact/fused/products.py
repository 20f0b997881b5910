"""Exact products of 16-bit integers: operands in panels of sixteen columns, sums in int32 while they fit, then in binary64."""

from __future__ import annotations

from typing import Any

import numpy as np

from attribution.exact.fused.compiling import kernel, part
from attribution.exact.fused.grids import LIMIT_BITS, grid, largest_bits, quantise_row
from attribution.exact.fused.vector import (
    COLUMNS,
    ROWS,
    WIDE_PANELS,
    add_row_pairs,
    magnitude,
    nearest32,
    pair_of,
    row_tile,
    tile1,
    tile2,
    tile4,
    tile6,
)

PAIRS_7 = 2047
"""Pairs of a 14-bit and a 7-bit factor whose sum stays within int32: 2 * 2^13 * 2^6 * 2047 < 2^31."""
PAIRS_14 = 15
"""Pairs of two 14-bit factors whose sum stays within int32: 2 * 2^13 * 2^13 * 15 < 2^31."""
# Rows whose quantised form stays in the second-level cache while every panel passes over them: 96 rows of 2,048 numbers are 384 KiB.
_CHUNK = 96
# Rows that are quantised side by side.
_TOGETHER = 8
_ONE = np.float32(1.0)


@part
def tile(rows: Any, a: Any, a_step: Any, b: Any, pairs: Any, out: Any) -> Any:
    """`rows` (1..6) by 16 integer sums at address `out`; fewer than six in the parts that were compiled."""
    done = 0
    while done < rows:
        left = rows - done
        where, there = a + done * a_step, out + 64 * done
        if left == 6:
            tile6(where, a_step, b, 0, pairs, there)
            done += 6
        elif left >= 4:
            tile4(where, a_step, b, 0, pairs, there)
            done += 4
        elif left >= 2:
            tile2(where, a_step, b, 0, pairs, there)
            done += 2
        else:
            tile1(where, a_step, b, 0, pairs, there)
            done += 1


@part
def clear(wide: Any) -> Any:
    """Zeros everywhere."""
    for i in range(wide.shape[0]):
        for j in range(wide.shape[1]):
            wide[i, j] = 0.0


@part
def add_tile(rows: Any, a: Any, a_step: Any, b: Any, pairs: Any, longest: Any, sums: Any, wide: Any) -> Any:
    """Add exact sums to binary64 `wide` (6, 16): at most `longest` pairs at a time in int32."""
    done = 0
    while done < pairs:
        count = min(longest, pairs - done)
        tile(rows, a + 4 * done, a_step, b + 64 * done, count, sums.ctypes.data)
        for i in range(rows):
            for j in range(COLUMNS):
                wide[i, j] += np.float64(sums[i, j])
        done += count


@kernel
def quantise_rows(x: Any, q: Any, scale: Any) -> Any:
    """X (M, K) to int16 q (M, K or more) and binary64 2^e (M); False if a row has no such form.

    As `quantise_row`, a few rows at a time: all their powers of two first, so that no row waits for its own.
    """
    rows, width = x.shape
    for start in range(0, rows, _TOGETHER):
        stop = min(rows, start + _TOGETHER)
        for i in range(start, stop):
            top = largest_bits(x[i])
            if top >= LIMIT_BITS:
                return False
            scale[i] = grid(top)
        for i in range(start, stop):
            inverse = _ONE / np.float32(scale[i])
            for j in range(width):
                q[i, j] = np.int16(nearest32(x[i, j] * inverse))
            for j in range(width, q.shape[1]):
                q[i, j] = 0
    return True


@kernel
def quantise_scaled(x: Any, factor: Any, q: Any, scale: Any) -> Any:
    """`quantise_rows` of x * factor, factor (K): one rounding of each product first."""
    row = np.empty(x.shape[1], np.float32)
    for i in range(x.shape[0]):
        for j in range(row.size):
            row[j] = x[i, j] * factor[j]
        unit = quantise_row(row, q[i])
        if unit < 0:
            return False
        scale[i] = unit
    return True


@kernel
def quantise_blocks(u: Any, factor: Any, h: Any, q: Any, scale: Any) -> Any:
    """H = u * factor for u (M, blocks * r), then each block of h quantised alone: q (M, blocks, r or more), scale (M, blocks)."""
    rank = u.shape[1] // q.shape[1]
    for i in range(u.shape[0]):
        for j in range(u.shape[1]):
            h[i, j] = u[i, j] * factor
        for k in range(q.shape[1]):
            unit = quantise_row(h[i, k * rank : (k + 1) * rank], q[i, k])
            if unit < 0:
                return False
            scale[i, k] = unit
    return True


@kernel
def pack_integers(w: Any, packed: Any) -> Any:
    """Integers w (N, K), int16, as an operand contracted along K: packed (panels, pairs, 16) int32, zeros beyond."""
    n, k = w.shape
    for p in range(packed.shape[0]):
        for i in range(packed.shape[1]):
            for j in range(COLUMNS):
                row = p * COLUMNS + j
                low = np.int32(w[row, 2 * i]) if row < n and 2 * i < k else np.int32(0)
                high = np.int32(w[row, 2 * i + 1]) if row < n and 2 * i + 1 < k else np.int32(0)
                packed[p, i, j] = np.int32((low & 0xFFFF) | (high << 16))


@kernel
def pack_along(w: Any, packed: Any, scale: Any) -> Any:
    """Numbers w (N, K) quantised along K, one exponent for each of N: an operand contracted along K."""
    q = np.empty(2 * packed.shape[1], np.int16)
    for row in range(w.shape[0]):
        unit = quantise_row(w[row], q)
        if unit < 0:
            return False
        scale[row] = unit
        for i in range(packed.shape[1]):
            low, high = np.int32(q[2 * i]), np.int32(q[2 * i + 1])
            packed[row // COLUMNS, i, row % COLUMNS] = np.int32((low & 0xFFFF) | (high << 16))
    return True


@part
def columns_largest(w: Any, top: Any) -> Any:
    """Bits of the largest magnitude of each column of w (K, N) into top (N)."""
    for j in range(top.size):
        top[j] = 0
    for k in range(w.shape[0]):
        for j in range(w.shape[1]):
            top[j] = max(top[j], magnitude(w[k, j]))


@kernel
def pack_across(w: Any, packed: Any, first: Any, column: Any, scale: Any) -> Any:
    """Numbers w (K, N) quantised along K, one exponent for each column: contracted along K, from pair `first` and `column` on."""
    k, n = w.shape
    top = np.empty(n, np.int32)
    inverse = np.empty(n, np.float32)
    columns_largest(w, top)
    for j in range(n):
        if top[j] >= LIMIT_BITS:
            return False
        unit = grid(top[j])
        scale[column + j] = unit
        inverse[j] = _ONE / unit
    none = np.float32(0.0)
    for i in range((k + 1) // 2):
        for j in range(n):
            low = nearest32(w[2 * i, j] * inverse[j])
            high = nearest32(w[2 * i + 1, j] * inverse[j]) if 2 * i + 1 < k else none
            packed[(column + j) // COLUMNS, first + i, (column + j) % COLUMNS] = pair_of(low, high)
    return True


@kernel
def pack_rows(q: Any, columns: Any, packed: Any) -> Any:
    """Integers q (K, columns or more), int16, as an operand contracted along K."""
    k = q.shape[0]
    for p in range(packed.shape[0]):
        width = min(COLUMNS, columns - p * COLUMNS)
        for i in range(packed.shape[1]):
            for j in range(COLUMNS):
                column = p * COLUMNS + j
                low = np.int32(q[2 * i, column]) if j < width and 2 * i < k else np.int32(0)
                high = np.int32(q[2 * i + 1, column]) if j < width and 2 * i + 1 < k else np.int32(0)
                packed[p, i, j] = np.int32((low & 0xFFFF) | (high << 16))


@kernel
def product(a: Any, a_first: Any, a_scale: Any, b: Any, b_scale: Any, out: Any, out_first: Any) -> Any:
    """fl32(sum * a_scale * b_scale) of 14-bit operands, b (panels, pairs, 16), into columns of out from `out_first` on.

    Each row of a, int16, is read from column `a_first` on, for as many pairs as b has.
    """
    rows, columns, step = a.shape[0], b_scale.size, a.strides[0]
    sums, wide = np.empty((ROWS, COLUMNS), np.int32), np.empty((ROWS, COLUMNS), np.float64)
    for i in range(0, rows, ROWS):
        count = min(ROWS, rows - i)
        for p in range(b.shape[0]):
            clear(wide)
            where = a.ctypes.data + i * step + 2 * a_first
            add_tile(count, where, step, b.ctypes.data + p * b.strides[0], b.shape[1], PAIRS_14, sums, wide)
            for r in range(count):
                for j in range(min(COLUMNS, columns - p * COLUMNS)):
                    column = p * COLUMNS + j
                    out[i + r, out_first + column] = np.float32(wide[r, j] * a_scale[i + r] * b_scale[column])


@kernel
def integer_product(a: Any, b: Any, columns: Any, out: Any) -> Any:
    """Exact sums of 14-bit operands as binary64: a (M, K) int16 with an even K, b (panels, K / 2, 16)."""
    rows, step = a.shape[0], a.strides[0]
    sums, wide = np.empty((ROWS, COLUMNS), np.int32), np.empty((ROWS, COLUMNS), np.float64)
    for i in range(0, rows, ROWS):
        count = min(ROWS, rows - i)
        for p in range(b.shape[0]):
            clear(wide)
            where = a.ctypes.data + i * step
            add_tile(count, where, step, b.ctypes.data + p * b.strides[0], b.shape[1], PAIRS_14, sums, wide)
            for r in range(count):
                for j in range(min(COLUMNS, columns - p * COLUMNS)):
                    out[i + r, p * COLUMNS + j] = wide[r, j]


@part
def scale_tile(
    sums: Any,
    top: Any,
    count: Any,
    width: Any,
    a_scale: Any,
    row: Any,
    w_scale: Any,
    column: Any,
    out: Any,
) -> Any:
    """Round `count` rows of exact sums, from row `top` on, into out at (row, column), each times its two powers of two first."""
    for r in range(count):
        unit = a_scale[row + r]
        if width == COLUMNS:
            for j in range(COLUMNS):
                out[row + r, column + j] = np.float32(
                    np.float64(sums[top + r, j]) * unit * w_scale[column + j]
                )
        else:
            for j in range(width):
                out[row + r, column + j] = np.float32(
                    np.float64(sums[top + r, j]) * unit * w_scale[column + j]
                )


@part
def add_bias(bias: Any, row: Any, count: Any, column: Any, out: Any) -> Any:
    """Add the bias to `count` rows of a panel of out, at (row, column)."""
    for r in range(row, row + count):
        for j in range(column, min(column + COLUMNS, out.shape[1])):
            out[r, j] += bias[j]


@part
def add_low(
    low: Any,
    row: Any,
    count: Any,
    panel: Any,
    sums: Any,
    wide: Any,
    out: Any,
) -> Any:
    """Add the low-rank part, rounded once, to `count` rows of one panel of out; `low` is that of `group`."""
    q, q_scale, up, up_scale, ranges, block_of, alone = low
    begin, end, first = ranges[panel, 0], ranges[panel, 1], panel * COLUMNS
    where, step = q.ctypes.data + row * q.strides[0] + 4 * begin, q.strides[0]
    at = up.ctypes.data + panel * up.strides[0] + begin * up.strides[1]
    if alone[panel] >= 0 and end - begin <= PAIRS_14:
        units, to = up_scale.ctypes.data + 8 * first, out.ctypes.data + row * out.strides[0] + 4 * first
        for r in range(count):
            unit = q_scale[row + r, alone[panel]]
            add_row_pairs(where + r * step, at, end - begin, unit, units, to + r * out.strides[0])
        return
    for start in range(0, count, ROWS):
        few = min(ROWS, count - start)
        clear(wide)
        add_tile(few, where + start * step, step, at, end - begin, PAIRS_14, sums, wide)
        for r in range(few):
            for j in range(min(COLUMNS, out.shape[1] - first)):
                unit = q_scale[row + start + r, block_of[first + j]]
                out[row + start + r, first + j] += np.float32(wide[r, j] * unit * up_scale[first + j])


@kernel
def group(
    a: Any,
    a_scale: Any,
    w: Any,
    w_scale: Any,
    longest: Any,
    bias: Any,
    low: Any,
    out: Any,
) -> Any:
    """One group of layers over rows: out = fl32(sum a w) [+ bias] [+ fl32(sum low up)], each sum scaled by its powers of two first.

    a (M, K) int16 and w (panels, pairs, 16), sums of at most `longest` pairs in int32; scales binary64, w_scale by column. bias has 0 or N entries.
    `low` is a tuple (q, q_scale, up, up_scale, ranges, block_of, alone): q (M, L) int16 and up (panels, L / 2, 16) or (0, ..): of panel p, pairs
    ranges[p, 0] to ranges[p, 1] count; q_scale (M, blocks), and column n takes that of block block_of[n]; alone[p] is the one block of panel p where
    it has sixteen columns and no other, else -1.
    """
    rows, columns = out.shape
    panels, pairs = w.shape[0], w.shape[1]
    step, adapted = a.strides[0], low[2].shape[0] > 0
    sums, wide = np.empty((ROWS, COLUMNS), np.int32), np.empty((ROWS, COLUMNS), np.float64)
    several = np.empty((WIDE_PANELS, COLUMNS), np.int32)
    for start in range(0, rows, _CHUNK):
        stop = min(rows, start + _CHUNK)
        for p in range(panels):
            first = p * COLUMNS
            width = min(COLUMNS, columns - first)
            at = w.ctypes.data + p * w.strides[0]
            for i in range(start, stop, ROWS):
                count = min(ROWS, stop - i)
                where = a.ctypes.data + i * step
                if pairs > longest:
                    clear(wide)
                    add_tile(count, where, step, at, pairs, longest, sums, wide)
                    scale_tile(wide, 0, count, width, a_scale, i, w_scale, first, out)
                elif rows == 1 and p - p % WIDE_PANELS + WIDE_PANELS <= panels:
                    if p % WIDE_PANELS == 0:
                        row_tile(where, step, at, 64 * pairs, pairs, several.ctypes.data)
                    scale_tile(several, p % WIDE_PANELS, 1, width, a_scale, 0, w_scale, first, out)
                else:
                    tile(count, where, step, at, pairs, sums.ctypes.data)
                    scale_tile(sums, 0, count, width, a_scale, i, w_scale, first, out)
                if bias.size:
                    add_bias(bias, i, count, first, out)
                if adapted:
                    add_low(low, i, count, p, sums, wide, out)


@kernel
def token_products(spans: Any, wide: Any, narrow: Any, out: Any) -> Any:
    """Per example e, whose tokens are spans[e, 0] to spans[e, 1], out[e] (W, R) = wide^T narrow, both (tokens, W or R) quantised along its tokens.

    fl32(sum), then times the power of two of the wide side, then of the narrow one, in binary32 each; False if a column has no such form.
    """
    columns, ranks, longest = wide.shape[1], narrow.shape[1], 0
    for e in range(spans.shape[0]):
        longest = max(longest, spans[e, 1] - spans[e, 0])
    pairs = (longest + 1) // 2
    packed = np.zeros(((columns + COLUMNS - 1) // COLUMNS, pairs, COLUMNS), np.int32)
    scale, grids = np.empty(columns, np.float32), np.empty(ranks, np.float32)
    q, row = np.empty((ranks, 2 * pairs), np.int16), np.empty(longest, np.float32)
    sums, total = np.empty((ROWS, COLUMNS), np.int32), np.empty((ROWS, COLUMNS), np.float64)
    for e in range(spans.shape[0]):
        start, stop = spans[e, 0], spans[e, 1]
        count = stop - start
        if not pack_across(wide[start:stop], packed, 0, 0, scale):
            return False
        for r in range(ranks):
            for t in range(count):
                row[t] = narrow[start + t, r]
            unit = quantise_row(row[:count], q[r])
            if unit < 0:
                return False
            grids[r] = unit
        for r in range(0, ranks, ROWS):
            few = min(ROWS, ranks - r)
            where, step = q.ctypes.data + r * q.strides[0], q.strides[0]
            for p in range(packed.shape[0]):
                clear(total)
                at = packed.ctypes.data + p * packed.strides[0]
                add_tile(few, where, step, at, (count + 1) // 2, PAIRS_14, sums, total)
                for j in range(min(COLUMNS, columns - p * COLUMNS)):
                    column = p * COLUMNS + j
                    for i in range(few):
                        out[e, column, r + i] = np.float32(total[i, j]) * scale[column] * grids[r + i]
    return True


@kernel
def fold_tokens(narrow: Any, scale: Any, q: Any, grids: Any) -> Any:
    """Quantise (narrow * scale) along tokens: narrow (M, R), scale (M) binary64 powers of two; q (R, M or more), grids (R)."""
    rows, ranks = narrow.shape
    row = np.empty(rows, np.float32)
    for r in range(ranks):
        for i in range(rows):
            row[i] = narrow[i, r] * np.float32(scale[i])
        unit = quantise_row(row, q[r])
        if unit < 0:
            return False
        grids[r] = unit
    return True
