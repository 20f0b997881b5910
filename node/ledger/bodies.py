"""The kinds of transaction: one frozen dataclass for each, and the literal table from kind number to class.

Numbers are grouped by family with gaps, and are never given twice. A thing that a transaction creates (datanet, contribution,
adapter) is named by the transaction's hash; a base by its content hash; an inference by its voucher's digest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

from consensus.evidence import EVIDENCE_BYTES_MAX
from node.ledger.errors import MalformedError
from node.ledger.fields import U32_MAX, Rule, blob, fixed, many, nested, text, uint
from node.ledger.openings import OPENING_BYTES_MAX, TOKENS_MAX, Voucher
from node.ledger.peers import peer_id
from node.ledger.records import RECORD_TOKENS_MAX, RECORDS_BYTES_MAX, RECORDS_MAX
from node.ledger.results import (
    ADDRESS_BYTES,
    HASH_BYTES,
    SALT_BYTES,
    SHARES_RULE,
    STATUS_MAX,
    AuditResult,
    Shares,
)

SIGNATURE_BYTES = 64
NAME_BYTES_MAX = 64
DESCRIPTION_BYTES_MAX = 1_024
RECIPE_BYTES_MAX = 4_096
LICENCES_MAX = 16
CONTRIBUTIONS_MAX = 512
BLOB_BYTES_MAX = 1 << 40
PEER_ID_BYTES_MAX = 128
ATTEMPT_MAX = U32_MAX
ERASED_AT_ONCE_MAX = 1_024

_SPDX = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")


def licence() -> Rule:
    """An SPDX licence identifier by its form ("CC-BY-4.0", "LicenseRef-Own"); the list itself is not on the ledger."""

    def check(value: object, where: str) -> str:
        if type(value) is not str or not _SPDX.fullmatch(value):
            raise MalformedError(f"{where}: not an SPDX identifier", where)
        return value

    return {"check": check}


@dataclass(frozen=True, slots=True)
class Transfer:
    """Move `amount` units from the sender to the account `to`."""

    KIND: ClassVar[int] = 1
    NAME: ClassVar[str] = "transfer"
    to: bytes = field(metadata=fixed(ADDRESS_BYTES))
    amount: int = field(metadata=uint(minimum=1))


@dataclass(frozen=True, slots=True)
class DatanetCreate:
    """Open a datanet that accepts contributions under the listed SPDX licences (distinct, ascending)."""

    KIND: ClassVar[int] = 10
    NAME: ClassVar[str] = "datanet_create"
    name: str = field(metadata=text(NAME_BYTES_MAX))
    licences: tuple[str, ...] = field(metadata=many(licence(), LICENCES_MAX, 1))
    description: str = field(metadata=text(DESCRIPTION_BYTES_MAX, empty=True))

    def __post_init__(self) -> None:
        if list(self.licences) != sorted(set(self.licences)):
            raise MalformedError("licences are not distinct and ascending", "licences")


@dataclass(frozen=True, slots=True)
class ContributionSubmit:
    """Put records (a blob, see `node.ledger.records`) into a datanet. Needs storage receipts."""

    KIND: ClassVar[int] = 20
    NAME: ClassVar[str] = "contribution"
    datanet: bytes = field(metadata=fixed(HASH_BYTES))
    records_root: bytes = field(metadata=fixed(HASH_BYTES))
    record_count: int = field(metadata=uint(RECORDS_MAX, 1))
    token_count: int = field(metadata=uint(RECORDS_MAX * RECORD_TOKENS_MAX, 1))
    blob_digest: bytes = field(metadata=fixed(HASH_BYTES))
    blob_bytes: int = field(metadata=uint(RECORDS_BYTES_MAX, 1))
    licence: str = field(metadata=licence())


@dataclass(frozen=True, slots=True)
class RecordsErase:
    """Erase records of the sender's own contribution by their numbers (counted from 0, ascending); their hashes stay."""

    KIND: ClassVar[int] = 21
    NAME: ClassVar[str] = "erase"
    contribution: bytes = field(metadata=fixed(HASH_BYTES))
    records: tuple[int, ...] = field(metadata=many(uint(RECORDS_MAX - 1), ERASED_AT_ONCE_MAX, 1))

    def __post_init__(self) -> None:
        if list(self.records) != sorted(set(self.records)):
            raise MalformedError("records are not distinct and ascending", "records")


