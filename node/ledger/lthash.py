"""The state digest: LtHash16, a hash of a *set* of (key, value) pairs that is updated in O(1) for each change.

Each pair is expanded by BLAKE3 in XOF mode to 1,024 lanes of 16 bits (little-endian); the hash is the lane-wise sum
modulo 2^16, so it does not depend on order. Collisions reduce to short-integer-solution lattices (Bellare and
Micciancio 1997; Lewi, Kim, Maykov, Weis 2019, "Securing Update Propagation with Homomorphic Hashing"), about 200
bits at these parameters. The digest in headers is the 32-byte digest of the 2,048 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np
from blake3 import blake3

from consensus.codec import encode_known
from consensus.digest import digest
from node.ledger.errors import MalformedError

LANES = 1_024
LTHASH_BYTES = 2 * LANES
EMPTY_LTHASH = bytes(LTHASH_BYTES)

EXPANSIONS_REMEMBERED_MAX = 4_096
"""What an account was is subtracted when it changes again: the expansion that was added then is often still here (10 MB)."""

SUMMED_AT_ONCE = 64
"""Expansions joined for one sum: 128 KiB, which stay in the processor's cache."""

_DOMAIN = b"openledger/state-entry/v1\0"
_LANE = np.dtype("<u2")


@lru_cache(maxsize=EXPANSIONS_REMEMBERED_MAX)
def _expand(key: bytes, value: bytes) -> bytes:
    expanded: bytes = blake3(_DOMAIN + encode_known((key, value))).digest(length=LTHASH_BYTES)
    return expanded


def _sum(pairs: Sequence[tuple[bytes, bytes]]) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    """Lane-wise sum of the pairs' expansions; numpy's unsigned array arithmetic is modulo 2^16 by definition."""
    lanes = np.zeros(LANES, dtype=_LANE)
    for at in range(0, len(pairs), SUMMED_AT_ONCE):
        rows = b"".join([_expand(key, value) for key, value in pairs[at : at + SUMMED_AT_ONCE]])
        lanes += np.add.reduce(np.frombuffer(rows, dtype=_LANE).reshape(-1, LANES), axis=0, dtype=_LANE)
    return lanes


def apply_changes(lthash: bytes, changes: Iterable[tuple[bytes, bytes | None, bytes | None]]) -> bytes:
    """The hash (2,048 bytes) after changes given as (key, old value or None, new value or None)."""
    if len(lthash) != LTHASH_BYTES:
        raise MalformedError(f"an LtHash has {LTHASH_BYTES} bytes", "lthash")
    gone, come = [], []
    for key, old, new in changes:
        if old is not None:
            gone.append((key, old))
        if new is not None:
            come.append((key, new))
    lanes = np.frombuffer(lthash, dtype=_LANE) + _sum(come) - _sum(gone)
    return lanes.tobytes()


def lthash_of(state: Mapping[bytes, bytes]) -> bytes:
    """The hash of a whole state, from nothing; execution gives the same bytes step by step."""
    return apply_changes(EMPTY_LTHASH, ((key, None, value) for key, value in state.items()))


def state_digest(lthash: bytes, chain_id: bytes) -> bytes:
    """The 32 bytes that headers carry."""
    return digest("state", lthash, chain_id)
