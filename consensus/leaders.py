"""Who leads a round: stake-weighted round-robin, the same on every node, in integers.

Smooth weighted round-robin (as in nginx's upstream balancing) over one cycle, computed once per epoch: each slot goes
to the validator with the largest credit, credits grow by weight, the winner pays the total. With equal stakes it is
plain round-robin. Nothing depends on what a node happens to have committed, which differs between nodes that lag.
"""

from math import gcd

from consensus.validators import ValidatorSet

SLOTS_MAX = 2048
"""Longest cycle; finer stakes are rounded to it, never below one slot."""


class Leaders:
    """`leader(round)` for one epoch."""

    __slots__ = ("_cycle",)

    def __init__(self, validators: ValidatorSet) -> None:
        self._cycle = _cycle(_weights(validators))

    def index(self, round_: int) -> int:
        """Return the index of the leader of `round_` (1 is the first round)."""
        return self._cycle[(round_ - 1) % len(self._cycle)]


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
