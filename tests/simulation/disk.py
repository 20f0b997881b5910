"""What a node has written, and what of it survives a crash."""

from dataclasses import dataclass, field, replace
from functools import lru_cache

from consensus.effects import Persist
from consensus.recovery import ExecutionResult, RecoveredState
from consensus.safety import SafetyRecord, record_from_bytes
from consensus.types import Block, CommitProof, Handover, SyncInfo, is_boundary

_read_record = lru_cache(256)(record_from_bytes)
"""The disk is asked for the same few bytes before every message that leaves."""


@dataclass(frozen=True)
class Image:
    """Contents of a disk at one moment; values are shared, containers copied on write."""

    record: bytes | None = None
    certificates: SyncInfo | None = None
    blocks: dict[bytes, Block] = field(default_factory=dict)
    chain: tuple[Block, ...] = ()
    proofs: dict[int, CommitProof] = field(default_factory=dict)
    reveals: tuple[tuple[int, bytes], ...] = ()
    executed: tuple[ExecutionResult, ...] = ()
    batches: frozenset[bytes] = frozenset()
    start: Block | None = None
    handovers: dict[int, Handover] = field(default_factory=dict)


class Disk:
    """A log of atomic writes: a synced one makes itself and all before it durable; a crash may lose the others."""

    def __init__(self, genesis: Block) -> None:
        self.genesis = genesis
        self.images = [Image()]

    @property
    def now(self) -> Image:
        """What a read returns."""
        return self.images[-1]

    def write(self, persist: Persist) -> None:
        """Apply one `Persist`."""
        old = self.now
        blocks = dict(old.blocks)
        for key in persist.forgotten:
            blocks.pop(key, None)
        blocks.update({block.id: block for block in persist.blocks})
        proofs = dict(old.proofs)
        if persist.committed and persist.proof is not None:
            proofs[persist.committed[-1].height] = persist.proof
        image = replace(
            old,
            record=old.record if persist.record is None else persist.record,
            certificates=persist.certificates or old.certificates,
            blocks=blocks,
            chain=old.chain + persist.committed,
            proofs=proofs,
            reveals=persist.reveals if persist.committed else old.reveals,
        )
        self._append(image, persist.sync)

    def write_result(self, result: ExecutionResult) -> None:
        """Store one execution result, unsynced."""
        self._append(replace(self.now, executed=(*self.now.executed, result)), False)

    def write_epoch(self, start: Block, handover: Handover, reveals: tuple[tuple[int, bytes], ...]) -> None:
        """Begin an epoch: its root, the proof of the last one's end, the beacon state that it starts with; synced."""
        handovers = {**self.now.handovers, handover.epoch: handover}
        self._append(replace(self.now, start=start, handovers=handovers, reveals=reveals), True)

    @property
    def start(self) -> Block:
        """The root of the epoch that this node is in."""
        return self.now.start or self.genesis

    @property
    def last(self) -> Block:
        """The last committed block; where an epoch has nothing committed, its root."""
        chain, start = self.now.chain, self.start
        return chain[-1] if len(chain) > start.height else start

    def write_batch(self, batch: bytes) -> None:
        """Store a batch, unsynced: the next synced write covers it."""
        self._append(replace(self.now, batches=self.now.batches | {batch}), False)

    def _append(self, image: Image, sync: bool) -> None:
        self.images = [image] if sync else [*self.images, image]

    def crash(self, keep: int) -> None:
        """Lose all but the first `keep` unsynced writes."""
        self.images = [self.images[min(keep, len(self.images) - 1)]]

    @property
    def synced_record(self) -> SafetyRecord | None:
        """The safety record a crash cannot take back."""
        data = self.images[0].record
        return None if data is None else _read_record(data)

    def recovered(self, results_max: int) -> RecoveredState | None:
        """Return what a restarted replica gets, or None if nothing was ever written."""
        image = self.now
        if image == Image():
            return None
        last, start = self.last, self.start
        return RecoveredState(
            record=None if image.record is None else record_from_bytes(image.record),
            certificates=image.certificates,
            committed=last,
            proof=None if last is start else image.proofs[last.height],
            reveals=image.reveals,
            blocks=tuple(image.blocks.values()),
            executed=image.executed[-results_max:],
        )

    def proven_range(self, above: int, blocks_max: int) -> tuple[tuple[Block, ...], CommitProof] | None:
        """Return the longest stored range from `above` + 1 that ends in a proven block, or None; of one epoch only."""
        chain = self.now.chain
        top = min(len(chain), above + blocks_max)
        ends = (block.height for block in chain[above:top] if is_boundary(block.header))
        for height in range(next(ends, top), above, -1):
            if height in self.now.proofs:
                return chain[above:height], self.now.proofs[height]
        return None
