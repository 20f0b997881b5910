"""Which faults come when: a pure function of a seed, so that a run can be told again. Times are what a run aims at."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What is done to nodes."""

    KILL = "kill -9"
    KILL_MANY = "kill -9 of more than f"
    POWER_CUT = "kill -9 of all"
    PAUSE = "SIGSTOP"
    SILENCE = "cut, silent"
    ONE_WAY = "cut, one way"
    RESET = "cut, reset"
    HALVES = "cut in halves"
    DISK_FULL = "disk full"
    TORN_TAIL = "WAL: torn tail"
    LOST_TAIL = "WAL: lost tail"
    GARBAGE = "WAL: garbage"
    CLOCK = "clock wrong"
    BYZANTINE = "Byzantine binary"


LASTING_MS = {
    Kind.KILL: (0, 4000),
    Kind.KILL_MANY: (2000, 6000),
    Kind.POWER_CUT: (0, 0),
    Kind.PAUSE: (1000, 11_000),
    Kind.SILENCE: (1000, 11_000),
    Kind.ONE_WAY: (1000, 11_000),
    Kind.RESET: (1000, 11_000),
    Kind.HALVES: (2000, 11_000),
    Kind.DISK_FULL: (0, 0),
    Kind.TORN_TAIL: (0, 1000),
    Kind.LOST_TAIL: (0, 1000),
    Kind.GARBAGE: (0, 1000),
    Kind.CLOCK: (2000, 4000),
    Kind.BYZANTINE: (6000, 10_000),
}
"""How long each lasts before it heals. Silence is noticed after 8 s without a ping's answer: some last longer, some not."""

OVERHEAD_MS = 7000
"""What a fault takes besides, about: a start, a recovery, the next one's preparation."""

BYZANTINE_PART = 3
"""The last third of a run has a Byzantine validator from its begin to the end; with f = 1 only faults beyond f come beside it."""

BEYOND_F = (Kind.KILL_MANY, Kind.POWER_CUT, Kind.HALVES)
"""Progress may end while these last; safety may not."""

SHARED = (Kind.KILL, Kind.PAUSE, Kind.SILENCE, Kind.ONE_WAY, Kind.RESET)
"""These may strike as many as f validators at once, or the full node."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: who is struck, and how long it lasts, in ms."""

    kind: Kind
    nodes: tuple[str, ...]
    lasting_ms: int

    def __str__(self) -> str:
        return f"{self.kind} of {', '.join(self.nodes)} for {self.lasting_ms / 1000:g} s"


def draw_schedule(
    seed: int,
    validators: Sequence[str],
    full_node: str,
    duration_ms: int,
    kinds: Sequence[Kind] = tuple(Kind),
) -> tuple[Fault, ...]:
    """Draw faults until their times fill the duration, every kind once before any comes again.

    At most f = (n-1)//3 validators are faulty at a time, the Byzantine one included, but for `BEYOND_F`.
    """
    chance = random.Random(f"chaos {seed} {len(validators)}")
    faulty_max = (len(validators) - 1) // 3
    byzantine = "" if Kind.BYZANTINE not in kinds else chance.choice(validators)
    found: list[Fault] = []
    left_ms, bag = duration_ms, list[Kind]()
    while left_ms > 0 or not found:
        turned = any(fault.kind is Kind.BYZANTINE for fault in found)
        if byzantine and not turned and left_ms <= duration_ms / BYZANTINE_PART:
            fault = Fault(Kind.BYZANTINE, (byzantine,), chance.randrange(*LASTING_MS[Kind.BYZANTINE]))
            bag = []
        else:
            allowed: list[Kind] = [kind for kind in kinds if kind != Kind.BYZANTINE]
            if turned and faulty_max == 1:
                allowed = [kind for kind in allowed if kind in BEYOND_F] or list(BEYOND_F)
            bag = bag or chance.sample(allowed, len(allowed))
            honest = [name for name in validators if not (turned and name == byzantine)]
            fault = _draw(chance, bag.pop(), honest, full_node, max(faulty_max - turned, 1))
        found.append(fault)
        left_ms -= fault.lasting_ms + OVERHEAD_MS
    return tuple(found)


def _draw(chance: random.Random, kind: Kind, honest: list[str], full_node: str, faulty_max: int) -> Fault:
    low, high = LASTING_MS[kind]
    lasting_ms = chance.randrange(low, high) if high > low else low
    match kind:
        case Kind.POWER_CUT:
            nodes = [*honest, full_node]
        case Kind.KILL_MANY:
            nodes = chance.sample(honest, min(len(honest) - 1, faulty_max + 1))
        case Kind.HALVES:
            nodes = chance.sample(honest, len(honest) // 2)
        case _ if kind in SHARED:
            nodes = chance.sample([*honest, full_node], chance.randint(1, faulty_max))
        case Kind.LOST_TAIL | Kind.GARBAGE:
            nodes = [chance.choice([*honest, full_node])]
        case _:
            nodes = [chance.choice(honest)]
    return Fault(kind, tuple(sorted(nodes)), lasting_ms)
