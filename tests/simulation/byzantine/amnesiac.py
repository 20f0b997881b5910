"""A validator whose safety record does not survive its crashes."""

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.simulation.node import Node

if TYPE_CHECKING:
    from tests.simulation.world import World

CRASHES = 5


class Amnesiac(Node):
    """Honest but for its disk: again and again it starts with no memory of what it signed."""

    honest = False

    def __init__(self, world: "World", slot: int, key_index: int | None) -> None:
        super().__init__(world, slot, key_index)
        for _ in range(CRASHES):
            at_ms = world.now + world.rng.randint(50, max(100, world.schedule.chaos_ms))
            world.at(at_ms, self._forget)

    def _forget(self) -> None:
        if self.replica is None:
            return
        world, image = self.world, self.disk.now
        self.crash(0)
        kept = image if world.rng.random() < 0.5 else replace(image, certificates=None, blocks={})
        self.disk.images = [replace(kept, record=None)]
        world.counts["records forgotten"] += 1
        world.after(world.rng.randint(1, 60), lambda: self.start() if self.replica is None else None)
