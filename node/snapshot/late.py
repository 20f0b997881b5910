"""When a node gives up executing every block, and starts from a snapshot instead."""

from dataclasses import dataclass

import structlog
import trio

from node.config import SyncSection
from node.errors import NodeError
from node.snapshot.fetching import SnapshotClient
from node.storage.chain import ChainStore

log = structlog.get_logger(__name__)

PAUSE_S = 10.0
"""Between two attempts: each asks every peer for its offer."""


class StartAnew(NodeError):
    """A snapshot lies ready: the node ends, and starts again from it."""

    def __init__(self, height: int) -> None:
        self.height = height
        super().__init__(f"starting again from a snapshot, past height {height}")


@dataclass(slots=True)
class Latecomer:
    """Decides, and fetches. `every` is the chain's `snapshot_heights`."""

    store: ChainStore
    client: SnapshotClient
    section: SyncSection
    every: int
    _tried_s: float = float("-inf")

    async def consider(self, height: int, gone: bool) -> None:
        """A peer says that it is at `height`; `gone`: nobody has the next block any more. Raises StartAnew when a snapshot is ready.

        A claim alone costs a round of questions: only what a quorum signed makes this node skip blocks.
        """
        here = self.store.committed_height()
        too_far = height > here + self.section.lag_heights_max
        if self.section.snapshot != "auto" or not self.every or not (gone or too_far):
            return
        if trio.current_time() < self._tried_s + PAUSE_S:
            return
        self._tried_s = trio.current_time()
        above = here if gone else here + self.section.lag_heights_max // 2
        try:
            ready = await self.client.fetch(above)
        except OSError as error:
            log.error("snapshot_not_kept", error=str(error), remedy="make room on the disk")
            return
        if ready:
            raise StartAnew(here)
