"""How a process dies around one write, and when.

The log behind a node's disk behaves as LevelDB's does (tests/unit/node_storage/test_power_cut.py shows it on the real one):
a write is whole or absent, what survives a power cut is the log up to some write, and at least up to the last synced one.
"""

import random
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from consensus.effects import Effect, Persist

if TYPE_CHECKING:
    from tests.simulation.node import Node

EVERYTHING = 1 << 30
"""Keep every unsynced write: the process was killed, but the system lives on."""


class Manner(Enum):
    """What of a step with a write was done before the end."""

    BEFORE_WRITE = "before the write"
    TORN_WRITE = "in the write: its torn record is dropped by the next reader, what lay before it is whole"
    LOST_WRITE = "in the sync, by a power cut: the write is lost, and some that waited unsynced before it"
    WRITTEN = "in the sync, by a kill: the system still has what it was given"
    SYNCED = "after the sync, before the first send"
    SOME_SENT = "after some sends, the last of which reached some of its receivers"
    ALL_SENT = "after all sends, before anything is delivered"


@dataclass(frozen=True)
class Death:
    """One end: its manner, how many unsynced writes outlive it, and whether every machine loses power with this one."""

    manner: Manner
    kept: int = 0
    everywhere: bool = False


class Fate(Protocol):
    """Decides before the effects of each step of an honest node whether it lives through them."""

    def __call__(self, node: "Node", effects: list[Effect]) -> Death | None:
        """Return the end of this step, or None."""


@dataclass
class RandomFate:
    """Ends a step with a write by chance, `per_10000` times in ten thousand; one in ten of the ends is a power cut of all."""

    per_10000: int
    rng: random.Random

    def __call__(self, node: "Node", effects: list[Effect]) -> Death | None:
        if not self.per_10000 or not has_write(effects) or self.rng.randrange(10_000) >= self.per_10000:
            return None
        kept = self.rng.choice((0, 0, 1, 2, EVERYTHING))
        return Death(self.rng.choice(tuple(Manner)), kept, self.rng.random() < 0.1)


@dataclass
class DirectedFate:
    """Ends one node at its writes with the given numbers, counted from 1 over all of its lives."""

    slot: int
    deaths: dict[int, Death]
    writes: int = 0
    done: list[int] = field(default_factory=list)

    def __call__(self, node: "Node", effects: list[Effect]) -> Death | None:
        if node.slot != self.slot or not has_write(effects):
            return None
        self.writes += 1
        death = self.deaths.get(self.writes)
        if death is not None:
            self.done.append(self.writes)
        return death


def has_write(effects: list[Effect]) -> bool:
    """Whether a step writes at all."""
    return any(isinstance(effect, Persist) for effect in effects)
