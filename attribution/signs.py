"""One bit per coordinate: rows of the index, integer queries, and the score formula.

Let an example's whitened gradient be ``X`` (float32 coordinates, factor after factor), ``C_f`` the number of
coordinates of factor f, and ``fl`` one rounding to binary32.

Row of a record::

    b_c = 1 if X_c + 0.0 >= 0 else -1                                    stored as bit 1 or 0
    a_f = fl(fsum_c |X_c| / C_f)                                         mean magnitude of the factor
    v   = fl(fsum_f fl(fl(a_f * a_f) * C_f))                             squared norm of the row (a_f * b_c)
    S_f = round_half_even(fl(a_f / sqrt32(v)) * 2^24)                    integer scale; 0 everywhere if v = 0

Query: ``q = round_half_even(X * 2^-e)`` for all coordinates together, ``e`` such that |q| <= 2^13 (14 bits). Then::

    score = sum_f S_f * sum_{c in f} b_c * q_c                           one integer
    n     = sum_f C_f * S_f^2                                            the row's squared norm, about 2^48
    m     = sum_c q_c^2                                                  the query's squared norm

**Bounds.** ``S_f <= 2^24 / sqrt(C_f) + 1`` (v is at least C_f a_f^2 up to rounding; 2^25 / sqrt(C_f) is safe), hence
``|score| <= 2^13 * sum_f S_f C_f <= 2^38 * sum_f sqrt(C_f) <= 2^38 * sqrt(F * C)`` by Cauchy and Schwarz. With F <=
2^10 factors and C = sum C_f <= 2^24 coordinates this is 2^55: int64 holds every partial sum in any order. Inner sums
are at most 2^13 * 2^24 = 2^37. ``n`` and ``m`` are below 2^63 likewise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attribution import exact
from attribution.exact.backends import family_for
from attribution.exact.elementary import divide_
from attribution.whitening import FactorShape

SCALE_BITS = 24
FACTORS_MAX = 1 << 10
COORDINATES_MAX = 1 << 24
QUERY_BITS = 14
"""The query's integers lie in [-2^13, 2^13]: 14 planes of bits, and one for the sign."""
_CPU = torch.device("cpu")
_ROWS_AT_ONCE = 1 << 12
_SCANNED_BYTES_AT_ONCE = 1 << 19
"""Bytes of signs that one step of a scan holds, with three times that for the work on them, unless one row alone has more."""

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]
SomeInteger = TypeVar("SomeInteger", np.int32, np.int64)


