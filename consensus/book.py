"""What validators said, one statement per author and round, within a window of rounds."""

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Book(Generic[Item]):
    """Statements by round and author index.

    The first statement of an author in a round stays; a second, different one is handed back as a conflict and not
    stored. Rounds outside the window given by the caller are never stored, so a book holds at most
    (window x validators) items.
    """

    __slots__ = ("_rounds",)

    def __init__(self) -> None:
        self._rounds: dict[int, dict[int, tuple[Hashable, Item]]] = {}

    def add(self, round_: int, author: int, statement: Hashable, item: Item) -> Item | None:
        """Store `item` unless the author has one for the round; return an earlier item that states otherwise."""
        row = self._rounds.setdefault(round_, {})
        earlier = row.get(author)
        if earlier is None:
            row[author] = (statement, item)
            return None
        return None if earlier[0] == statement else earlier[1]

    def has(self, round_: int, author: int, statement: Hashable) -> bool:
        """Return whether exactly this statement is stored."""
        earlier = self._rounds.get(round_, {}).get(author)
        return earlier is not None and earlier[0] == statement

    def matching(self, round_: int, statement: Hashable) -> list[tuple[int, Item]]:
        """Return (author index, item) of all who made this statement, ascending by index."""
        row = self._rounds.get(round_, {})
        # In order of the author alone: no item is compared, for no author is there twice.
        return [(author, row[author][1]) for author in sorted(row) if row[author][0] == statement]

    def all(self, round_: int) -> list[tuple[int, Item]]:
        """Return (author index, item) of everyone heard in a round, ascending by index."""
        row = self._rounds.get(round_, {})
        return [(author, row[author][1]) for author in sorted(row)]

    def count(self, round_: int) -> int:
        """Return how many were heard in a round."""
        return len(self._rounds.get(round_, ()))

    def get(self, round_: int, author: int) -> Item | None:
        """Return what one author said in a round."""
        entry = self._rounds.get(round_, {}).get(author)
        return None if entry is None else entry[1]

    def of(self, author: int) -> list[Item]:
        """Return everything one author said, in no order."""
        rows = (row.get(author) for row in self._rounds.values())
        return [entry[1] for entry in rows if entry is not None]

    def drop_below(self, round_: int) -> None:
        """Forget all rounds below `round_`."""
        for old in [key for key in self._rounds if key < round_]:
            del self._rounds[old]

    def clear(self) -> None:
        """Forget everything."""
        self._rounds.clear()

    def __iter__(self) -> Iterator[int]:
        return iter(self._rounds)
