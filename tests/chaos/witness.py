"""What all nodes said, compared as they say it. Pure: it knows nothing of processes, and nothing of how nodes decide.

A contradiction is a safety violation of the network, whatever caused it: two nodes (or one, before and after a restart) with
different blocks or states at a height, a transaction executed at two places, or what was called executed and then was not.
"""

from dataclasses import dataclass, field

FINAL = ("ok", "failed")
"""Outcomes that consume the transaction; what is "invalid" was skipped, and may still come."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A block as one node told of it: its hash and the state after it, in hex."""

    block_hash: str
    state_digest: str
    node: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where a transaction was executed, and who said so first."""

    height: int
    status: str
    node: str


@dataclass(slots=True)
class Witness:
    """Everything told so far, and what of it cannot be true together.

    `blocks` by height, `executed` by transaction hash in hex, `heights` the highest that each node told of.
    """

    blocks: dict[int, Seen] = field(default_factory=dict)
    executed: dict[str, Place] = field(default_factory=dict)
    heights: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def block(self, node: str, height: int, block_hash: str, state_digest: str) -> None:
        """A node executed a block."""
        self.heights[node] = max(height, self.heights.get(node, 0))
        known = self.blocks.setdefault(height, Seen(block_hash, state_digest, node))
        if known.block_hash != block_hash:
            self._violated(
                f"two blocks at height {height}: {known.block_hash[:12]} on {known.node}, {block_hash[:12]} on {node}"
            )
        elif known.state_digest != state_digest:
            self._violated(
                f"two states after height {height}: {known.state_digest[:12]} on {known.node}, "
                f"{state_digest[:12]} on {node}"
            )

    def transaction(self, node: str, tx_hash: str, height: int, status: str) -> None:
        """A node executed a transaction."""
        if status not in FINAL:
            return
        known = self.executed.setdefault(tx_hash, Place(height, status, node))
        if (known.height, known.status) != (height, status):
            self._violated(
                f"transaction {tx_hash[:12]} was {known.status} at height {known.height} on {known.node}, "
                f"{status} at height {height} on {node}"
            )

    def final(
        self, node: str, placed: dict[str, int], kept_from: int = 1, kept_to: int | None = None
    ) -> None:
        """All that a node has at the end, heights by transaction hash: what anybody called executed must be there.

        Of blocks below `kept_from` it keeps nothing, as it was told to; it has not come further than `kept_to`.
        """
        due = {
            tx_hash: place
            for tx_hash, place in self.executed.items()
            if place.height >= kept_from and (kept_to is None or place.height <= kept_to)
        }
        lost = [tx_hash for tx_hash, place in due.items() if placed.get(tx_hash) != place.height]
        if lost:
            first = self.executed[lost[0]]
            self._violated(
                f"{len(lost)} acknowledged transactions are not on {node}; the first, {lost[0][:12]}, was {first.status} "
                f"at height {first.height} on {first.node}"
            )

    def _violated(self, what: str) -> None:
        self.violations.append(what)
