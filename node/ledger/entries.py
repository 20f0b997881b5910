"""What the ledger's state holds: keys, and the record under each. Read by `node.ledger.state`, written through `node.ledger.overlay`.

A state is a map from key bytes to value bytes; values are canonical encodings of the dataclasses below. Keys are a
short prefix, a slash and an identifier, so that a store can list one kind of record by its prefix.

| key | record |
|---|---|
| ``a/`` address | `Account`; the treasury is the account of 32 zero bytes |
| ``d/`` datanet id | `Datanet`; ``e/`` datanet id, 8-byte big-endian number -> contribution id |
| ``c/`` contribution id | `Contribution`; ``r/`` datanet id, records root -> contribution id (exact duplicates) |
| ``b/`` base hash | `BaseModel` |
| ``m/`` adapter id | `Adapter`; ``h/`` adapter hash -> id of the active adapter with these tensors |
| ``p/`` account | `Provider` |
| ``s/`` user, provider | `VoucherSequence`: highest sequence recorded |
| ``i/`` inference id | `Inference` |
| ``w/`` account | `BatchWindow`: which of a validator's batches were executed |
| ``k/`` consensus key | `Reveal`: how many beacon preimages of which chain were revealed, and the last |
| ``g/params`` ``g/supply`` ``g/validators`` ``g/head`` | `Params`, `Supply`, `ValidatorSet`, `Head` |
| ``q/draws`` ``q/audits`` ``q/artefacts`` | bounded indices of what is pending; nothing ever scans the state |

What staking and epochs add is in `node.ledger.stakes`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from node.ledger import bodies
from node.ledger.fields import (
    blob,
    fixed,
    many,
    nested,
    row,
    text,
    uint,
)
from node.ledger.openings import TOKENS_MAX, Voucher
from node.ledger.records import RECORDS_BYTES_MAX, RECORDS_MAX
from node.ledger.results import ADDRESS_BYTES, HASH_BYTES, AuditResult

VALIDATORS_MAX = 128
VALUE_BYTES_MAX = 16 << 20
"""No value comes near it: the indices are bounded by `OPEN_MAX`, an inference's results by validators and shares."""

CONTRIBUTIONS_PER_DATANET_MAX = 2**40
BATCH_WINDOW = 256
OPEN_MAX = 2_048

ACCOUNT, DATANET, DATANET_ENTRY, CONTRIBUTION, RECORDS_ROOT = b"a/", b"d/", b"e/", b"c/", b"r/"
BASE, ADAPTER, ADAPTER_HASH, PROVIDER, SEQUENCE, INFERENCE = b"b/", b"m/", b"h/", b"p/", b"s/", b"i/"
BATCHES, BEACON = b"w/", b"k/"
PARAMS_KEY, SUPPLY_KEY, VALIDATORS_KEY, HEAD_KEY = b"g/params", b"g/supply", b"g/validators", b"g/head"
DRAWS_KEY, AUDITS_KEY, ARTEFACTS_KEY = b"q/draws", b"q/audits", b"q/artefacts"

_HASH = fixed(HASH_BYTES)
_ADDRESS = fixed(ADDRESS_BYTES)
_UINT = uint()


@dataclass(frozen=True, slots=True)
class Account:
    """Free balance in units, and the nonce that the next transaction must carry."""

    balance: int = field(default=0, metadata=_UINT)
    nonce: int = field(default=0, metadata=_UINT)


@dataclass(frozen=True, slots=True)
class Supply:
    """Units in existence and where they are bound; the rest of `total` is in accounts. All conserved by execution."""

    total: int = field(metadata=_UINT)
    burned: int = field(default=0, metadata=_UINT)
    escrowed: int = field(default=0, metadata=_UINT)
    bonded: int = field(default=0, metadata=_UINT)
    staked: int = field(default=0, metadata=_UINT)


