"""What running daemons use: memory, descriptors, threads, and the disk by folder. Linux only, as the daemon's processes are seen there."""

import os
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.fleet import Seat

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """One daemon at one moment. Bytes are resident memory and file sizes; `cpu_s` counts from the process's start.

    `anonymous_bytes` is the part of the resident memory that no file backs: a leak is there, while LevelDB's tables, which it
    maps, come and go in the rest.

    `tables_bytes` are LevelDB's sorted tables, `wal_bytes` its write-ahead log, `database_other_bytes` its manifest and own
    messages; `worker_rss_bytes` is the child process that recomputes.
    """

    rss_bytes: int
    anonymous_bytes: int
    worker_rss_bytes: int
    descriptors: int
    threads: int
    cpu_s: float
    tables_bytes: int
    wal_bytes: int
    database_other_bytes: int
    guard_bytes: int
    blobs_bytes: int
    log_bytes: int


def usage(seat: Seat) -> Usage | None:
    """What a seat's daemon uses now, or None where it does not run."""
    if not seat.running or seat.child is None:
        return None
    process, home = Path(f"/proc/{seat.child.pid}"), seat.plan.home
    files = _sizes(home.data_path)
    tables = sum(size for path, size in files if path.suffix == ".ldb")
    wal = sum(size for path, size in files if path.suffix == ".log")
    try:
        after_name = (process / "stat").read_text().rpartition(")")[2].split()
        return Usage(
            rss_bytes=_memory_bytes(process, "VmRSS"),
            anonymous_bytes=_memory_bytes(process, "RssAnon"),
            worker_rss_bytes=sum(
                _memory_bytes(Path(f"/proc/{child}"), "VmRSS") for child in _children(process)
            ),
            descriptors=len(os.listdir(process / "fd")),
            threads=len(os.listdir(process / "task")),
            cpu_s=(int(after_name[11]) + int(after_name[12])) / TICKS_PER_S,
            tables_bytes=tables,
            wal_bytes=wal,
            database_other_bytes=sum(size for _, size in files) - tables - wal,
            guard_bytes=sum(size for path, size in _sizes(home.root, "safety.guard")),
            blobs_bytes=sum(size for _, size in (*_sizes(home.blobs_path), *_sizes(home.artefacts_path))),
            log_bytes=sum(size for _, size in _sizes(home.logs_path)),
        )
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        return None


def starved_s(seat: Seat) -> float:
    """For how long a seat's daemon, since its start, was ready to run but waited for a CPU (its main thread, which is where it decides)."""
    if seat.child is None:
        return 0.0
    try:
        return int(Path(f"/proc/{seat.child.pid}/schedstat").read_text().split()[1]) / 1e9
    except (FileNotFoundError, ProcessLookupError):
        return 0.0


def _memory_bytes(process: Path, name: str) -> int:
    """A line of the process's status, in bytes; 0 where it ended meanwhile."""
    try:
        rows = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(rows.get(name, "0 kB").split()[0]) * 1024


def _children(process: Path) -> list[int]:
    text = " ".join(path.read_text() for path in process.glob("task/*/children"))
    return [int(child) for child in text.split()]


def _sizes(folder: Path, pattern: str = "**/*") -> list[tuple[Path, int]]:
    """Files below a folder with their sizes; one that vanishes meanwhile is left out."""
    found = []
    for path in folder.glob(pattern):
        try:
            if path.is_file():
                found.append((path, path.stat().st_size))
        except FileNotFoundError:
            continue
    return found
