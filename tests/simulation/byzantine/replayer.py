"""Says again, in its own name, what others said long ago."""

from typing import TYPE_CHECKING

from consensus.messages import Message
from tests.simulation.node import Node

if TYPE_CHECKING:
    from tests.simulation.world import World

TAPE_MAX = 300
BURST = 12


class Replayer(Node):
    """Records what it hears and plays bursts of it, old and new, to one node or to all."""

    honest = False

    def __init__(self, world: "World", slot: int, key_index: int | None) -> None:
        super().__init__(world, slot, key_index)
        self.tape: list[Message] = []

    def receive(self, sender: int, message: Message) -> None:
        rng = self.world.rng
        if len(self.tape) < TAPE_MAX:
            self.tape.append(message)
        else:
            self.tape[int(rng.random() * TAPE_MAX)] = message
        if rng.random() < 0.05 and not self.world.healed:
            targets = self.world.targets(self.slot, None)
            chosen = targets if rng.random() < 0.3 else [rng.choice(targets)]
            for old in rng.sample(self.tape, min(BURST, len(self.tape))):
                for slot in chosen:
                    self.world.transmit(self.slot, slot, old)
        super().receive(sender, message)
