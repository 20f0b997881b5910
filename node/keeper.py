"""What of this node's blobs stays: everything the ledger refers to for as long as it does, the rest for a while.

What is referred to is never written down: it is read from the state at the start and followed block by block, so that no
crash can make this and the ledger disagree. A loose blob goes when its time has passed in heights **and** milliseconds, no
transaction that was vouched for can still name it, and none that waits or is ordered does.
"""

from collections import Counter
from collections.abc import Callable, Iterable

import structlog
import trio

from consensus.errors import CodecError
from node.clock import now_ms
from node.config import StorageSection
from node.executor import ExecutedBlock
from node.ledger.batch import decode_batch
from node.ledger.blobs import REFERRING, blob_named, blob_referred
from node.ledger.entries import CONTRIBUTION
from node.ledger.errors import LedgerError
from node.ledger.transaction import decode_transaction
from node.storage.blobs import BlobStore, LooseLimits, Note
from node.storage.chain import ChainStore

log = structlog.get_logger(__name__)

COLLECT_HEIGHTS_MAX = 100
"""Loose blobs are looked through so often, or as often as they expire where that is more often."""


def loose_limits(section: StorageSection) -> LooseLimits:
    """The store's quotas as a node's configuration gives them."""
    return LooseLimits(
        section.blobs_loose_bytes_max,
        section.blobs_loose_sender_bytes_max,
        section.blobs_loose_unnamed_bytes_max,
    )


class Keeper:
    """Follows what the ledger refers to, and collects the rest. `recall` comes first, before blocks are executed."""

    def __init__(
        self,
        store: ChainStore,
        blobs: BlobStore,
        section: StorageSection,
        waiting: Callable[[], set[bytes]],
        ordered: Callable[[], Iterable[bytes]],
        clock: Callable[[], int] = now_ms,
    ) -> None:
        """`waiting` gives the blobs that pooled transactions name, `ordered` the batches that are ordered but not executed."""
        self._clock = clock
        self._store = store
        self._blobs = blobs
        self._section = section
        self._waiting = waiting
        self._ordered = ordered
        self._for_ever: set[bytes] = set()
        self._by_key: dict[bytes, bytes] = {}
        self._uses: Counter[bytes] = Counter()
        self._collecting = False
        blobs.referred = self.refers

    def recall(self, height: int) -> None:
        """Read from the executed state what is referred to, and give the rest its time from now on. Takes a while."""
        for key, value in self._store.scan_state():
            if key.startswith(REFERRING):
                self._note(key, blob_referred(key, value))
        self._blobs.settle(self.refers, self.fresh_note(height))

    def refers(self, name: bytes) -> bool:
        """Whether the ledger refers to this blob at the executed height."""
        return name in self._for_ever or name in self._uses

    def fresh_note(self, height: int, owner: bytes = b"", until_height: int = 0) -> Note:
        """A note of now."""
        return Note(owner, height, self._clock(), until_height)

    def executed(self, done: ExecutedBlock) -> None:
        """Follow what a block changed."""
        for key, name in done.references:
            before = self._by_key.get(key)
            self._note(key, name)
            if name is not None:
                self._blobs.keep(name)
            if before is not None and not self.refers(before):
                try:
                    self._blobs.loosen(before, self.fresh_note(done.head.height))
                except OSError as error:  # without its note it gets one at the next start
                    log.error("blob_not_loosened", blob=before.hex(), error=str(error))

    def due(self, height: int) -> bool:
        """Whether it is time to collect."""
        return height % min(COLLECT_HEIGHTS_MAX, self._section.blobs_loose_heights_max) == 0

    async def collect(self, height: int) -> int:
        """Remove the loose blobs whose time is over; returns how many. One collection at a time."""
        if self._collecting:
            return 0
        self._collecting = True
        try:
            waiting, ordered = self._waiting(), tuple(self._ordered())
            gone, freed_bytes = await trio.to_thread.run_sync(self._collect, height, waiting, ordered)
        finally:
            self._collecting = False
        if gone:
            log.info("blobs_collected", blobs=gone, freed_bytes=freed_bytes)
        return gone

    def _collect(self, height: int, waiting: set[bytes], ordered: tuple[bytes, ...]) -> tuple[int, int]:
        now = self._clock()
        old = [(name, note) for name, note in self._blobs.notes() if self._is_over(note, height, now)]
        if not old:
            return 0, 0
        needed = waiting | {name for batch in ordered for name in self._blobs_of(batch)}
        before_bytes = self._blobs.loose_bytes()
        gone = 0
        for name, note in old:
            try:
                gone += name not in needed and self._blobs.collect(name, note)
            except OSError as error:
                log.error("blob_not_collected", blob=name.hex(), error=str(error))
        return gone, before_bytes - self._blobs.loose_bytes()

    def _is_over(self, note: Note, height: int, now: int) -> bool:
        return (
            height >= note.height + self._section.blobs_loose_heights_max
            and now >= note.ms + self._section.blobs_loose_ms_max
            and height > note.until_height
        )

    def _blobs_of(self, batch: bytes) -> set[bytes]:
        data = self._store.batch(batch)
        if data is None:
            return set()
        named = set()
        for raw, _ in decode_batch(data).items:
            try:
                named.add(blob_named(decode_transaction(raw).body))
            except (LedgerError, CodecError):
                continue  # it will be found invalid where it executes
        return {name for name in named if name is not None}

    def _note(self, key: bytes, name: bytes | None) -> None:
        before = self._by_key.pop(key, None)
        if before is not None:
            self._uses[before] -= 1
            if not self._uses[before]:
                del self._uses[before]
        if name is None:
            return
        if key.startswith(CONTRIBUTION):
            self._for_ever.add(name)
        else:
            self._by_key[key] = name
            self._uses[name] += 1
