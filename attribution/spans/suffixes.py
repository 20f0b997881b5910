"""All places of some records in the order of what follows them, by prefix doubling over integers.

Manber and Myers 1993 (*Suffix arrays*), with the refinement of Larsson and Sadakane 1999 that only places still tied
are sorted again. A suffix ends with its record: what follows in the next record decides nothing, a suffix that is the
beginning of another comes before it, and equal suffixes stand by their place. So the order of one record's places
among themselves never depends on the other records, and leaving a record out leaves the others in order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]


def suffix_order(tokens: npt.NDArray[np.uint32], starts: Positions) -> Positions:
    """Places 0 <= p < len(tokens), sorted by the tokens from p to the end of p's record; equals by p.

    ``starts`` (int64) has each record's first place and, last, ``len(tokens)``; it ascends. Needs about 80 bytes a
    token while it runs, and at most log2 of the longest record rounds, each a sort of what is still tied.
    """
    count = len(tokens)
    if count == 0:
        return np.zeros(0, np.int64)
    left = np.repeat(starts[1:], np.diff(starts)) - np.arange(count)
    keys, depth = _first_keys(tokens, left)
    order = np.argsort(keys, kind="stable")
    # A rank is the slot of the first of its equals, so that refining a group leaves all other ranks as they are.
    rank = np.empty(count, np.int64)
    tied = _regroup(keys[order], np.arange(count), order, rank)
    del keys
    while len(tied):
        places = order[tied]
        beyond = left[places] > depth
        second = np.where(beyond, rank[np.where(beyond, places + depth, 0)] + 1, 0)
        group = rank[places]
        by = np.lexsort((second, group))  # stable: equals keep their order, which is by place
        order[tied] = places[by]
        still = _regroup(group[by] * (count + 1) + second[by], tied, order, rank)
        # Equal and at their end: equal for ever.
        tied = still[left[order[still]] > depth]
        depth *= 2
    return order


def _first_keys(tokens: npt.NDArray[np.uint32], left: Positions) -> tuple[Positions, int]:
    """As many tokens from every place as 63 bits hold, most significant first, 0 beyond the record's end."""
    bits = (int(tokens.max()) + 1).bit_length()
    depth = max(1, 63 // bits)
    symbols = tokens.astype(np.int64) + 1
    keys = symbols.copy()
    for ahead in range(1, depth):
        keys <<= bits
        keys[: max(0, len(tokens) - ahead)] |= np.where(left > ahead, np.roll(symbols, -ahead), 0)[
            : max(0, len(tokens) - ahead)
        ]
    return keys, depth


def _regroup(keys: Positions, slots: Positions, order: Positions, rank: Positions) -> Positions:
    """Write the ranks of ``order[slots]``, whose sorted keys are ``keys``; returns the slots that are still tied."""
    first = np.ones(len(keys), bool)
    first[1:] = keys[1:] != keys[:-1]
    heads = slots[first]
    rank[order[slots]] = heads[np.cumsum(first) - 1]
    alone = first.copy()
    alone[:-1] &= first[1:]
    return slots[~alone]
