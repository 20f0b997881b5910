"""Stake and epochs as the state holds them: records, keys, typed reads. Present only where `params.epoch_heights` is set.

| key | record |
|---|---|
| ``v/`` account | `Stake`: a registered validator, or one that left and whose stake is not all paid out |
| ``y/`` consensus key, ``z/`` peer id | the account that they belong to, for as long as its `Stake` exists |
| ``x/`` 8-byte big-endian epoch | `PastEpoch`: who validated in an ended epoch, until the unbonding windows after it are over |
| ``u/`` 8-byte big-endian epoch | `Unbonders`: whose stake is paid out when that epoch's record goes |
| ``g/epoch`` ``g/history`` | `Epoch`, `History` of the epoch in progress |
| ``g/validators-next`` | the next epoch's `ValidatorSet`, from its freezing to the boundary |
| ``q/candidates`` | `Candidates`: accounts among which the next set is chosen |

Every list is bounded, and the end of a block looks at a fixed number of keys: nothing scans.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from consensus.crypto import sign
from consensus.digest import digest
from node.ledger.bodies import PEER_ID_BYTES_MAX
from node.ledger.entries import VALIDATORS_MAX, ValidatorSet
from node.ledger.errors import ExecutionError
from node.ledger.fields import fixed, many, nested, text, uint
from node.ledger.overlay import Overlay, StateReader
from node.ledger.results import ADDRESS_BYTES, HASH_BYTES
from node.ledger.state import read

CANDIDATES_MAX = 256
UNBONDINGS_PER_ACCOUNT_MAX = 8
"""Epochs in which one account may have stake unbonding; leaving for good takes one more where it must."""

UNBONDERS_PER_EPOCH_MAX = 512

STAKE, KEY_OWNER, PEER_OWNER, PAST_EPOCH, UNBONDERS = b"v/", b"y/", b"z/", b"x/", b"u/"
EPOCH_KEY, HISTORY_KEY, NEXT_VALIDATORS_KEY = b"g/epoch", b"g/history", b"g/validators-next"
CANDIDATES_KEY = b"q/candidates"

_HASH = fixed(HASH_BYTES)
_UINT = uint()
_FLAG = uint(1)


@dataclass(frozen=True, slots=True)
class Unbonding:
    """`amount` units that secured the chain up to the end of `epoch` and are slashable for it and all before."""

    epoch: int = field(metadata=_UINT)
    amount: int = field(metadata=_UINT)


@dataclass(frozen=True, slots=True)
class Stake:
    """A validator's registration. Flags are 0 or 1; `jailed_height` and `jailed_ms` say since when it is jailed.

    `anchor_spent`: it was in a set with this anchor and dropped out, so that its reveals are public. `slashed` are the
    units burned so far.
    """

    consensus_key: bytes = field(metadata=_HASH)
    peer_id: str = field(metadata=text(PEER_ID_BYTES_MAX))
    beacon_anchor: bytes = field(metadata=_HASH)
    bonded: int = field(metadata=_UINT)
    leaving: int = field(default=0, metadata=_FLAG)
    jailed: int = field(default=0, metadata=_FLAG)
    jailed_height: int = field(default=0, metadata=_UINT)
    jailed_ms: int = field(default=0, metadata=_UINT)
    anchor_spent: int = field(default=0, metadata=_FLAG)
    slashed: int = field(default=0, metadata=_UINT)
    unbondings: tuple[Unbonding, ...] = field(
        default=(), metadata=many(nested(Unbonding), UNBONDINGS_PER_ACCOUNT_MAX + 1)
    )

    def eligible(self, stake_min: int) -> bool:
        """Whether the next set may hold it."""
        return not (self.leaving or self.jailed or self.anchor_spent) and self.bonded >= stake_min


@dataclass(frozen=True, slots=True)
class Candidates:
    """Accounts of registered validators that have not left, in order of registration."""

    accounts: tuple[bytes, ...] = field(default=(), metadata=many(fixed(ADDRESS_BYTES), CANDIDATES_MAX))


@dataclass(frozen=True, slots=True)
class Unbonders:
    """Accounts with an `Unbonding` of one epoch, in the order in which they are paid."""

    accounts: tuple[bytes, ...] = field(
        default=(), metadata=many(fixed(ADDRESS_BYTES), UNBONDERS_PER_EPOCH_MAX)
    )


@dataclass(frozen=True, slots=True)
class PastEpoch:
    """An ended epoch: its boundary's height and time, its consensus keys, and which of them were slashed for it."""

    end_height: int = field(metadata=_UINT)
    end_ms: int = field(metadata=_UINT)
    members: tuple[bytes, ...] = field(metadata=many(_HASH, VALIDATORS_MAX))
    slashed: tuple[bytes, ...] = field(default=(), metadata=many(_HASH, VALIDATORS_MAX))


