"""The daemon's side of the worker: one process, one job at a time, restarted when it dies."""

import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import structlog
import trio

from consensus.errors import CodecError
from node.recompute.jobs import (
    AuditDone,
    AuditJob,
    IndexRefused,
    Job,
    JobRefused,
    JobResult,
    WorkerProtocolError,
    frame_length,
    pack_frame,
    parse_result,
)

log = structlog.get_logger(__name__)

JOBS_WAITING_MAX = 256
JOB_TIMEOUT_S = 600.0
RESTART_DELAY_S_MIN = 0.5
RESTART_DELAY_S_MAX = 30.0
TRIES_MAX = 3
STOP_GRACE_S = 0.5


class WorkerBusy(Exception):
    """The queue of jobs is full; ask again when the next block has been executed."""


@dataclass(slots=True)
class _Ticket:
    job: Job
    done: trio.Event
    result: JobResult | None = None
    tries: int = 0

    def finish(self, result: JobResult) -> None:
        self.result = result
        self.done.set()

    def failed_for_good(self) -> bool:
        self.tries += 1
        if self.tries < TRIES_MAX:
            return False
        self.finish(JobRefused(f"the worker died {TRIES_MAX} times over this job"))
        return True


def worker_command(device: str, backend: str, threads: int, processes: int = 1) -> list[str]:
    """Return the command line of the worker process, which builds an index with so many processes."""
    return [
        sys.executable,
        "-m",
        "node.recompute.worker",
        f"--device={device}",
        f"--backend={backend}",
        f"--threads={threads}",
        f"--processes={processes}",
    ]


class _Lane:
    """Jobs of one kind: those that wait, oldest first, and the one that the process has in hand."""

    def __init__(self) -> None:
        self.waiting: deque[_Ticket] = deque()
        self.in_hand: _Ticket | None = None
        self.sent_s = 0.0

    def answered(self, result: JobResult) -> None:
        if self.in_hand is None:
            raise WorkerProtocolError("an answer to nothing that was asked")
        self.in_hand.finish(result)
        self.in_hand = None

    def take_back(self) -> None:
        """After a crash: the job in hand is tried again, first of all, unless it was tried too often."""
        if self.in_hand is not None and not self.in_hand.failed_for_good():
            self.waiting.appendleft(self.in_hand)
        self.in_hand = None

    @property
    def suspect(self) -> bool:
        """Whether the next job, or the one in hand, was in hand when a process died."""
        ticket = self.in_hand or (self.waiting[0] if self.waiting else None)
        return ticket is not None and ticket.tries > 0


