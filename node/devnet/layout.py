"""The directory of a development network, and the rule for taking one over.

::

    HOME/devnet.lock            marks the directory as ours; held (flock) by the supervisor while it lives
    HOME/devnet.json            processes and accounts, once all nodes are up
    HOME/report.json            what the story came to
    HOME/accounts/NAME.key      the story's accounts, plain, 0600
    HOME/nodes/NAME/            a home for each node (`node.home`), its output in logs/node.log
    HOME/work/                  the trainer's files

A directory that already holds anything is used only if it carries the mark and nothing runs in it; then exactly the
entries above are replaced, and whatever else lies there is left alone.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from node.devnet.errors import DevnetHomeBusy, DevnetHomeForeign
from node.errors import HomeLocked
from node.home import Home, lock_home

_LOCK_TEXT_BYTES_MAX = 32


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths under a devnet's directory; naming them creates nothing."""

    root: Path

    @property
    def lock(self) -> Path:
        """The mark and lock; its text is the supervisor's process id."""
        return self.root / "devnet.lock"

    @property
    def devnet_json(self) -> Path:
        """Processes and accounts."""
        return self.root / "devnet.json"

    @property
    def report_json(self) -> Path:
        """The story's outcome."""
        return self.root / "report.json"

    @property
    def accounts(self) -> Path:
        """Key files of the story's accounts."""
        return self.root / "accounts"

    @property
    def nodes(self) -> Path:
        """Homes of the nodes."""
        return self.root / "nodes"

    @property
    def work(self) -> Path:
        """The trainer's files."""
        return self.root / "work"


@contextmanager
def claim_home(root: Path) -> Iterator[Layout]:
    """Take ``root`` for a new devnet: create or empty it, and hold its lock until the end of the context.

    Raises `DevnetHomeForeign` where it holds anything without our mark, `DevnetHomeBusy` where a supervisor or a
    node of an earlier devnet still runs. Neither changes anything.
    """
    layout = Layout(root.absolute())
    _refuse_foreign(layout)
    layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(descriptor, _LOCK_TEXT_BYTES_MAX, 0).strip()
            raise DevnetHomeBusy(layout.root, int(text) if text.isdigit() else None) from None
        _refuse_running_nodes(layout)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        _remove_previous(layout)
        for folder in (layout.accounts, layout.nodes, layout.work):
            folder.mkdir(mode=0o700)
        yield layout
    finally:
        os.close(descriptor)


def _refuse_foreign(layout: Layout) -> None:
    if layout.root.is_dir():
        found = sorted(entry.name for entry in layout.root.iterdir())
        if found and layout.lock.name not in found:
            raise DevnetHomeForeign(layout.root, found[0])
    elif layout.root.exists() or layout.root.is_symlink():
        raise DevnetHomeForeign(layout.root, "not a directory")


def _refuse_running_nodes(layout: Layout) -> None:
    """A node restarted by hand outlives its supervisor: only its own lock tells."""
    for lock in sorted(layout.nodes.glob("*/node.lock")):
        try:
            with lock_home(Home(lock.parent)):
                pass
        except HomeLocked as error:
            raise DevnetHomeBusy(layout.root, error.pid) from None


def _remove_previous(layout: Layout) -> None:
    for path in (layout.devnet_json, layout.report_json):
        path.unlink(missing_ok=True)
    for folder in (layout.nodes, layout.accounts, layout.work):
        if folder.is_symlink():
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(folder)
