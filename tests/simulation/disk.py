"""What a node has written, and what of it survives a crash."""

from dataclasses import dataclass, replace
from functools import lru_cache

import msgpack

from consensus.effects import Persist
from consensus.recovery import ExecutionResult, RecoveredState
from consensus.safety import record_from_bytes
from consensus.types import Block, CommitProof, Handover, SyncInfo, is_boundary


@dataclass(frozen=True, slots=True)
class Marks:
    """The first numbers of a safety record, by the names they have there: what a signature may not be above of."""

    epoch: int
    last_voted: int
    lock: int
    highest_timeout: int
    last_proposed: int


@lru_cache(256)
def read_marks(record: bytes) -> Marks:
    """Read the numbers alone, for the look before every message that leaves; a restart reads the whole record strictly."""
    _, epoch, last_voted, lock, highest_timeout, last_proposed, *_ = msgpack.unpackb(record)
    return Marks(epoch, last_voted, lock, highest_timeout, last_proposed)


@dataclass(frozen=True)
class Image:
    """Contents of a disk at one moment; values are shared, containers copied on write."""

    record: bytes | None
    certificates: SyncInfo | None
    blocks: dict[bytes, Block]
    chain: tuple[Block, ...]
    proofs: dict[int, CommitProof]
    reveals: tuple[tuple[int, bytes], ...]
    executed: tuple[ExecutionResult, ...]
    batches: frozenset[bytes]
    start: Block | None
    handovers: dict[int, Handover]


EMPTY = Image(None, None, {}, (), {}, (), (), frozenset(), None, {})


class Disk:
    """A log of atomic writes: a synced one makes itself and all before it durable; a crash may lose the others."""

    def __init__(self, genesis: Block) -> None:
        self.genesis = genesis
        self.images = [EMPTY]

    @property
    def now(self) -> Image:
        """What a read returns."""
        return self.images[-1]

    def write(self, persist: Persist) -> None:
        """Apply one `Persist`."""
        old = self.now
        blocks, proofs = old.blocks, old.proofs
        if persist.forgotten or persist.blocks:
            blocks = dict(blocks)
            for key in persist.forgotten:
                blocks.pop(key, None)
            blocks.update({block.id: block for block in persist.blocks})
        if persist.committed and persist.proof is not None:
            proofs = {**proofs, persist.committed[-1].height: persist.proof}
        image = Image(
            record=old.record if persist.record is None else persist.record,
            certificates=persist.certificates or old.certificates,
            blocks=blocks,
            chain=old.chain + persist.committed,
            proofs=proofs,
            reveals=persist.reveals if persist.committed else old.reveals,
            executed=old.executed,
            batches=old.batches,
            start=old.start,
            handovers=old.handovers,
        )
        self._append(image, persist.sync)

    def write_result(self, result: ExecutionResult) -> None:
        """Store one execution result, unsynced."""
        self._append(self._grown((*self.now.executed, result), self.now.batches), False)

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
        self._append(self._grown(self.now.executed, self.now.batches | {batch}), False)

    def _grown(self, executed: tuple[ExecutionResult, ...], batches: frozenset[bytes]) -> Image:
        old = self.now
        return Image(
            old.record,
            old.certificates,
            old.blocks,
            old.chain,
            old.proofs,
            old.reveals,
            executed,
            batches,
            old.start,
            old.handovers,
        )

    def _append(self, image: Image, sync: bool) -> None:
        self.images = [image] if sync else [*self.images, image]

    def crash(self, keep: int) -> None:
        """Lose all but the first `keep` unsynced writes."""
        self.images = [self.images[min(keep, len(self.images) - 1)]]

    @property
    def synced_marks(self) -> Marks | None:
        """The numbers of the safety record that a crash cannot take back."""
        data = self.images[0].record
        return None if data is None else read_marks(data)

    def recovered(self, results_max: int) -> RecoveredState | None:
        """Return what a restarted replica gets, or None if nothing was ever written."""
        image = self.now
        if image == EMPTY:
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
