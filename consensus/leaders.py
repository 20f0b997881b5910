"""Who leads a round, the same on every node, in integers; nothing depends on what a node happens to have committed.

A set without a seed takes turns by stake. One with a seed draws each round's leader by the weights that the epoch's set
fixes, from (seed, round): `digest("leader", (seed, round))` as a big-endian integer, modulo the sum of the weights, falls
into one validator's share of them, in the order of the set. The remainder favours nobody by more than 2^-185.

By turns: smooth weighted round-robin (as in nginx's upstream balancing) over one cycle, computed once per epoch: each slot goes
to the validator with the largest credit, credits grow by weight, the winner pays the total. With equal stakes it is
plain round-robin.
"""

from bisect import bisect_right
from itertools import accumulate
from math import gcd

from consensus.codec import encode
from consensus.digest import ZERO32, digest
from consensus.validators import ValidatorSet

SLOTS_MAX = 2048
"""Longest cycle; finer stakes are rounded to it, never below one slot."""
DRAWN_MAX = 256
"""Drawn leaders remembered; past it the oldest is drawn again if it is asked for."""
MISSED_MAX = 64
"""Leaders of skipped rounds that are named, the newest."""


class Leaders:
    """`leader(round)` for one epoch."""

    __slots__ = ("_cycle", "_drawn", "_ends", "_seed")

    def __init__(self, validators: ValidatorSet) -> None:
        self._seed = validators.seed
        self._cycle = _cycle(_weights(validators)) if self._seed == ZERO32 else ()
        self._ends = list(accumulate(entry.leader_weight or entry.stake for entry in validators.validators))
        self._drawn: dict[int, int] = {}

    def index(self, round_: int) -> int:
        """Return the index of the leader of `round_` (1 is the first round)."""
        if self._cycle:
            return self._cycle[(round_ - 1) % len(self._cycle)]
        known = self._drawn.get(round_)
        if known is None:
            drawn = int.from_bytes(digest("leader", encode((self._seed, round_))), "big") % self._ends[-1]
            # The share of the validator at i is [ends[i-1], ends[i]).
            known = bisect_right(self._ends, drawn)
            if len(self._drawn) >= DRAWN_MAX:
                del self._drawn[next(iter(self._drawn))]
            self._drawn[round_] = known
        return known


def missed_leaders(leaders: Leaders, parent_round: int, round_: int) -> tuple[int, ...]:
    """Return the indices of the leaders of the rounds between a block's and its parent's, in the order of the rounds.

    Of more than `MISSED_MAX` rounds the newest; a validator that led several of them is there as often.
    """
    return tuple(
        leaders.index(missed) for missed in range(max(parent_round + 1, round_ - MISSED_MAX), round_)
    )


def _weights(validators: ValidatorSet) -> list[int]:
    stakes = [validator.stake for validator in validators.validators]
    divisor = gcd(*stakes)
    total = validators.total_stake // divisor
    if total <= SLOTS_MAX:
        return [stake // divisor for stake in stakes]
    return [max(1, stake * SLOTS_MAX // validators.total_stake) for stake in stakes]


def _cycle(weights: list[int]) -> tuple[int, ...]:
    total = sum(weights)
    credits = [0] * len(weights)
    cycle = []
    for _ in range(total):
        for index, weight in enumerate(weights):
            credits[index] += weight
        # Ties go to the lowest index, so the order is the order of validator ids.
        winner = max(range(len(weights)), key=lambda index: (credits[index], -index))
        credits[winner] -= total
        cycle.append(winner)
    return tuple(cycle)
