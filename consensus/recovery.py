"""What a replica starts from: genesis, or what `Persist` effects left on disk."""

from dataclasses import dataclass

from consensus.safety import SafetyRecord
from consensus.types import Block, CommitProof, SyncInfo


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """Outcome of executing the committed block at `height`."""

    height: int
    state_digest: bytes
    receipts_accumulator: bytes


@dataclass(frozen=True, slots=True)
class RecoveredState:
    """Everything stored by `Persist`, read back.

    Attributes:
        record: the stored safety record; None for an observer or before the first signature.
        certificates: the stored high QC, last TC and highest CC; None if never stored.
        committed: the last committed block; the genesis block if none.
        proof: its proof, or None for genesis.
        reveals: `Persist.reveals` of the last committed write; empty for genesis.
        blocks: stored uncommitted blocks, in any order.
        executed: results of the last executed heights, ascending and contiguous, at most `lag_max + 1` needed; the
            genesis result is known without being named here.
    """

    record: SafetyRecord | None
    certificates: SyncInfo | None
    committed: Block
    proof: CommitProof | None
    reveals: tuple[tuple[int, bytes], ...]
    blocks: tuple[Block, ...]
    executed: tuple[ExecutionResult, ...]
