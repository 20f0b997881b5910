"""Everything a replica asks its driver to do, in the order it must be done.

`Replica.step` returns at most one `Persist`, then every `Send`, then `Deliver`, then timers, requests and reports.
"""

from dataclasses import dataclass
from typing import TypeAlias

from consensus.inputs import TimerKind
from consensus.messages import Message
from consensus.types import Block, CommitProof, Handover, SyncInfo


@dataclass(frozen=True, slots=True)
class Persist:
    """One atomic write, finished before any later effect of the same step is started.

    Attributes:
        sync: the write must reach the disk (fsync) first, because a signature depends on it.
        record: bytes of the whole safety record (`SafetyRecord.to_bytes`), or None when it did not change.
        certificates: the high QC, last TC and highest CC, replacing the stored ones, or None when unchanged.
        blocks: uncommitted blocks to store by id.
        committed: blocks now final, oldest first, contiguous by height: index them by height.
        proof: proof of the last block of `committed`; stored with it. None iff `committed` is empty.
        reveals: with `committed`, per validator index the (count, last reveal) on the chain up to the last of it.
        forgotten: ids of stored uncommitted blocks that can be deleted (now committed or abandoned).
    """

    sync: bool
    record: bytes | None
    certificates: SyncInfo | None
    blocks: tuple[Block, ...]
    committed: tuple[Block, ...]
    proof: CommitProof | None
    reveals: tuple[tuple[int, bytes], ...]
    forgotten: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Send:
    """Send to one validator, or with `to` None to all others. Losing one is allowed; order is not assumed."""

    to: bytes | None
    message: Message


@dataclass(frozen=True, slots=True)
class Deliver:
    """These blocks are final: execute them in this order. `proof` proves the last, and through it the others.

    A batch they name may still be missing locally; fetching it is then the driver's task, and execution waits.
    """

    blocks: tuple[Block, ...]
    proof: CommitProof


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Fire `TimerFired(kind)` at `at_ms` (the clock of `now_ms`), replacing that kind's timer; None cancels it."""

    kind: TimerKind
    at_ms: int | None


@dataclass(frozen=True, slots=True)
class RequestPayload:
    """The replica leads `round`: answer with `PayloadOffered(round, ...)`, soon, even with nothing.

    Attributes:
        round: the round to propose in.
        parent_id: block that will be extended.
        uncommitted_payload: digests already in its uncommitted ancestors; do not offer them again.
        empty_only: the chain is too far ahead of execution: offer nothing.
    """

    round: int
    parent_id: bytes
    uncommitted_payload: tuple[bytes, ...]
    empty_only: bool


@dataclass(frozen=True, slots=True)
class FetchPayload:
    """Make these batches available: answer `PayloadAvailable` at once for those held, fetch the others.

    Repeated with back-off and growing `sources` until available or no longer needed; a repeat replaces the request.
    """

    digests: tuple[bytes, ...]
    sources: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class FetchBlock:
    """Ask each source for a block and its ancestors above `known_height`, newest 16 at most (`BlocksMessage`)."""

    block_id: bytes
    known_height: int
    sources: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Behind:
    """`target_height` is committed elsewhere: fetch the range by height (`BlocksSynced`).

    A verified certificate or hand-over shows it; or, where `target_height` is only the next one, messages of a later epoch
    hint at it. A range must not go past a block that ends an epoch: it is verified by one validator set.
    """

    committed_height: int
    target_height: int
    sources: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Misbehaved:
    """A peer or validator broke the rules.

    Attributes:
        peer: the sender for malformed or unverifiable messages; the signer when `evidence` proves it; None unknown.
        reason: short stable phrase.
        evidence: `consensus.evidence.Evidence.to_bytes`, or empty where nothing is proven to others.
    """

    peer: bytes | None
    reason: str
    evidence: bytes = b""


@dataclass(frozen=True, slots=True)
class EpochEnded:
    """The epoch's last block is final and delivered: from here on this replica signs nothing and helps laggards only.

    The driver executes up to `boundary`, and then starts a new `Replica` for the next set on `epochs.epoch_start(boundary,
    next_set)`. It keeps `handover`, for `HelpEpoch` and for light clients. Given again after a restart in between.
    """

    boundary: Block
    handover: Handover


@dataclass(frozen=True, slots=True)
class HelpEpoch:
    """A peer still works in `epoch`, which has ended: send it `HandoverMessage(the hand-over of that epoch)`."""

    to: bytes
    epoch: int


@dataclass(frozen=True, slots=True)
class Diverged:
    """Our execution differs from a header's claim at `height`.

    With `committed` a quorum stands behind the other result: the replica stops proposing and voting, and an operator
    must restore its state. Without it one proposer is wrong; it gets no vote.
    """

    height: int
    block_id: bytes
    expected_state_digest: bytes
    state_digest: bytes
    committed: bool


@dataclass(frozen=True, slots=True)
class Stalled:
    """No commit for a long time although there is work; `round` and `rounds_since_commit` say how bad it is."""

    round: int
    rounds_since_commit: int
    reason: str


Effect: TypeAlias = (
    Persist
    | Send
    | Deliver
    | SetTimer
    | RequestPayload
    | FetchPayload
    | FetchBlock
    | Behind
    | Misbehaved
    | EpochEnded
    | HelpEpoch
    | Diverged
    | Stalled
)
