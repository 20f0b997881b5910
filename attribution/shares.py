"""From integer scores to money: cosine floor, one vote per distinct record, integer shares of 10^9.

Let ``s_i`` be record i's score, ``n_i`` its squared norm and ``m`` the squared norm of the query, all integers
(`attribution.scores`). Everything below is integer arithmetic on them, of arbitrary precision::

    c_i = floor(10^12 * s_i^2 / (n_i * m))     squared cosine in parts per 10^12, 0 unless s_i > 0
    w_i = c_i    if c_i >= floor_ppm^2 and record i leads its copies (`attribution.index.Index.leaders`), else 0
    w_0 = max(floor_ppm, 1)^2                  what "nobody" weighs
    W_k = sum of w_i over contributor k's records

and the 10^9 parts are split over (nobody, contributors) in proportion to (w_0, W_k), by largest remainder, ties to
the smaller id, nobody's id being empty. Text that matches no record above the floor is therefore wholly
unattributed; one match exactly at the floor shares equally with nobody; and a match at three times the floor takes
nine tenths. Squares are used because the squared cosine is the fraction of the query's energy that a record's
direction explains, so that many faint matches do not outweigh a clear one.

Of copies, near or exact, the leader counts, whatever the others score. Any rule by which a later member's score
could matter (the best of the cluster, say) would let whoever adds members raise the cluster's weight, and so
lower everybody else's part.

Neither torch nor floats; `largest_remainder` is Hamilton's method (Balinski and Young, *Fair Representation*,
1982).
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np

SHARES_TOTAL = 10**9
COSINE_ONE_PPM = 10**6
FLOOR_PPM_DEFAULT = 120_000
"""Recommended default of the ledger's cosine floor; `docs/attribution.md` shows the measurement behind it."""


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """What every query of an index is held against, in record order.

    ``norms[i] >= 0`` is the squared norm of record i's row; ``leaders[i]`` the record that counts for record i: i itself unless i is a copy.
    """

    norms: tuple[int, ...]
    leaders: tuple[int, ...]

    def __post_init__(self) -> None:
        """Raise ``ValueError`` on lengths that differ, negative norms or leaders that are no record."""
        if len(self.norms) != len(self.leaders):
            raise ValueError("norms and leaders differ in number")
        if min(self.norms, default=0) < 0:
            raise ValueError("a squared norm is negative")
        if self.leaders and not 0 <= min(self.leaders) <= max(self.leaders) < len(self.leaders):
            raise ValueError("a leader is no record")


@dataclass(frozen=True, slots=True)
class Scores:
    """Integer scores of one (prompt, output) pair against every record of an index, in record order.

    ``values`` are kept as an array of int64, whatever they are given as; ``query_norm >= 0`` is the query's squared norm.
    """

    values: Sequence[int]
    rows: ScoredRows
    query_norm: int

    def __post_init__(self) -> None:
        """Raise ``ValueError`` on another number of scores than of rows, or a negative norm; ``OverflowError`` on a score beyond int64."""
        if not isinstance(self.values, array):
            object.__setattr__(self, "values", array("q", self.values))
        if len(self.values) != len(self.rows.norms):
            raise ValueError("scores and rows differ in number")
        if self.query_norm < 0:
            raise ValueError("a squared norm is negative")

    def cosine_squared(self, index: int) -> int:
        """Squared cosine with record ``index`` in parts per 10^12, rounded down; 0 where the score is not positive."""
        scale = self.rows.norms[index] * self.query_norm
        if self.values[index] <= 0 or scale == 0:
            return 0
        return COSINE_ONE_PPM**2 * self.values[index] ** 2 // scale

    def cosine_ppm(self, index: int) -> int:
        """Cosine with record ``index`` in parts per million, rounded down; 0 where the score is not positive."""
        return isqrt(self.cosine_squared(index))

    def best(self) -> int | None:
        """Record with the largest positive cosine, the earliest of equals; None where no score is positive."""
        best = max(_positive(self.values), key=lambda i: (self.cosine_squared(i), -i), default=None)
        return best if best is not None and self.cosine_squared(best) > 0 else None


def _positive(values: Sequence[int]) -> list[int]:
    """Places of scores above 0, found without a step of Python's for each: of very many records most are 0 (`attribution.first_look`)."""
    found: list[int] = np.flatnonzero(np.asarray(values, np.int64) > 0).tolist()
    return found


@dataclass(frozen=True, slots=True)
class Shares:
    """Integer parts of 10^9: ``by_owner`` has positive parts only, by ascending id; ``unattributed`` is the rest."""

    by_owner: tuple[tuple[bytes, int], ...]
    unattributed: int

    def of(self, owner: bytes) -> int:
        """The owner's parts of 10^9; 0 for a stranger."""
        return dict(self.by_owner).get(owner, 0)


def largest_remainder(weights: Mapping[bytes, int], total: int = SHARES_TOTAL) -> dict[bytes, int]:
    """Split ``total`` in proportion to non-negative integer ``weights``; the parts sum to ``total`` exactly.

    Every part is its quota rounded down or up; the units left over go to the largest remainders, ties to the
    smaller id. Raises ``ValueError`` on a negative weight, a negative total, or no positive weight.
    """
    whole = sum(weights.values())
    if total < 0 or whole <= 0 or min(weights.values()) < 0:
        raise ValueError("weights must be non-negative and not all zero")
    parts = {owner: total * weight // whole for owner, weight in weights.items()}
    by_remainder = sorted(weights, key=lambda owner: (-(total * weights[owner] % whole), owner))
    for owner in by_remainder[: total - sum(parts.values())]:
        parts[owner] += 1
    return parts


def attribute(scores: Scores, owners: Sequence[bytes], floor_ppm: int = FLOOR_PPM_DEFAULT) -> Shares:
    """Shares of 10^9 for the owners of an index's records, and what is left unattributed (formula above).

    ``owners[i]`` is the non-empty id of record i's contributor. Raises ``ValueError`` if their number differs from
    the records', an id is empty, or ``floor_ppm`` lies outside [0, 10^6].
    """
    if len(owners) != len(scores.values) or not all(owners):
        raise ValueError("every record needs the id of one owner")
    if not 0 <= floor_ppm <= COSINE_ONE_PPM:
        raise ValueError("the floor is a cosine in parts per million")
    weights = {b"": max(floor_ppm, 1) ** 2}
    least = max(floor_ppm**2, 1)
    for index in _positive(scores.values):
        if scores.rows.leaders[index] == index:
            squared = scores.cosine_squared(index)
            if squared >= least:
                weights[owners[index]] = weights.get(owners[index], 0) + squared
    parts = largest_remainder(weights)
    unattributed = parts.pop(b"")
    return Shares(tuple(sorted((owner, part) for owner, part in parts.items() if part)), unattributed)
