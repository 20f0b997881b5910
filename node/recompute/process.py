"""The daemon's side of the worker: one process, one job at a time, restarted when it dies."""

import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
import trio

from consensus.errors import CodecError
from node.recompute.jobs import (
    AuditJob,
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


def worker_command(device: str, backend: str, threads: int) -> list[str]:
    """Return the command line of the worker process."""
    return [
        sys.executable,
        "-m",
        "node.recompute.worker",
        f"--device={device}",
        f"--backend={backend}",
        f"--threads={threads}",
    ]


class RecomputeProcess:
    """Runs jobs in a child process; `run` belongs in the daemon's nursery, `submit` may be called by any task."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._audits: deque[_Ticket] = deque()
        self._indices: deque[_Ticket] = deque()
        self._waiting = trio.Semaphore(0)

    async def submit(self, job: Job) -> JobResult:
        """Return what the worker makes of `job`; raises WorkerBusy when too many wait already.

        Audits go first, in the order they came: they have a deadline, and a published adapter can take minutes.
        """
        if len(self._audits) + len(self._indices) >= JOBS_WAITING_MAX:
            raise WorkerBusy(f"{JOBS_WAITING_MAX} jobs are waiting")
        ticket = _Ticket(job, trio.Event())
        (self._audits if isinstance(job, AuditJob) else self._indices).append(ticket)
        self._waiting.release()
        await ticket.done.wait()
        if ticket.result is None:
            raise WorkerProtocolError("the worker stopped before the job was done")
        return ticket.result

    async def _next(self) -> _Ticket:
        await self._waiting.acquire()
        return (self._audits or self._indices).popleft()

    async def run(self) -> None:
        """Serve jobs until cancelled. A crash costs the job one of its tries, never the daemon."""
        delay_s = RESTART_DELAY_S_MIN
        pending: _Ticket | None = None
        while True:
            try:
                process = await trio.lowlevel.open_process(self._command, stdin=-1, stdout=-1)
            except OSError as error:  # no memory or no process to be had just now
                log.warning("worker_not_started", error=str(error), retry_in_s=delay_s)
                await trio.sleep(delay_s)
                delay_s = min(delay_s * 2, RESTART_DELAY_S_MAX)
                continue
            try:
                while True:
                    pending = pending or await self._next()
                    pending.finish(await _exchange(process, pending.job))
                    pending = None
                    delay_s = RESTART_DELAY_S_MIN
            except (
                trio.BrokenResourceError,
                trio.ClosedResourceError,
                WorkerProtocolError,
                CodecError,
            ) as error:
                log.warning("worker_died", error=str(error), restart_in_s=delay_s)
            finally:
                await _stop(process)
            if pending is not None and pending.failed_for_good():
                pending = None
            await trio.sleep(delay_s)
            delay_s = min(delay_s * 2, RESTART_DELAY_S_MAX)


async def _exchange(process: trio.Process, job: Job) -> JobResult:
    if process.stdin is None or process.stdout is None:
        raise WorkerProtocolError("the worker has no pipes")
    with trio.move_on_after(JOB_TIMEOUT_S):
        await process.stdin.send_all(pack_frame(job.fields()))
        head = await _receive_exactly(process.stdout, 4)
        return parse_result(await _receive_exactly(process.stdout, frame_length(head)))
    raise WorkerProtocolError(f"no answer within {JOB_TIMEOUT_S} s")


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
