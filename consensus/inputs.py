"""Everything that can happen to a replica. Clocks are inputs: `now_ms` is Unix time in milliseconds.

The driver's contract is in the docstring of `consensus.replica.Replica`.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from consensus.messages import Message
from consensus.types import Block, CommitProof


class TimerKind(IntEnum):
    """The replica keeps at most one timer of each kind."""

    ROUND = 1
    PROPOSE = 2
    FETCH = 3


@dataclass(frozen=True, slots=True)
class Started:
    """First input, once, after construction (and after recovery)."""

    now_ms: int


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """A decoded message. `sender` is the validator id of the peer it came from; None when it has none (gossip)."""

    sender: bytes | None
    message: Message
    now_ms: int


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer set by `SetTimer` is due. A stale or early one is harmless."""

    kind: TimerKind
    now_ms: int


@dataclass(frozen=True, slots=True)
class PayloadAvailable:
    """The batch is stored locally (written before this input, so any later synced `Persist` covers it) and valid."""

    digest: bytes
    now_ms: int


@dataclass(frozen=True, slots=True)
class PayloadRefused:
    """The batch was fetched and is invalid: no block that names it gets this replica's vote."""

    digest: bytes
    now_ms: int


@dataclass(frozen=True, slots=True)
class PayloadOffered:
    """Answer to `RequestPayload`: digests of locally stored, valid batches, at most 64; possibly none."""

    round: int
    digests: tuple[bytes, ...]
    now_ms: int


@dataclass(frozen=True, slots=True)
class PayloadPending:
    """Whether the mempool holds something it would offer now. Send on each change to True, and on False.

    Repeating True is allowed and makes an idle leader ask again.
    """

    pending: bool
    now_ms: int


@dataclass(frozen=True, slots=True)
class Executed:
    """The ledger executed the committed block at `height`.

    `next_validators_hash` is not empty from the height at which the ledger froze the next epoch's set until the epoch's
    last block is executed; `snapshot_root` is empty before the first snapshot.
    """

    height: int
    block_id: bytes
    state_digest: bytes
    receipts_accumulator: bytes
    now_ms: int
    next_validators_hash: bytes = b""
    snapshot_root: bytes = b""


@dataclass(frozen=True, slots=True)
class BlocksSynced:
    """A committed range fetched by height: blocks from the committed height + 1 on, and a proof of the last one.

    `sender` is blamed when the range does not verify. At most `consensus.replica.SYNC_BLOCKS_MAX` blocks.
    """

    sender: bytes | None
    blocks: tuple[Block, ...]
    proof: CommitProof
    now_ms: int


Input: TypeAlias = (
    Started
    | MessageReceived
    | TimerFired
    | PayloadAvailable
    | PayloadRefused
    | PayloadOffered
    | PayloadPending
    | Executed
    | BlocksSynced
)
