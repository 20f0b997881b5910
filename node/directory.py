"""Who is who: a validator's consensus key, its account and its peer id, and this node's own secrets."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from consensus.crypto import public_key
from consensus.validators import ValidatorSet as ConsensusValidators
from node.ledger.entries import ValidatorSet
from node.ledger.epochs import consensus_set


@dataclass(frozen=True, slots=True)
class Identity:
    """The keys of one node. An observer has no consensus and beacon seed.

    `signer_key` is the validator id where a signer elsewhere holds the consensus seed (`node.signer`), else empty.
    """

    node_seed: bytes = field(repr=False)
    account_seed: bytes = field(repr=False)
    consensus_seed: bytes | None = field(repr=False)
    beacon_seed: bytes | None = field(repr=False)
    signer_key: bytes = b""

    @property
    def account(self) -> bytes:
        """Address of the operator's account, which signs duties, batches and storage receipts."""
        return public_key(self.account_seed)

    @property
    def consensus_key(self) -> bytes | None:
        """The validator id, or None."""
        return (self.signer_key or None) if self.consensus_seed is None else public_key(self.consensus_seed)


class Directory:
    """The validators of the current epoch, by each of their names. All rooms hold the one object, which follows the chain."""

    validators: ValidatorSet
    peer_of: Mapping[bytes, str]
    validator_of: Mapping[str, bytes]

    def __init__(self, validators: ValidatorSet) -> None:
        self.install(validators)

    def install(self, validators: ValidatorSet) -> None:
        """Speak of these validators from now on."""
        self.validators = validators
        self.peer_of = {entry.consensus_key: entry.peer_id for entry in validators.validators}
        self.validator_of = {entry.peer_id: entry.consensus_key for entry in validators.validators}

    def peers(self, validator_ids: tuple[bytes, ...]) -> list[str]:
        """Peer ids of these validators, in order; unknown ones are left out."""
        return [self.peer_of[key] for key in validator_ids if key in self.peer_of]

    def is_validator_account(self, account: bytes) -> bool:
        """Whether an active validator's operator has this account."""
        return self.validators.by_account(account) is not None

    def consensus_set(self, epoch: int) -> ConsensusValidators:
        """The set as consensus knows it."""
        return consensus_set(self.validators, epoch)


def make_directory(validators: ValidatorSet) -> Directory:
    """Return the directory of a validator set."""
    return Directory(validators)
