"""Artefacts: what a job is given, and that a damaged index is rebuilt rather than believed or given up."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from node import fetch
from node.ledger.openings import Opening
from node.ledger.results import AuditResult, AuditStatus
from node.ledger.state import get_adapter
from node.recompute.jobs import AuditDone, AuditJob, IndexBuilt, IndexJob, Job, JobRefused, JobResult
from tests.unit.node.rooms import Room, run
from tests.unit.node.test_duties import Desk, no_shipped_base
from tests.unit.node_ledger.world import INDEX_ROOT, OUTPUT, PROMPT, SALT, World, address

__all__ = ["no_shipped_base"]

RESULT = AuditDone(AuditStatus.OK, b"h" * 32, ((address("ann"), 10**9),))


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    monkeypatch.setattr(fetch, "DELAY_S_MIN", 0.0)
    monkeypatch.setattr(fetch, "DELAY_S_MAX", 0.0)
    made = Room("val0", tmp_path)
    yield made
    made.close()


def audited(room: Room, answers: Callable[[Job], JobResult]) -> tuple[AuditResult | None, Desk]:
    """One audit over a world's first inference, with an index folder from before."""
    world = World()
    adapter_id = world.active_adapter()
    record = world.inference(world.record(adapter_id))
    adapter = get_adapter(world.state, adapter_id)
    assert adapter is not None
    desk = Desk(room, world, answers)
    desk.artefacts.index_folder(adapter_id).mkdir(parents=True)
    found: list[AuditResult | None] = []

    async def main() -> None:
        opening = Opening(PROMPT, SALT, OUTPUT, SALT)
        found.append(await desk.artefacts.audit(adapter_id, adapter, record, opening))
        await trio.lowlevel.checkpoint()

    run(main)
    return found[0], desk


def damaged_once(root: bytes) -> Callable[[Job], JobResult]:
    seen: list[Job] = []

    def answer(job: Job) -> JobResult:
        if isinstance(job, IndexJob):
            return IndexBuilt(root, 6)
        seen.append(job)
        return JobRefused("IndexFileError") if len(seen) == 1 else RESULT

    return answer


def test_a_refused_audit_rebuilds_the_index_and_is_tried_once_more(room: Room) -> None:
    found, desk = audited(room, damaged_once(INDEX_ROOT))
    assert found == AuditResult(RESULT.status, RESULT.result_hash, RESULT.shares)
    assert [type(job) for job in desk.worker.jobs] == [AuditJob, IndexJob, AuditJob]


def test_a_machine_that_rebuilds_another_index_says_nothing(room: Room) -> None:
    found, desk = audited(room, damaged_once(b"o" * 32))
    assert found is None
    assert [type(job) for job in desk.worker.jobs] == [AuditJob, IndexJob]


def test_a_job_names_files_below_this_home_and_owners_in_training_order(room: Room) -> None:
    _, desk = audited(room, lambda job: RESULT)
    (job,) = desk.worker.jobs
    assert isinstance(job, AuditJob)
    for path in (job.base, job.adapter, job.index_folder):
        assert Path(path).is_relative_to(room.folder)
    assert job.owners == tuple((address(name), 2) for name in ("ann", "ben", "cid"))
    assert job.index_root == INDEX_ROOT
