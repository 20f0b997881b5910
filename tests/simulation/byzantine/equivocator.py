"""The Twins method: one key, two replicas."""

from consensus.messages import Message
from tests.simulation.node import Node


class Equivocator(Node):
    """One of two replicas under the same key, each talking to its own share of the others.

    Between them they propose, vote, commit-vote and time out twice in a round, each consistent in itself.
    """

    honest = False

    def hears(self, slot: int) -> bool:
        """Whether messages from `slot` reach this half, and its messages that slot."""
        other_half = self.slot >= self.world.twin_base
        return (slot in self.world.left_half) != other_half or self.world.rng.random() < 0.1

    def send(self, to: int | None, message: Message) -> None:
        for slot in self.world.targets(self.slot, to):
            if self.hears(slot):
                self.world.transmit(self.slot, slot, message)

    def receive(self, sender: int, message: Message) -> None:
        if self.hears(sender):
            super().receive(sender, message)
