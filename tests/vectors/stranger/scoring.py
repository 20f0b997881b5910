"""Queries, scores, shares, all in integers (docs/attribution.md, "Rows, query, score" and "Floor and shares")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.vectors.stranger.arithmetic import Matrix, quantise
from tests.vectors.stranger.index import Shape

PARTS = 10**9
PPM = 10**6
NOBODY = b""


def query(example: Sequence[Matrix]) -> list[int]:
    """All whitened coordinates of all factors together as integers of 14 bits; the exponent is dropped."""
    return quantise([x for factor in example for row in factor for x in row])[0]


def score(q: Sequence[int], scales: Sequence[int], signs: Sequence[Sequence[int]]) -> int:
    """``sum_f S_f sum_c b_c q_c``."""
    at, total = 0, 0
    for scale, bits in zip(scales, signs, strict=True):
        total += scale * sum(b * x for b, x in zip(bits, q[at : at + len(bits)], strict=True))
        at += len(bits)
    return total


def row_norm(scales: Sequence[int], shapes: Sequence[Shape]) -> int:
    """``sum_f C_f S_f^2``."""
    return sum(shape.coordinates * scale**2 for scale, shape in zip(scales, shapes, strict=True))


def query_norm(q: Sequence[int]) -> int:
    """``sum_c q_c^2``."""
    return sum(x * x for x in q)


def cosine_squared(value: int, row_norm_: int, query_norm_: int) -> int:
    """Squared cosine in parts per 10^12, rounded down; 0 unless the score is positive."""
    return PPM**2 * value**2 // (row_norm_ * query_norm_) if value > 0 else 0


def shares(
    cosines: Sequence[int], leaders: Sequence[int], owners: Sequence[bytes], floor_ppm: int
) -> dict[bytes, int]:
    """Parts of 10^9 by owner, zero ones left out; nobody's under the empty id."""
    weights = {NOBODY: max(floor_ppm, 1) ** 2}
    for record, owner in enumerate(owners):
        if leaders[record] == record and cosines[record] >= floor_ppm**2:
            weights[owner] = weights.get(owner, 0) + cosines[record]
    return {owner: part for owner, part in largest_remainder(weights).items() if part}


def largest_remainder(weights: Mapping[bytes, int]) -> dict[bytes, int]:
    """Quotas rounded down; what is left goes one by one to the largest remainders, of equals to the smaller id."""
    whole = sum(weights.values())
    parts = {owner: PARTS * weight // whole for owner, weight in weights.items()}
    by_remainder = sorted(weights, key=lambda owner: (-(PARTS * weights[owner] % whole), owner))
    for owner in by_remainder[: PARTS - sum(parts.values())]:
        parts[owner] += 1
    return parts
