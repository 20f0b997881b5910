"""Keeps the chain's database bounded: forgets old blocks and batches that nothing used, and gives their room back.

What stays is the newest `retain_heights` blocks, and besides whatever an honest peer may still need of this node: everything from
the oldest snapshot that is served here, everything evidence can be about, and what consensus itself looks back at. Epochs and their
hand-overs, by which a light client follows the chain, stay for ever.
"""

from collections.abc import Callable, Iterable

import structlog
import trio

from node.ledger.block import decode_receipt
from node.ledger.params import Params
from node.pushed import UNUSED_HEIGHTS_MAX
from node.snapshot.files import Shelf
from node.storage.chain import ChainStore, Outcome
from node.storage.upkeep import Upkeep

log = structlog.get_logger(__name__)

RETAIN_HEIGHTS_MIN = 512
"""Consensus, block ranges in flight and rollback look back so far at most."""

LOOK_HEIGHTS = 64
COMPACT_HEIGHTS = 4096
"""LevelDB is compacted after so many pruned blocks, and where so little is kept that half of it was pruned."""


def subjects_of(outcome: Outcome) -> list[bytes]:
    """What the receipts of a block are about: transaction hashes, and ids that are none."""
    return [decode_receipt(data).subject for data in outcome.receipts]


def keep_from(executed_height: int, retain_heights: int, params: Params, snapshots: Iterable[int]) -> int:
    """The lowest height whose block must stay; 0 where all must. `snapshots` are the heights of those served here."""
    if not retain_heights:
        return 0
    retained = max(retain_heights, RETAIN_HEIGHTS_MIN, params.evidence_heights)
    lowest = executed_height + 1 - retained
    if params.snapshot_heights:
        # A node may start from any of them, and then wants every block from there on.
        lowest = min(lowest, *snapshots, executed_height - 2 * params.snapshot_heights)
    return max(0, lowest)


class Pruner:
    """`executed` tells it of each block; `run` belongs in the daemon's nursery."""

    def __init__(
        self,
        store: ChainStore,
        upkeep: Upkeep,
        shelf: Shelf,
        params: Params,
        retain_heights: int,
        ordered: Callable[[], Iterable[bytes]],
    ) -> None:
        """`ordered` gives the batches of blocks that are stored and not executed."""
        self._store = store
        self._upkeep = upkeep
        self._shelf = shelf
        self._params = params
        self._retain_heights = retain_heights
        self._ordered = ordered
        self._height = store.executed().height
        self._unused: list[bytes] = []
        self._unused_due = self._height + UNUSED_HEIGHTS_MAX
        self._pruned = 0
        self._wake = trio.Event()

    def executed(self, height: int) -> None:
        """A block was executed."""
        self._height = height
        if height % LOOK_HEIGHTS == 0:
            self._wake.set()

    async def run(self) -> None:
        """Prune for ever, a little at a time, in a thread."""
        self._unused = await trio.to_thread.run_sync(self._upkeep.unused_batches)
        while True:
            await self.prune()
            self._wake = trio.Event()
            await self._wake.wait()

    async def prune(self) -> int:
        """Forget what may be forgotten now; returns how many blocks."""
        below = keep_from(self._height, self._retain_heights, self._params, self._shelf.heights())
        gone = 0
        while count := await trio.to_thread.run_sync(self._upkeep.prune, below, subjects_of):
            gone += count
        self._pruned += gone
        if self._height >= self._unused_due:
            self._drop_unused()
        if self._pruned >= min(COMPACT_HEIGHTS, max(self._retain_heights, RETAIN_HEIGHTS_MIN)):
            self._pruned = 0
            await trio.to_thread.run_sync(self._upkeep.compact)
            log.info("compacted", below=below)
        return gone

    def _drop_unused(self) -> None:
        """Remove the batches that an earlier run left and that no block has named since."""
        needed = set(self._ordered())
        unused, self._unused = self._unused, []
        for name in unused:
            if name not in needed and not self._upkeep.is_named(name):
                self._store.drop_batch(name)
