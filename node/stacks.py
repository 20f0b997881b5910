"""Where every task of a running daemon stands: written to ``HOME/stacks.txt`` when its own user sends SIGUSR1."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from pathlib import Path

import structlog
import trio

from node.home import Home, write_atomic

log = structlog.get_logger(__name__)

STACKS_SIGNAL = signal.SIGUSR1
STACKS_BYTES_MAX = 4 << 20
FRAMES_MAX = 40


def stacks_path(home: Home) -> Path:
    """Where the daemon writes them."""
    return home.root / "stacks.txt"


async def write_stacks_on_signal(home: Home) -> None:
    """Write all stacks at each signal, for ever; a full disk costs the file alone."""
    with trio.open_signal_receiver(STACKS_SIGNAL) as signals:
        async for _ in signals:
            try:
                write_atomic(stacks_path(home), render_stacks().encode("utf-8", "replace")[:STACKS_BYTES_MAX])
            except OSError as error:
                log.error("stacks_not_written", error=str(error))


def render_stacks() -> str:
    """Every trio task below the one that runs now's root, and every thread; call it inside trio."""
    lines: list[str] = []
    root = trio.lowlevel.current_root_task()
    if root is not None:
        _render_task(root, 0, lines)
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        lines.append(f"thread {names.get(ident, ident)}")
        lines += [line.rstrip() for line in traceback.format_stack(frame)[-FRAMES_MAX:]]
    return "\n".join(lines) + "\n"


def _render_task(task: trio.lowlevel.Task, depth: int, lines: list[str]) -> None:
    indent = "  " * depth
    lines.append(f"{indent}task {task.name}")
    for number, (frame, line) in enumerate(task.iter_await_frames()):
        if number >= FRAMES_MAX:
            break
        lines.append(f"{indent}  {frame.f_code.co_filename}:{line} {frame.f_code.co_name}")
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            _render_task(child, depth + 1, lines)
