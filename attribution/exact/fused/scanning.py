"""`attribution.signs.scan` in a kernel: every byte of every row is read once, and two lookups give the sum of eight of the query's integers.

For a half byte of signs, u = (sum of the query's integers where a bit is set) - (sum of the negative ones of the four) is at least 0 and at most the sum of four
magnitudes. With magnitudes below 2^13 that is below 2^15: a low digit of 7 bits and a high one of 8, kept in tables of 16 for each half byte. Low digits of the
two halves of a byte fit a byte together, high ones mostly; 128 bytes of a row fit sums of 16 bits; those go to int64. A magnitude of 2^13 itself,
which rounding gives once in thousands of queries, is scanned as 2^13 - 1 and 1: scores are linear in the query.

Where the processor has AVX-512's masks and dot products, `masked` adds up the query's integers themselves, 64 bits of a row at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from attribution.exact.fused import masked
from attribution.exact.fused.compiling import kernel, part
from attribution.exact.fused.masked import (
    BLOCK_BITS,
    BLOCK_BYTES,
    LIMB_BITS,
    ROWS,
    add_row,
    add_rows,
    copy_bytes,
)
from attribution.exact.fused.tables import (
    CHUNK,
    DIGIT_BITS,
    LANES,
    LOOKED_POSITIONS_MAX,
    POSITIONS_MAX,
    add_apart,
    add_halves,
    add_paired,
    byte_at,
    fetch,
    turn_bytes,
)

MAGNITUDE_MAX = (1 << 13) - 1
"""Of a query's integer: four of them in two digits."""
LOOKED_MAX = (1 << 5) - 1
"""Of a query's integer in a look: eight of them fit a byte."""
_ALL = np.empty(0, np.int64)
_GROUPS = 2
# While rows pass over a kilobyte's tables, those (64 kB) stay in the second-level cache and 64 rows' bytes come in runs.
_CHUNKS_AT_ONCE = 64
_FETCHED_AHEAD = 512
_LINE = 64
_FLUSHED = POSITIONS_MAX // CHUNK


@part
def copy_rest(rows: Any, step: Any, count: Any, size: Any, spare: Any) -> Any:
    """`size` bytes of each of `count` rows, zeros in all other places of spare (rows, bytes)."""
    spare[:] = 0
    for r in range(count):
        for k in range(size):
            spare[r, k] = byte_at(rows + r * step + k)


@part
def fetch_ahead(rows: Any, step: Any, count: Any, width: Any) -> Any:
    """Ask for the lines of `width` bytes of each row; what lies there need not exist."""
    for r in range(count):
        for k in range(0, width, _LINE):
            fetch(rows + r * step + k)


@part
def flush(sums: Any, totals: Any) -> Any:
    """Move 16-bit sums of digits (4, 16) to totals (32)."""
    for j in range(CHUNK):
        totals[2 * j] += np.int64(sums[0, j]) + (np.int64(sums[2, j]) << DIGIT_BITS)
        totals[2 * j + 1] += np.int64(sums[1, j]) + (np.int64(sums[3, j]) << DIGIT_BITS)
    sums[:] = 0


