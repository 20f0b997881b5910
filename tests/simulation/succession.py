"""Who validates in which epoch of a run: members join, leave, change stake and re-anchor; the dishonest stay a minority."""

import random
from functools import lru_cache

from consensus import crypto
from consensus.beacon import BeaconChain
from consensus.digest import ZERO32, digest
from consensus.validators import Validator, ValidatorSet, make_validator_set

VALIDATORS_MAX = 10
BEACON_LENGTH = 512
SEEDS = sorted((digest("simulated-key", bytes([i])) for i in range(VALIDATORS_MAX)), key=crypto.public_key)
KEYS = [crypto.public_key(seed) for seed in SEEDS]


@lru_cache(maxsize=128)
def beacon_of(index: int, version: int) -> BeaconChain:
    """Return a validator's hash chain; each re-anchoring begins another version."""
    return BeaconChain(digest("simulated-beacon", SEEDS[index] + bytes([version])), BEACON_LENGTH)


def first_set(stakes: tuple[int, ...], seed: bytes) -> ValidatorSet:
    """Return the set of a run's first epoch: all of the first keys, with these stakes."""
    rows = [Validator(KEYS[index], stake, beacon_of(index, 0).anchor) for index, stake in enumerate(stakes)]
    return ValidatorSet(0, make_validator_set(0, rows).validators, seed=seed)


class Succession:
    """The sets of a run's epochs, in order; the last epoch does not end.

    Attributes:
        sets: one for each epoch.
        versions: for each epoch, the version of each key's hash chain.
    """

    def __init__(
        self, name: str, stakes: tuple[int, ...], dishonest: int, changes: int, *, drawn_leaders: bool
    ) -> None:
        rng = random.Random(f"succession {name}")
        self.sets = [first_set(stakes, rng.randbytes(32) if drawn_leaders else ZERO32)]
        self.versions = [[0] * len(stakes)]
        for epoch in range(1, changes + 1):
            versions = [version + (rng.random() < 0.15) for version in self.versions[-1]]
            self.versions.append(versions)
            self.sets.append(_draw(rng, epoch, versions, dishonest))

    def beacon(self, epoch: int, index: int) -> BeaconChain | None:
        """Return a key's hash chain in an epoch; None if it is no validator then."""
        if self.sets[epoch].index_of(KEYS[index]) is None:
            return None
        return beacon_of(index, self.versions[epoch][index])


def _draw(rng: random.Random, epoch: int, versions: list[int], dishonest: int) -> ValidatorSet:
    """Draw members and stakes until the dishonest, the last keys, have less than a third and three honest are there.

    Nor may the dishonest lead more than half of the rounds: of a chain whose leader is silent nine times in ten nobody can
    say how soon it recovers. (In the ledger a leader that is silent loses its weight with the epoch.)
    """
    size = len(versions)
    while True:
        stakes = {index: rng.randint(1, 4) for index in range(size) if rng.random() < 0.75}
        honest = [stake for index, stake in stakes.items() if index < size - dishonest]
        if len(honest) >= 3 and 2 * sum(stakes.values()) < 3 * sum(honest):
            break
    while True:
        weights = {index: rng.choice((0, 1, 10, 100)) for index in stakes}
        turns = {index: weight or stakes[index] for index, weight in weights.items()}
        if 2 * sum(turn for index, turn in turns.items() if index < size - dishonest) >= sum(turns.values()):
            break
    rows = [
        Validator(KEYS[index], stake, beacon_of(index, versions[index]).anchor, leader_weight=weights[index])
        for index, stake in stakes.items()
    ]
    drawn = make_validator_set(epoch, rows)
    seed = ZERO32 if rng.random() < 0.3 else rng.randbytes(32)
    return ValidatorSet(epoch, drawn.validators, seed=seed)