@dataclass(frozen=True, slots=True)
class Epoch:
    """The epoch in progress. It starts after the block at `start_height`, the boundary of the one before.

    `frozen_height` is the block whose execution chose the next set, 0 before. `oldest` is the first epoch whose
    `PastEpoch` still exists (`number` where none does), which goes once `release_height` and `release_ms` have passed.
    `slashed` are the consensus keys already slashed for this epoch.
    """

    number: int = field(default=0, metadata=_UINT)
    start_height: int = field(default=0, metadata=_UINT)
    start_ms: int = field(default=0, metadata=_UINT)
    frozen_height: int = field(default=0, metadata=_UINT)
    oldest: int = field(default=0, metadata=_UINT)
    release_height: int = field(default=0, metadata=_UINT)
    release_ms: int = field(default=0, metadata=_UINT)
    slashed: tuple[bytes, ...] = field(default=(), metadata=many(_HASH, VALIDATORS_MAX))

    @property
    def staking_counts_to(self) -> int:
        """The last epoch whose set holds stake as it is now: what changes from here on counts after it."""
        return self.number + 1 if self.frozen_height else self.number


@dataclass(frozen=True, slots=True)
class History:
    """What the epoch's committed blocks say of its validators, in the order of the set, up to its freezing.

    `proposed` counts their blocks, `missed` the rounds that they should have led and that were skipped; `revealed` are
    the positions of those whose reveals are in `mix`.
    """

    proposed: tuple[int, ...] = field(metadata=many(_UINT, VALIDATORS_MAX))
    missed: tuple[int, ...] = field(metadata=many(_UINT, VALIDATORS_MAX))
    revealed: tuple[int, ...] = field(default=(), metadata=many(_UINT, VALIDATORS_MAX))
    mix: bytes = field(default=bytes(HASH_BYTES), metadata=_HASH)


def epoch_key(prefix: bytes, number: int) -> bytes:
    """State key of an epoch's record."""
    return prefix + number.to_bytes(8, "big")


def possession_digest(chain_id: bytes, account: bytes) -> bytes:
    """The 32 bytes that a consensus key signs to be registered by this account on this chain."""
    return digest("possession", account, chain_id)


def sign_possession(consensus_seed: bytes, chain_id: bytes, account: bytes) -> bytes:
    """Proof of possession (64-byte signature) by the consensus key whose 32-byte secret seed this is."""
    return sign(consensus_seed, possession_digest(chain_id, account))


def get_stake(reader: StateReader, account: bytes) -> Stake | None:
    """A validator's registration, until its last unit is paid out."""
    return read(reader, STAKE + account, Stake)


def get_candidates(reader: StateReader) -> tuple[bytes, ...]:
    """Accounts among which the next set is chosen."""
    found = read(reader, CANDIDATES_KEY, Candidates)
    return found.accounts if found else ()


def get_unbonders(reader: StateReader, epoch: int) -> tuple[bytes, ...]:
    """Accounts whose unbonding stake waits for the record of this epoch to go."""
    found = read(reader, epoch_key(UNBONDERS, epoch), Unbonders)
    return found.accounts if found else ()


def get_past_epoch(reader: StateReader, epoch: int) -> PastEpoch | None:
    """An ended epoch, while stake of it may still be unbonding."""
    return read(reader, epoch_key(PAST_EPOCH, epoch), PastEpoch)


def get_epoch(reader: StateReader) -> Epoch:
    """The epoch in progress; number 0 for ever where epochs are off."""
    return read(reader, EPOCH_KEY, Epoch) or Epoch()


def get_next_validators(reader: StateReader) -> ValidatorSet | None:
    """The frozen set of the next epoch, None before the freezing."""
    return read(reader, NEXT_VALIDATORS_KEY, ValidatorSet)


def get_history(reader: StateReader, validators: int) -> History:
    """The epoch's history so far, for a set of so many validators."""
    return read(reader, HISTORY_KEY, History) or History((0,) * validators, (0,) * validators)


def put_stake(overlay: Overlay, account: bytes, stake: Stake) -> None:
    """Write a registration with the two names it holds."""
    overlay.put_record(STAKE + account, stake)
    overlay.put(KEY_OWNER + stake.consensus_key, account)
    overlay.put(PEER_OWNER + stake.peer_id.encode(), account)


def forget_stake(overlay: Overlay, account: bytes, stake: Stake) -> None:
    """Remove a registration whose stake is all paid out; its names are free again."""
    if stake.bonded or stake.unbondings:
        raise ExecutionError("a registration that still holds stake is removed", account=account)
    overlay.delete(STAKE + account)
    overlay.delete(KEY_OWNER + stake.consensus_key)
    overlay.delete(PEER_OWNER + stake.peer_id.encode())


def genesis_stakes(validators: ValidatorSet, timestamp_ms: int) -> dict[bytes, object]:
    """Records of the first epoch's validators, in which every one of the genesis is registered; bytes stay as they are."""
    records: dict[bytes, object] = {
        EPOCH_KEY: Epoch(start_ms=timestamp_ms),
        CANDIDATES_KEY: Candidates(tuple(entry.account for entry in validators.validators)),
    }
    for entry in validators.validators:
        stake = Stake(entry.consensus_key, entry.peer_id, entry.beacon_anchor, entry.stake)
        records[STAKE + entry.account] = stake
        records[KEY_OWNER + entry.consensus_key] = entry.account
        records[PEER_OWNER + entry.peer_id.encode()] = entry.account
    return records
