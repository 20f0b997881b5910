"""Models on this node's disk, and what its worker makes of them.

    artefacts/bases/HASH.safetensors     bases this node holds
    artefacts/indices/ADAPTER_ID/        indices it rebuilt itself

Adapters and records are blobs. A job is given paths below this node's own home and nothing else.
"""

import filecmp
import os
import shutil
import threading
from pathlib import Path

import structlog
import trio

from node.fetch import Fetcher
from node.ledger.openings import Opening
from node.ledger.queries import RecordOwner, adapter_records
from node.ledger.results import AuditResult
from node.ledger.state import Adapter, Inference, StateReader, get_params
from node.recompute.jobs import AuditDone, AuditJob, IndexBuilt, IndexJob, JobRefused
from node.recompute.process import RecomputeProcess
from node.storage.blobs import BlobStore

log = structlog.get_logger(__name__)


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
        if not await self.holds_base(adapter.base_hash):
            log.warning("base_missing", adapter=adapter_id.hex(), base=adapter.base_hash.hex())
            return None
        contributions = self._records(adapter_id)
        wanted = [(adapter.blob_digest, adapter.blob_bytes)]
        wanted += [(entry.blob_digest, entry.blob_bytes) for entry in contributions]
        for name, size_bytes in wanted:
            if not await self._fetcher.blob(name, size_bytes):
                log.warning("artefact_missing", adapter=adapter_id.hex(), blob=name.hex())
                return None
        result = await self._worker.submit(
            IndexJob(
                str(self.base_path(adapter.base_hash)),
                str(self._blobs.path(adapter.blob_digest)),
                adapter.adapter_hash,
                tuple(str(self._blobs.path(entry.blob_digest)) for entry in contributions),
                str(self._index_folder(adapter_id)),
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

        A refusal means a damaged file here: base, adapter and records are made whole, the index is rebuilt, and the
        job is tried once more.
        """
        folder = self._index_folder(adapter_id)
        job = AuditJob(
            base=str(self.base_path(adapter.base_hash)),
            adapter=str(self._blobs.path(adapter.blob_digest)),
            adapter_hash=adapter.adapter_hash,
            index_folder=str(folder),
            index_root=adapter.index_root,
            owners=tuple((entry.contributor, entry.record_count) for entry in self._records(adapter_id)),
            prompt_ids=opening.prompt_ids,
            output_ids=opening.output_ids,
            new_tokens_max=record.voucher.new_tokens_max,
            floor_ppm=get_params(self._reader).attribution_floor_ppm,
        )
        if folder.is_dir():
            result = await self._worker.submit(job)
            if isinstance(result, AuditDone):
                return AuditResult(result.status, result.result_hash, result.shares)
            log.error("audit_refused", adapter=adapter_id.hex(), reason=_reason(result), next="mending")
        if await self.rebuild_index(adapter_id, adapter) != adapter.index_root:
            return None
        result = await self._worker.submit(job)
        if isinstance(result, AuditDone):
            return AuditResult(result.status, result.result_hash, result.shares)
        log.error("audit_refused", adapter=adapter_id.hex(), reason=_reason(result))
        return None

    def _index_folder(self, adapter_id: bytes) -> Path:
        return self._indices / adapter_id.hex()

    def _records(self, adapter_id: bytes) -> tuple[RecordOwner, ...]:
        return adapter_records(self._reader, adapter_id) or ()


def _reason(result: object) -> str:
    return result.reason if isinstance(result, JobRefused) else "an answer to another question"


async def hold_shipped_base(artefacts: Artefacts) -> bytes:
    """Put the base that ships with the package into this home; returns its hash."""
    from attribution.models import BASE_HASH, BASE_PATH

    await trio.to_thread.run_sync(artefacts.add_base, BASE_HASH, BASE_PATH)
    return BASE_HASH
