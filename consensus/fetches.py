"""What is missing and whom to ask next: bounded, with back-off."""

from dataclasses import dataclass

BACKOFF_DOUBLINGS_MAX = 4


@dataclass(slots=True)
class Fetch:
    """One missing thing.

    Attributes:
        round: round of the block that needs it; it is dropped once that round is settled.
        sources: whom to ask, best first: the first alone at first, then two at a time in turn.
        attempt: how often it was asked for.
        next_ms: when to ask again.
    """

    round: int
    sources: tuple[bytes, ...]
    attempt: int
    next_ms: int

    def ask(self) -> tuple[bytes, ...]:
        """Return the sources of this attempt."""
        if self.attempt == 0 or len(self.sources) <= 2:
            return self.sources[:1] if self.attempt == 0 else self.sources
        start = (2 * self.attempt - 1) % len(self.sources)
        return tuple(self.sources[(start + offset) % len(self.sources)] for offset in range(2))


class Fetches:
    """Missing things by key, at most `entries_max`; past that the lowest round goes (it is asked for anew if met)."""

    __slots__ = ("_attempts_max", "_entries_max", "_retry_ms", "entries")

    def __init__(self, entries_max: int, attempts_max: int, retry_ms: int) -> None:
        self.entries: dict[bytes, Fetch] = {}
        self._entries_max = entries_max
        self._attempts_max = attempts_max
        self._retry_ms = retry_ms

    def want(self, key: bytes, round_: int, sources: tuple[bytes, ...]) -> None:
        """Start fetching `key`, if it is not being fetched and anybody can be asked."""
        if key in self.entries or not sources:
            return
        if len(self.entries) >= self._entries_max:
            lowest = min(self.entries, key=lambda item: self.entries[item].round)
            del self.entries[lowest]
        self.entries[key] = Fetch(round_, sources, 0, 0)

    def got(self, key: bytes) -> None:
        """Stop fetching `key`."""
        self.entries.pop(key, None)

    def drop_upto(self, round_: int) -> None:
        """Stop fetching for rounds up to `round_`."""
        for key in [key for key, fetch in self.entries.items() if fetch.round <= round_]:
            del self.entries[key]

    def due(self, now_ms: int) -> list[tuple[bytes, tuple[bytes, ...]]]:
        """Return (key, whom to ask) for everything due, and schedule the next attempts."""
        asks: list[tuple[bytes, tuple[bytes, ...]]] = []
        if not self.entries:
            return asks
        for key, fetch in list(self.entries.items()):
            if fetch.next_ms > now_ms:
                continue
            if fetch.attempt >= self._attempts_max:
                del self.entries[key]
                continue
            asks.append((key, fetch.ask()))
            fetch.next_ms = now_ms + (self._retry_ms << min(fetch.attempt, BACKOFF_DOUBLINGS_MAX))
            fetch.attempt += 1
        return asks