def sign_bytes(shape: FactorShape) -> int:
    """Bytes of one factor's bits in a row: whole bytes, so that no byte spans two factors."""
    return -(-shape.coordinates // 8)


def pack_signs(whitened: Tensor) -> Bytes:
    """Bits of one factor, uint8 (examples, sign_bytes): bit k of byte j is coordinate 8j + k; padding bits are 0."""
    bits = (whitened.flatten(1) + 0.0 >= 0.0).to(torch.uint8).cpu().numpy()
    return np.packbits(bits, axis=1, bitorder="little")


def mean_magnitudes(whitened: Sequence[Tensor]) -> Tensor:
    """Mean magnitude of every factor, ``a_f`` above: float32 (examples, factors)."""
    means = [divide_(exact.fsum(x.abs().flatten(1)), float(x[0].numel())) for x in whitened]
    return torch.cat(means, 1).float()


def integer_scales(magnitudes: Tensor, shapes: Sequence[FactorShape]) -> npt.NDArray[np.uint32]:
    """Scales ``S_f`` above, uint32 (examples, factors), of float32 ``magnitudes`` (examples, factors)."""
    counts = torch.tensor([float(s.coordinates) for s in shapes], device=magnitudes.device)
    norm = exact.sqrt(exact.fsum(magnitudes * magnitudes * counts).float())
    unit = torch.where(norm > 0.0, magnitudes / torch.where(norm > 0.0, norm, 1.0), 0.0)
    scales = (unit * float(1 << SCALE_BITS)).round_().to(torch.int64)
    return scales.cpu().numpy().astype(np.uint32)


def row_norms(scales: npt.NDArray[np.uint32], shapes: Sequence[FactorShape]) -> list[int]:
    """Squared norms ``n`` of rows with ``scales`` (records, factors)."""
    counts = np.array([s.coordinates for s in shapes], np.int64)
    wide = scales.astype(np.int64)
    return [int(n) for n in (wide * wide * counts).sum(1)]


def integer_query(whitened: Sequence[Tensor]) -> tuple[npt.NDArray[np.int32], int]:
    """One example's query: int32 coordinates, every factor padded with zeros to whole bytes, and its norm ``m``."""
    flat = torch.cat([_whole_bytes(x.flatten()) for x in whitened])
    q = exact.quantise(flat)[0].to(torch.int32).cpu().numpy()
    wide = q.astype(np.int64)
    return q, int((wide * wide).sum())


def rounded_shift(values: npt.NDArray[SomeInteger], shift: int) -> npt.NDArray[SomeInteger]:
    """``values / 2^shift`` rounded half to even, in integers."""
    if shift == 0:
        return values
    down = values >> shift
    rest, half = values - (down << shift), 1 << (shift - 1)
    up = (rest > half) | ((rest == half) & (down & 1 == 1))
    found: npt.NDArray[SomeInteger] = down + up.astype(values.dtype)
    return found


def _whole_bytes(x: Tensor) -> Tensor:
    return torch.nn.functional.pad(x, (0, -len(x) % 8)) if len(x) % 8 else x


def scan(
    query: npt.NDArray[np.int32],
    signs: Bytes,
    scales: npt.NDArray[np.uint32],
    shapes: Sequence[FactorShape],
) -> list[int]:
    """`integer_scores` as plain integers."""
    scores: list[int] = integer_scores(query, signs, scales, shapes).tolist()
    return scores


def integer_scores(
    query: npt.NDArray[np.int32],
    signs: Bytes,
    scales: npt.NDArray[np.uint32],
    shapes: Sequence[FactorShape],
    chosen: Integers | None = None,
) -> Integers:
    """Scores of ``query`` against every row, or the ``chosen`` ones by their numbers, by the formula above: int64 (scales,).

    ``signs`` is uint8 (records, bytes), possibly memory-mapped and then read once in order; ``scales`` uint32
    (records, factors), of the chosen rows alone. Where the fused kernels serve, `attribution.exact.fused.scanning` gives the same integers.
    Raises ``ValueError`` on a query that `integer_query` would not give, and on sizes that are not those of ``shapes``.
    """
    if int(np.abs(query).max(initial=0)) > 1 << (QUERY_BITS - 1):
        raise ValueError(f"a query of more than {QUERY_BITS} bits")
    widths = [sign_bytes(s) for s in shapes]
    if query.shape != (8 * sum(widths),):
        raise ValueError("a query of other coordinates than those of the shapes")
    rows = len(signs) if chosen is None else len(chosen)
    if signs.shape[1:] != (sum(widths),) or scales.shape != (rows, len(widths)):
        raise ValueError("rows or scales of other factors than those of the shapes")
    if chosen is not None and rows and not 0 <= chosen.min() <= chosen.max() < len(signs):
        raise ValueError("a chosen row is not there")
    if family_for(_CPU) == "fused":
        from attribution.exact.fused import scanning

        return scanning.scan(query, signs, scales, widths, chosen)
    return _scan_planes(query, signs if chosen is None else signs[chosen], scales, widths)


def _scan_planes(
    query: npt.NDArray[np.int32], signs: Bytes, scales: npt.NDArray[np.uint32], widths: Sequence[int]
) -> Integers:
    """Scores by counting bits.

    With bits 0 and 1 for signs, sum b_c q_c = 2 sum_{bit} q_c - sum q_c; and with the query's integers in binary, one
    plane of bits for each power of two that they have, sum_{bit} q_c is a sum of counted bits.
    """
    planes, starts = _planes(query, widths)
    sums = np.add.reduceat(query.astype(np.int64), np.cumsum([0, *(8 * w for w in widths[:-1])]))
    at_once = max(1, min(_ROWS_AT_ONCE, _SCANNED_BYTES_AT_ONCE // (8 * planes.shape[1])))
    words = np.zeros((at_once, planes.shape[1]), np.uint64)
    scores = np.empty(len(signs), np.int64)
    for at in range(0, len(signs), at_once):
        rows = signs[at : at + at_once]
        part, start = words[: len(rows)], 0
        for first, width in zip(starts, widths, strict=True):
            part.view(np.uint8)[:, 8 * first : 8 * first + width] = rows[:, start : start + width]
            start += width
        inner = 2 * _plane_sums(part, planes, starts) - sums
        scores[at : at + at_once] = (inner * scales[at : at + at_once].astype(np.int64)).sum(1)
    return scores


def _planes(
    query: npt.NDArray[np.int32], widths: Sequence[int]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """The query's bits, uint64 (B + 1, words), B those of its largest magnitude, the last plane that of -2^B; and every factor's first word."""
    lengths = [-(-width // 8) for width in widths]
    starts = np.cumsum([0, *lengths[:-1]], dtype=np.int64)
    bits = int(np.abs(query).max(initial=0)).bit_length()
    planes, start = np.zeros((bits + 1, sum(lengths)), np.uint64), 0
    shifts = np.arange(bits + 1, dtype=np.int32)[:, None]
    for first, width in zip(starts, widths, strict=True):
        ones = ((query[None, 8 * start : 8 * (start + width)] >> shifts) & 1).astype(np.uint8)
        packed = np.packbits(ones, axis=1, bitorder="little")
        planes.view(np.uint8)[:, 8 * first : 8 * first + width] = packed
        start += width
    return planes, starts


def _plane_sums(
    words: npt.NDArray[np.uint64], planes: npt.NDArray[np.uint64], starts: npt.NDArray[np.int64]
) -> Integers:
    """Sum of the query's integers where a row has a bit, per factor: int64 (rows, factors).

    Of one word at most 64 * 2^14 in int32; of a factor at most 2^24 * 2^13.
    """
    found, met, counted = (
        np.zeros(words.shape, np.int32),
        np.empty_like(words),
        np.empty(words.shape, np.uint8),
    )
    for power, plane in enumerate(planes):
        np.bitwise_count(np.bitwise_and(words, plane, out=met), out=counted)
        found += np.multiply(
            counted, -(1 << power) if power == len(planes) - 1 else 1 << power, dtype=np.int32
        )
    return np.add.reduceat(found, starts, axis=1, dtype=np.int64)
