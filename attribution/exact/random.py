"""Counter-based randomness: a keyed BLAKE3 stream that anybody can read at any place.

The stream of (seed, label) is the extendable output of BLAKE3 over a domain string, the seed as eight
little-endian bytes and the label. Nothing is drawn twice from the same place, and no state is carried.
"""

from __future__ import annotations

import blake3
import numpy as np
from numpy.typing import NDArray

_DOMAIN = b"openledger/stream/v1\x00"
SEED_MAX = (1 << 63) - 1


def stream(seed: int, label: str, size: int, offset: int = 0) -> bytes:
    """`size` bytes of the stream of (seed, label), from byte `offset`. Raises ValueError for a bad seed."""
    if not 0 <= seed <= SEED_MAX:
        raise ValueError(f"seed {seed} is not in 0..2^63-1")
    hasher = blake3.blake3(_DOMAIN + seed.to_bytes(8, "little") + label.encode("utf-8"))
    out: bytes = hasher.digest(length=size, seek=offset)
    return out


def uniform_words(seed: int, label: str, count: int) -> NDArray[np.uint64]:
    """`count` uniform 64-bit words, little-endian."""
    return np.frombuffer(stream(seed, label, 8 * count), dtype="<u8").astype(np.uint64)


def uniform_integers(seed: int, label: str, count: int, bound: int) -> NDArray[np.int64]:
    """`count` integers in [0, bound), 1 <= bound <= 2^31: high 32 bits of a word, times bound, shifted by 32.

    The bias is below bound / 2^32; callers that need none use a power of two.
    """
    if not 1 <= bound <= 1 << 31:
        raise ValueError(f"bound {bound} is not in 1..2^31")
    high = uniform_words(seed, label, count) >> np.uint64(32)
    return ((high * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)


def uniform_floats(seed: int, label: str, count: int) -> NDArray[np.float32]:
    """`count` floats in (-1, 1), odd multiples of 2^-23: exact in binary32, never zero, symmetric."""
    high = (uniform_words(seed, label, count) >> np.uint64(41)).astype(np.int64)
    return ((2 * high + 1 - (1 << 23)) * 2.0**-23).astype(np.float32)


def permutation(seed: int, label: str, count: int) -> list[int]:
    """A permutation of range(count): indices sorted by (word, index), so ties cannot depend on the sort."""
    words = uniform_words(seed, label, count).tolist()
    return sorted(range(count), key=lambda i: (words[i], i))
