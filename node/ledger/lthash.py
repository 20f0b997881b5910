"""The state digest: LtHash16, a hash of a *set* of (key, value) pairs that is updated in O(1) for each change.

Each pair is expanded by BLAKE3 in XOF mode to 1,024 lanes of 16 bits (little-endian); the hash is the lane-wise sum
modulo 2^16, so it does not depend on order. Collisions reduce to short-integer-solution lattices (Bellare and
Micciancio 1997; Lewi, Kim, Maykov, Weis 2019, "Securing Update Propagation with Homomorphic Hashing"), about 200
bits at these parameters. The digest in headers is the 32-byte digest of the 2,048 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from blake3 import blake3

from consensus.codec import encode
from consensus.digest import digest
from node.ledger.errors import MalformedError

LANES = 1_024
LTHASH_BYTES = 2 * LANES
EMPTY_LTHASH = bytes(LTHASH_BYTES)

_DOMAIN = b"openledger/state-entry/v1\0"
_LANE = np.dtype("<u2")


def _lanes(key: bytes, value: bytes) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    expanded: bytes = blake3(_DOMAIN + encode([key, value])).digest(length=LTHASH_BYTES)
    return np.frombuffer(expanded, dtype=_LANE)


def apply_changes(lthash: bytes, changes: Iterable[tuple[bytes, bytes | None, bytes | None]]) -> bytes:
    """The hash (2,048 bytes) after changes given as (key, old value or None, new value or None)."""
    if len(lthash) != LTHASH_BYTES:
        raise MalformedError(f"an LtHash has {LTHASH_BYTES} bytes", "lthash")
    lanes = np.frombuffer(lthash, dtype=_LANE).copy()
    for key, old, new in changes:
        # numpy's unsigned array arithmetic is modulo 2^16 by definition
        if old is not None:
            lanes -= _lanes(key, old)
        if new is not None:
            lanes += _lanes(key, new)
    return lanes.tobytes()


def lthash_of(state: Mapping[bytes, bytes]) -> bytes:
    """The hash of a whole state, from nothing; execution gives the same bytes step by step."""
    return apply_changes(EMPTY_LTHASH, ((key, None, value) for key, value in state.items()))


def state_digest(lthash: bytes, chain_id: bytes) -> bytes:
    """The 32 bytes that headers carry."""
    return digest("state", lthash, chain_id)
