"""Calls performed as Ray tasks, on this machine or a cluster whose machines see the same folder: ``openledger[ray]``.

Ray moves one line there and one digest back; everything else is in files, checked by their digests where they are read.
Every process that performs calls checks its arithmetic first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from attribution.errors import ExactError
from attribution.sharding.errors import ShardFailed, ShardRefused
from attribution.sharding.processes import PATIENCE_S, TRIES_MAX
from attribution.sharding.steps import Call

TASKS_MAX = 1 << 10
_TICK_S = 0.1


class RayMissing(ExactError):
    """The optional package is not installed."""


@dataclass(frozen=True, slots=True)
class RayCluster:
    """Tasks on the Ray that this process is connected to (``ray.init``), at most ``tasks`` at once, of one CPU each.

    ``memory_bytes`` is what Ray is told that a task takes. A task that is not back after ``patience_s``, waiting for a
    place included, is cancelled, and its call is tried again, ``tries_max`` times in all.
    """

    tasks: int = 2
    memory_bytes: int = 1 << 30
    patience_s: float = PATIENCE_S
    tries_max: int = TRIES_MAX

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for a number out of bounds."""
        if (
            not 1 <= self.tasks <= TASKS_MAX
            or self.memory_bytes < 1
            or self.patience_s <= 0
            or self.tries_max < 1
        ):
            raise ValueError(f"1 to {TASKS_MAX} tasks; memory, patience and tries are positive")

    @contextmanager
    def started(self, folder: Path) -> Iterator[_RayRunner]:
        """Raises `RayMissing`."""
        try:
            ray = import_module("ray")
        except ImportError as error:
            raise RayMissing("Ray is not installed: pip install 'openledger[ray]'") from error
        runner = _RayRunner(self, folder.resolve(), ray)
        try:
            yield runner
        finally:
            runner.stop()


def perform_line(folder: str, line: str) -> str:
    """What a task does: the same line in, the same line out as `attribution.sharding.child`."""
    from attribution.sharding.child import answer

    return answer(Path(folder), line, _ready())


@lru_cache(maxsize=1)
def _ready() -> str:
    from attribution.machine import prepare

    return prepare("cpu")


class _RayRunner:
    def __init__(self, engine: RayCluster, folder: Path, ray: Any) -> None:
        self._engine = engine
        self._folder = str(folder)
        self._ray = ray
        # A task that died is tried again here, where tries are counted.
        self._task = ray.remote(perform_line).options(num_cpus=1, memory=engine.memory_bytes, max_retries=0)
        self._in_hand = dict[Any, tuple[int, float]]()
        self.restarts = 0

    def run(self, calls: Sequence[Call], between: Callable[[], None]) -> list[str]:
        """As `attribution.sharding.build.Runner` says."""
        waiting, tries = list(range(len(calls))), [0] * len(calls)
        results = dict[int, str]()

        def failed(call: int, reason: str) -> None:
            tries[call] += 1
            self.restarts += 1
            if tries[call] >= self._engine.tries_max:
                raise ShardFailed(calls[call].name, reason, tries[call])
            waiting.insert(0, call)

        while len(results) < len(calls):
            while waiting and len(self._in_hand) < self._engine.tasks:
                call = waiting.pop(0)
                task = self._task.remote(self._folder, calls[call].encode())
                self._in_hand[task] = (call, time.monotonic())
            ready, _ = self._ray.wait(list(self._in_hand), timeout=_TICK_S)
            for task in ready:
                call, _ = self._in_hand.pop(task)
                try:
                    kind, _, rest = str(self._ray.get(task)).partition(" ")
                except self._ray.exceptions.RayError as error:
                    failed(call, str(error).splitlines()[0][:500])
                    continue
                if kind != "done":
                    raise ShardRefused(calls[call].name, rest)
                results[call] = rest
            for task, (call, since_s) in list(self._in_hand.items()):
                if time.monotonic() - since_s > self._engine.patience_s:
                    self._ray.cancel(task, force=True)
                    del self._in_hand[task]
                    failed(call, f"no answer within {self._engine.patience_s} s")
            between()
        return [results[k] for k in range(len(calls))]

    def stop(self) -> None:
        """Cancel what is still in hand."""
        for task in self._in_hand:
            self._ray.cancel(task, force=True)
        self._in_hand.clear()