class RecomputeProcess:
    """Runs jobs in a child process; `run` belongs in the daemon's nursery, `submit` may be called by any task.

    The process has at most one index and one audit in hand: it does the audit between two batches of the index's records.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._audits = _Lane()
        self._indices = _Lane()
        self._changed = trio.Event()
        self._patience = trio.CancelScope()
        self._delay_s = RESTART_DELAY_S_MIN

    async def submit(self, job: Job) -> JobResult:
        """Return what the worker makes of `job`; raises WorkerBusy when too many wait already.

        Audits go first, in the order they came: they have a deadline, and a published adapter can take minutes.
        """
        if len(self._audits.waiting) + len(self._indices.waiting) >= JOBS_WAITING_MAX:
            raise WorkerBusy(f"{JOBS_WAITING_MAX} jobs are waiting")
        ticket = _Ticket(job, trio.Event())
        (self._audits if isinstance(job, AuditJob) else self._indices).waiting.append(ticket)
        self._changed.set()
        await ticket.done.wait()
        if ticket.result is None:
            raise WorkerProtocolError("the worker stopped before the job was done")
        return ticket.result

    def _next(self) -> _Lane | None:
        """The lane whose next job the process may have now. What may have killed a process is done alone."""
        audits, indices = self._audits, self._indices
        if audits.in_hand is not None:
            return None
        if audits.waiting:
            alone = indices.in_hand is None
            return audits if alone or not (audits.suspect or indices.suspect) else None
        return indices if indices.waiting and indices.in_hand is None else None

    async def run(self) -> None:
        """Serve jobs until cancelled. A crash costs the job one of its tries, never the daemon."""
        while True:
            try:
                process = await trio.lowlevel.open_process(self._command, stdin=-1, stdout=-1)
            except OSError as error:  # no memory or no process to be had just now
                log.warning("worker_not_started", error=str(error), retry_in_s=self._delay_s)
                await trio.sleep(self._delay_s)
                self._delay_s = min(self._delay_s * 2, RESTART_DELAY_S_MAX)
                continue
            try:
                reason = await self._serve(process)
            finally:
                await _stop(process)
            log.warning("worker_died", error=reason, restart_in_s=self._delay_s)
            self._audits.take_back()
            self._indices.take_back()
            await trio.sleep(self._delay_s)
            self._delay_s = min(self._delay_s * 2, RESTART_DELAY_S_MAX)
            while self._next() is None:
                await self._change()

    async def _serve(self, process: trio.Process) -> str:
        """Send jobs and take answers until the process fails; returns what was wrong with it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._feed, process)
            reason = await self._take_answers(process)
            nursery.cancel_scope.cancel()
        return reason

    async def _feed(self, process: trio.Process) -> None:
        if process.stdin is None:
            return
        while True:
            while (lane := self._next()) is not None:
                lane.in_hand, lane.sent_s = lane.waiting.popleft(), trio.current_time()
                self._patience.deadline = self._deadline_s()
                try:
                    await process.stdin.send_all(pack_frame(lane.in_hand.job.fields()))
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return  # whoever reads notices as well, and says so
            await self._change()

    async def _take_answers(self, process: trio.Process) -> str:
        if process.stdout is None:
            return "the worker has no pipes"
        try:
            while True:
                with trio.CancelScope(deadline=self._deadline_s()) as self._patience:
                    head = await _receive_exactly(process.stdout, 4)
                    result = parse_result(await _receive_exactly(process.stdout, frame_length(head)))
                if self._patience.cancelled_caught:
                    return f"no answer within {JOB_TIMEOUT_S} s"
                self._lane_of(result).answered(result)
                self._delay_s = RESTART_DELAY_S_MIN
                self._changed.set()
        except (trio.BrokenResourceError, trio.ClosedResourceError, WorkerProtocolError, CodecError) as error:
            return str(error) or type(error).__name__

    def _lane_of(self, result: JobResult) -> _Lane:
        about_audit = isinstance(result, AuditDone) or (
            isinstance(result, JobRefused) and not isinstance(result, IndexRefused)
        )
        return self._audits if about_audit else self._indices

    def _deadline_s(self) -> float:
        """When patience ends with the job that has been in hand longest (trio's clock)."""
        sent_s = [lane.sent_s for lane in (self._audits, self._indices) if lane.in_hand is not None]
        return min(sent_s, default=inf) + JOB_TIMEOUT_S

    async def _change(self) -> None:
        """Return after a job came or was answered."""
        if self._changed.is_set():
            self._changed = trio.Event()
        else:
            await self._changed.wait()
            self._changed = trio.Event()
        await trio.lowlevel.checkpoint()


async def _receive_exactly(stream: trio.abc.ReceiveStream, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        part = await stream.receive_some(length - len(parts))
        if not part:
            raise WorkerProtocolError("the worker closed its pipe")
        parts += part
    return bytes(parts)


async def _stop(process: trio.Process) -> None:
    """Close the worker's input, which ends it; kill it when it does not listen."""
    with trio.CancelScope(shield=True):
        if process.stdin is not None:
            await process.stdin.aclose()
        with trio.move_on_after(STOP_GRACE_S):
            await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()
        if process.stdout is not None:
            await process.stdout.aclose()
