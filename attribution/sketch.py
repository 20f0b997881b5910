"""Rows of a fixed size for wide models: whitened coordinates are CountSketched before the signs are taken.

A row of `attribution.signs` has one bit a coordinate, 15 kB for the shipped base at rank 16 and 250 kB for a model of
135 million parameters at rank 8. A **sketch** of width D (a power of two) adds every coordinate, with a sign, to one of
D sums, and the row has one bit a sum (CountSketch: Charikar, Chen and Farach-Colton 2002). Inner products of
sketches are those of the coordinates in expectation; the error of one falls with the root of D.

All in integers. Let ``X`` be an example's whitened gradient, all factors' coordinates numbered 0 .. C - 1 one after the
other, and ``mix`` splitmix64's finaliser (`attribution.duplicates`), modulo 2^64::

    z_c = mix((c + 1) * 0x9e3779b97f4a7c15)           splitmix64's (c + 1)-th number from seed 0
    d_c = z_c >> (64 - log2 D)                         the sum that coordinate c belongs to
    t_c = 1 - 2 (z_c & 1)                              its sign
    q   = quantise(X)                                  14 bits, one exponent for all coordinates: |q_c| <= 2^13
    y_d = sum over c with d_c = d of t_c q_c           |y_d| <= 2^13 * 2^24 = 2^37

Row: ``b_d = 1 if y_d >= 0 else -1``, D / 8 bytes, bit k of byte j being sum 8j + k, and a scale of 1, or 0 where all y_d are 0. Query of B bits: the
least shift k with ``max |y_d| < 2^(B - 1 + k)``, and ``p_d`` = y_d / 2^k rounded half to even, |p_d| <= 2^(B - 1)::

    score = sum_d b_d p_d          |score| <= 2^24 * 2^13
    n     = D,    m = sum_d p_d^2,    cosine^2 = score^2 / (n m) as everywhere

`attribution.rows` says which indices have such rows, and of how many sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attribution import exact
from attribution.signs import COORDINATES_MAX, QUERY_BITS, Bytes, Integers, rounded_shift

WIDTH_MIN, WIDTH_MAX = 1 << 9, 1 << 16
WIDTH_WIDE, WIDTH_SMALL = 1 << 16, 1 << 14
"""Rows of 8,192 and of 2,048 bytes."""
GOLDEN = 0x9E3779B97F4A7C15

_LOW_BITS = 2


def sketched(whitened: Sequence[Tensor], width: int) -> Integers:
    """Sums ``y``, int64 (examples, width), of every factor's whitened coordinates, float32 (examples, wide, rank).

    Raises ``ValueError`` unless ``width`` is a power of two from `WIDTH_MIN` to `WIDTH_MAX` and there are at most
    `COORDINATES_MAX` coordinates, NotRepresentable.
    """
    places, signs = _places(sum(x[0].numel() for x in whitened), width)
    sums = np.empty((len(whitened[0]), width), np.int64)
    for example, parts in enumerate(zip(*whitened, strict=True)):
        # One after the other: the work on one is some 30 bytes a coordinate. Sums of bincount are binary64, exact below 2^53 in any order.
        q = exact.quantise(torch.cat([x.flatten() for x in parts]))[0].cpu().numpy()
        sums[example] = np.bincount(places, signs * q, width)
    return sums


def sketch_rows(sums: Integers) -> Bytes:
    """Bits of rows, uint8 (examples, width / 8)."""
    return np.packbits(sums >= 0, axis=1, bitorder="little")


def sketch_scales(sums: Integers) -> npt.NDArray[np.uint32]:
    """Scales of rows, uint32 (examples, 1): 1, or 0 where all sums are 0."""
    scales: npt.NDArray[np.uint32] = np.any(sums, axis=1, keepdims=True).astype(np.uint32)
    return scales


def sketch_query(sums: Integers, bits: int = QUERY_BITS) -> tuple[npt.NDArray[np.int32], int]:
    """One example's query ``p``, int32 (width), of ``bits`` bits, and its norm ``m``. Raises ``ValueError``."""
    if sums.ndim != 1 or not _LOW_BITS <= bits <= QUERY_BITS:
        raise ValueError(f"a query has one example's sums and {_LOW_BITS} to {QUERY_BITS} bits")
    largest = int(np.abs(sums).max(initial=0))
    shift = max(0, largest.bit_length() - (bits - 1))
    p = rounded_shift(sums, shift)
    return p.astype(np.int32), int((p * p).sum())


@lru_cache(maxsize=1)
def _places(coordinates: int, width: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Each coordinate's sum and sign, as they are wanted by `numpy.bincount`."""
    if not WIDTH_MIN <= width <= WIDTH_MAX or width & (width - 1) or not 1 <= coordinates <= COORDINATES_MAX:
        raise ValueError(f"a sketch of {coordinates} coordinates to {width} sums")
    z = np.arange(1, coordinates + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    places = (z >> np.uint64(64 - width.bit_length() + 1)).astype(np.intp)
    return places, 1.0 - 2.0 * (z & np.uint64(1)).astype(np.float64)
