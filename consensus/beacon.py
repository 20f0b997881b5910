"""The randomness each proposer contributes: a hash chain revealed one preimage per block.

A validator anchors the end of a chain in the validator set. Its k-th block on a chain of blocks must reveal the value
whose hash is its (k-1)-th reveal there (the anchor for k = 1), so a proposer can withhold a reveal by not proposing
but can never choose one.
"""

from consensus.digest import digest

_STRIDE = 64


def reveal_hash(reveal: bytes) -> bytes:
    """Return the 32-byte value a reveal must hash to."""
    return digest("beacon-reveal", reveal)


class BeaconChain:
    """A validator's own chain of `length` reveals, derived from a 32-byte secret seed.

    Every `_STRIDE`-th value is kept, so `preimage` costs at most `_STRIDE` hashes; construction costs `length` hashes
    (about a microsecond each).
    """

    __slots__ = ("_marks", "anchor", "length")

    def __init__(self, seed: bytes, length: int) -> None:
        if length < 1:
            raise ValueError("a beacon chain has at least one reveal")
        value = digest("beacon-start", seed)
        marks = [value]
        for position in range(1, length + 1):
            value = reveal_hash(value)
            if position % _STRIDE == 0:
                marks.append(value)
        self._marks = tuple(marks)
        self.anchor = value
        self.length = length

    def preimage(self, k: int) -> bytes | None:
        """Return the k-th reveal (1 is the first: it hashes to the anchor), or None past the end of the chain."""
        if not 1 <= k <= self.length:
            return None
        position = self.length - k
        value = self._marks[position // _STRIDE]
        for _ in range(position % _STRIDE):
            value = reveal_hash(value)
        return value
