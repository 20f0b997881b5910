"""What goes into the execution of a block and what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from attribution.merkle import merkle_proof, merkle_root
from consensus.codec import encode_known
from node.ledger.accumulator import Accumulator
from node.ledger.entries import PAYOUTS_MAX, Payout
from node.ledger.fields import fixed, from_bytes, many, nested, pack, text, uint

RECEIPT_BYTES_MAX = 256 << 10
CODE_BYTES_MAX = 64


class ReceiptStatus(IntEnum):
    """What became of the subject of a receipt. `SYSTEM`: the ledger itself moved an inference on."""

    OK = 0
    FAILED = 1
    INVALID = 2
    SYSTEM = 3


class SystemCode:
    """Codes of `ReceiptStatus.SYSTEM` receipts; their subject is an inference, an artefact, an account or a set's hash."""

    DRAWN = "drawn"
    UNAUDITED = "unaudited"
    OPENING = "opening"
    EXTENDED = "extended"
    SETTLED = "settled"
    REFUNDED = "refunded"
    SLASHED = "slashed"
    SLASHED_NO_REVEAL = "slashed-no-reveal"
    ACTIVATED = "activated"
    EXPIRED = "expired"
    ERASED = "erased"
    UNBONDED = "unbonded"
    DISPLACED = "displaced"
    SLASHED_EQUIVOCATION = "slashed-equivocation"
    EPOCH_FROZEN = "epoch-frozen"
    EPOCH_BEGAN = "epoch-began"


@dataclass(frozen=True, slots=True)
class Receipt:
    """One line of a block's result, provable under its receipts root.

    For a transaction: `subject` is its hash, `kind` its number (0 if its bytes did not decode), `code` empty or an error's code,
    `fee` the units that its sender paid (INVALID: that the batch's author paid). For the ledger's own steps: `subject` is an
    inference or artefact (of staking: an account, of epochs: the set's hash), `kind` 0, `code` a `SystemCode`, `payouts` who
    got what out of escrow or of unbonded stake.
    """

    subject: bytes = field(metadata=fixed(32))
    status: int = field(metadata=uint(255))
    kind: int = field(metadata=uint(255))
    code: str = field(metadata=text(CODE_BYTES_MAX, empty=True))
    fee: int = field(metadata=uint())
    payouts: tuple[Payout, ...] = field(default=(), metadata=many(nested(Payout), PAYOUTS_MAX))
    burned: int = field(default=0, metadata=uint())


def encode_receipt(receipt: Receipt) -> bytes:
    """Canonical bytes: the leaf under the receipts root. As `fields.to_bytes`, which costs ten times as much."""
    payouts = receipt.payouts and [pack(payout) for payout in receipt.payouts]
    status, burned = int(receipt.status), receipt.burned
    return encode_known([receipt.subject, status, receipt.kind, receipt.code, receipt.fee, payouts, burned])


def decode_receipt(data: bytes) -> Receipt:
    """Read a receipt; raises :class:`MalformedError`."""
    return from_bytes(Receipt, data, RECEIPT_BYTES_MAX)


def receipts_root(receipts: tuple[Receipt, ...]) -> bytes:
    """Merkle root (32 bytes) over the receipts of a block, in their order."""
    return merkle_root([encode_receipt(receipt) for receipt in receipts])


def receipt_proof(receipts: tuple[Receipt, ...], index: int) -> list[bytes]:
    """Merkle path of one receipt, for `attribution.merkle.verify_merkle_proof`."""
    return merkle_proof([encode_receipt(receipt) for receipt in receipts], index)


@dataclass(frozen=True, slots=True)
class BlockContext:
    """The header as the ledger sees it.

    `proposer` is a consensus key; `beacon_reveal` its 32-byte preimage, or empty where the block reveals none;
    `executed_height` is the header's e: whoever proposed had executed, so seen committed, everything up to it. `ends_epoch`
    says that the header carries the next set's hash, `missed` are the consensus keys of the leaders of the rounds that
    were skipped right before it, one for each round.
    """

    chain_id: bytes
    height: int
    epoch: int
    round: int
    timestamp_ms: int
    proposer: bytes
    beacon_reveal: bytes
    executed_height: int
    ends_epoch: bool = False
    missed: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class BlockOutcome:
    """Everything the caller stores: nothing was written anywhere yet.

    `changes` are in ascending order of key, None for a deleted one, and hold only keys whose value differs from before.
    `skipped` are digests of batches that were not executed (foreign author, bad signature, sequence used).
    `receipts_encoded` are the receipts' bytes, the leaves under their root.
    `next_validators_hash` is the consensus hash of the next epoch's set from the block that froze it up to the one before the
    boundary, else empty.
    """

    height: int
    changes: Mapping[bytes, bytes | None]
    receipts: tuple[Receipt, ...]
    receipts_root: bytes
    accumulator: Accumulator
    accumulator_root: bytes
    lthash: bytes
    state_digest: bytes
    skipped: tuple[bytes, ...]
    next_validators_hash: bytes = b""
    receipts_encoded: tuple[bytes, ...] = ()
