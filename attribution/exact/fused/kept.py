"""Where kernels' machine code is kept between processes: under the digest of its sources, its compiler and the processor.

Nothing here imports numba.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from functools import cache
from pathlib import Path

import blake3


def _version() -> str:
    try:
        return importlib.metadata.version("numba")
    except importlib.metadata.PackageNotFoundError:
        return ""


VERSION = _version()
"""Numba's; empty where it is not installed (a folder of that name on the path, which could be imported, is not numba)."""
INSTALLED = bool(VERSION)
ASKED = "OPENLEDGER_COMPILE_KERNELS"
"""Environment variable: 1 lets a process compile what is not kept yet."""

_HERE = Path(__file__).parent
_PREFIX = "kernels-"
_COMPLETE = "complete"
_OLD_KEPT_MAX = 2


def digest() -> str:
    """16 hex digits over every source in this folder, numba's version and settings, and the processor.

    So a changed kernel never meets old machine code, and code made for another processor is not looked at.
    """
    settings = sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith("NUMBA_"))
    facts = (VERSION, platform.machine(), _features(), *settings)
    hasher = blake3.blake3("\n".join(facts).encode())
    for path in sorted(_HERE.glob("*.py")):
        hasher.update(path.name.encode() + b"\0" + path.read_bytes())
    return hasher.hexdigest()[:16]


def _features() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def places() -> tuple[Path, ...]:
    """Beside the sources, else in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return _HERE / "__pycache__", Path(home) / "openledger"


@cache
def ready() -> bool:
    """Whether kernels may serve in this process: numba is there, and all are compiled and were found right, or it was asked to compile."""
    if not INSTALLED:
        return False
    return os.environ.get(ASKED) == "1" or any(
        (place / f"{_PREFIX}{digest()}" / _COMPLETE).is_file() for place in places()
    )


def folder_in(candidates: tuple[Path, ...]) -> Path | None:
    """The folder for machine code in the first of `candidates` that has it complete, else can be written; None if there is none.

    At most two folders of other sources stay beside a new one. Files are written whole and renamed by numba, so that processes may share
    the folder.
    """
    name = f"{_PREFIX}{digest()}"
    for place in candidates:
        if (place / name / _COMPLETE).is_file():
            return place / name
    for place in candidates:
        try:
            (place / name).mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(place / name, os.W_OK | os.X_OK):
            _forget_old(place, place / name)
            return place / name
    return None


def complete(folder: Path) -> None:
    """Note that every kernel in `folder` is compiled and right. Raises OSError."""
    (folder / _COMPLETE).write_text("")


def _forget_old(place: Path, current: Path) -> None:
    """Remove all but the newest folders of other sources; another process may be removing them, too."""
    others = [path for path in place.glob(f"{_PREFIX}*") if path != current and path.is_dir()]
    dated = sorted(((_changed(path), path) for path in others), reverse=True)
    for _, folder in dated[_OLD_KEPT_MAX:]:
        for path in sorted(folder.rglob("*"), reverse=True):
            _remove(path)
        _remove(folder)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _remove(path: Path) -> None:
    try:
        path.rmdir() if path.is_dir() else path.unlink()
    except OSError:
        # Somebody else's, or gone already: what stays costs a few megabytes and nothing else.
        return
