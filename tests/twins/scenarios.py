"""Twins scenarios (Bano et al., arXiv 2004.10617): for each round a leader and a partition; one of each kind of symmetry.

Four validators; the first runs two replicas under one key, the twins 0 and 1, the others are the replicas 2, 3 and 4.
A round's choice is a number below `CHOICES`: leader (which key) times 16 ways to put five replicas into at most two groups.
Renaming the three honest validators, or exchanging the twins, changes nothing but names: 12 of these renamings. A scenario
is listed if it is the least of its images.
"""

import random
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

REPLICAS = 5
KEYS = 4
TWINS = (0, 1)
HONEST = (2, 3, 4)
PARTITIONS = 1 << (REPLICAS - 1)
CHOICES = KEYS * PARTITIONS
RENAMINGS = 12
DROPS = ("nothing", "proposals", "votes", "commit votes", "timeouts")


@dataclass(frozen=True)
class Round:
    """One round's part of a scenario.

    Attributes:
        leader: key that leads the round: 0 the twins', 1 to 3 the honest ones.
        groups: group of each replica, 0 or 1; the first is in group 0.
        drop: kind of message that one replica does not get in this phase, in `DROPS`.
        deaf: that replica.
    """

    leader: int
    groups: tuple[int, ...]
    drop: str = "nothing"
    deaf: int = 0


Scenario = tuple[Round, ...]


def round_of(choice: int, drop: str = "nothing", deaf: int = 0) -> Round:
    """Return the round that a choice stands for."""
    leader, mask = divmod(choice, PARTITIONS)
    return Round(leader, (0, *((mask >> bit) & 1 for bit in range(REPLICAS - 1))), drop, deaf)


def _renamings() -> tuple[tuple[int, ...], ...]:
    """For each renaming, the image of each choice."""
    tables = []
    for swap in (False, True):
        for others in permutations(HONEST):
            replica = [1, 0] if swap else [0, 1]
            target = [*replica, *others]
            tables.append(tuple(_image(choice, target) for choice in range(CHOICES)))
    return tuple(tables)


def _image(choice: int, target: list[int]) -> int:
    made = round_of(choice)
    leader = made.leader if made.leader == 0 else target[made.leader + 1] - 1
    groups = [0] * REPLICAS
    for replica, group in enumerate(made.groups):
        groups[target[replica]] = group
    if groups[0]:
        groups = [1 - group for group in groups]
    mask = sum(group << bit for bit, group in enumerate(groups[1:]))
    return leader * PARTITIONS + mask


_TABLES = _renamings()


def canonical(rounds: int) -> Iterator[tuple[int, ...]]:
    """Yield the choices of every scenario that is the least of its images, in ascending order."""

    def extend(prefix: tuple[int, ...], stable: tuple[tuple[int, ...], ...]) -> Iterator[tuple[int, ...]]:
        # Renamings that leave the prefix as it is decide alone whether the next choice is the least.
        if len(prefix) == rounds:
            yield prefix
            return
        for choice in range(CHOICES):
            if all(table[choice] >= choice for table in stable):
                kept = tuple(table for table in stable if table[choice] == choice)
                yield from extend((*prefix, choice), kept)

    return extend((), _TABLES)


@lru_cache(maxsize=2)
def listed(rounds: int) -> "array[int]":
    """Return `canonical(rounds)` with each scenario as one number to the base `CHOICES`; up to five rounds fit."""
    numbers = array("L")
    for choices in canonical(rounds):
        number = 0
        for choice in choices:
            number = number * CHOICES + choice
        numbers.append(number)
    return numbers


def choices_of(number: int, rounds: int) -> tuple[int, ...]:
    """Return the choices that a number in `listed` stands for."""
    return tuple(number // CHOICES**power % CHOICES for power in range(rounds - 1, -1, -1))


def all_count(rounds: int) -> int:
    """How many scenarios there are before symmetric ones are removed."""
    return int(CHOICES**rounds)


def scenario_of(choices: tuple[int, ...]) -> Scenario:
    """Return the scenario without drops that the choices stand for."""
    return tuple(round_of(choice) for choice in choices)


def drawn(seed: int, number: int, rounds: int) -> Scenario:
    """Draw one of all scenarios, with drops."""
    rng = random.Random(f"twins {seed} {rounds} {number}")
    made = []
    for _ in range(rounds):
        drop = rng.choice(DROPS) if rng.random() < 0.5 else "nothing"
        made.append(round_of(rng.randrange(CHOICES), drop, rng.choice((*TWINS, *HONEST))))
    return tuple(made)