@dataclass(frozen=True, slots=True)
class ValidatorEntry:
    """A validator: its consensus key votes and proposes, its account signs duties, batches and storage receipts."""

    consensus_key: bytes = field(metadata=_HASH)
    account: bytes = field(metadata=_ADDRESS)
    peer_id: str = field(metadata=text(bodies.PEER_ID_BYTES_MAX))
    stake: int = field(metadata=uint(minimum=1))
    beacon_anchor: bytes = field(metadata=_HASH)
    leader_weight: int = field(default=0, metadata=_UINT)


@dataclass(frozen=True, slots=True)
class ValidatorSet:
    """Validators in ascending order of consensus key, and the seed from which their leaders are drawn.

    Under a seed of zeros leaders take turns by stake; under another one they are drawn by `leader_weight`.
    """

    validators: tuple[ValidatorEntry, ...] = field(metadata=many(nested(ValidatorEntry), VALIDATORS_MAX, 1))
    seed: bytes = field(default=bytes(HASH_BYTES), metadata=_HASH)

    @property
    def accounts(self) -> frozenset[bytes]:
        """The validators' accounts."""
        return frozenset(entry.account for entry in self.validators)

    @property
    def stake_total(self) -> int:
        """Sum of all stakes, in units."""
        return sum(entry.stake for entry in self.validators)

    def by_account(self, account: bytes) -> ValidatorEntry | None:
        """The validator operated by this account."""
        return next((entry for entry in self.validators if entry.account == account), None)

    def by_consensus_key(self, key: bytes) -> ValidatorEntry | None:
        """The validator that votes with this key."""
        return next((entry for entry in self.validators if entry.consensus_key == key), None)

    def stake_of(self, accounts: frozenset[bytes]) -> int:
        """Stake of the validators among these accounts."""
        return sum(entry.stake for entry in self.validators if entry.account in accounts)

    def is_quorum(self, accounts: frozenset[bytes]) -> bool:
        """Whether these accounts hold more than two thirds of the stake."""
        return 3 * self.stake_of(accounts) > 2 * self.stake_total


@dataclass(frozen=True, slots=True)
class Head:
    """The last executed block."""

    height: int = field(metadata=_UINT)
    timestamp_ms: int = field(metadata=_UINT)


@dataclass(frozen=True, slots=True)
class Datanet:
    """A collection of contributions under common licences; totals are over all of them."""

    creator: bytes = field(metadata=_ADDRESS)
    name: str = field(metadata=text(bodies.NAME_BYTES_MAX))
    licences: tuple[str, ...] = field(metadata=many(bodies.licence(), bodies.LICENCES_MAX, 1))
    description: str = field(metadata=text(bodies.DESCRIPTION_BYTES_MAX, empty=True))
    height: int = field(metadata=_UINT)
    contribution_count: int = field(default=0, metadata=uint(CONTRIBUTIONS_PER_DATANET_MAX))
    record_count: int = field(default=0, metadata=_UINT)
    token_count: int = field(default=0, metadata=_UINT)


@dataclass(frozen=True, slots=True)
class Contribution:
    """Records of one contributor; root and counts are vouched for by the storage receipts."""

    contributor: bytes = field(metadata=_ADDRESS)
    datanet: bytes = field(metadata=_HASH)
    records_root: bytes = field(metadata=_HASH)
    record_count: int = field(metadata=uint(RECORDS_MAX))
    token_count: int = field(metadata=_UINT)
    blob_digest: bytes = field(metadata=_HASH)
    blob_bytes: int = field(metadata=uint(RECORDS_BYTES_MAX))
    licence: str = field(metadata=bodies.licence())
    height: int = field(metadata=_UINT)


class ArtefactStatus(IntEnum):
    """Life of a base or an adapter."""

    PENDING = 1
    ACTIVE = 2
    EXPIRED = 3


