"""Keeps span indices in step with the ledger: new contributions are added, erased records removed.

Off unless `[spans] enabled` says otherwise. One contribution is worked at a time, in a thread of its own limiter; what
waits is read from the state, so a node that was away or killed goes on where its index ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
import trio

from attribution.spans.errors import SpanFileError, SpanLimit
from node.config import SpansSection
from node.errors import NotReady
from node.executor import ExecutedBlock
from node.fetch import Fetcher
from node.ledger.entries import CONTRIBUTION, DATANET, Contribution
from node.ledger.erased import read_remaining
from node.ledger.erasure import ERASURES, get_erasures, remaining_name
from node.ledger.errors import LedgerError
from node.ledger.queries import datanet_contributions
from node.ledger.state import get_contribution
from node.spans.shelf import DatanetSpans, Found
from node.storage.blobs import BlobStore
from node.storage.chain import ChainStore
from node.storage.errors import StorageError

log = structlog.get_logger(__name__)

REST_HEIGHTS = 32
"""After a contribution could not be had, its datanet is looked at again so many blocks later."""

PAGE = 64
QUERIES_MAX = 2


class SpanFollower:
    """Span indices of the datanets that this node is told to follow."""

    def __init__(
        self,
        folder: Path,
        section: SpansSection,
        store: ChainStore,
        blobs: BlobStore,
        fetcher: Fetcher,
        start: Callable[..., bool],
    ) -> None:
        """`start` runs a small task beside the others, if it can."""
        self._folder = folder
        self._section = section
        self._store = store
        self._blobs = blobs
        self._fetcher = fetcher
        self._start = start
        self._chosen = frozenset(bytes.fromhex(text) for text in section.datanets)
        self._open: dict[bytes, DatanetSpans] = {}
        self._indices: dict[bytes, DatanetSpans] = {}  # those that may be asked
        self._pending: set[bytes] = set()
        self._erased: set[bytes] = set()
        self._resting_until: dict[bytes, int] = {}
        self._working = False
        self._one = trio.CapacityLimiter(1)
        self._queries = trio.CapacityLimiter(QUERIES_MAX)

    @property
    def enabled(self) -> bool:
        """Whether this node keeps span indices."""
        return self._section.enabled

    def recall(self) -> None:
        """Read from the executed state which datanets there are and what was erased; call it before blocks are executed."""
        if not self.enabled:
            return
        self._pending.update(name for name, _ in self._store.scan_state(DATANET) if self._wants(name))
        self._erased.update(name for name, _ in self._store.scan_state(ERASURES))

    def executed(self, done: ExecutedBlock) -> None:
        """Follow what a block changed, and carry on with what is left to do."""
        if not self.enabled:
            return
        for key, name in done.references:
            if key.startswith(CONTRIBUTION):
                found = get_contribution(self._store, key[len(CONTRIBUTION) :])
                if found is not None and self._wants(found.datanet):
                    self._pending.add(found.datanet)
            elif key.startswith(ERASURES) and name is not None:
                self._erased.add(key[len(ERASURES) :])
        self.carry_on(done.head.height)

    def carry_on(self, height: int) -> None:
        """Start the work that is left, unless it is in hand or all of it rests."""
        due = {name for name in self._pending if self._resting_until.get(name, 0) <= height}
        if self.enabled and (due or self._erased) and not self._working:
            self._working = self._start(self._work, due, height)

    async def spans(self, datanet: bytes, tokens: Sequence[int], length_min: int) -> Found:
        """Maximal spans of `tokens` in the records of a datanet; raises NotReady where this node has no index of it."""
        index = self._indices.get(datanet)
        if index is None:
            why = "it is not built yet, or not followed" if self.enabled else "[spans] enabled is false"
            raise NotReady(f"this node has no span index of that datanet: {why}")
        spans = await trio.to_thread.run_sync(index.spans, tokens, length_min, limiter=self._queries)
        return Found(datanet, len(index.contributions), tuple(spans))

    def _wants(self, datanet: bytes) -> bool:
        return not self._chosen or datanet in self._chosen

    async def _work(self, due: set[bytes], height: int) -> None:
        try:
            await self._erase_all()
            for datanet in sorted(due):
                self._pending.discard(datanet)
                if not await self._catch_up(datanet):
                    self._pending.add(datanet)
                    self._resting_until[datanet] = height + REST_HEIGHTS
                await self._erase_all()
        except (OSError, StorageError, LedgerError, SpanFileError, SpanLimit) as error:
            log.error("spans_not_indexed", reason=str(error), next="tried again later")
            self._pending |= due
            self._resting_until |= dict.fromkeys(due, height + REST_HEIGHTS)
        finally:
            self._working = False

    async def _catch_up(self, datanet: bytes) -> bool:
        """Index what a datanet's index lacks; returns whether that is all there is."""
        index = self._open.get(datanet)
        if index is None:
            folder = self._folder / datanet.hex()
            index = self._open[datanet] = await trio.to_thread.run_sync(
                self._opened, folder, limiter=self._one
            )
        whole = await self._grow(datanet, index)
        self._indices[datanet] = index  # not before: all of its records have a contribution now
        return whole

    async def _grow(self, datanet: bytes, index: DatanetSpans) -> bool:
        while page := datanet_contributions(self._store, datanet, len(index.contributions), PAGE):
            for name, contribution in page:
                if get_erasures(self._store, name) is not None:
                    self._erased.add(name)  # it may have been indexed with records that went since
                if index.holds(contribution.record_count):
                    index.note(name, contribution.contributor, contribution.record_count)
                    continue
                if not self._has_room():
                    log.warning("span_index_full", datanet=datanet.hex(), bytes_max=self._section.bytes_max)
                    return False
                if not await self._holds(contribution):
                    log.info("span_records_missing", contribution=name.hex())
                    return False
                added = await trio.to_thread.run_sync(self._add, index, name, contribution, limiter=self._one)
                if not added:
                    break  # token ids are wider: all over again
        return True

    def _opened(self, folder: Path) -> DatanetSpans:
        try:
            return DatanetSpans(folder)
        except SpanFileError as error:
            log.error("span_index_damaged", folder=str(folder), reason=str(error), next="built anew")
            for path in sorted(folder.iterdir()):
                path.unlink()
            return DatanetSpans(folder)

    def _has_room(self) -> bool:
        return sum(index.size_bytes for index in self._open.values()) < self._section.bytes_max

    async def _holds(self, contribution: Contribution) -> bool:
        """Bring a contribution's blob here, or what erasures left of it."""
        left = remaining_name(contribution.blob_digest)
        if self._blobs.has(left) or await self._fetcher.blob(
            contribution.blob_digest, contribution.blob_bytes
        ):
            return True
        return await self._fetcher.any_blob(left) is not None

    def _add(self, index: DatanetSpans, name: bytes, contribution: Contribution) -> bool:
        data = self._blobs.get(remaining_name(contribution.blob_digest))
        if data is None:
            data = self._blobs.get(contribution.blob_digest)
        if data is None:
            raise OSError("a contribution's blob went away while it was to be indexed")
        rows = read_remaining(data, contribution.records_root)
        live = [None if isinstance(row, bytes) else row for row in rows]
        return index.add(name, contribution.contributor, live)

    async def _erase_all(self) -> None:
        while self._erased:
            name = min(self._erased)
            await trio.to_thread.run_sync(self._erase, name, limiter=self._one)
            self._erased.discard(name)

    def _erase(self, name: bytes) -> None:
        """Remove what is erased for good of a contribution, where it is indexed."""
        contribution, erasures = get_contribution(self._store, name), get_erasures(self._store, name)
        if contribution is None or erasures is None:
            return
        index = self._open.get(contribution.datanet)
        entry = None if index is None else index.find(name)
        if index is None or entry is None:
            return  # indexed later, without them
        gone = index.erase([entry.first + number for number in erasures.done])
        if gone:
            log.info("spans_erased", contribution=name.hex(), records=gone)
