"""Effects of one step, gathered in any order and handed out in the contract's order."""

from consensus.effects import Deliver, Effect, Persist, Send
from consensus.messages import Message
from consensus.types import Block, CommitProof


class Outbox:
    """Collects the effects of one step."""

    __slots__ = ("committed", "delivers", "forgotten", "others", "proof", "sends")

    def __init__(self) -> None:
        self.sends: list[Send] = []
        self.delivers: list[Deliver] = []
        self.others: list[Effect] = []
        self.committed: list[Block] = []
        self.proof: CommitProof | None = None
        self.forgotten: list[bytes] = []

    def send(self, to: bytes | None, message: Message) -> None:
        """Queue a message to one validator or, with None, to all others."""
        self.sends.append(Send(to, message))

    def deliver(self, blocks: tuple[Block, ...], proof: CommitProof) -> None:
        """Queue committed blocks, and their place in this step's `Persist`."""
        self.delivers.append(Deliver(blocks, proof))
        self.committed.extend(blocks)
        self.proof = proof

    def report(self, effect: Effect) -> None:
        """Queue a timer, request or report."""
        self.others.append(effect)

    @property
    def filled(self) -> bool:
        """Whether there is anything to hand out. Deliveries come with committed blocks; what was forgotten waits for a write."""
        return bool(self.sends or self.others or self.committed or self.delivers)

    def flush(self, persist: Persist | None) -> list[Effect]:
        """Return everything in contract order: persist, sends, deliveries, the rest."""
        effects: list[Effect] = [] if persist is None else [persist]
        effects.extend(self.sends)
        effects.extend(self.delivers)
        effects.extend(self.others)
        return effects
