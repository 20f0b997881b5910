"""Leaders that do not lead."""

from typing import TYPE_CHECKING

from consensus.digest import digest
from consensus.effects import RequestPayload
from consensus.inputs import PayloadAvailable, PayloadOffered
from consensus.messages import Message, ProposalMessage
from tests.simulation.node import Node

if TYPE_CHECKING:
    from tests.simulation.world import World


class SilentLeader(Node):
    """Votes, but proposes to nobody, or to one alone."""

    honest = False

    def send(self, to: int | None, message: Message) -> None:
        if isinstance(message, ProposalMessage):
            rng = self.world.rng
            targets = self.world.targets(self.slot, None)
            if rng.random() < 0.3 and targets:
                self.world.transmit(self.slot, rng.choice(targets), message)
            return
        super().send(to, message)


class PayloadWithholder(Node):
    """Names batches that nobody but it has, and gives each to some only, or to nobody."""

    honest = False

    def __init__(self, world: "World", slot: int, key_index: int | None) -> None:
        super().__init__(world, slot, key_index)
        self.withheld: dict[bytes, frozenset[int]] = {}

    def offer(self, request: RequestPayload) -> None:
        world = self.world
        batch = digest("withheld-batch", self.key + request.round.to_bytes(8, "big") + request.parent_id)
        share = world.rng.choice((0.0, 0.3, 0.6, 1.0))
        self.withheld[batch] = frozenset(node.slot for node in world.nodes if world.rng.random() < share)
        self.disk.write_batch(batch)
        self.feed(PayloadAvailable(batch, world.clock(self.slot)))
        digests = () if request.empty_only else (batch,)
        self.later(1, PayloadOffered(request.round, digests, world.clock(self.slot) + 1))

    def gives(self, batch: bytes, asker: int) -> bool:
        favoured = self.withheld.get(batch)
        return favoured is None or asker in favoured
