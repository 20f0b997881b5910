"""Calls performed by child processes: a bounded number of them, each with bounded memory, time and tries.

Children are started anew (not forked), work one call after the other, and end with this process. Over the pipes go
one line a call and one line an answer; whatever else comes ends the child.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from attribution.sharding.errors import ShardFailed, ShardRefused
from attribution.sharding.steps import CALL_BYTES_MAX, Call

WORKERS_MAX = 64
TRIES_MAX = 3
PATIENCE_S = 600.0
ANSWER_BYTES_MAX = 1 << 12
_TICK_S = 0.05
_GRACE_S = 2.0


@dataclass(frozen=True, slots=True)
class Processes:
    """At most ``workers`` child processes on this machine; ``device``, ``backend`` and ``threads`` as in `machine.prepare`.

    A child whose private memory would grow by more than ``memory_bytes_max`` after its start refuses its call. One that
    is silent for ``patience_s`` (its start included) is killed, and its call is tried again, ``tries_max`` times in all.
    """

    workers: int = 2
    device: str = "cpu"
    backend: str = "auto"
    threads: int = 1
    memory_bytes_max: int = 4 << 30
    patience_s: float = PATIENCE_S
    tries_max: int = TRIES_MAX

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for a number out of bounds."""
        if not 1 <= self.workers <= WORKERS_MAX or self.threads < 1:
            raise ValueError(
                f"{self.workers} workers; 1 to {WORKERS_MAX} are possible, each with a thread or more"
            )
        if self.memory_bytes_max < 1 or self.patience_s <= 0 or self.tries_max < 1:
            raise ValueError("memory, patience and tries are positive")

    @contextmanager
    def started(self, folder: Path) -> Iterator[ProcessRunner]:
        """Children start with the first calls and are gone when the block ends."""
        runner = ProcessRunner(self, folder)
        try:
            yield runner
        finally:
            runner.stop()

    def command(self, folder: Path) -> list[str]:
        """Command line of a child."""
        return [
            *(sys.executable, "-m", "attribution.sharding.child", str(folder)),
            *(f"--device={self.device}", f"--backend={self.backend}"),
            *(f"--threads={self.threads}", f"--memory-bytes={self.memory_bytes_max}"),
        ]


@dataclass(slots=True, eq=False)
class _Child:
    process: subprocess.Popen[bytes]
    since_s: float
    ready: bool = False
    call: int | None = None
    received: bytearray = field(default_factory=bytearray)

    def lines(self) -> list[str] | None:
        """Lines that have come; None when the child's pipe is closed or carries what is no line."""
        if self.process.stdout is None:
            return None
        data = os.read(self.process.stdout.fileno(), ANSWER_BYTES_MAX)
        self.received += data
        *lines, rest = bytes(self.received).split(b"\n")
        self.received = bytearray(rest)
        if not data or len(rest) > ANSWER_BYTES_MAX:
            return None
        return [line.decode(errors="replace") for line in lines]

    def send(self, line: str) -> bool:
        """Whether the line went out; one is less than a pipe holds, so this does not wait."""
        data = line.encode() + b"\n"
        if self.process.stdin is None or len(data) > CALL_BYTES_MAX:
            return False
        try:
            self.process.stdin.write(data)
            self.process.stdin.flush()
        except OSError:
            return False
        return True

    def end(self, grace_s: float) -> None:
        """Close its input, on which it ends; kill it where it does not."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(grace_s)
        self.process.kill()
        self.process.wait()


class ProcessRunner:
    """Calls in hand, and children; ``restarts`` counts children that were lost."""

    def __init__(self, engine: Processes, folder: Path) -> None:
        self._engine = engine
        self._folder = folder
        self._selector = selectors.DefaultSelector()
        self._children = list[_Child]()
        self.restarts = 0

    @property
    def pids(self) -> list[int]:
        """Process ids of the children that have a call in hand."""
        return [child.process.pid for child in self._children if child.call is not None]

    def run(self, calls: Sequence[Call], between: Callable[[], None]) -> list[str]:
        """As `attribution.sharding.build.Runner` says."""
        work = _Work(calls, self._engine.tries_max)
        while not work.done:
            while len(self._children) < min(self._engine.workers, work.left):
                self._start()
            for child in [c for c in self._children if c.ready and c.call is None]:
                self._hand_out(child, work)
            ready = {key.data for key, _ in self._selector.select(_TICK_S)}
            for child in list(self._children):
                if child in ready:
                    self._hear(child, work)
                elif time.monotonic() - child.since_s > self._engine.patience_s and (
                    child.call is not None or not child.ready
                ):
                    self._lose(child, work, f"no answer within {self._engine.patience_s} s")
            between()
        return work.results()

    def stop(self) -> None:
        """End all children."""
        for child in self._children:
            if child.process.stdin is not None:
                with suppress(OSError):
                    child.process.stdin.close()
        for child in self._children:
            child.end(_GRACE_S)
        self._children.clear()
        self._selector.close()

    def _start(self) -> None:
        process = subprocess.Popen(
            self._engine.command(self._folder), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        child = _Child(process, time.monotonic())
        self._children.append(child)
        if process.stdout is not None:
            self._selector.register(process.stdout, selectors.EVENT_READ, child)

    def _hand_out(self, child: _Child, work: _Work) -> None:
        if (call := work.next()) is None:
            return
        child.call, child.since_s = call, time.monotonic()
        if not child.send(work.calls[call].encode()):
            self._lose(child, work, "its pipe is closed")

    def _hear(self, child: _Child, work: _Work) -> None:
        lines = child.lines()
        if lines is None:
            self._lose(child, work, "it died")
            return
        for line in lines:
            kind, _, rest = line.partition(" ")
            if kind == "ready" and not child.ready:
                child.ready = True
            elif kind == "refused" and child.call is not None:
                raise ShardRefused(work.calls[child.call].name, rest)
            elif kind == "done" and child.call is not None:
                work.finish(child.call, rest)
                child.call = None
            else:
                self._lose(child, work, f"it said {line[:80]!r}")
                return

    def _lose(self, child: _Child, work: _Work, reason: str) -> None:
        """A child is given up; raises `ShardFailed` where its call, or starting any child, was tried often enough."""
        if child.process.stdout is not None:
            self._selector.unregister(child.process.stdout)
        self._children.remove(child)
        child.process.kill()
        child.end(0.0)
        self.restarts += 1
        work.failed(child.call, f"{reason} (exit status {child.process.returncode})")


class _Work:
    """Calls that wait, that failed and that are done."""

    def __init__(self, calls: Sequence[Call], tries_max: int) -> None:
        self.calls = calls
        self._waiting = deque(range(len(calls)))
        self._tries: dict[int | None, int] = {}
        self._tries_max = tries_max
        self._results: dict[int, str] = {}

    @property
    def left(self) -> int:
        return len(self.calls) - len(self._results)

    @property
    def done(self) -> bool:
        return not self.left

    def next(self) -> int | None:
        return self._waiting.popleft() if self._waiting else None

    def finish(self, call: int, result: str) -> None:
        self._results[call] = result

    def failed(self, call: int | None, reason: str) -> None:
        tries = self._tries[call] = self._tries.get(call, 0) + 1
        if tries >= self._tries_max:
            raise ShardFailed("starting a child" if call is None else self.calls[call].name, reason, tries)
        if call is not None:
            self._waiting.appendleft(call)

    def results(self) -> list[str]:
        return [self._results[k] for k in range(len(self.calls))]