_HELD = many(_ADDRESS, VALIDATORS_MAX)


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model named by its content hash; `held` lists the accounts of validators that hold it."""

    status: int = field(metadata=uint(255))
    registrant: bytes = field(metadata=_ADDRESS)
    name: str = field(metadata=text(bodies.NAME_BYTES_MAX))
    height: int = field(metadata=_UINT)
    held: tuple[bytes, ...] = field(default=(), metadata=_HELD)


@dataclass(frozen=True, slots=True)
class Adapter:
    """A published adapter; it earns once active. `held` lists validators that hold it and rebuilt its index root."""

    status: int = field(metadata=uint(255))
    owner: bytes = field(metadata=_ADDRESS)
    name: str = field(metadata=text(bodies.NAME_BYTES_MAX))
    base_hash: bytes = field(metadata=_HASH)
    contributions: tuple[bytes, ...] = field(metadata=many(_HASH, bodies.CONTRIBUTIONS_MAX))
    recipe: bytes = field(metadata=blob(bodies.RECIPE_BYTES_MAX))
    adapter_hash: bytes = field(metadata=_HASH)
    blob_digest: bytes = field(metadata=_HASH)
    blob_bytes: int = field(metadata=_UINT)
    index_root: bytes = field(metadata=_HASH)
    height: int = field(metadata=_UINT)
    held: tuple[bytes, ...] = field(default=(), metadata=_HELD)


@dataclass(frozen=True, slots=True)
class Provider:
    """A serving account: its bond, its calls not yet settled or left unaudited, and its past.

    `in_flight` and `recorded` count calls; `in_flight_fees` are the fees of the former and `slashed` the bond burned so
    far, in units.
    """

    name: str = field(metadata=text(bodies.NAME_BYTES_MAX))
    bond: int = field(default=0, metadata=_UINT)
    in_flight: int = field(default=0, metadata=_UINT)
    recorded: int = field(default=0, metadata=_UINT)
    slashed: int = field(default=0, metadata=_UINT)
    in_flight_fees: int = field(default=0, metadata=_UINT)


class InferenceStatus(IntEnum):
    """Life of a paid call. `UNAUDITED` keeps its fee in escrow; the last three are final."""

    RECORDED = 1
    UNAUDITED = 2
    AWAITING_REVEAL = 3
    COMMITTING = 4
    OPENING = 5
    SETTLED = 6
    REFUNDED = 7
    SLASHED = 8


class Role(IntEnum):
    """Why an account was paid."""

    OWNER = 1
    PROVIDER = 2
    VALIDATOR = 3
    CONTRIBUTOR = 4
    UNATTRIBUTED = 5
    ABSENT_VALIDATOR = 6
    REFUND = 7
    STAKE = 8


@dataclass(frozen=True, slots=True)
class Payout:
    """`amount` units to `address`; unattributed shares and absent validators' parts go to the treasury."""

    role: int = field(metadata=uint(255))
    address: bytes = field(metadata=_ADDRESS)
    amount: int = field(metadata=_UINT)


@dataclass(frozen=True, slots=True)
class Opened:
    """An opened attestation: which of the inference's `results` this validator attests, and in which attempt."""

    account: bytes = field(metadata=_ADDRESS)
    attempt: int = field(metadata=uint(bodies.ATTEMPT_MAX))
    result: int = field(metadata=uint(VALIDATORS_MAX))


PAYOUTS_MAX = 2 * VALIDATORS_MAX + 8


