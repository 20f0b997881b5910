"""Makes snapshots beside the chain, and knows the roots that headers must carry.

After block s (a multiple of `snapshot_heights`) the database is frozen, which costs nothing, and a thread cuts that view into
chunks while further blocks execute. The execution of s + `snapshot_heights` // 2 is the first whose result carries the root, and
waits for it if it is late: every node then says the same of the same height. A process that ends in between finds no frozen
view when it starts again; what later blocks replaced is still known (`Upkeep.replaced`), and gives the state at s back.

A disk that is full costs the files, never the root.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain

import structlog
import trio

from node.snapshot.files import Draft, Manifest, Shelf
from node.snapshot.format import (
    CHUNKS_MAX,
    SnapshotHead,
    chunk_digest,
    encode_head_chunk,
    snapshot_height,
    snapshot_root,
    state_chunks,
)
from node.storage.chain import ChainStore, ExecutedHead, Outcome
from node.storage.database import Frozen
from node.storage.errors import StorageError
from node.storage.upkeep import Upkeep

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Work:
    """A state to be cut into chunks: a view of the database, and what to put on top of it (None: no such key)."""

    head: SnapshotHead
    frozen: Frozen
    overlay: Mapping[bytes, bytes | None]


class Maker:
    """The snapshots of one node. `run` belongs beside the executor's; `shelf` is None where only roots are wanted."""

    def __init__(
        self, store: ChainStore, upkeep: Upkeep, chain_id: bytes, every: int, shelf: Shelf | None
    ) -> None:
        """`every` is the chain's `snapshot_heights`; 0: no snapshots."""
        self.every = every
        self.problem = ""
        """Why the newest snapshot is not on disk; empty where it is."""
        self._store = store
        self._upkeep = upkeep
        self._chain_id = chain_id
        self._shelf = shelf
        self._work: _Work | None = None
        self._wake = trio.Event()
        self._made = trio.Event()

    def recover(self) -> None:
        """Take up the snapshot whose root was not known yet when the process ended. Raises StorageError."""
        head = self._store.executed()
        height = head.height // self.every * self.every if self.every else 0
        if not height or self._upkeep.snapshot_root(height) is not None:
            return
        overlay: dict[bytes, bytes | None] = {}
        for above in range(head.height, height, -1):
            found = self._upkeep.replaced(above)
            if found is None:
                raise StorageError(
                    f"the state at height {height} is not known any more, and its snapshot was not made"
                )
            overlay |= found.values
            head = found.head
        outcome = self._store.outcome(height)
        if outcome is None or head.height != height:
            raise StorageError(f"the outcome of height {height} is missing")
        self._begin(head, outcome, overlay)

    @property
    def needs_above(self) -> int | None:
        """What blocks above this height replaced must stay known, for a restart; None where nothing waits."""
        return None if self._work is None else self._work.head.head.height

    def remembered_from(self, height: int) -> int:
        """The lowest height of which is stored what its block replaced; `height` where there is none."""
        lowest = self._upkeep.lowest_replaced()
        return height if lowest is None else lowest

    async def root_for(self, height: int) -> bytes:
        """The root that the execution of `height` carries; waits until it is known."""
        due = snapshot_height(height, self.every)
        if not due:
            return b""
        while (root := self._upkeep.snapshot_root(due)) is None:
            if self.needs_above != due:
                raise StorageError(f"the root of the snapshot at height {due} is not known")
            await self._made.wait()
        return root

    def executed(self, head: ExecutedHead, outcome: Outcome) -> None:
        """Begin a snapshot where one is due; call it right after the block was recorded."""
        if self.every and head.height % self.every == 0:
            self._begin(head, outcome, {})

    def _begin(self, head: ExecutedHead, outcome: Outcome, overlay: Mapping[bytes, bytes | None]) -> None:
        # The one before is done: this height's own result waited for its root.
        self._work = _Work(SnapshotHead(self._chain_id, head, outcome), self._upkeep.freeze(), overlay)
        self._wake.set()

    async def run(self) -> None:
        """Make snapshots for ever."""
        while True:
            if self._work is None:
                self._wake = trio.Event()
                await self._wake.wait()
                continue
            work, began_s = self._work, trio.current_time()
            try:
                manifest = await trio.to_thread.run_sync(self._make, work)
            finally:
                work.frozen.close()
            self._work = None
            self._made.set()
            self._made = trio.Event()
            log.info(
                "snapshot",
                height=manifest.height,
                chunks=len(manifest.digests),
                root=manifest.root.hex(),
                seconds=round(trio.current_time() - began_s, 3),
                problem=self.problem,
            )

    def _make(self, work: _Work) -> Manifest:
        """In a thread: cut, hash, write; the root is known durably when this returns."""
        manifest = self._write(work)
        self._upkeep.put_snapshot_root(manifest.height, manifest.root)
        if self._shelf is not None:
            self._attempt(self._shelf.tidy)
        return manifest

    def _write(self, work: _Work) -> Manifest:
        height = work.head.head.height
        drafts: list[Draft] = []
        self.problem = ""
        if self._shelf is not None:
            shelf = self._shelf
            self._attempt(lambda: drafts.append(shelf.begin(height)))
        digests: list[bytes] = []
        for chunk in chain([encode_head_chunk(work.head)], state_chunks(overlaid(work))):
            trio.from_thread.check_cancelled()
            if drafts and not self._attempt(partial(drafts[0].write, len(digests), chunk)):
                drafts.pop().abandon()
            digests.append(chunk_digest(chunk, self._chain_id))
        manifest = Manifest(height, tuple(digests))
        if len(digests) > CHUNKS_MAX and drafts:
            self.problem = f"the state takes {len(digests)} chunks of at most {CHUNKS_MAX}"
            drafts.pop().abandon()
        if drafts and not self._attempt(partial(drafts[0].finish, manifest)):
            drafts.pop().abandon()
        return manifest

    def _attempt(self, action: Callable[[], None]) -> bool:
        """Do something with the disk that may fail without harm to anybody but those who would start from here."""
        try:
            action()
        except OSError as error:
            self.problem = str(error)
            log.error("snapshot_not_written", error=str(error))
            return False
        return True


def overlaid(work: _Work) -> Iterator[tuple[bytes, bytes]]:
    """The state's rows in key order: those of the view, with those of the overlay instead or besides."""
    if not work.overlay:
        yield from work.frozen.scan(b"s")
        return
    yield from merge(work.frozen.scan(b"s"), sorted(work.overlay.items()))


def merge(
    rows: Iterable[tuple[bytes, bytes]], above: Iterable[tuple[bytes, bytes | None]]
) -> Iterator[tuple[bytes, bytes]]:
    """Two lists of rows, each in key order, as one; where both have a key, `above` counts, and None removes it."""
    lower, upper = iter(rows), iter(above)
    row, over = next(lower, None), next(upper, None)
    while row is not None or over is not None:
        if over is None or (row is not None and row[0] < over[0]):
            if row is not None:
                yield row
            row = next(lower, None)
            continue
        if row is not None and row[0] == over[0]:
            row = next(lower, None)
        if over[1] is not None:
            yield over[0], over[1]
        over = next(upper, None)


def root_of(head: SnapshotHead, rows: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The root of a state given whole, for tests and tools: what `Maker` computes piece by piece."""
    chunks = chain([encode_head_chunk(head)], state_chunks(rows))
    return snapshot_root([chunk_digest(chunk, head.chain_id) for chunk in chunks])
