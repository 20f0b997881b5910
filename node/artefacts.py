"""Models on this node's disk, and what its worker makes of them.

    artefacts/bases/HASH.safetensors     bases this node holds
    artefacts/indices/ADAPTER_ID/        indices it rebuilt itself, or fetched where records were erased

Adapters and records are blobs. A job is given paths below this node's own home and nothing else.
"""

import filecmp
import os
import re
import shutil
import threading
from pathlib import Path

import structlog
import trio

from node.fetch import Fetcher
from node.ledger.entries import Adapter, Inference
from node.ledger.erasure import remaining_name
from node.ledger.openings import Opening
from node.ledger.overlay import StateReader
from node.ledger.results import AuditResult
from node.ledger.state import get_params
from node.network.errors import NetworkError
from node.recompute.jobs import (
    AuditDone,
    AuditJob,
    EraseJob,
    IndexBuilt,
    IndexJob,
    JobRefused,
    RowsErased,
    TakeJob,
    unfinished_folder,
)
from node.recompute.process import RecomputeProcess
from node.storage.blobs import BlobStore
from node.training import Training, training_of
from node.wire import BLOB_PART_BYTES, INDEX_FILES

log = structlog.get_logger(__name__)

PEERS_ASKED_MAX = 8
"""For one index at a time; those that come after them are asked first the next time."""

_ADAPTER_ID = re.compile("[0-9a-f]{64}")


