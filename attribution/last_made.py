"""What was made last, kept for who asks for the same again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class LastMade(Generic[K, V]):
    """The value made for the last key: one at a time, so what is kept is bounded.

    Threads may ask at once: each gets what it asked for, made twice at worst.
    """

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: tuple[K, V] | None = None

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value kept for ``key``, or what ``make`` returns, which is kept from now on."""
        kept = self._kept
        if kept is None or kept[0] != key:
            kept = self._kept = (key, make())
        return kept[1]