@kernel
def scan_rows(
    rows: Any,
    step: Any,
    width: Any,
    tables: Any,
    paired: Any,
    ends: Any,
    constants: Any,
    scales: Any,
    scores: Any,
) -> Any:
    """Scores (records) of rows of `width` bytes, `step` apart, from address `rows` on.

    tables (bytes, 4, 16) uint8; paired (chunks): whether a byte's high digits fit a byte together; ends (factors): the byte after each
    factor's last, ascending; constants (factors): added to twice the sum; scales (records, factors) uint32.
    """
    turned, spare = np.empty((CHUNK, LANES), np.uint8), np.empty((LANES, CHUNK), np.uint8)
    sums = np.zeros((_GROUPS, 4, CHUNK), np.uint16)
    totals = np.zeros((_GROUPS, LANES), np.int64)
    records, chunks = scores.size, (width + CHUNK - 1) // CHUNK
    there, weights, factors, tile = turned.ctypes.data, scales.ctypes.data, scales.shape[1], LANES * _GROUPS
    for first in range(0, records, tile):
        factor = 0
        for block in range(0, chunks, _CHUNKS_AT_ONCE):
            reached = factor
            for g in range(min(_GROUPS, (records - first + LANES - 1) // LANES)):
                row = first + g * LANES
                count, reached = min(LANES, records - row), factor
                if block == 0:
                    fetch_ahead(weights + (row + tile) * 4 * factors, 4 * factors, LANES, 4 * factors)
                for chunk in range(block, min(block + _CHUNKS_AT_ONCE, chunks)):
                    start = chunk * CHUNK
                    stop, at = min(start + CHUNK, width), rows + row * step + start
                    if chunk % (_LINE // CHUNK) == 0:
                        # Beyond a row's end, of the row that is next in its place.
                        ahead = start + _FETCHED_AHEAD
                        fetch_ahead(
                            at + (_FETCHED_AHEAD if ahead < width else tile * step + ahead % width - start),
                            step,
                            count,
                            1,
                        )
                    if count == LANES and stop - start == CHUNK:
                        turn_bytes(at, step, there)
                    else:
                        copy_rest(at, step, count, stop - start, spare)
                        turn_bytes(spare.ctypes.data, CHUNK, there)
                    k = start
                    while k < stop:
                        until = min(stop, ends[reached])
                        where, table = there + (k - start) * LANES, tables.ctypes.data + k * 4 * CHUNK
                        if paired[chunk]:
                            add_paired(where, until - k, table, sums[g].ctypes.data)
                        else:
                            add_apart(where, until - k, table, sums[g].ctypes.data)
                        k = until
                        if k == ends[reached]:
                            flush(sums[g], totals[g])
                            for r in range(count):
                                inner = 2 * totals[g, r] + constants[reached]
                                scores[row + r] += inner * np.int64(scales[row + r, reached])
                            totals[g] = 0
                            reached += 1
                    if chunk % _FLUSHED == _FLUSHED - 1:
                        flush(sums[g], totals[g])
            factor = reached


@kernel
def look_rows(blocks: Any, tables: Any, constant: Any, looks: Any) -> Any:
    """Looks (records) at blocks (groups, bytes, 32), by tables (bytes, 2, 16) of each byte's lower and upper half; `constant` is added to twice the sums."""
    sums, totals = np.zeros((2, CHUNK), np.uint16), np.zeros(LANES, np.int64)
    groups, width = blocks.shape[0], blocks.shape[1]
    for group in range(groups):
        totals[:] = 0
        for start in range(0, width, LOOKED_POSITIONS_MAX):
            count = min(LOOKED_POSITIONS_MAX, width - start)
            where = blocks.ctypes.data + (group * width + start) * LANES
            add_halves(where, count, tables.ctypes.data + start * 2 * CHUNK, sums.ctypes.data)
            for j in range(CHUNK):
                totals[2 * j] += np.int64(sums[0, j])
                totals[2 * j + 1] += np.int64(sums[1, j])
            sums[:] = 0
        for r in range(min(LANES, looks.size - group * LANES)):
            looks[group * LANES + r] = 2 * totals[r] + constant


@kernel
def scan_masked(
    rows: Any, step: Any, chosen: Any, ends: Any, limbs: Any, constants: Any, scales: Any, scores: Any
) -> Any:
    """Scores (records) of rows `step` bytes apart, from address `rows` on; ends, constants and scales as in `scan_rows`.

    chosen (records) are the rows' numbers, or empty for all in their order. limbs (blocks, 2, 64) int8: of the query's integers, the upper
    one first; every factor begins a block.
    """
    records, width = scores.size, ends[-1]
    sums, spare = np.zeros(ROWS, np.int64), np.zeros((ROWS, BLOCK_BYTES), np.uint8)
    copied = np.empty((ROWS if chosen.size else 1, width), np.uint8)
    there = sums.ctypes.data
    for first in range(0, records, ROWS):
        count, start, table = min(ROWS, records - first), 0, limbs.ctypes.data
        begin, between = rows + first * step, step
        if chosen.size:
            begin, between = copied.ctypes.data, width
            for r in range(count):
                copy_bytes(rows + chosen[first + r] * step, begin + r * width, width)
        for factor in range(ends.size):
            size, at, apart = ends[factor] - start, begin + start, between
            if chosen.size:
                for r in range(first + count, min(first + count + ROWS, records)):
                    fetch_ahead(rows + chosen[r] * step + start, step, 1, size)
            if size < BLOCK_BYTES:
                copy_rest(at, between, count, size, spare)
                size, at, apart = BLOCK_BYTES, spare.ctypes.data, BLOCK_BYTES
            if count == ROWS:
                add_rows(at, apart, size, table, there)
            else:
                for r in range(count):
                    add_row(at + r * apart, apart, size, table, there + 8 * r)
            for r in range(count):
                scores[first + r] += (2 * sums[r] + constants[factor]) * np.int64(scales[first + r, factor])
            table += limbs.shape[1] * limbs.shape[2] * ((size + BLOCK_BYTES - 1) // BLOCK_BYTES)
            start = ends[factor]


def limbs_of(query: npt.NDArray[np.int32], widths: Sequence[int]) -> npt.NDArray[np.int8]:
    """Limbs, int8 (blocks, 2, 64), of a query of eight integers a byte, at most 2^13 in magnitude; zeros fill each factor's last block."""
    blocks = [-(-width // BLOCK_BYTES) for width in widths]
    padded, start, at = np.zeros((sum(blocks), BLOCK_BITS), np.int32), 0, 0
    for width, count in zip(widths, blocks, strict=True):
        padded[at : at + count].reshape(-1)[: 8 * width] = query[start : start + 8 * width]
        start, at = start + 8 * width, at + count
    # 128 u + l with l in [0, 127] and u in [-64, 64]: both are int8.
    upper = padded >> LIMB_BITS
    return np.stack([upper, padded - (upper << LIMB_BITS)], axis=1).astype(np.int8)


def half_sums(query: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The sums above, int32 (16, half bytes), by what the half byte is."""
    # Entries first: numpy is quick along long axes.
    bits = query.reshape(-1, 4).T.copy()
    sums = np.empty((CHUNK, bits.shape[1]), np.int32)
    sums[0] = -np.add.reduce(np.minimum(bits, 0))
    for bit in range(4):
        size = 1 << bit
        np.add(sums[:size], bits[bit], out=sums[size : 2 * size])
    return sums


def tables_of(query: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    """Digits of the sums above, uint8 (bytes, 4, 16), for a query of eight integers a byte, none beyond `MAGNITUDE_MAX`."""
    sums = half_sums(query)
    tables = np.empty((len(query) // 8, 4, CHUNK), np.uint8)
    for digit, place in (
        (sums & ((1 << DIGIT_BITS) - 1), tables[:, :2]),
        (sums >> DIGIT_BITS, tables[:, 2:]),
    ):
        place[:] = digit.astype(np.uint8).T.reshape(-1, 2, CHUNK)
    return tables


def scan(
    query: npt.NDArray[np.int32],
    signs: npt.NDArray[np.uint8],
    scales: npt.NDArray[np.uint32],
    widths: Sequence[int],
    chosen: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.int64]:
    """Scores of signs (records, bytes), all or the chosen ones, and their scales (rows, factors) by a query of at most 14 bits.

    Factors have `widths` bytes, none of them 0.
    """
    if chosen is not None and not masked.USABLE:
        signs, chosen = signs[chosen], None
    scores = np.zeros(len(scales), np.int64)
    rows = signs if signs.strides[1] == 1 else np.ascontiguousarray(signs)
    factors = np.require(scales, np.uint32, ["C", "A", "W"])
    if masked.USABLE:
        ends = np.cumsum(widths, dtype=np.int64)
        totals = -np.add.reduceat(query.astype(np.int64), 8 * np.concatenate([[0], ends[:-1]]))
        limbs = limbs_of(query, widths)
        numbers = _ALL if chosen is None else np.ascontiguousarray(chosen)
        scan_masked(rows.ctypes.data, rows.strides[0], numbers, ends, limbs, totals, factors, scores)
        return scores
    within = np.clip(query, -MAGNITUDE_MAX, MAGNITUDE_MAX)
    rest = query - within
    for q in (within, rest) if rest.any() else (within,):
        _add_scores(q, rows, factors, np.cumsum(widths, dtype=np.int64), scores)
    return scores


def look(query: npt.NDArray[np.int32], blocks: npt.NDArray[np.uint8], records: int) -> npt.NDArray[np.int64]:
    """Sums of a query's integers with the signs of rows, int64 (records,), all factors alike.

    blocks (groups, bytes, 32) uint8 hold 32 rows beside each other; the query eight integers a byte, none beyond `LOOKED_MAX`.
    """
    tables = np.ascontiguousarray(half_sums(query).astype(np.uint8).T).reshape(-1, 2, CHUNK)
    looks = np.empty(records, np.int64)
    look_rows(blocks, tables, -int(np.abs(query).sum(dtype=np.int64)), looks)
    return looks


def _add_scores(
    query: npt.NDArray[np.int32],
    rows: npt.NDArray[np.uint8],
    scales: npt.NDArray[np.uint32],
    ends: npt.NDArray[np.int64],
    scores: npt.NDArray[np.int64],
) -> None:
    tables, starts = tables_of(query), 8 * np.concatenate([[0], ends[:-1]])
    # 2 (u + negative ones) - all = 2 u - magnitudes.
    magnitudes = np.abs(query.astype(np.int64))
    constants = -np.add.reduceat(magnitudes, starts)
    # The largest entry of a half byte's table is the sum of its magnitudes.
    largest = np.add.reduce(magnitudes.reshape(-1, 4).T) >> DIGIT_BITS
    together = largest[::2] + largest[1::2]
    paired = np.maximum.reduceat(together, np.arange(0, len(together), CHUNK)) < 1 << 8
    address, step = rows.ctypes.data, rows.strides[0]
    scan_rows(address, step, rows.shape[1], tables, paired, ends, constants, scales, scores)
