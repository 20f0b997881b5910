"""A first look at short parts of rows: of very many records only the likeliest are scanned in full.

A scan reads every row, so no scan of 10^5 rows of 7.7 kB takes less than the memory needs for 0.8 GB. For an index of more than
`RECORDS_SCANNED` records, scores are found in two steps, which are a pure function of (index, query), integers throughout::

    T    = bytes of signs in a row, all factors one after the other
    P    = {floor((2k + 1) T / (2 * LOOKED_BYTES)) for k = 0 .. LOOKED_BYTES - 1}       all of 0 .. T - 1 if T <= LOOKED_BYTES
    u_c  = q_c / 2^8, rounded half to even, kept within [-31, 31]
    look = sum_{c's byte in P} b_c u_c      all factors alike; 0 where every scale S_f of the row is 0
    kept = the `RECORDS_KEPT` largest looks above 0 among records that lead (`Index.leaders`), ties to the smaller number
    score as `attribution.signs` defines it if the record is in kept, else 0

Up to `RECORDS_SCANNED` records every score is the full one. A short part is taken from the row's own bytes, so the index's root
commits to it, nothing new is stored or hashed, and an erased row (zeros, scales 0) has look and score 0. Leaving the scales out of the look costs
nothing that was seen, and spares reading them. Copies that do not lead
count for nothing in `attribution.shares`, and take no place here. Six bits of the query order records as fourteen do (a correlation of 0.9992) and eight of them fit
a byte. A record whose look is far below its score is overlooked; docs/benchmarks.md
("How cost grows") says how often that was seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from attribution.exact.backends import family_for
from attribution.signs import Bytes, Integers, integer_scores, rounded_shift
from attribution.whitening import FactorShape

RECORDS_SCANNED = 1 << 12
"""Every row of an index of at most so many records is scanned in full."""
RECORDS_KEPT = 1 << 10
LOOKED_BYTES = 1 << 9
LOOKED_SHIFT, LOOKED_MAX = 8, 31
"""Of the query's integers: what they are divided by, as a power of two, and the largest magnitude then."""
_ROWS_AT_ONCE = 1 << 12  # a multiple of `_BESIDE`
_BESIDE = 32
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class ShortRows:
    """Short parts of an index's rows.

    `signs` are those at `places` (bytes) of the rows' signs: uint8 (records, bytes), or (groups, bytes, 32) with 32 rows beside each other where kernels
    look at them, zeros for rows that are not there. `counted` is bool (records,), False where a row has no scale but 0.
    """

    places: Integers
    signs: Bytes
    counted: npt.NDArray[np.bool_]


def short_rows(signs: Bytes, scales: npt.NDArray[np.uint32]) -> ShortRows:
    """Short parts of rows: signs uint8 (records, bytes), possibly mapped and then read once; scales uint32 (records, factors).

    `LOOKED_BYTES` and one more are held for each record. They must be taken again once a row was erased.
    """
    places = looked_places(signs.shape[1])
    counted = np.any(scales, axis=1)
    if family_for(_CPU) == "fused":
        blocks = np.zeros((-(-len(signs) // _BESIDE), len(places), _BESIDE), np.uint8)
        for at in range(0, len(signs), _ROWS_AT_ONCE):
            some = np.zeros((_ROWS_AT_ONCE, len(places)), np.uint8)
            part = signs[at : at + _ROWS_AT_ONCE, places]
            some[: len(part)] = part
            turned = some.reshape(-1, _BESIDE, len(places)).transpose(0, 2, 1)
            into = blocks[at // _BESIDE : (at + _ROWS_AT_ONCE) // _BESIDE]
            into[:] = turned[: len(into)]
        return ShortRows(places, blocks, counted)
    taken = np.empty((len(signs), len(places)), np.uint8)
    for at in range(0, len(signs), _ROWS_AT_ONCE):
        taken[at : at + _ROWS_AT_ONCE] = signs[at : at + _ROWS_AT_ONCE, places]
    return ShortRows(places, taken, counted)


def looked_places(width: int) -> Integers:
    """Places of the bytes that are looked at first in rows of `width` bytes: all, or `LOOKED_BYTES` spread evenly."""
    if width <= LOOKED_BYTES:
        return np.arange(width)
    return (2 * np.arange(LOOKED_BYTES) + 1) * width // (2 * LOOKED_BYTES)


def likeliest(
    query: npt.NDArray[np.int32], short: ShortRows, leading: npt.NDArray[np.bool_], count: int
) -> Integers:
    """Numbers, ascending, of at most `count` records that lead (bool (records,)) and have the largest looks above 0."""
    looks = np.where(short.counted & leading, _looks(query, short), 0)
    if count < len(looks):
        least = max(1, int(np.partition(looks, len(looks) - count)[len(looks) - count]))
        above, equal = np.flatnonzero(looks > least), np.flatnonzero(looks == least)
        return np.sort(np.concatenate([above, equal[: count - len(above)]]))
    return np.flatnonzero(looks > 0)


def _looks(query: npt.NDArray[np.int32], short: ShortRows) -> Integers:
    """What the formula above calls look, of rows with and without scales: int64 (records,)."""
    upper = rounded_shift(query.reshape(-1, 8)[short.places].ravel(), LOOKED_SHIFT)
    looked = np.clip(upper, -LOOKED_MAX, LOOKED_MAX)
    if short.signs.ndim == 3:
        from attribution.exact.fused import scanning

        return scanning.look(looked, short.signs, len(short.counted))
    ones = np.ones((len(short.signs), 1), np.uint32)
    return integer_scores(looked, short.signs, ones, [FactorShape("looked", looked.size, 1)])


def looked_scores(
    query: npt.NDArray[np.int32],
    signs: Bytes,
    scales: npt.NDArray[np.uint32],
    shapes: Sequence[FactorShape],
    leading: npt.NDArray[np.bool_],
    short: ShortRows | None = None,
) -> Integers:
    """Scores by the formula above, int64 (records,); `short` saves taking the short parts. Raises what `attribution.signs.scan` does."""
    if len(signs) <= RECORDS_SCANNED:
        return integer_scores(query, signs, scales, shapes)
    chosen = likeliest(query, short or short_rows(signs, scales), leading, RECORDS_KEPT)
    scores = np.zeros(len(signs), np.int64)
    scores[chosen] = integer_scores(query, signs, scales[chosen], shapes, chosen)
    return scores
