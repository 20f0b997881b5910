"""A peer's process: found, started with bounds on time, memory and what it writes, and ended with all its children."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.lds.peers import PeerFailed, PeerUnavailable

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = "OPENLEDGER_PEERS_PYTHON"
"""Name of the variable that holds the interpreter of the environment in which the peers are installed."""
HOW = "not installed: run sh scripts/peers.sh (docs/peers.md)"
LOG_TAIL_BYTES = 2000
LOOK_S_MAX = 60


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a peer may use: seconds by the clock, private memory, and the size of any one file that it writes."""

    seconds_max: float = 1800.0
    memory_bytes_max: int = 8 << 30
    file_bytes_max: int = 4 << 30


def interpreter() -> Path | None:
    """Where the peers live: what the variable names, else `.venv/peers` beside the sources, else this interpreter."""
    named = os.environ.get(ENVIRONMENT)
    if named:
        return Path(named) if Path(named).is_file() else None
    local = ROOT / ".venv" / "peers" / "bin" / "python"
    return local if local.is_file() else Path(sys.executable)


def found(python: Path | None, package: str) -> str:
    """The installed version of `package`. Raises PeerUnavailable."""
    if python is None:
        raise PeerUnavailable(HOW)
    ask = (
        "import importlib.metadata as m, sys\n"
        "try:\n print(m.version(sys.argv[1]))\nexcept m.PackageNotFoundError:\n sys.exit(3)"
    )
    try:
        answer = subprocess.run(
            [str(python), "-c", ask, package], capture_output=True, text=True, timeout=LOOK_S_MAX, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerUnavailable(f"{HOW}; {python} cannot be run: {error}") from None
    if answer.returncode:
        raise PeerUnavailable(HOW)
    return answer.stdout.strip()[:40]


def run(command: Sequence[str], folder: Path, bounds: Bounds, extra: Mapping[str, str] | None = None) -> None:
    """Run `command` to its end, its output in `folder`/log. Raises PeerFailed: died, too slow, or past a bound."""
    log = folder / "log"
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hub"),
        "CUDA_VISIBLE_DEVICES": "",
        **(extra or {}),
    }
    started = time.monotonic()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: _limit(bounds),
        )
        try:
            status = process.wait(bounds.seconds_max)
        except subprocess.TimeoutExpired:
            raise PeerFailed(f"no answer within {bounds.seconds_max:.0f} s; {_tail(log)}") from None
        finally:
            _end(process)
    if status:
        why = (
            f"ended by signal {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        )
        raise PeerFailed(f"{why} after {time.monotonic() - started:.0f} s; {_tail(log)}")


def _limit(bounds: Bounds) -> None:
    """In the child, before the peer's program starts: a file past its size ends the process by SIGXFSZ."""
    resource.setrlimit(resource.RLIMIT_DATA, (bounds.memory_bytes_max, bounds.memory_bytes_max))
    resource.setrlimit(resource.RLIMIT_FSIZE, (bounds.file_bytes_max, bounds.file_bytes_max))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the whole session, children that outlived the peer included."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def _tail(log: Path) -> str:
    """The last lines that the peer wrote, on one line."""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
        lines = stream.read(LOG_TAIL_BYTES).decode("utf-8", "replace").split("\n")
    shown = " | ".join(line.strip() for line in lines[-4:] if line.strip())
    return f"last words: {shown[-400:]}" if shown else "it wrote nothing"
