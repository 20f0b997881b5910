"""Validators, their stake, and the two thresholds everything rests on."""

from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from consensus.codec import encode
from consensus.digest import DIGEST_BYTES, ZERO32, digest

VALIDATORS_MAX = 256
STAKE_TOTAL_MAX = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Validator:
    """One validator of an epoch.

    Attributes:
        id: 32-byte Ed25519 consensus public key.
        stake: voting weight, at least 1.
        beacon_anchor: 32-byte end of the validator's hash chain (`consensus.beacon`).
        leader_weight: its share of the leaders' draw (`consensus.leaders`); 0 for as much as its stake.
    """

    id: bytes
    stake: int
    beacon_anchor: bytes
    leader_weight: int = 0


@dataclass(frozen=True)
class ValidatorSet:
    """The validators of one epoch, sorted by id; an index into it names a validator in certificates.

    Attributes:
        epoch: number of the epoch; 0 is the first.
        validators: sorted by id.
        seed: 32 bytes that leaders are drawn from; `ZERO32` for leaders by turns.
        total_stake: sum of all stakes.

    Raises:
        ValueError: on construction: unsorted or repeated ids, none or more than `VALIDATORS_MAX`, wrong lengths, stake
            below 1 or above `STAKE_TOTAL_MAX` in all, a leader weight outside 0 to `STAKE_TOTAL_MAX`.
    """

    epoch: int
    validators: tuple[Validator, ...]
    seed: bytes = ZERO32
    total_stake: int = field(init=False, repr=False, compare=False)
    _index: dict[bytes, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.validators) <= VALIDATORS_MAX:
            raise ValueError(f"{len(self.validators)} validators; 1 to {VALIDATORS_MAX} are allowed")
        ids = [validator.id for validator in self.validators]
        if any(left >= right for left, right in pairwise(ids)):
            raise ValueError("validators must be sorted by id, each once")
        for validator in self.validators:
            if len(validator.id) != DIGEST_BYTES or len(validator.beacon_anchor) != DIGEST_BYTES:
                raise ValueError("validator ids and beacon anchors have 32 bytes")
            if validator.stake < 1:
                raise ValueError("a validator has stake")
            if not 0 <= validator.leader_weight <= STAKE_TOTAL_MAX:
                raise ValueError("leader weight out of range")
        if len(self.seed) != DIGEST_BYTES:
            raise ValueError("the seed of leaders has 32 bytes")
        total = sum(validator.stake for validator in self.validators)
        if total > STAKE_TOTAL_MAX:
            raise ValueError("total stake out of range")
        object.__setattr__(self, "total_stake", total)
        object.__setattr__(self, "_index", {key: index for index, key in enumerate(ids)})

    def __len__(self) -> int:
        return len(self.validators)

    @cached_property
    def hash(self) -> bytes:
        """32-byte digest of the set, the same on every chain."""
        rows = tuple((v.id, v.stake, v.beacon_anchor, v.leader_weight) for v in self.validators)
        return digest("validator-set", encode((self.epoch, rows, self.seed)))

    def index_of(self, validator_id: bytes) -> int | None:
        """Return the index of a validator, or None for a stranger."""
        return self._index.get(validator_id)

    def stake_at(self, index: int) -> int:
        """Return the stake of the validator at `index`."""
        return self.validators[index].stake

    def is_quorum(self, stake: int) -> bool:
        """More than two thirds of the stake: two quorums share an honest validator."""
        return 3 * stake > 2 * self.total_stake

    def is_one_honest(self, stake: int) -> bool:
        """More than one third of the stake: at least one honest validator is among the holders."""
        return 3 * stake > self.total_stake


def make_validator_set(
    epoch: int, validators: tuple[Validator, ...] | list[Validator], seed: bytes = ZERO32
) -> ValidatorSet:
    """Return the set with the validators brought into order."""
    return ValidatorSet(epoch, tuple(sorted(validators, key=lambda validator: validator.id)), seed)
