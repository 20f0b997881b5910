"""Leaders of near-duplicates (docs/attribution.md, "Near-duplicates"): integers modulo 2^64 and exact sets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

SHINGLE = 5
BANDS, BAND_ROWS = 32, 4
CANDIDATES_MAX = 4096
MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15

Shingle = tuple[int, ...]


def mix(z: int) -> int:
    """splitmix64's finaliser."""
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def shingles(ids: Sequence[int]) -> set[Shingle]:
    """Distinct runs of five ids; fewer ids, even none, are one shingle."""
    return {tuple(ids[at : at + SHINGLE]) for at in range(max(1, len(ids) - SHINGLE + 1))}


def minima(ids: Sequence[int]) -> list[int]:
    """The least of each of the 128 hashes over the record's shingles."""
    hashes = [shingle_hash(shingle) for shingle in shingles(ids)]
    return [
        min((2 * mix(2 * k + 1) + 1) * h + mix(2 * k + 2) & MASK for h in hashes)
        for k in range(BANDS * BAND_ROWS)
    ]


def shingle_hash(shingle: Shingle) -> int:
    """Of a shingle's ids plus one, with zeros where it has fewer than five."""
    return _chained(0, [*(t + 1 for t in shingle), *[0] * (SHINGLE - len(shingle))])


def bands(least: Sequence[int]) -> list[int]:
    """One hash for every four minima."""
    return [_chained(j, least[BAND_ROWS * j : BAND_ROWS * (j + 1)]) for j in range(BANDS)]


def leaders(records: Sequence[Sequence[int] | None]) -> list[int]:
    """Every record's leader; records in the order of their commitment, None for an erased one, which leads itself."""
    found, sets, buckets = (
        list(range(len(records))),
        dict[int, set[Shingle]](),
        dict[tuple[int, int], list[int]](),
    )
    for own, ids in enumerate(records):
        if ids is None:
            continue
        mine, keys = shingles(ids), list(enumerate(bands(minima(ids))))
        met = sorted({other for key in keys for other in buckets.get(key, ())})[:CANDIDATES_MAX]
        alike = [other for other in met if 10 * len(mine & sets[other]) >= 7 * len(mine | sets[other])]
        if alike:
            found[own] = alike[0]
            continue
        sets[own] = mine
        for key in keys:
            buckets.setdefault(key, []).append(own)
    return found


def _chained(h: int, values: Iterable[int]) -> int:
    for value in values:
        h = mix(h + value + GOLDEN & MASK)
    return h
