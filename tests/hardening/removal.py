"""One hardening, how to remove it, and which tests must notice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Removal:
    """A hardening that is taken out of a copy of the tree.

    `threat` says, in a few words, what the hardening is against. `text` occurs exactly once in `file` (a path from the
    repository's root) and is replaced by `instead`. Each of `tests` is a pytest node id that passes with the hardening and
    fails without it.
    """

    threat: str
    file: str
    text: str
    instead: str
    tests: tuple[str, ...]
