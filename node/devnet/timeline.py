"""The story's steps as they happen: one line each on the terminal, and the seconds they took for the time budget.

The clock here only informs people; nothing that is hashed, signed, voted or paid depends on it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

TITLE_WIDTH = 11
SECONDS_WIDTH = 8
WIDTH_MAX = 112


@dataclass(frozen=True, slots=True)
class StepTime:
    """How long one step took on the wall."""

    step: str
    seconds: float


class Step:
    """A step in progress: `progress` shows where it stands, `done` says in one line what came of it."""

    __slots__ = ("_status", "outcome", "title")

    def __init__(self, title: str, status: Status | None) -> None:
        self.title = title
        self.outcome = ""
        self._status = status

    def progress(self, text: str) -> None:
        """Show a passing line where a terminal can show one."""
        if self._status is not None:
            self._status.update(f"[bold]{self.title:{TITLE_WIDTH}}[/] [dim]{escape(text)}[/]")

    def done(self, text: str) -> None:
        """Set the line that stays."""
        self.outcome = text


class Timeline:
    """Steps in order. With ``console`` None nothing is printed (``--json``)."""

    def __init__(self, console: Console | None) -> None:
        self.console = console
        self.times: list[StepTime] = []
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall time since the beginning."""
        return time.monotonic() - self._start

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Time a step and print its line at its end: a tick, or a cross where it raised."""
        before = time.monotonic()
        status = self._status(title)
        current = Step(title, status)
        failed = True
        try:
            if status is not None:
                status.start()
            yield current
            failed = False
        finally:
            if status is not None:
                status.stop()
            seconds = time.monotonic() - before
            self.times.append(StepTime(title, seconds))
            if self.console is not None:
                self.console.print(_line(self.console, title, current.outcome, seconds, failed))

    def _status(self, title: str) -> Status | None:
        if self.console is None or not self.console.is_terminal:
            return None
        return self.console.status(f"[bold]{title:{TITLE_WIDTH}}[/]", spinner="dots")


def _line(console: Console, title: str, outcome: str, seconds: float, failed: bool) -> Table:
    table = Table.grid(padding=(0, 1), expand=False)
    width = min(console.width, WIDTH_MAX)
    table.add_column(width=1)
    table.add_column(width=TITLE_WIDTH)
    table.add_column(width=max(20, width - TITLE_WIDTH - SECONDS_WIDTH - 5))
    table.add_column(width=SECONDS_WIDTH, justify="right")
    mark = "[red]✗[/]" if failed else "[green]✓[/]"
    table.add_row(mark, f"[bold]{title}[/]", escape(outcome), f"[dim]{seconds:.1f} s[/]")
    return table
