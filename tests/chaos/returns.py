"""Nodes that lose all they had and come back from a snapshot; they, or those who serve them, are killed meanwhile."""

import random
import shutil
import signal
from dataclasses import dataclass, field

import trio

from tests.chaos.fleet import Fleet, NotInTime, Seat
from tests.chaos.links import Links
from tests.chaos.members import SNAPSHOT_HEIGHTS

LAG_HEIGHTS = 2 * SNAPSHOT_HEIGHTS
"""A node that lost its disk does not execute more than so many blocks: it wants a snapshot."""

FOUND, INSTALLED = "snapshot_found", "snapshot_installed"
"""What a daemon logs when it begins to fetch a snapshot, and when it has started from it."""

SLOW_S = 0.15
"""What each piece waits on the links of a node that is to be killed while it fetches, so that there is a while to do so."""

WINDOW_S = 1.5
"""A kill comes so late after the fetch began at most: during it, during the checks, or during the installation."""

LOOK_S = 0.02
"""Between two looks at a log; nobody tells of a file's new lines."""

FIND_S_MAX = 60.0
GROW_S_MAX = 120.0


@dataclass(slots=True)
class Returns:
    """Strikes disks. `returned` counts nodes that came back from a snapshot, `cut_short` fetches that a kill of the node itself
    ended before the installation, `bereft` those whose source was killed meanwhile."""

    fleet: Fleet
    links: Links
    chance: random.Random
    returned: int = 0
    cut_short: int = 0
    bereft: int = 0
    _since: dict[str, int] = field(default_factory=dict)

    async def lose_disk(self, name: str) -> None:
        """Kill a node and remove all that it had but its keys and configuration; raises `NotInTime`."""
        seat = self.fleet.seats[name]
        goal = LAG_HEIGHTS + 2 * SNAPSHOT_HEIGHTS
        await self.fleet.until(f"height {goal}", lambda: self.fleet.height() >= goal, GROW_S_MAX)
        await self.fleet.kill(name)
        self._since[name] = seat.log.stat().st_size
        home = seat.plan.home
        for folder in (home.data_path, home.snapshots_path, home.blobs_path, home.artefacts_path):
            shutil.rmtree(folder, ignore_errors=True)

    def start(self, name: str) -> None:
        """Start such a node."""
        self.fleet.start(name, settings={"sync.lag_heights_max": str(LAG_HEIGHTS)})

    async def kill_receiving(self, name: str) -> None:
        """Let a node without a disk begin to fetch over slow links, and kill it; raises `NotInTime`."""
        await self._let_fetch(name)
        await trio.sleep(self.chance.random() * WINDOW_S)
        await self.fleet.kill(name)
        self.cut_short += INSTALLED not in self._said(name)

    async def kill_serving(self, name: str, source: str) -> None:
        """Let a node without a disk begin to fetch over slow links, and kill one that serves it; raises `NotInTime`."""
        await self._let_fetch(name)
        self.fleet.signal(source, signal.SIGKILL)
        self.bereft += INSTALLED not in self._said(name)
        await self.fleet.ended(source)

    def complaints(self, name: str) -> list[str]:
        """What is wrong with a node's return, once it follows the chain again."""
        if INSTALLED not in self._said(name):
            return [f"{name} lost its disk and follows, but not from a snapshot: {self._said(name)[-400:]}"]
        self.returned += 1
        return []

    async def _let_fetch(self, name: str) -> None:
        seat = self.fleet.seats[name]
        others = [other for other in self.fleet.seats if other != name]
        self.links.slow([pair for other in others for pair in ((name, other), (other, name))], SLOW_S)
        self.start(name)
        with trio.move_on_after(FIND_S_MAX):
            while FOUND not in self._said(name):
                if not seat.running:
                    raise NotInTime(f"{name} ended without a snapshot: {self._said(name)[-400:]}", FIND_S_MAX)
                await trio.sleep(LOOK_S)
            return
        raise NotInTime(f"{name} found a snapshot", FIND_S_MAX)

    def _said(self, name: str) -> str:
        return self.fleet.seats[name].said(self._since[name])


def has_returned(seat: Seat, since: int) -> bool:
    """Whether a node has started from a snapshot since its log had so many bytes."""
    return INSTALLED in seat.said(since)