@dataclass(frozen=True, slots=True)
class BaseRegister:
    """Name a base model by its content hash; active once > 2/3 of stake holds it."""

    KIND: ClassVar[int] = 30
    NAME: ClassVar[str] = "base_register"
    base_hash: bytes = field(metadata=fixed(HASH_BYTES))
    name: str = field(metadata=text(NAME_BYTES_MAX))


@dataclass(frozen=True, slots=True)
class AdapterPublish:
    """Publish a LoRA adapter with the contributions it was trained on, in training order, and its index root.

    That order is the order of commitment (`node.ledger.order`): of near-duplicates the earliest counts.
    `recipe` is the canonical encoding of the training recipe; `adapter_hash` is over the tensors, `blob_digest` over the file.
    """

    KIND: ClassVar[int] = 31
    NAME: ClassVar[str] = "adapter_publish"
    name: str = field(metadata=text(NAME_BYTES_MAX))
    base_hash: bytes = field(metadata=fixed(HASH_BYTES))
    contributions: tuple[bytes, ...] = field(metadata=many(fixed(HASH_BYTES), CONTRIBUTIONS_MAX, 1))
    recipe: bytes = field(metadata=blob(RECIPE_BYTES_MAX))
    adapter_hash: bytes = field(metadata=fixed(HASH_BYTES))
    blob_digest: bytes = field(metadata=fixed(HASH_BYTES))
    blob_bytes: int = field(metadata=uint(BLOB_BYTES_MAX, 1))
    index_root: bytes = field(metadata=fixed(HASH_BYTES))

    def __post_init__(self) -> None:
        if len(set(self.contributions)) != len(self.contributions):
            raise MalformedError("a contribution is listed twice", "contributions")


@dataclass(frozen=True, slots=True)
class Held:
    """Duty of a validator: it holds this base (`index_root` empty), or this adapter and rebuilt this index root."""

    KIND: ClassVar[int] = 32
    NAME: ClassVar[str] = "held"
    artefact: bytes = field(metadata=fixed(HASH_BYTES))
    index_root: bytes = field(metadata=fixed(0, HASH_BYTES))


@dataclass(frozen=True, slots=True)
class ProviderBond:
    """Add `amount` units to the sender's bond as a provider, under this name."""

    KIND: ClassVar[int] = 40
    NAME: ClassVar[str] = "provider_bond"
    amount: int = field(metadata=uint(minimum=1))
    name: str = field(metadata=text(NAME_BYTES_MAX))


@dataclass(frozen=True, slots=True)
class InferenceRecord:
    """Record an answered voucher, by its provider: the fee moves from the user into escrow."""

    KIND: ClassVar[int] = 41
    NAME: ClassVar[str] = "inference_record"
    voucher: Voucher = field(metadata=nested(Voucher))
    voucher_signature: bytes = field(metadata=fixed(SIGNATURE_BYTES))
    output_commitment: bytes = field(metadata=fixed(HASH_BYTES))
    prompt_tokens: int = field(metadata=uint(TOKENS_MAX))
    output_tokens: int = field(metadata=uint(TOKENS_MAX))


@dataclass(frozen=True, slots=True)
class InferenceReveal:
    """Answer to an audit draw: the blob with prompt, output and salts. Needs storage receipts."""

    KIND: ClassVar[int] = 42
    NAME: ClassVar[str] = "inference_reveal"
    inference: bytes = field(metadata=fixed(HASH_BYTES))
    blob_digest: bytes = field(metadata=fixed(HASH_BYTES))
    blob_bytes: int = field(metadata=uint(OPENING_BYTES_MAX, 1))


@dataclass(frozen=True, slots=True)
class AttestCommit:
    """Duty of a validator: commit to a result (`results.attestation_commitment`) in this attempt (0 is the first)."""

    KIND: ClassVar[int] = 50
    NAME: ClassVar[str] = "attest_commit"
    inference: bytes = field(metadata=fixed(HASH_BYTES))
    attempt: int = field(metadata=uint(ATTEMPT_MAX))
    commitment: bytes = field(metadata=fixed(HASH_BYTES))


