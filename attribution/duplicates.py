"""Near-duplicate records: each has a leader, the earliest record that it is nearly a copy of, and only leaders count.

A record's *shingles* are the distinct runs of `SHINGLE_TOKENS` consecutive token ids (a shorter record is one
shingle). Records are taken in the order of their commitment, and a record joins the earliest leader L with

    |A ∩ L| * JACCARD_DENOMINATOR >= |A ∪ L| * JACCARD_NUMERATOR          (A, L the two sets of shingles)

or, if there is none, becomes a leader. The test is against leaders alone, never against other members: a chain
of small changes cannot drag strangers into one cluster. And a record's leader depends on earlier records alone:
what is added later changes nothing.

Which pairs are tested at all is decided by MinHash (Broder 1997) with banding (Leskovec, Rajaraman and Ullman,
*Mining of Massive Datasets*, 3.4): `BANDS` x `BAND_ROWS` minima of integer hashes, modulo 2^64; all constants are
part of the definition::

    mix(z)  = splitmix64's finaliser:  z ^= z >> 30; z *= 0xbf58476d1ce4e5b9;
              z ^= z >> 27; z *= 0x94d049bb133111eb; z ^= z >> 31
    h       = 0;  for each of the shingle's ids t:  h = mix(h + t + 1 + GOLDEN)         (t + 1 is 0 beyond the record's end)
    h_k     = (2 mix(2k + 1) + 1) h + mix(2k + 2),  k = 0 .. BANDS * BAND_ROWS - 1
    entry k = min over the record's shingles of h_k
    band j  = h over its BAND_ROWS entries, starting from j:  h = mix(h + entry + GOLDEN)

Two records are tested if one of their bands is equal, but at most `CANDIDATES_MAX` leaders for each record, the
earliest ones. Of pairs with a similarity of exactly 0.7 one in 6,500 is missed, at 0.8 one in 2 * 10^7; equal
records never are. The hashes decide only who is looked at: whoever makes them collide gains nothing but the
work of exact comparisons.

Integers only, and no hash, order of a set or random number of the language: the leaders are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

SHINGLE_TOKENS = 5
JACCARD_NUMERATOR, JACCARD_DENOMINATOR = 7, 10
BANDS, BAND_ROWS = 32, 4
CANDIDATES_MAX = 1 << 12
"""Leaders that one record is compared with, the earliest ones: what bounds the time."""
RECORDS_MAX = 1 << 17
TOKENS_MAX = 1 << 24
GOLDEN = 0x9E3779B97F4A7C15

_HASHED_AT_ONCE = 1 << 15
_COMPARED_AT_ONCE = 16

Hashes = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]


def leaders(
    records: Sequence[Sequence[int] | None],
    commits: Sequence[int] | None = None,
    between: Callable[[], None] = lambda: None,
) -> tuple[int, ...]:
    """The position of every record's leader, its own if it leads (or is None: erased, and leads nobody).

    Records are token ids in [0, 2^32). ``commits`` says when each was committed, the smaller the earlier,
    equals by position; without it the position itself says so. ``between`` is called again and again, so that other
    work need not wait for all of it. Raises ``ValueError`` over `RECORDS_MAX` or
    `TOKENS_MAX`. Time grows with the tokens (about 3 us each) and the pairs that are compared; memory is about
    100 bytes a token.
    """
    if len(records) > RECORDS_MAX or sum(len(r) for r in records if r is not None) > TOKENS_MAX:
        raise ValueError(f"more than {RECORDS_MAX} records or {TOKENS_MAX} tokens")
    if commits is not None and len(commits) != len(records):
        raise ValueError("every record has one time of commitment")
    live = [i for i, record in enumerate(records) if record is not None]
    if commits is not None:
        live.sort(key=lambda i: (commits[i], i))
    ordered = [record for i in live if (record := records[i]) is not None]
    found = list(range(len(records)))
    for own, leader in zip(live, _ordered_leaders(ordered, between), strict=True):
        found[own] = live[leader]
    return tuple(found)


def _ordered_leaders(records: Sequence[Sequence[int]], between: Callable[[], None]) -> list[int]:
    if not records:
        return []
    windows = _Windows.of(records)
    shingles, offsets = _shingle_sets(windows)
    bands = _bands(_signatures(windows, between))
    buckets = [dict[int, list[int]]() for _ in range(BANDS)]
    present = np.zeros(int(shingles.max()) + 1, bool)
    found = list[int]()
    for own in range(len(records)):
        if own % _COMPARED_AT_ONCE == 0:
            between()
        keys = bands[own].tolist()
        near = {other for bucket, key in zip(buckets, keys, strict=True) for other in bucket.get(key, ())}
        leader = _first_alike(own, sorted(near)[:CANDIDATES_MAX], shingles, offsets, present)
        if leader is None:
            leader = own
            for bucket, key in zip(buckets, keys, strict=True):
                bucket.setdefault(key, []).append(own)
        found.append(leader)
    return found


@dataclass(frozen=True, slots=True)
class _Windows:
    """Runs of `SHINGLE_TOKENS` ids: each one's first id (``places``) and record's end (``ends``).

    ``starts`` has each record's first run and, last, their number.
    """

    ids: npt.NDArray[np.uint32]
    places: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int32]
    starts: Integers

    @classmethod
    def of(cls, records: Sequence[Sequence[int]]) -> _Windows:
        lengths = np.fromiter(map(len, records), np.int64, len(records))
        counts = np.maximum(lengths - SHINGLE_TOKENS + 1, 1)
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        ids = np.fromiter(chain.from_iterable(records), np.uint32, int(lengths.sum()))
        first = np.cumsum(lengths) - lengths
        places = np.arange(starts[-1], dtype=np.int32) + np.repeat(
            (first - starts[:-1]).astype(np.int32), counts
        )
        ends = np.repeat((first + lengths).astype(np.int32), counts)
        return cls(np.append(ids, np.zeros(SHINGLE_TOKENS, np.uint32)), places, ends, starts)

    def columns(self) -> Iterator[Hashes]:
        """The k-th ids of all runs plus one, 0 beyond the end, for one k after the other."""
        for k in range(SHINGLE_TOKENS):
            ids = self.ids[self.places + k].astype(np.uint64)
            yield np.where(self.places + k < self.ends, ids + np.uint64(1), np.uint64(0))


def _shingle_sets(windows: _Windows) -> tuple[npt.NDArray[np.int32], Integers]:
    """Every record's distinct shingles as numbers, one record after the other, and each record's first.

    The numbers are ranks, not hashes: two shingles have one number if and only if they are equal.
    """
    number = np.zeros(len(windows.places), np.int64)
    for column in windows.columns():
        distinct, rank = np.unique(column, return_inverse=True)
        number *= len(distinct)
        number += rank
        del rank
        number = np.unique(number, return_inverse=True)[1]
    records, numbers = len(windows.starts) - 1, int(number.max()) + 1
    number += np.repeat(np.arange(records) * numbers, np.diff(windows.starts))
    pairs = np.unique(number)
    counts = np.bincount(pairs // numbers, minlength=records)
    return (pairs % numbers).astype(np.int32), np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def _first_alike(
    own: int,
    candidates: Sequence[int],
    shingles: npt.NDArray[np.int32],
    offsets: Integers,
    present: npt.NDArray[np.bool_],
) -> int | None:
    """The first of the candidates whose exact Jaccard similarity with a record is high enough."""
    mine = shingles[offsets[own] : offsets[own + 1]]
    present[mine] = True
    try:
        for other in candidates:
            theirs = shingles[offsets[other] : offsets[other + 1]]
            common = int(np.count_nonzero(present[theirs]))
            united = len(mine) + len(theirs) - common
            if common * JACCARD_DENOMINATOR >= united * JACCARD_NUMERATOR:
                return other
        return None
    finally:
        present[mine] = False


def _mix(z: Hashes) -> Hashes:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _chained(start: Hashes, columns: Iterable[Hashes]) -> Hashes:
    h = start
    for column in columns:
        h = _mix(h + column + np.uint64(GOLDEN))
    return h


def _signatures(windows: _Windows, between: Callable[[], None] = lambda: None) -> Hashes:
    """Minima of all hashes, (records, BANDS * BAND_ROWS)."""
    count, starts = BANDS * BAND_ROWS, windows.starts
    factors = _mix(np.arange(1, 2 * count, 2, dtype=np.uint64)) * np.uint64(2) + np.uint64(1)
    terms = _mix(np.arange(2, 2 * count + 1, 2, dtype=np.uint64))
    hashes = _chained(np.zeros(len(windows.places), np.uint64), windows.columns())
    out = np.empty((len(starts) - 1, count), np.uint64)
    low = 0
    while low < len(starts) - 1:  # whole records, as many as stay in the cache
        between()
        high = max(low + 1, int(np.searchsorted(starts, starts[low] + _HASHED_AT_ONCE, "right")) - 1)
        part, first = hashes[starts[low] : starts[high]], starts[low:high] - starts[low]
        for k in range(count):
            out[low:high, k] = np.minimum.reduceat(part * factors[k] + terms[k], first)
        low = high
    return out


def _bands(signatures: Hashes) -> Hashes:
    """One hash a band, (records, BANDS)."""
    rows = signatures.reshape(len(signatures), BANDS, BAND_ROWS)
    start = np.broadcast_to(np.arange(BANDS, dtype=np.uint64), (len(signatures), BANDS))
    return _chained(start, np.moveaxis(rows, 2, 0))
