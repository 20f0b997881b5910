"""What a replica starts from: genesis, or what `Persist` effects left on disk."""

from dataclasses import dataclass

from consensus.safety import SafetyRecord
from consensus.types import Block, CommitProof, SyncInfo


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """Outcome of executing the committed block at `height`; the last two as in `inputs.Executed`."""

    height: int
    state_digest: bytes
    receipts_accumulator: bytes
    next_validators_hash: bytes = b""
    snapshot_root: bytes = b""


@dataclass(frozen=True, slots=True)
class RecoveredState:
    """Everything stored by `Persist`, read back.

    Attributes:
        record: the stored safety record, which may be of an earlier epoch; None for an observer or before the first signature.
        certificates: the stored high QC, last TC and highest CC; None if never stored.
        committed: the last committed block; the genesis block if none. In an epoch that has none yet, the boundary that
            ended the one before (or `epochs.epoch_start` of it).
        proof: its proof, or None for genesis.
        reveals: `Persist.reveals` of the last committed write; empty for genesis. In an epoch without a committed block,
            `epochs.carry_reveals` of the boundary's.
        blocks: stored uncommitted blocks, in any order; those of other epochs are ignored, as are such certificates.
        executed: results of the last executed heights, ascending and contiguous, at most `lag_max + 1` needed, and up to
            the boundary at an epoch's start; the genesis result is known without being named here.
    """

    record: SafetyRecord | None
    certificates: SyncInfo | None
    committed: Block
    proof: CommitProof | None
    reveals: tuple[tuple[int, bytes], ...]
    blocks: tuple[Block, ...]
    executed: tuple[ExecutionResult, ...]
