"""Removing the bytes of erased records from this node: out of blobs, indices and span indices.

The ledger says when (`node.ledger.erasure`): an erasure that is *done* at a height is carried out by every node after it
executed that block. What is to be done is never written down: it is read from the state at the start and followed block
by block, every step may be repeated, and a node that was killed in the middle begins again at its next start.

A blob may be that of several contributions (one for each datanet). Only what every one of them has erased goes: nobody
can take another's records away by contributing the same ones and erasing them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import structlog
import trio

from node.artefacts import Artefacts
from node.executor import ExecutedBlock
from node.ledger.entries import CONTRIBUTION, VALUE_BYTES_MAX, Contribution
from node.ledger.erased import erase_records, read_remaining
from node.ledger.erasure import ERASURES, Erasures, get_erasures, remaining_name
from node.ledger.errors import LedgerError, MalformedError
from node.ledger.fields import from_bytes
from node.ledger.state import get_adapter
from node.recompute.jobs import WorkerProtocolError
from node.recompute.process import WorkerBusy
from node.storage.blobs import BlobStore, blob_digest
from node.storage.chain import ChainStore
from node.storage.errors import StorageError

log = structlog.get_logger(__name__)

REST_HEIGHTS = 8
"""After something could not be removed, it is tried again so many blocks later."""


@dataclass(frozen=True, slots=True)
class Gone:
    """What is erased of a blob: the Merkle root that the rest proves itself against, and the records' numbers."""

    root: bytes
    records: frozenset[int]


class Eraser:
    """Follows what the ledger declares erased. `recall` comes before anything reads or takes blobs."""

    def __init__(
        self,
        store: ChainStore,
        blobs: BlobStore,
        artefacts: Artefacts | None,
        start: Callable[..., bool],
    ) -> None:
        """`artefacts` of a node that rebuilds indices; `start` runs a small task beside the others, if it can."""
        self._store = store
        self._blobs = blobs
        self._artefacts = artefacts
        self._start = start
        self._gone: Mapping[bytes, Gone] = {}  # by the digest of the blob
        self._left: Mapping[bytes, Gone] = {}  # by the name of what is left of it
        self._proven: dict[bytes, tuple[Gone, bytes]] = {}  # digests of rests that were checked
        self._pending: set[bytes] = set()  # contributions whose blobs are to be brought in step
        self._rows: set[bytes] = set()  # and those of which an index may have rows
        self._rests_until = 0
        self._working = False
        blobs.erased = self.erased
        blobs.remaining = self.remaining

    def erased(self, name: bytes) -> bool:
        """Whether records of this blob are erased, so that it must not be here."""
        return name in self._gone

    def remaining(self, name: bytes, data: bytes) -> bytes | None:
        """What of `data` belongs under the name of a blob's rest: without every erased record, and with all others."""
        gone = self._left.get(name)
        if gone is None:
            return None
        # A peer that asks for the rest again and again must not have its Merkle tree built again each time.
        if self._proven.get(name) == (gone, blob_digest(data)):
            return data
        try:
            found = read_remaining(data, gone.root)
            missing = {number for number, record in enumerate(found) if isinstance(record, bytes)}
            if not missing <= gone.records:
                return None  # more is missing than was erased
            left = data if missing == gone.records else erase_records(data, gone.root, gone.records)
        except MalformedError:
            return None
        self._proven[name] = gone, blob_digest(left)
        return left

    def recall(self) -> None:
        """Read from the executed state what is erased, and remove it from the blobs. Takes a while where something is."""
        names = [key for key, value in self._store.scan_state(ERASURES) if _erasures(value).done]
        self._follow(names)
        self._rows.update(names)

    def executed(self, done: ExecutedBlock) -> None:
        """Follow what a block declared, and carry on with what is left to do."""
        self._pending.update(
            key[len(ERASURES) :]
            for key, name in done.references
            if key.startswith(ERASURES) and name is not None
        )
        self.carry_on(done.head.height)

    def carry_on(self, height: int) -> None:
        """Start the work that is left, unless it is in hand or rests."""
        if (self._pending or self._rows) and not self._working and height >= self._rests_until:
            self._working = self._start(self._work, height)

    async def _work(self, height: int) -> None:
        pending, self._pending = self._pending, set()
        rows, self._rows = self._rows | pending, set()
        try:
            await trio.to_thread.run_sync(self._follow, sorted(pending))
            pending = set()
            if await self._erase_rows(rows):
                log.info("records_erased", contributions=len(rows), height=height)
                rows = set()
        except (OSError, StorageError, LedgerError, WorkerBusy, WorkerProtocolError) as error:
            log.error("records_not_erased", reason=str(error), next="tried again later")
        finally:
            self._working = False
            self._pending |= pending
            self._rows |= rows
            self._rests_until = height + REST_HEIGHTS if self._pending or self._rows else 0

    def _follow(self, names: Iterable[bytes]) -> None:
        """Take up the erasures of some contributions, then bring the bytes of their blobs in step."""
        blobs = {
            erasures.blob_digest
            for name in names
            if (erasures := get_erasures(self._store, name)) is not None and erasures.done
        }
        if not blobs:
            return
        found = dict(self._gone)
        for name, gone in self._common(blobs).items():
            if gone.records:
                found[name] = gone
        self._left = {remaining_name(name): gone for name, gone in found.items()}
        for name in sorted(blobs & found.keys()):
            self._keep_rest(name, found[name])
        self._gone = found  # from here on nobody can put it back
        for name in sorted(blobs & found.keys()):
            self._blobs.remove(name)

    def _common(self, blobs: set[bytes]) -> dict[bytes, Gone]:
        """Of each blob the records that every contribution of it has erased."""
        found: dict[bytes, Gone] = {}
        for key, value in self._store.scan_state(CONTRIBUTION):
            contribution = from_bytes(Contribution, value, VALUE_BYTES_MAX)
            name = contribution.blob_digest
            if name not in blobs:
                continue
            erasures = get_erasures(self._store, key)
            done = erasures.done if erasures is not None else frozenset[int]()
            before = found.get(name)
            found[name] = Gone(contribution.records_root, done if before is None else before.records & done)
        return found

    def _keep_rest(self, blob: bytes, gone: Gone) -> None:
        """Put what is left of a blob beside it, durably, or blank more of what was left before."""
        left = remaining_name(blob)
        if self._blobs.get(left) is None:  # reading it blanks what has been erased since
            data = self._blobs.get(blob)
            if data is not None:
                self._blobs.put(erase_records(data, gone.root, gone.records), expected=left)

    async def _erase_rows(self, names: Iterable[bytes]) -> bool:
        """Blank the rows of every index that has records of these contributions; returns whether none is left."""
        if self._artefacts is None:
            return True
        wanted, whole = set(names), True
        for adapter_id in self._artefacts.indexed():
            adapter = get_adapter(self._store, adapter_id)
            if adapter is not None and not wanted.isdisjoint(adapter.contributions):
                whole = await self._artefacts.erase_rows(adapter_id, adapter) and whole
        return whole


def _erasures(value: bytes) -> Erasures:
    return from_bytes(Erasures, value, VALUE_BYTES_MAX)
