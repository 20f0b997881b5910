"""Small tasks beside the daemon's own: a bounded number of them, in one nursery, each asked for and forgotten."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog
import trio

log = structlog.get_logger(__name__)

TASKS_MAX = 1024


class SmallTasks:
    """Starts tasks for whoever has something to wait for while the rest goes on. A task that raises ends the daemon."""

    def __init__(self) -> None:
        self._nursery: trio.Nursery | None = None
        self._running = 0

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Where `start` puts tasks. A daemon that ends has none: others' last steps may still ask for one."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                yield
            finally:
                self._nursery = None

    def start(self, task: Callable[..., Any], *args: object) -> bool:
        """Run a bounded number of small tasks beside the others; False past the bound: it has to be asked for again."""
        if self._nursery is None or self._running >= TASKS_MAX:
            log.warning("task_dropped", task=getattr(task, "__qualname__", str(task)))
            return False
        self._running += 1
        self._nursery.start_soon(self._run, task, args)
        return True

    async def _run(self, task: Callable[..., Any], args: tuple[object, ...]) -> None:
        try:
            await task(*args)
        finally:
            self._running -= 1