@dataclass(frozen=True, slots=True)
class AttestOpen:
    """Duty of a validator that committed in this attempt: the result and the salt behind its commitment."""

    KIND: ClassVar[int] = 51
    NAME: ClassVar[str] = "attest_open"
    inference: bytes = field(metadata=fixed(HASH_BYTES))
    attempt: int = field(metadata=uint(ATTEMPT_MAX))
    status_code: int = field(metadata=uint(STATUS_MAX))
    result_hash: bytes = field(metadata=fixed(HASH_BYTES))
    shares: Shares = field(metadata=SHARES_RULE)
    salt: bytes = field(metadata=fixed(SALT_BYTES))

    def result(self) -> AuditResult:
        """The attested result; raises :class:`MalformedError` for shares that cannot be paid."""
        return AuditResult(self.status_code, self.result_hash, self.shares)

    def __post_init__(self) -> None:
        self.result()


@dataclass(frozen=True, slots=True)
class ValidatorRegister:
    """Become a candidate with `stake` units; `possession` is the consensus key's signature over chain and account.

    The signature (`stakes.sign_possession`) keeps anybody from registering a key that is not theirs.
    """

    KIND: ClassVar[int] = 60
    NAME: ClassVar[str] = "validator_register"
    consensus_key: bytes = field(metadata=fixed(HASH_BYTES))
    possession: bytes = field(metadata=fixed(SIGNATURE_BYTES))
    peer_id: str = field(metadata=peer_id())
    beacon_anchor: bytes = field(metadata=fixed(HASH_BYTES))
    stake: int = field(metadata=uint(minimum=1))


@dataclass(frozen=True, slots=True)
class ValidatorBond:
    """Add `amount` units to the sender's stake; it counts from the next set that is frozen."""

    KIND: ClassVar[int] = 61
    NAME: ClassVar[str] = "validator_bond"
    amount: int = field(metadata=uint(minimum=1))


@dataclass(frozen=True, slots=True)
class ValidatorUnbond:
    """Take `amount` units out of the sender's stake; paid out after the unbonding windows."""

    KIND: ClassVar[int] = 62
    NAME: ClassVar[str] = "validator_unbond"
    amount: int = field(metadata=uint(minimum=1))


@dataclass(frozen=True, slots=True)
class ValidatorLeave:
    """Stop being a validator: the whole stake unbonds, and the keys stay taken until it is paid out."""

    KIND: ClassVar[int] = 63
    NAME: ClassVar[str] = "validator_leave"


@dataclass(frozen=True, slots=True)
class ValidatorUnjail:
    """Stand for the next set again after a slash, once the jail windows have passed."""

    KIND: ClassVar[int] = 64
    NAME: ClassVar[str] = "validator_unjail"


@dataclass(frozen=True, slots=True)
class ValidatorAnchor:
    """Anchor a new hash chain for the beacon, effective with the next set that is frozen."""

    KIND: ClassVar[int] = 65
    NAME: ClassVar[str] = "validator_anchor"
    beacon_anchor: bytes = field(metadata=fixed(HASH_BYTES))


@dataclass(frozen=True, slots=True)
class EvidenceSubmit:
    """Report two signed statements of one consensus key that contradict each other (`consensus.evidence`)."""

    KIND: ClassVar[int] = 70
    NAME: ClassVar[str] = "evidence"
    evidence: bytes = field(metadata=blob(EVIDENCE_BYTES_MAX))


Body = (
    Transfer
    | DatanetCreate
    | ContributionSubmit
    | RecordsErase
    | BaseRegister
    | AdapterPublish
    | Held
    | ProviderBond
    | InferenceRecord
    | InferenceReveal
    | AttestCommit
    | AttestOpen
    | ValidatorRegister
    | ValidatorBond
    | ValidatorUnbond
    | ValidatorLeave
    | ValidatorUnjail
    | ValidatorAnchor
    | EvidenceSubmit
)

BODIES: dict[int, type[Any]] = {
    1: Transfer,
    10: DatanetCreate,
    20: ContributionSubmit,
    21: RecordsErase,
    30: BaseRegister,
    31: AdapterPublish,
    32: Held,
    40: ProviderBond,
    41: InferenceRecord,
    42: InferenceReveal,
    50: AttestCommit,
    51: AttestOpen,
    60: ValidatorRegister,
    61: ValidatorBond,
    62: ValidatorUnbond,
    63: ValidatorLeave,
    64: ValidatorUnjail,
    65: ValidatorAnchor,
    70: EvidenceSubmit,
}

DUTY_KINDS = frozenset({Held.KIND, AttestCommit.KIND, AttestOpen.KIND})
"""Sent by validators without fee or nonce; valid only while the duty is owed."""

STORED_KINDS = frozenset({ContributionSubmit.KIND, InferenceReveal.KIND})
"""Included only with storage receipts from > 2/3 of stake."""