@dataclass(frozen=True, slots=True)
class Inference:
    """A paid call from its record to its settlement.

    The deadline (height and milliseconds; both must pass) is that of the current status. `commitments` are those of
    the current `attempt`; `openings` are kept across attempts, one for each validator. `winner` is 1 + the position in
    `results` of what the quorum attested, 0 before. `burned` and `bond_burned` are units.
    """

    status: int = field(metadata=uint(255))
    voucher: Voucher = field(metadata=nested(Voucher))
    output_commitment: bytes = field(metadata=_HASH)
    prompt_tokens: int = field(metadata=uint(TOKENS_MAX))
    output_tokens: int = field(metadata=uint(TOKENS_MAX))
    height: int = field(metadata=_UINT)
    timestamp_ms: int = field(metadata=_UINT)
    draw: bytes = field(default=b"", metadata=fixed(0, HASH_BYTES))
    drawn_height: int = field(default=0, metadata=_UINT)
    deadline_height: int = field(default=0, metadata=_UINT)
    deadline_ms: int = field(default=0, metadata=_UINT)
    blob_digest: bytes = field(default=b"", metadata=fixed(0, HASH_BYTES))
    blob_bytes: int = field(default=0, metadata=_UINT)
    attempt: int = field(default=0, metadata=uint(bodies.ATTEMPT_MAX))
    commitments: tuple[tuple[bytes, bytes], ...] = field(
        default=(), metadata=many(row(_ADDRESS, _HASH), VALIDATORS_MAX)
    )
    openings: tuple[Opened, ...] = field(default=(), metadata=many(nested(Opened), VALIDATORS_MAX))
    results: tuple[AuditResult, ...] = field(default=(), metadata=many(nested(AuditResult), VALIDATORS_MAX))
    winner: int = field(default=0, metadata=uint(VALIDATORS_MAX))
    payouts: tuple[Payout, ...] = field(default=(), metadata=many(nested(Payout), PAYOUTS_MAX))
    burned: int = field(default=0, metadata=_UINT)
    bond_burned: int = field(default=0, metadata=_UINT)
    closed_height: int = field(default=0, metadata=_UINT)

    @property
    def result(self) -> AuditResult | None:
        """What the quorum attested, once it has."""
        return self.results[self.winner - 1] if self.winner else None

    def committed(self, account: bytes) -> bytes | None:
        """The commitment of a validator in the current attempt."""
        return next((commitment for owner, commitment in self.commitments if owner == account), None)

    def opened(self, account: bytes) -> Opened | None:
        """The latest opening of a validator."""
        return next((entry for entry in self.openings if entry.account == account), None)


@dataclass(frozen=True, slots=True)
class VoucherSequence:
    """Highest voucher sequence recorded between one user and one provider."""

    sequence: int = field(metadata=_UINT)


@dataclass(frozen=True, slots=True)
class BatchWindow:
    """Executed batch sequences of one author: everything up to `floor` is closed, `executed` lists those above."""

    floor: int = field(default=0, metadata=_UINT)
    executed: tuple[int, ...] = field(default=(), metadata=many(_UINT, BATCH_WINDOW))


@dataclass(frozen=True, slots=True)
class Reveal:
    """Of a validator's hash chain that ends in `anchor`: the number of preimages revealed, and the last (the anchor before the first)."""

    count: int = field(metadata=_UINT)
    last: bytes = field(metadata=_HASH)
    anchor: bytes = field(metadata=_HASH)


@dataclass(frozen=True, slots=True)
class DrawGroup:
    """Inferences recorded at one height, and the beacon reveals mixed for them so far."""

    height: int = field(metadata=_UINT)
    mix: bytes = field(metadata=_HASH)
    proposers: tuple[bytes, ...] = field(metadata=many(_HASH, VALIDATORS_MAX))
    inferences: tuple[bytes, ...] = field(metadata=many(_HASH, OPEN_MAX))


@dataclass(frozen=True, slots=True)
class Draws:
    """Groups waiting for their draw, oldest first."""

    groups: tuple[DrawGroup, ...] = field(default=(), metadata=many(nested(DrawGroup), OPEN_MAX))


@dataclass(frozen=True, slots=True)
class Deadline:
    """Something that needs the end of a block to look at it once both `height` and `ms` have passed."""

    id: bytes = field(metadata=_HASH)
    height: int = field(metadata=_UINT)
    ms: int = field(metadata=_UINT)


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Bounded index of audits in progress (``q/audits``), or of artefacts still wanting holders (``q/artefacts``)."""

    entries: tuple[Deadline, ...] = field(default=(), metadata=many(nested(Deadline), OPEN_MAX))
