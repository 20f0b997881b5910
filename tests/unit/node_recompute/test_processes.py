"""The worker builds an index with as many processes as it is told to, and the index is the same."""

import os
from pathlib import Path

import pytest

from attribution.adapter import adapter_to_bytes
from attribution.checkpoint import save_base
from node.config import AttributionSection
from node.ledger.records import encode_records
from node.recompute.jobs import IndexBuilt, IndexJob, JobRefused
from node.recompute.process import worker_command
from node.recompute.worker import SHARDED_RECORDS_MIN, Engine
from node.storage.blobs import BlobStore
from tests.unit.attribution.model_cases import records, tiny_adapter, tiny_base


def test_the_worker_is_told_how_many_processes_there_may_be() -> None:
    section = AttributionSection(processes=3)
    command = worker_command(section.device, section.backend, section.threads, section.processes)
    assert "--processes=3" in command
    assert AttributionSection().processes == 1


def index_job(folder: Path, count: int, ids: list[list[int]]) -> IndexJob:
    base, blobs = tiny_base(), BlobStore(folder / "blobs", 1 << 24)
    path = folder / f"{base.hash.hex()}.safetensors"
    save_base(base, path)
    adapter = tiny_adapter(base)
    blob = blobs.put(adapter_to_bytes(adapter))
    rows = blobs.put(encode_records(ids))
    names = tuple(str(blobs.path(name)) for name in (rows,))
    return IndexJob(str(path), str(blobs.path(blob)), adapter.hash, names, str(folder / f"index-{count}"))


@pytest.mark.slow
def test_two_processes_leave_the_index_of_one(tmp_path: Path) -> None:
    ids = [[*record, i % 7] for i, record in enumerate(records(SHARDED_RECORDS_MIN))]
    found = []
    for processes in (1, 2):
        engine = Engine("cpu", "auto", 1, processes)
        calls = list[None]()
        built = engine.perform(index_job(tmp_path, processes, ids), lambda calls=calls: calls.append(None))  # type: ignore[misc]
        assert isinstance(built, IndexBuilt), built
        assert len(calls) > 2  # audits come in between
        folder = tmp_path / f"index-{processes}"
        found.append((built, {path.name: path.read_bytes() for path in folder.iterdir()}))
    assert found[0] == found[1]
    assert sorted(os.listdir(tmp_path)) == sorted(
        ["blobs", "index-1", "index-2", f"{tiny_base().hash.hex()}.safetensors"]
    )


@pytest.mark.slow
def test_records_that_no_process_can_read_are_a_refusal(tmp_path: Path) -> None:
    ids = [*([1, 2, 3] for _ in range(SHARDED_RECORDS_MIN)), [tiny_base().config.vocab_size]]
    refused = Engine("cpu", "auto", 1, 2).perform(index_job(tmp_path, 2, ids))
    assert isinstance(refused, JobRefused)
    assert "BadTokens" in refused.reason
    assert not (tmp_path / "index-2").exists()
