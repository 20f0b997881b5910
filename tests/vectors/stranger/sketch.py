"""Rows of a fixed size (docs/attribution.md, "Sketched rows")."""

from __future__ import annotations

from collections.abc import Sequence

from tests.vectors.stranger.arithmetic import Matrix
from tests.vectors.stranger.copies import GOLDEN, MASK, mix
from tests.vectors.stranger.scoring import query


def sums(example: Sequence[Matrix], width: int) -> list[int]:
    """Every 14-bit coordinate, with a sign, added to one of ``width`` sums, a power of two."""
    found = [0] * width
    for c, q in enumerate(query(example)):
        z = mix((c + 1) * GOLDEN & MASK)
        found[z >> 64 - (width.bit_length() - 1)] += (1 - 2 * (z & 1)) * q
    return found


def row(values: Sequence[int]) -> bytes:
    """One bit a sum, 1 where it is not negative."""
    return bytes(
        sum((y >= 0) << k for k, y in enumerate(values[at : at + 8])) for at in range(0, len(values), 8)
    )


def scale(values: Sequence[int]) -> int:
    """Of a row: 1, or 0 where all sums are 0."""
    return int(any(values))


def integers(values: Sequence[int], bits: int) -> list[int]:
    """A query's sums, divided by the least power of two 2^k, k >= 0, that makes them fit, rounded half to even."""
    shift = max(0, max(map(abs, values)).bit_length() - (bits - 1))
    return [_rounded_shift(y, shift) for y in values]


def _rounded_shift(y: int, shift: int) -> int:
    down = y >> shift
    rest = 2 * (y - (down << shift))
    return down + (rest > 1 << shift or (rest == 1 << shift and down % 2 == 1))


def score(p: Sequence[int], data: bytes) -> int:
    """``sum_d b_d p_d``."""
    return sum(x if data[d // 8] >> d % 8 & 1 else -x for d, x in enumerate(p))