class Artefacts:
    """Bases, adapters and indices of one node."""

    def __init__(
        self, folder: Path, blobs: BlobStore, reader: StateReader, fetcher: Fetcher, worker: RecomputeProcess
    ) -> None:
        self._bases = folder / "bases"
        self._indices = folder / "indices"
        self._blobs = blobs
        self._reader = reader
        self._fetcher = fetcher
        self._worker = worker
        self._copying = threading.Lock()
        self._fetching = trio.Lock()
        self._turn = 0  # of the peers, for an index
        self._bases.mkdir(parents=True, exist_ok=True)
        self._indices.mkdir(parents=True, exist_ok=True)

    def base_path(self, base_hash: bytes) -> Path:
        """Where a base lies, or would lie."""
        return self._bases / f"{base_hash.hex()}.safetensors"

    async def holds_base(self, base_hash: bytes) -> bool:
        """Whether this node holds the base; a damaged copy of the shipped one is replaced first."""
        await hold_shipped_base(self)
        return self.base_path(base_hash).is_file()

    def add_base(self, base_hash: bytes, source: Path) -> None:
        """Copy a base into this home, durably, unless the same bytes are there."""
        target = self.base_path(base_hash)
        with self._copying:
            if target.is_file():
                if filecmp.cmp(source, target, shallow=False):
                    return
                log.warning("base_damaged", path=str(target))
            temporary = target.with_suffix(".tmp")
            shutil.copyfile(source, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.rename(target)

    async def rebuild_index(self, adapter_id: bytes, adapter: Adapter) -> bytes | None:
        """Rebuild an adapter's index from the committed records; returns its root, or None when it cannot be done."""
        training = self.training(adapter_id, adapter)
        if not await self._holds_parts(adapter_id, adapter, training):
            return None
        result = await self._worker.submit(
            IndexJob(
                str(self.base_path(adapter.base_hash)),
                str(self._blobs.path(adapter.blob_digest)),
                adapter.adapter_hash,
                self._paths(training),
                str(self.index_folder(adapter_id)),
                training.gaps,
            )
        )
        if isinstance(result, IndexBuilt):
            return result.index_root
        log.error("index_refused", adapter=adapter_id.hex(), reason=_reason(result))
        return None

    async def audit(
        self, adapter_id: bytes, adapter: Adapter, record: Inference, opening: Opening
    ) -> AuditResult | None:
        """Recompute output and attribution of an inference; None when this machine cannot.

        A refusal means a damaged file here: base, adapter and records are made whole, the index is rebuilt or fetched,
        and the job is tried once more.
        """
        folder = self.index_folder(adapter_id)
        training = self.training(adapter_id, adapter)
        # Of an inference what was erased up to its own height is not asked: every validator sees the same then.
        erased = training.erased_rows(record.height)
        job = AuditJob(
            base=str(self.base_path(adapter.base_hash)),
            adapter=str(self._blobs.path(adapter.blob_digest)),
            adapter_hash=adapter.adapter_hash,
            index_folder=str(folder),
            index_root=adapter.index_root,
            owners=training.owners,
            prompt_ids=opening.prompt_ids,
            output_ids=opening.output_ids,
            new_tokens_max=record.voucher.new_tokens_max,
            floor_ppm=get_params(self._reader).attribution_floor_ppm,
            erased=erased,
            contributions=self._paths(training) if erased else (),
            gaps=training.gaps if erased else (),
        )
        whole = False
        if folder.is_dir():
            result = await self._worker.submit(job)
            if isinstance(result, AuditDone):
                return AuditResult(result.status, result.result_hash, result.shares)
            log.error("audit_refused", adapter=adapter_id.hex(), reason=_reason(result), next="mending")
            whole = not (isinstance(result, JobRefused) and result.index_damaged)
        if training.erased_rows(done=True):
            if whole or not await self._fetch_index(adapter_id, adapter, training):
                return None
        elif await self.rebuild_index(adapter_id, adapter) != adapter.index_root:
            return None
        result = await self._worker.submit(job)
        if isinstance(result, AuditDone):
            return AuditResult(result.status, result.result_hash, result.shares)
        log.error("audit_refused", adapter=adapter_id.hex(), reason=_reason(result))
        return None

    async def erase_rows(self, adapter_id: bytes, adapter: Adapter) -> bool:
        """Blank the rows of an adapter's index whose erasure is done; returns whether none is left. Safe to repeat."""
        training = self.training(adapter_id, adapter)
        rows = training.erased_rows(done=True)
        if not rows:
            return True
        job = EraseJob(str(self.index_folder(adapter_id)), rows, self._paths(training), training.gaps)
        async with self._fetching:  # what is being fetched would lose its folder
            result = await self._worker.submit(job)
        if isinstance(result, RowsErased):
            return True
        log.error("rows_not_erased", adapter=adapter_id.hex(), reason=_reason(result))
        return False

    def indexed(self) -> list[bytes]:
        """Adapters of which an index lies here, or the leftovers of one."""
        names = {entry.name.removesuffix(".part") for entry in self._indices.iterdir()}
        return [bytes.fromhex(name) for name in sorted(names) if _ADAPTER_ID.fullmatch(name)]

    def index_folder(self, adapter_id: bytes) -> Path:
        """Where an adapter's index lies, or would lie."""
        return self._indices / adapter_id.hex()

    def training(self, adapter_id: bytes, adapter: Adapter) -> Training:
        """What an adapter was trained on, and what is erased of it."""
        return training_of(self._reader, adapter_id, adapter)

    def index_part(self, adapter_id: bytes, file: int, offset: int) -> bytes:
        """A part of a file of an index that lies here whole, for a peer; nothing where there is none."""
        try:
            descriptor = os.open(self.index_folder(adapter_id) / INDEX_FILES[file], os.O_RDONLY)
        except FileNotFoundError:
            return b""
        try:
            return os.pread(descriptor, BLOB_PART_BYTES, offset)
        finally:
            os.close(descriptor)

    async def _fetch_index(self, adapter_id: bytes, adapter: Adapter, training: Training) -> bool:
        """Fetch an active adapter's index, of which records were erased, so that nobody can build it any more.

        A quorum rebuilt it when the adapter was published and attested its root, which proves every row and base; peers
        are asked one after the other.
        """
        if not await self._holds_parts(adapter_id, adapter, training):
            return False
        folder = unfinished_folder(self.index_folder(adapter_id))
        async with self._fetching:
            # The state of now: what was erased while this waited must not be written again.
            training = self.training(adapter_id, adapter)
            job = TakeJob(
                str(self.index_folder(adapter_id)),
                adapter.index_root,
                training.erased_rows(done=True),
                self._paths(training),
                training.gaps,
            )
            try:
                for peer_id in self._next_peers():
                    try:
                        await trio.to_thread.run_sync(_empty, folder)
                        if not await self._fetcher.index(peer_id, adapter_id, folder):
                            continue
                    except NetworkError as error:
                        log.debug("fetch_failed", what=adapter_id.hex(), peer=peer_id, error=str(error))
                        continue
                    result = await self._worker.submit(job)
                    if isinstance(result, IndexBuilt):
                        log.info("index_fetched", adapter=adapter_id.hex(), peer=peer_id)
                        return True
                    log.error("index_refused", adapter=adapter_id.hex(), peer=peer_id, reason=_reason(result))
                    if isinstance(result, JobRefused) and result.index_damaged:
                        self._fetcher.blame_index(peer_id, result.reason)
            finally:
                shutil.rmtree(folder, ignore_errors=True)  # five files: what a full disk, or the end, left
        log.warning("index_not_fetched", adapter=adapter_id.hex(), reason="no peer sent it")
        return False

    def _next_peers(self) -> list[str]:
        peers = self._fetcher.connected()
        first = self._turn % max(1, len(peers))
        self._turn = first + PEERS_ASKED_MAX
        return [*peers[first:], *peers[:first]][:PEERS_ASKED_MAX]

    async def _holds_parts(self, adapter_id: bytes, adapter: Adapter, training: Training) -> bool:
        """Whether base, adapter and what is left of the records are here, or can be had."""
        if not await self.holds_base(adapter.base_hash):
            log.warning("base_missing", adapter=adapter_id.hex(), base=adapter.base_hash.hex())
            return False
        wanted = [(adapter.blob_digest, adapter.blob_bytes)]
        wanted += [(entry.blob_digest, entry.blob_bytes) for entry in training.contributions]
        for place, (name, size_bytes) in enumerate(wanted, -1):
            left = place in training.blanked and await self._holds_remaining(name)
            if not left and not await self._fetcher.blob(name, size_bytes):
                log.warning("artefact_missing", adapter=adapter_id.hex(), blob=name.hex())
                return False
        return True

    async def _holds_remaining(self, blob: bytes) -> bool:
        """Whether what erasures left of a contribution's blob is here, or can be had."""
        name = remaining_name(blob)
        if await trio.to_thread.run_sync(self._blobs.get, name) is not None:
            return True
        return not self._blobs.has(blob) and await self._fetcher.any_blob(name) is not None

    def _paths(self, training: Training) -> tuple[str, ...]:
        paths = []
        for place, entry in enumerate(training.contributions):
            left = remaining_name(entry.blob_digest)
            name = left if place in training.blanked and self._blobs.has(left) else entry.blob_digest
            paths.append(str(self._blobs.path(name)))
        return tuple(paths)


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _reason(result: object) -> str:
    return result.reason if isinstance(result, JobRefused) else "an answer to another question"


async def hold_shipped_base(artefacts: Artefacts) -> bytes:
    """Put the base that ships with the package into this home; returns its hash."""
    from attribution.models import BASE_HASH, BASE_PATH

    await trio.to_thread.run_sync(artefacts.add_base, BASE_HASH, BASE_PATH)
    return BASE_HASH
