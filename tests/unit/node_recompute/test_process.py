"""The worker process from the daemon's side, with small real processes in the worker's place."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from node.recompute import process as worker_process
from node.recompute.jobs import (
    AuditDone,
    AuditJob,
    EraseJob,
    Gap,
    IndexBuilt,
    IndexJob,
    IndexRefused,
    Job,
    JobRefused,
    JobResult,
    RowsErased,
    TakeJob,
    WorkerProtocolError,
    pack_frame,
    parse_job,
    parse_result,
)
from node.recompute.process import RecomputeProcess, WorkerBusy

JOB = IndexJob("base", "adapter", b"h" * 32, ("records",), "index")
AUDIT = AuditJob(
    "base", "adapter", b"h" * 32, "index", b"r" * 32, ((b"o" * 32, 3),), (1, 2), (3, 4, 5), 16, 100_000
)

ANSWER = """
import os, sys
from node.recompute.jobs import AuditDone, AuditJob, IndexBuilt, pack_frame, parse_job, read_frame
while (body := read_frame(sys.stdin.buffer)) is not None:
    audit, name = isinstance(parse_job(body), AuditJob), os.getpid().to_bytes(32, "big")
    sys.stdout.buffer.write(pack_frame((AuditDone(0, name, ()) if audit else IndexBuilt(name, 7)).fields()))
    sys.stdout.buffer.flush()
"""
CRASH_ONCE = (
    """
import pathlib, sys
mark = pathlib.Path(sys.argv[1])
if not mark.exists():
    mark.touch()
    sys.stdin.buffer.read(8)
    sys.exit(3)
"""
    + ANSWER
)
SLOW_INDEX = """
import sys, threading
from node.recompute.jobs import AuditJob, IndexBuilt, AuditDone, JobRefused
from node.recompute.worker import serve
audited = threading.Event()
class Engine:
    def perform(self, job, between=lambda: None):
        if isinstance(job, AuditJob):
            audited.set()
            return AuditDone(0, b"a" * 32, ())
        while not audited.is_set():
            between()
        return JobRefused("damaged") if job.base == "damaged" else IndexBuilt(b"i" * 32, 7)
serve(sys.stdin.buffer, sys.stdout.buffer, Engine)
"""
CRASH_ON_INDEX = """
import os, select, sys
from node.recompute.jobs import AuditDone, IndexJob, pack_frame, parse_job, read_frame
while (body := read_frame(sys.stdin.buffer)) is not None:
    if isinstance(parse_job(body), IndexJob):
        select.select([0], [], [], 0.5)  # at first the audit comes to be in hand too
        os._exit(3)
    sys.stdout.buffer.write(pack_frame(AuditDone(0, b"a" * 32, ()).fields()))
    sys.stdout.buffer.flush()
