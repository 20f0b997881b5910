"""A child of `attribution.sharding.processes`: reads calls from standard input, answers on standard output.

It checks its arithmetic first, says ``ready``, and for every call ``done DIGEST`` or ``refused REASON``. An operating
system that is out of room or memory for a moment ends it instead, and the call is tried again by another.
"""

from __future__ import annotations

import argparse
import os
import queue
import resource
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from attribution.index import IndexFileError
from attribution.machine import prepare
from attribution.sharding.steps import CALL_BYTES_MAX, Call, perform

REASON_CHARACTERS_MAX = 500


def main(arguments: Sequence[str]) -> int:
    """Perform calls until standard input closes."""
    parser = argparse.ArgumentParser(prog="openledger-shard")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-bytes", type=int, required=True)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what torch prints must not reach the pipe
    calls: queue.Queue[bytes] = queue.Queue(1)
    # Before the check, which takes a while in which the parent may die, too.
    threading.Thread(target=_read_calls, args=(sys.stdin.buffer, calls), daemon=True).start()
    device = prepare(options.device, options.backend, options.threads)
    limit_memory(options.memory_bytes)
    answers.write(b"ready\n")
    while True:
        answers.write(answer(options.folder, calls.get().decode(), device).encode() + b"\n")


def answer(folder: Path, line: str, device: str) -> str:
    """What is said to one line."""
    from attribution.errors import ExactError

    try:
        return f"done {perform(folder, Call.decode(line.rstrip()), device)}"
    except (ExactError, IndexFileError, ValueError, MemoryError) as error:
        text = f"{type(error).__name__}: {error}"
    except RuntimeError as error:  # torch says this where memory ends
        if "memory" not in str(error):
            raise
        text = f"MemoryError: {error}"
    return f"refused {' '.join(text.split())[:REASON_CHARACTERS_MAX]}"


def limit_memory(more_bytes: int) -> None:
    """Let private memory grow by so much from now on; where the system does not say what it is, to so much."""
    held = 0
    status = Path("/proc/self/status")
    if status.is_file():
        for row in status.read_text().splitlines():
            if row.startswith("VmData:"):
                held = int(row.split()[1]) << 10
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    wanted = held + more_bytes
    resource.setrlimit(
        resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
    )


def _read_calls(stream: BinaryIO, calls: queue.Queue[bytes]) -> None:
    while line := stream.readline(CALL_BYTES_MAX):
        calls.put(line)
    os._exit(0)  # in the middle of a call, too: the parent has gone, or wants no more


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
