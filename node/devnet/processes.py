"""The nodes as child processes: started, watched, and ended within a bound.

Each node runs in a process group of its own, so that Ctrl-C in a terminal reaches the supervisor alone and the nodes are
ended in order; and each dies with the supervisor (`node.devnet.launch`). They are started from the main thread: Linux
takes the end of the *thread* that started a process for its parent's death, and `trio.lowlevel.open_process` starts
processes in a thread that ends when it has been idle.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

LAUNCHER = Path(__file__).with_name("launch.py")
LOG_BYTES_MAX = 8 * 2**20
TAIL_BYTES = 4000
TAIL_LINES = 12
STOP_GRACE_S = 3.0


@dataclass(slots=True)
class Child:
    """A running process; ``ended`` is set, and ``popen.returncode`` known, once `Children.reap` saw its end."""

    name: str
    log: Path
    popen: subprocess.Popen[bytes]
    ended: trio.Event = field(default_factory=trio.Event)

    @property
    def pid(self) -> int:
        """The process id of the command itself: the launcher keeps it."""
        return self.popen.pid

    @property
    def code(self) -> int | None:
        """Exit code, the negative signal number, or None while it runs."""
        return self.popen.returncode


def child_environment(threads: int = 1) -> dict[str, str]:
    """Variables for a process of ours: few threads, since many share this machine, and our code whatever lies around.

    Neither a configuration meant for another node (``OPENLEDGER_...``) nor a module in the working directory that
    happens to have the name of one of ours gets in.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OPENLEDGER_")}
    paths = [str(Path(__file__).resolve().parents[2]), *kept.get("PYTHONPATH", "").split(os.pathsep)]
    return {
        **kept,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
    }


def spawn(name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Child:
    """Start a command that dies with this process, with its output appended to ``log``. Main thread only."""
    launcher = [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid())]
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        popen = subprocess.Popen(
            [*launcher, *command],
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            env=dict(environment),
            process_group=0,
        )
    finally:
        os.close(descriptor)
    return Child(name, log, popen)


def reap(children: Sequence[Child]) -> list[Child]:
    """Return the children that have ended since the last call, and set their events."""
    gone = [child for child in children if not child.ended.is_set() and child.popen.poll() is not None]
    for child in gone:
        child.ended.set()
    return gone


async def stop(children: Sequence[Child], grace_s: float = STOP_GRACE_S) -> None:
    """SIGTERM to all; SIGKILL to what is left after ``grace_s``; return when none is left, cancelled or not."""
    with trio.CancelScope(shield=True):
        reap(children)
        for child in children:
            _signal(child, signal.SIGTERM)
        with trio.move_on_after(grace_s):
            await _all_ended(children)
        for child in children:
            _signal(child, signal.SIGKILL)
        await _all_ended(children)


async def _all_ended(children: Sequence[Child]) -> None:
    with trio.open_signal_receiver(signal.SIGCHLD) as signals:
        reap(children)
        while not all(child.ended.is_set() for child in children):
            await signals.__anext__()
            reap(children)


def _signal(child: Child, number: signal.Signals) -> None:
    if not child.ended.is_set():
        with suppress(ProcessLookupError):
            # The group, so that a node's worker is not left over when the node itself no longer listens.
            os.killpg(child.pid, number) if number == signal.SIGKILL else child.popen.send_signal(number)


def bound_log(log: Path, bytes_max: int = LOG_BYTES_MAX) -> bool:
    """Keep a log within ``2 * bytes_max``: past it the text moves to ``LOG.1`` and the file starts empty.

    The writer holds it open for appending, so emptying it in place is all that it takes. A line written between copy
    and cut is lost. Returns whether it was cut.
    """
    try:
        if log.stat().st_size <= bytes_max:
            return False
        shutil.copyfile(log, log.with_name(log.name + ".1"))
        os.truncate(log, 0)
    except FileNotFoundError:
        return False
    return True


def last_lines(log: Path) -> str:
    """Return the end of a log, for an error message."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            text = file.read(TAIL_BYTES).decode("utf-8", "replace")
    except FileNotFoundError:
        return "(no log)"
    return "\n".join(text.splitlines()[-TAIL_LINES:]) or "(an empty log)"
