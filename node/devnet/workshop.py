"""The trainer's and the provider's machine of the story: one child process that has torch, asked over a pipe.

Training keeps a core busy for half a minute; in a process of its own it neither stalls the supervisor nor outlives
Ctrl-C. Requests and answers are JSON lines. While a job runs, any number of ``{"progress": TEXT}`` lines come first, then one
``{"result": ...}`` or ``{"error": TEXT}``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from node.devnet.errors import DevnetError
from node.devnet.processes import LAUNCHER, child_environment, last_lines

LINE_BYTES_MAX = 64 * 2**20
JOB_SECONDS_MAX = 3600.0
_READ_BYTES = 64 * 1024


class WorkshopFailed(DevnetError):
    """The process that trains and generates refused a job or ended."""

    def __init__(self, job: str, reason: str) -> None:
        self.job = job
        self.reason = reason
        super().__init__(f"{job}: {reason}")


class Workshop:
    """One job at a time; `ask` raises `WorkshopFailed` where the job could not be done."""

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        requests: trio.lowlevel.FdStream,
        answers: trio.lowlevel.FdStream,
        log: Path,
    ) -> None:
        self._popen = popen
        self._requests = requests
        self._answers = answers
        self._log = log
        self._received = bytearray()
        self._busy = trio.Lock()

    async def ask(
        self, job: str, progress: Callable[[str], None] | None = None, **fields: object
    ) -> dict[str, Any]:
        """Have a job done and return its result; lines of progress go to ``progress`` as they come."""
        async with self._busy:
            with trio.move_on_after(JOB_SECONDS_MAX):
                try:
                    await self._requests.send_all(json.dumps({"job": job, **fields}).encode() + b"\n")
                    while True:
                        match await self._line(job):
                            case {"progress": str(text)}:
                                if progress is not None:
                                    progress(text)
                            case {"result": dict(result)}:
                                return result
                            case {"error": str(text)}:
                                raise WorkshopFailed(job, text)
                            case other:
                                raise WorkshopFailed(job, f"an answer of another shape: {str(other)[:200]}")
                except trio.BrokenResourceError as error:
                    raise self._ended(job) from error
        raise WorkshopFailed(job, f"not done within {JOB_SECONDS_MAX:.0f} s")

    async def _line(self, job: str) -> Mapping[str, object]:
        while (end := self._received.find(b"\n")) < 0:
            part = await self._answers.receive_some(_READ_BYTES)
            if not part:
                raise self._ended(job)
            self._received += part
            if len(self._received) > LINE_BYTES_MAX:
                raise WorkshopFailed(job, f"an answer over {LINE_BYTES_MAX} bytes")
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        value = json.loads(line)
        if not isinstance(value, dict):
            raise WorkshopFailed(job, "an answer that is no object")
        return value

    def _ended(self, job: str) -> WorkshopFailed:
        return WorkshopFailed(job, f"the process ended; the end of {self._log}:\n{last_lines(self._log)}")


@asynccontextmanager
async def open_workshop(log: Path, threads: int) -> AsyncIterator[Workshop]:
    """Start the process, and end it with the context. To be called in the main thread (see `node.devnet.processes`)."""
    popen = _start(log, threads)
    if popen.stdin is None or popen.stdout is None:
        raise WorkshopFailed("start", "no pipes")
    requests = trio.lowlevel.FdStream(os.dup(popen.stdin.fileno()))
    answers = trio.lowlevel.FdStream(os.dup(popen.stdout.fileno()))
    popen.stdin.close()
    popen.stdout.close()
    try:
        async with requests, answers:
            yield Workshop(popen, requests, answers, log)
    finally:
        popen.kill()
        # Killed: the wait is for the kernel alone.
        popen.wait()


def _start(log: Path, threads: int) -> subprocess.Popen[bytes]:
    launcher = [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid())]
    command = [sys.executable, "-m", "node.devnet.workshop_process", f"--threads={threads}"]
    with log.open("ab") as errors:
        return subprocess.Popen(
            [*launcher, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=child_environment(threads),
            process_group=0,
        )
