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
    JOIN = "joins, a kill -9"
    LEAVE = "leaves, a kill -9"
    STAKE = "stake moves, a kill -9"
    LOST_DISK = "disk lost"
    RECEIVING = "kill -9, receiving"
    SERVING = "kill -9, serving"
    SIGNER_KILL = "signer: kill -9"
    SIGNER_PAUSE = "signer: SIGSTOP"


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
    Kind.JOIN: (0, 3000),
    Kind.LEAVE: (0, 3000),
    Kind.STAKE: (0, 3000),
    Kind.LOST_DISK: (0, 1000),
    Kind.RECEIVING: (0, 0),
    Kind.SERVING: (500, 3000),
    Kind.SIGNER_KILL: (3000, 8000),
    Kind.SIGNER_PAUSE: (3000, 8000),
}
"""How long each lasts before it heals. Silence is noticed after 8 s without a ping's answer: some last longer, some not."""

OVERHEAD_MS = 7000
"""What a fault takes besides, about: a start, a recovery, the next one's preparation."""

BYZANTINE_PART = 3
"""The last third of a run has a Byzantine validator from its begin to the end; with f = 1 only faults beyond f come beside it."""

BEYOND_F = (Kind.KILL_MANY, Kind.POWER_CUT, Kind.HALVES)
"""Progress may end while these last; safety may not."""

EPOCHS = (Kind.JOIN, Kind.LEAVE, Kind.STAKE)
"""A change of the set, named first, while another validator, named second, is killed."""

SNAPSHOTS = (Kind.LOST_DISK, Kind.RECEIVING, Kind.SERVING)
"""These end with a node that has lost everything and comes back from a snapshot; it is named first."""

SIGNERS = (Kind.SIGNER_KILL, Kind.SIGNER_PAUSE)
"""These strike the process that holds a validator's key, not the daemon."""

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


@dataclass(frozen=True, slots=True)
class Roles:
    """Who may be struck by what.

    Attributes:
        validators: of the genesis.
        full_node: the one that does not validate.
        candidates: those that may join, each once, in this order.
        signed: the validator whose key a signer holds; never the Byzantine one. Empty: none.
    """

    validators: tuple[str, ...]
    full_node: str
    candidates: tuple[str, ...] = ()
    signed: str = ""


def draw_schedule(
    seed: int, roles: Roles, duration_ms: int, kinds: Sequence[Kind] = tuple(Kind)
) -> tuple[Fault, ...]:
    """Draw faults until their times fill the duration, every kind once before any comes again.

    At most f = (n-1)//3 validators are faulty at a time, the Byzantine one included, but for `BEYOND_F`. Kinds that the roles
    leave nobody for are left out; where nobody has joined, somebody joins before somebody leaves.
    """
    validators = roles.validators
    chance = random.Random(f"chaos {seed} {len(validators)}")
    faulty_max = (len(validators) - 1) // 3
    turning = [name for name in validators if name != roles.signed]
    byzantine = "" if Kind.BYZANTINE not in kinds else chance.choice(turning)
    found: list[Fault] = []
    left_ms, bag = duration_ms, list[Kind]()
    while left_ms > 0 or not found:
        turned = any(fault.kind is Kind.BYZANTINE for fault in found)
        if byzantine and not turned and left_ms <= duration_ms / BYZANTINE_PART:
            fault = Fault(Kind.BYZANTINE, (byzantine,), chance.randrange(*LASTING_MS[Kind.BYZANTINE]))
            bag = []
        else:
            allowed: list[Kind] = [
                kind for kind in kinds if kind != Kind.BYZANTINE and _possible(kind, roles)
            ]
            if turned and faulty_max == 1:
                allowed = [kind for kind in allowed if kind in BEYOND_F] or list(BEYOND_F)
            bag = bag or chance.sample(allowed, len(allowed))
            honest = [name for name in validators if not (turned and name == byzantine)]
            kind = _member_kind(bag.pop(), found, roles)
            fault = _draw(chance, kind, honest, roles, found, max(faulty_max - turned, 1))
        found.append(fault)
        left_ms -= fault.lasting_ms + OVERHEAD_MS
    return tuple(found)


def _possible(kind: Kind, roles: Roles) -> bool:
    if kind in (Kind.JOIN, Kind.LEAVE):
        return bool(roles.candidates)
    return kind not in SIGNERS or bool(roles.signed)


def joined(found: Sequence[Fault]) -> list[str]:
    """Candidates that have joined after these faults and have not left."""
    left = {fault.nodes[0] for fault in found if fault.kind is Kind.LEAVE}
    return [fault.nodes[0] for fault in found if fault.kind is Kind.JOIN and fault.nodes[0] not in left]


def _member_kind(kind: Kind, found: Sequence[Fault], roles: Roles) -> Kind:
    """Whoever leaves has joined before, and who left does not come back: a kind that cannot be gives way to one that can."""
    inside = joined(found)
    come = sum(fault.kind is Kind.JOIN for fault in found)
    if kind is Kind.LEAVE and not inside:
        return Kind.JOIN if come < len(roles.candidates) else Kind.STAKE
    if kind is Kind.JOIN and come == len(roles.candidates):
        return Kind.LEAVE if inside else Kind.STAKE
    return kind


def _draw(
    chance: random.Random,
    kind: Kind,
    honest: list[str],
    roles: Roles,
    found: Sequence[Fault],
    faulty_max: int,
) -> Fault:
    low, high = LASTING_MS[kind]
    lasting_ms = chance.randrange(low, high) if high > low else low
    anybody = [*honest, roles.full_node]
    match kind:
        case Kind.POWER_CUT:
            nodes = anybody
        case Kind.KILL_MANY:
            nodes = chance.sample(honest, min(len(honest) - 1, faulty_max + 1))
        case Kind.HALVES:
            nodes = chance.sample(honest, len(honest) // 2)
        case _ if kind in SHARED:
            nodes = chance.sample(anybody, chance.randint(1, faulty_max))
        case Kind.LOST_TAIL | Kind.GARBAGE:
            nodes = [chance.choice(anybody)]
        case Kind.JOIN:
            come = sum(fault.kind is Kind.JOIN for fault in found)
            return Fault(kind, (roles.candidates[come], chance.choice(honest)), lasting_ms)
        case Kind.LEAVE:
            return Fault(kind, (joined(found)[0], chance.choice(honest)), lasting_ms)
        case Kind.STAKE:
            return Fault(kind, tuple(chance.sample(honest, 2)), lasting_ms)
        case Kind.LOST_DISK | Kind.RECEIVING:
            # A validator that has its key at home has lost it for good with its disk: it says so, and does not come back.
            nodes = [chance.choice([roles.full_node, roles.signed or roles.full_node])]
        case Kind.SERVING:
            return Fault(kind, (roles.full_node, chance.choice(honest)), lasting_ms)
        case Kind.SIGNER_KILL | Kind.SIGNER_PAUSE:
            nodes = [roles.signed]
        case _:
            nodes = [chance.choice(honest)]
    return Fault(kind, tuple(sorted(nodes)), lasting_ms)
