"""Batches that validators pushed and no block has used yet: bounded per author, since each of them may be hostile.

Pure of disk: it says what is taken and what may go, the daemon does it. What is stored for a block somebody voted for
must never give way to what comes later: if all nodes dropped it, the chain could not go on.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass, field

UNUSED_BYTES_MAX = 32 << 20
"""Per author; an honest one has a few batches of half a MiB between proposal and execution."""

UNUSED_COUNT_MAX = 512
"""Per author."""

UNUSED_HEIGHTS_MAX = 600
"""After so many heights an unused batch is removed."""


@dataclass(slots=True)
class PushedBatches:
    """Unused batches by author: name to (size in bytes, height when it came), oldest first.

    Past `bytes_max` or `UNUSED_COUNT_MAX` an author's further batches are not taken; one that a block names is fetched for it instead. What an
    earlier run left unused is not counted: it stays on disk.
    """

    bytes_max: int = UNUSED_BYTES_MAX
    _unused: dict[bytes, dict[bytes, tuple[int, int]]] = field(default_factory=dict)
    _told: dict[bytes, int] = field(default_factory=dict)

    def add(self, author: bytes, name: bytes, size_bytes: int, height: int) -> bool:
        """Count a batch that is not stored yet; False, and nothing counted, when the author's quota is used up."""
        unused = self._unused.setdefault(author, {})
        size_bytes_all = sum(size for size, _ in unused.values()) + size_bytes
        if len(unused) >= UNUSED_COUNT_MAX or size_bytes_all > self.bytes_max:
            return False
        unused[name] = (size_bytes, height)
        return True

    def worth_telling(self, author: bytes, height: int) -> bool:
        """Whether a refusal of this author's is the first at this height: a flood of batches must not become one of log lines."""
        first = self._told.get(author) != height
        self._told[author] = height
        return first

    def used(self, names: Iterable[bytes]) -> None:
        """Count these no longer: an executed block names them, so they stay."""
        for name in names:
            for unused in self._unused.values():
                unused.pop(name, None)

    def expire(self, height: int, needed: Container[bytes]) -> list[bytes]:
        """Count those no longer that came `UNUSED_HEIGHTS_MAX` ago and are not `needed`; return them for removal."""
        gone: list[bytes] = []
        for unused in self._unused.values():
            old = [
                name
                for name, (_, came) in unused.items()
                if came + UNUSED_HEIGHTS_MAX <= height and name not in needed
            ]
            for name in old:
                del unused[name]
            gone += old
        return gone