"""
CRASH_ALWAYS = "import sys; sys.stdin.buffer.read(8); sys.exit(3)"
GARBAGE = "import sys; sys.stdin.buffer.read(8); sys.stdout.buffer.write(b'\\xff' * 64)"


@pytest.fixture(autouse=True)
def quick_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "RESTART_DELAY_S_MIN", 0.01)
    monkeypatch.setattr(worker_process, "RESTART_DELAY_S_MAX", 0.02)


def run(script: str, *arguments: str, body: Callable[[RecomputeProcess], object]) -> object:
    async def main() -> object:
        worker = RecomputeProcess([sys.executable, "-c", script, *arguments])
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(worker.run)
                result = await body(worker)  # type: ignore[misc]
                nursery.cancel_scope.cancel()
        return result

    return trio.run(main)


def submit_one(worker: RecomputeProcess) -> object:
    return worker.submit(JOB)


GAPS = (Gap(0, b"r" * 32, (1, 4)), Gap(3, b"s" * 32, ()))
JOBS: list[Job] = [
    JOB,
    AUDIT,
    replace(JOB, gaps=GAPS),
    replace(AUDIT, erased=(2, 7), contributions=("one", "two"), gaps=GAPS),
    EraseJob("index", (2, 7), ("one", "two"), GAPS),
    TakeJob("index", b"r" * 32, (2, 7), ("one", "two"), GAPS),
]


@pytest.mark.parametrize("job", JOBS)
def test_a_job_survives_its_frame(job: Job) -> None:
    assert parse_job(pack_frame(job.fields())[4:]) == job


@pytest.mark.parametrize("job", JOBS[2:])
def test_a_job_with_gaps_of_another_form_is_refused(job: Job) -> None:
    fields = job.fields()
    for wrong in ([["x", b"r", []]], [[1, b"r"]], [[1, b"r", ["x"]]], 5):
        with pytest.raises(WorkerProtocolError):
            parse_job(pack_frame([*fields[:-1], wrong])[4:])
    with pytest.raises(WorkerProtocolError):
        parse_job(pack_frame([*fields, []])[4:])


@pytest.mark.parametrize(
    "result",
    [
        IndexBuilt(b"r" * 32, 3),
        RowsErased(3),
        AuditDone(0, b"h" * 32, ((b"o" * 32, 10**9),)),
        JobRefused("why"),
        JobRefused("why", index_damaged=True),
        IndexRefused("why"),
        IndexRefused("why", index_damaged=True),
    ],
)
def test_a_result_survives_its_frame(result: JobResult) -> None:
    assert parse_result(pack_frame(result.fields())[4:]) == result


def test_what_is_no_job_and_no_result_is_refused() -> None:
    frame = pack_frame(["other", 1])[4:]
    with pytest.raises(WorkerProtocolError):
        parse_job(frame)
    with pytest.raises(WorkerProtocolError):
        parse_result(frame)


def test_jobs_are_answered_by_one_process_in_turn() -> None:
    async def three(worker: RecomputeProcess) -> set[object]:
        return {await worker.submit(JOB) for _ in range(3)}

    assert len(run(ANSWER, body=three)) == 1  # type: ignore[arg-type]


def test_audits_overtake_indices_that_wait() -> None:
    order: list[str] = []

    async def queue_up(worker: RecomputeProcess) -> None:
        async def submit(name: str, job: IndexJob | AuditJob) -> None:
            await worker.submit(job)
            order.append(name)

        async with trio.open_nursery() as nursery:
            for name, job in (("index 1", JOB), ("index 2", JOB), ("audit 1", AUDIT), ("audit 2", AUDIT)):
                nursery.start_soon(submit, name, job)
                await trio.testing.wait_all_tasks_blocked()

    async def main() -> None:
        worker = RecomputeProcess([sys.executable, "-c", ANSWER])
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(queue_up, worker)
                await trio.testing.wait_all_tasks_blocked(0.05)
                nursery.start_soon(worker.run)
                while len(order) < 4:
                    await trio.testing.wait_all_tasks_blocked(0.01)
                nursery.cancel_scope.cancel()

    trio.run(main)
    assert order == ["audit 1", "audit 2", "index 1", "index 2"]


@pytest.mark.parametrize(
    ("job", "built"),
    [
        (JOB, IndexBuilt(b"i" * 32, 7)),
        (replace(JOB, base="damaged"), IndexRefused("damaged")),
    ],
)
def test_an_audit_is_done_while_an_index_is_being_built(job: IndexJob, built: JobResult) -> None:
    """The index ends only after the audit was done: without pre-emption neither would."""
    ended: list[object] = []

    async def both(worker: RecomputeProcess) -> None:
        async def submit(job: IndexJob | AuditJob) -> None:
            ended.append(await worker.submit(job))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(submit, job)
            while worker._indices.in_hand is None:  # noqa: ASYNC110 - the process has to take it
                await trio.sleep(0.01)
            nursery.start_soon(submit, AUDIT)

    run(SLOW_INDEX, body=both)
    assert ended == [AuditDone(0, b"a" * 32, ()), built]


def test_an_audit_survives_an_index_that_kills_every_process_it_shares_with_it() -> None:
    async def both(worker: RecomputeProcess) -> list[object]:
        results: list[object] = []

        async def submit(job: IndexJob | AuditJob) -> None:
            results.append(await worker.submit(job))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(submit, JOB)
            while worker._indices.in_hand is None:  # noqa: ASYNC110 - the process has to take it
                await trio.sleep(0.01)
            nursery.start_soon(submit, AUDIT)
        return results

    results = run(CRASH_ON_INDEX, body=both)
    assert set(results) == {  # type: ignore[call-overload]
        AuditDone(0, b"a" * 32, ()),
        JobRefused("the worker died 3 times over this job"),
    }


def test_what_may_have_killed_a_process_is_done_alone() -> None:
    """The audit that shared a process with a job that kills it has to have a try without that."""
    worker = RecomputeProcess([])
    for lane, job in ((worker._indices, JOB), (worker._audits, AUDIT)):
        lane.waiting.append(worker_process._Ticket(job, trio.Event()))
    audit = worker._next()
    assert audit is worker._audits
    audit.in_hand = audit.waiting.popleft()
    assert worker._next() is None  # an index begins when no audit waits
    audit.answered(JobRefused("done"))
    index = worker._next()
    assert index is worker._indices
    index.in_hand = index.waiting.popleft()
    index.in_hand.tries = 1
    audit.waiting.append(worker_process._Ticket(AUDIT, trio.Event()))
    assert worker._next() is None
    index.in_hand.tries = 0
    assert worker._next() is audit


def test_a_crash_costs_one_try_and_the_job_is_done_by_the_next_process(tmp_path: Path) -> None:
    result = run(CRASH_ONCE, str(tmp_path / "mark"), body=submit_one)
    assert isinstance(result, IndexBuilt)


@pytest.mark.parametrize("script", [CRASH_ALWAYS, GARBAGE])
def test_a_job_that_kills_every_process_is_refused_in_the_end(script: str) -> None:
    result = run(script, body=submit_one)
    assert result == JobRefused("the worker died 3 times over this job")


def test_too_many_waiting_jobs_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "JOBS_WAITING_MAX", 1)

    async def main() -> None:
        worker = RecomputeProcess([sys.executable, "-c", ANSWER])  # never run: nothing takes jobs
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.submit, JOB)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(WorkerBusy):
                await worker.submit(JOB)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_cancelling_the_daemon_ends_the_process_at_once() -> None:
    stubborn = "import sys, time\nsys.stdout.buffer.write(b'')\nwhile True: sys.stdin.buffer.read(1); pass"
    seen: list[int] = []

    async def main() -> None:
        worker = RecomputeProcess([sys.executable, "-c", stubborn])
        original = trio.lowlevel.open_process

        async def remember(*arguments: Any, **options: Any) -> trio.Process:
            child: trio.Process = await original(*arguments, **options)
            seen.append(child.pid)
            return child

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trio.lowlevel, "open_process", remember)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(worker.run)
                nursery.start_soon(partial(worker.submit, JOB))
                while not seen:
                    await trio.testing.wait_all_tasks_blocked(0.01)
                nursery.cancel_scope.cancel()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_process, "STOP_GRACE_S", 0.1)
        trio.run(main)
    with pytest.raises(ProcessLookupError):
        os.kill(seen[0], 0)


def test_a_worker_outlives_the_thread_that_started_it_but_not_its_daemon(tmp_path: Path) -> None:
    """A worker once asked the kernel to be killed with its parent, and died with trio's idle thread instead."""
    script = tmp_path / "daemon.py"
    script.write_text(
        "import subprocess, sys, threading\n"
        "started = []\n"
        "def start():\n"
        "    started.append(subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdin=subprocess.PIPE))\n"
        "thread = threading.Thread(target=start); thread.start(); thread.join()\n"
        "print(started[0].pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    loop = (
        "import sys, threading, time\n"
        "from node.recompute.worker import serve\n"
        "class Idle:\n"
        "    def perform(self, job): raise AssertionError\n"
        "serve(sys.stdin.buffer, sys.stdout.buffer, Idle)\n"
    )

    async def main() -> None:
        daemon = await trio.lowlevel.open_process([sys.executable, str(script), loop], stdin=-1, stdout=-1)
        assert daemon.stdout is not None
        pid = int(await daemon.stdout.receive_some(64))
        with trio.fail_after(30):
            alive = True
            for _ in range(20):
                os.kill(pid, 0)
                await trio.sleep(0.05)
            daemon.kill()
            await daemon.wait()
            while alive:
                status = Path(f"/proc/{pid}/stat")
                alive = status.exists() and status.read_text().split()[2] != "Z"
                await trio.sleep(0.02)

    trio.run(main)


def test_a_machine_that_can_start_no_process_just_now_costs_neither_daemon_nor_job() -> None:
    failures = [OSError("no memory"), OSError("no memory")]
    original = trio.lowlevel.open_process

    async def scarce(*arguments: Any, **options: Any) -> trio.Process:
        if failures:
            raise failures.pop()
        child: trio.Process = await original(*arguments, **options)
        return child

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trio.lowlevel, "open_process", scarce)
        assert isinstance(run(ANSWER, body=submit_one), IndexBuilt)
    assert failures == []
