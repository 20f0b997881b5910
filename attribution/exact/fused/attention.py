"""Causal attention in kernels: scores, probabilities and weighted values of six queries at a time, keys after a query never touched.

Per query and head the definition of docs/exact-arithmetic.md, "Attention", step by step; products are those of `products.add_tile`. Keys and values
lie in panels for the two products they take part in: keys and values contracted along the head's width (panels of sixteen positions), and along
positions (panels of sixteen numbers of a head).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attribution.exact.fused.compiling import kernel, part
from attribution.exact.fused.grids import LIMIT_BITS, exp, fsum, grid, quantise_row
from attribution.exact.fused.products import PAIRS_14, add_tile, clear
from attribution.exact.fused.vector import (
    COLUMNS,
    ROWS,
    disorder,
    magnitude,
    nearest32,
    order,
    pair_of,
)

_ONE, _ZERO = np.float32(1.0), np.float32(0.0)
_TWO_30 = np.float32(2.0**30)
_INFINITY = np.int32(0x7F800000)


@part
def pack_positions(rows: Any, scales: Any, start: Any, packed: Any, scale: Any) -> Any:
    """Rows (T, width) int16 of one head as positions start.. of `packed` (panels, width / 2, 16), with their scales."""
    for t in range(rows.shape[0]):
        panel, lane = (start + t) // COLUMNS, (start + t) % COLUMNS
        scale[start + t] = scales[t]
        for k in range(packed.shape[1]):
            low, high = np.int32(rows[t, 2 * k]), np.int32(rows[t, 2 * k + 1])
            packed[panel, k, lane] = np.int32((low & 0xFFFF) | (high << 16))


@part
def pack_numbers(rows: Any, start: Any, packed: Any) -> Any:
    """Rows (T, width) int16 of one head as positions start.. of `packed` (width panels, positions / 2, 16)."""
    for t in range(rows.shape[0]):
        pair, high = (start + t) // 2, (start + t) % 2
        for n in range(rows.shape[1]):
            value = np.int32(rows[t, n])
            if high:
                packed[n // COLUMNS, pair, n % COLUMNS] |= np.int32(value << 16)
            else:
                packed[n // COLUMNS, pair, n % COLUMNS] = np.int32(value & 0xFFFF)


@part
def weigh_row(scores: Any, v_scale: Any, count: Any, p: Any, weights: Any) -> Any:
    """(den, 2^E) of one query over `count` keys: p unnormalised into p, its folded integers into int16 weights, zeros beyond both.

    den is 0 where the row is refused: a score, or a folded weight, that has no place.
    """
    top = order(scores[0])
    for j in range(count):
        top = max(top, order(scores[j]))
    highest = disorder(top)
    if magnitude(highest) >= _INFINITY:
        return _ZERO, _ZERO
    total, largest = np.int64(0), np.int32(0)
    for j in range(count):
        p[j] = exp(scores[j] - highest)
    for j in range(count):
        total += np.int64(np.int32(nearest32(p[j] * _TWO_30)))
    for j in range(count):
        largest = max(largest, magnitude(p[j] * v_scale[j]))
    if largest >= LIMIT_BITS:
        return _ZERO, _ZERO
    unit = grid(largest)
    inverse = _ONE / unit
    for j in range(count):
        weights[j] = np.int16(nearest32((p[j] * v_scale[j]) * inverse))
    for j in range(count, p.size):
        p[j] = _ZERO
    for j in range(count, weights.size):
        weights[j] = 0
    return np.float32(np.float64(total) * 2.0**-30), unit


@part
def attend_head(
    q: Any,
    q_step: Any,
    q_scale: Any,
    start: Any,
    keys: Any,
    k_scale: Any,
    values: Any,
    v_scale: Any,
    o: Any,
    den: Any,
    p: Any,
) -> Any:
    """Outputs o (T, width) and den (T) of one head's queries, at positions start.. over the keys up to each; False if refused.

    q is the address of the queries' int16 rows, q_step bytes apart. p (T or 1, padded) takes the probabilities, its row 0 all of them one
    after the other if it has one row only.
    """
    rows, width = o.shape
    reach = COLUMNS * ((start + rows + COLUMNS - 1) // COLUMNS)
    scores = np.empty((ROWS, reach), np.float32)
    weights = np.empty((ROWS, reach), np.int16)
    units = np.empty(ROWS, np.float32)
    sums, wide = np.empty((ROWS, COLUMNS), np.int32), np.empty((ROWS, COLUMNS), np.float64)
    for i in range(0, rows, ROWS):
        count = min(ROWS, rows - i)
        seen = start + i + count
        for panel in range((seen + COLUMNS - 1) // COLUMNS):
            clear(wide)
            at = keys.ctypes.data + panel * keys.strides[0]
            add_tile(count, q + i * q_step, q_step, at, keys.shape[1], PAIRS_14, sums, wide)
            for r in range(count):
                unit = np.float64(q_scale[i + r])
                for j in range(COLUMNS):
                    key = panel * COLUMNS + j
                    scores[r, key] = np.float32(wide[r, j] * unit * k_scale[key])
        for r in range(count):
            row = p[i + r] if p.shape[0] > 1 else p[0]
            below, unit = weigh_row(scores[r], v_scale, start + i + r + 1, row, weights[r])
            if below == 0:
                return False
            den[i + r] = below
            units[r] = unit
        for panel in range((width + COLUMNS - 1) // COLUMNS):
            clear(wide)
            at = values.ctypes.data + panel * values.strides[0]
            add_tile(count, weights.ctypes.data, 2 * reach, at, (seen + 1) // 2, PAIRS_14, sums, wide)
            for r in range(count):
                for j in range(min(COLUMNS, width - panel * COLUMNS)):
                    o[i + r, panel * COLUMNS + j] = np.float32(wide[r, j] * units[r]) / den[i + r]
    return True


@kernel
def attend(qkv: Any, scale: Any, heads: Any, spans: Any, o: Any, den: Any, p: Any) -> Any:
    """Every sequence's heads: o (rows, H, width), den (rows, H), from quantised qkv (rows, H + 2 Hk, width) and scale (rows, H + 2 Hk).

    p (H * rows, longest T padded) takes what the backward pass needs, or has no rows. False where a row is refused.
    """
    kv, width = (qkv.shape[1] - heads) // 2, qkv.shape[2]
    at, step, beginning = 0, qkv.strides[0], np.int64(0)
    for s in range(spans.shape[0]):
        start, stop = spans[s, 0], spans[s, 1]
        t = stop - start
        reach = COLUMNS * ((t + COLUMNS - 1) // COLUMNS)
        for group in range(kv):
            keys = np.zeros((reach // COLUMNS, width // 2, COLUMNS), np.int32)
            values = np.zeros(((width + COLUMNS - 1) // COLUMNS, reach // 2, COLUMNS), np.int32)
            k_scale, v_scale = np.zeros(reach, np.float64), np.zeros(reach, np.float32)
            spare = np.empty((1, reach), np.float32)
            k, v = heads + group, heads + kv + group
            pack_positions(qkv[start:stop, k], scale[start:stop, k], beginning, keys, k_scale)
            pack_numbers(qkv[start:stop, v], beginning, values)
            for i in range(t):
                v_scale[i] = scale[start + i, v]
            for h in range(group * (heads // kv), (group + 1) * (heads // kv)):
                saved = p[at : at + t] if p.shape[0] else spare
                at += t
                where = qkv.ctypes.data + start * step + 2 * h * width
                done = attend_head(
                    where, step, scale[start:stop, h], beginning, keys, k_scale, values, v_scale,
                    o[start:stop, h], den[start:stop, h], saved,
                )  # fmt: skip
                if not done:
                    return False
    return True


@kernel
def attend_cached(
    qkv: Any, scale: Any, heads: Any, start: Any, keys: Any, k_scale: Any, values: Any, v_scale: Any, o: Any
) -> Any:
    """Append the keys and values of qkv (T, H + 2 Hk, width) at position `start`, and attend from there: o (T, H, width).

    The cache holds, for each key head, `keys` (panels, width / 2, 16), `values` (width panels, positions / 2, 16) and scales.
    """
    kv, width, t = keys.shape[0], qkv.shape[2], qkv.shape[0]
    step = qkv.strides[0]
    den, saved = np.empty((t, 1), np.float32), np.empty((1, k_scale.shape[1]), np.float32)
    for group in range(kv):
        k, v = heads + group, heads + kv + group
        pack_positions(qkv[:, k], scale[:, k], start, keys[group], k_scale[group])
        pack_numbers(qkv[:, v], start, values[group])
        for i in range(t):
            v_scale[group, start + i] = scale[i, v]
        for h in range(group * (heads // kv), (group + 1) * (heads // kv)):
            where = qkv.ctypes.data + 2 * h * width
            done = attend_head(
                where, step, scale[:, h], start, keys[group], k_scale[group], values[group], v_scale[group],
                o[:, h], den[:, 0], saved,
            )  # fmt: skip
            if not done:
                return False
    return True


@kernel
def output_gradient(do: Any, den: Any, o: Any, g: Any, scale: Any, dots: Any) -> Any:
    """G = grid of dO / den by head: int16 (rows, H, width) and scale (rows, H); dots (rows, H) = fl32(fsum(value of g * o))."""
    row = np.empty(do.shape[2], np.float32)
    for i in range(do.shape[0]):
        for h in range(do.shape[1]):
            for j in range(row.size):
                row[j] = do[i, h, j] / den[i, h]
            unit = quantise_row(row, g[i, h])
            if unit < 0:
                return False
            scale[i, h] = unit
            for j in range(row.size):
                row[j] = (np.float32(g[i, h, j]) * unit) * o[i, h, j]
            total = fsum(row)
            if np.isnan(total):
                return False
            dots[i, h] = np.float32(total)
    return True


@part
def gradient_row(
    dp: Any,
    dot: Any,
    p: Any,
    count: Any,
    k_scale: Any,
    q_scale: Any,
    g_scale: Any,
    x: Any,
    ds: Any,
    top_x: Any,
    top_p: Any,
) -> Any:
    """2^E of one query's grid(dS * 2^e of the keys), its integers into int16 ds; -1 if refused.

    x takes dS * 2^e of the query, zeros beyond `count`; top_x and top_p the largest magnitudes of x and of p * 2^e of g, by key.
    """
    largest = np.int32(0)
    for j in range(count):
        slope = (dp[j] - dot) * p[j]
        dp[j] = slope * k_scale[j]
        x[j] = slope * q_scale
        top_x[j] = max(top_x[j], magnitude(x[j]))
        top_p[j] = max(top_p[j], magnitude(p[j] * g_scale))
    for j in range(count):
        largest = max(largest, magnitude(dp[j]))
    for j in range(count, x.size):
        x[j] = _ZERO
        ds[j] = 0
    if largest >= LIMIT_BITS:
        return np.float32(-1.0)
    unit = grid(largest)
    inverse = _ONE / unit
    for j in range(count):
        ds[j] = np.int16(nearest32(dp[j] * inverse))
    return unit


@part
def over_queries(
    turned: Any,
    x: Any,
    factors: Any,
    top: Any,
    panel: Any,
    t: Any,
    packed: Any,
    sums: Any,
    wide: Any,
    out: Any,
) -> Any:
    """Sixteen keys' sums over the group's queries from the first of them on: grid(x * factor) along queries times the integers turned.

    turned (width, heads * padded T) int16, x (heads * T, padded T), factors (heads, T), out (T, width) for all keys. False if refused.
    """
    heads, first = factors.shape[0], panel * COLUMNS
    scale, inverse = np.zeros(COLUMNS, np.float64), np.zeros(COLUMNS, np.float32)
    width, padded, count = turned.shape[0], turned.shape[1] // heads, min(COLUMNS, t - first)
    for j in range(count):
        if top[first + j] >= LIMIT_BITS:
            return False
        unit = grid(top[first + j])
        scale[j], inverse[j] = unit, _ONE / unit
    pairs = (t - first + 1) // 2
    for h in range(heads):
        for k in range(pairs):
            i = first + 2 * k
            a, b = factors[h, i], (factors[h, i + 1] if i + 1 < t else _ZERO)
            other = min(i + 1, t - 1)
            for j in range(COLUMNS):
                low = nearest32((x[h * t + i, first + j] * a) * inverse[j])
                high = nearest32((x[h * t + other, first + j] * b) * inverse[j])
                packed[h, k, j] = pair_of(low, high)
    for n in range(0, width, ROWS):
        rows = min(ROWS, width - n)
        clear(wide)
        for h in range(heads):
            where = turned.ctypes.data + n * turned.strides[0] + 2 * (h * padded + first)
            add_tile(
                rows,
                where,
                turned.strides[0],
                packed.ctypes.data + h * packed.strides[0],
                pairs,
                PAIRS_14,
                sums,
                wide,
            )
        for r in range(rows):
            for j in range(count):
                out[first + j, n + r] = np.float32(wide[r, j] * scale[j])
    return True


@kernel
def attend_backward(
    qkv: Any, scale: Any, heads: Any, spans: Any, p: Any, g: Any, g_scale: Any, dots: Any, out: Any
) -> Any:
    """Gradients (rows, H + 2 Hk, width) of the scaled queries, keys and values, from what `attend` and `output_gradient` left."""
    kv, width = (qkv.shape[1] - heads) // 2, qkv.shape[2]
    shared, at, g_step, beginning = heads // kv, 0, g.strides[0], np.int64(0)
    sums, wide = np.empty((ROWS, COLUMNS), np.int32), np.empty((ROWS, COLUMNS), np.float64)
    for s in range(spans.shape[0]):
        start, stop = spans[s, 0], spans[s, 1]
        t = stop - start
        reach = COLUMNS * ((t + COLUMNS - 1) // COLUMNS)
        dp, ds = np.empty((ROWS, reach), np.float32), np.empty((ROWS, reach), np.int16)
        units = np.empty(ROWS, np.float32)
        for group in range(kv):
            k, v, first = heads + group, heads + kv + group, group * shared
            keys = np.zeros(((width + COLUMNS - 1) // COLUMNS, reach // 2, COLUMNS), np.int32)
            values = np.zeros((reach // COLUMNS, width // 2, COLUMNS), np.int32)
            k_scale, v_scale = np.zeros(reach, np.float32), np.zeros(reach, np.float64)
            pack_numbers(qkv[start:stop, k], beginning, keys)
            pack_positions(qkv[start:stop, v], scale[start:stop, v], beginning, values, v_scale)
            for i in range(t):
                k_scale[i] = scale[start + i, k]
            saved = p[at : at + shared * t]
            at += shared * t
            x = np.empty((shared * t, reach), np.float32)
            top_x, top_p = np.zeros(reach, np.int32), np.zeros(reach, np.int32)
            queries, gradients = (
                np.zeros((width, shared * reach), np.int16),
                np.zeros((width, shared * reach), np.int16),
            )
            ones, g_scales = np.ones((shared, t), np.float32), np.empty((shared, t), np.float32)
            for m in range(shared):
                h = first + m
                for i in range(t):
                    g_scales[m, i] = g_scale[start + i, h]
                    for n in range(width):
                        queries[n, m * reach + i] = qkv[start + i, h, n]
                        gradients[n, m * reach + i] = g[start + i, h, n]
                for i in range(0, t, ROWS):
                    count = min(ROWS, t - i)
                    seen = i + count
                    where = g.ctypes.data + (start + i) * g_step + 2 * h * width
                    for panel in range((seen + COLUMNS - 1) // COLUMNS):
                        clear(wide)
                        add_tile(
                            count,
                            where,
                            g_step,
                            values.ctypes.data + panel * values.strides[0],
                            width // 2,
                            PAIRS_14,
                            sums,
                            wide,
                        )
                        for r in range(count):
                            unit = np.float64(g_scales[m, i + r])
                            for j in range(COLUMNS):
                                key = panel * COLUMNS + j
                                dp[r, key] = np.float32(wide[r, j] * unit * v_scale[key])
                    for r in range(count):
                        row = start + i + r
                        unit = gradient_row(
                            dp[r], dots[row, h], saved[m * t + i + r], i + r + 1, k_scale, scale[row, h], g_scales[m, i + r],
                            x[m * t + i + r], ds[r], top_x, top_p,
                        )  # fmt: skip
                        if unit < 0:
                            return False
                        units[r] = unit
                    for panel in range((width + COLUMNS - 1) // COLUMNS):
                        clear(wide)
                        at_keys = keys.ctypes.data + panel * keys.strides[0]
                        add_tile(
                            count, ds.ctypes.data, 2 * reach, at_keys, (seen + 1) // 2, PAIRS_14, sums, wide
                        )
                        for r in range(count):
                            for j in range(min(COLUMNS, width - panel * COLUMNS)):
                                out[start + i + r, h, panel * COLUMNS + j] = np.float32(wide[r, j] * units[r])
            packed = np.empty((shared, (reach + 1) // 2, COLUMNS), np.int32)
            for panel in range(reach // COLUMNS):
                if not over_queries(
                    queries, x, ones, top_x, panel, t, packed, sums, wide, out[start:stop, k]
                ):
                    return False
                if not over_queries(
                    gradients, saved, g_scales, top_p, panel, t, packed, sums, wide, out[start:stop, v]
                ):
                    return False
    return True
