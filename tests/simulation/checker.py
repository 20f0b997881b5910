"""Judges a run from outside: it sees blocks, signatures and times, and knows nothing of the replica's inside."""

from collections.abc import Hashable
from dataclasses import dataclass, field

from consensus.messages import CommitVoteMessage, Message, ProposalMessage, TimeoutMessage, VoteMessage
from consensus.types import Block


class Violation(Exception):
    """A property that must hold did not."""


@dataclass
class Checker:
    """Collects what honest nodes commit and sign, and raises `Violation` at the first contradiction.

    Properties: no two different blocks are committed at a height; every node's commits are one chain, each block once,
    oldest first, each the child of the one before; an honest key signs at most one statement per kind, epoch and round, and
    nothing of an epoch after something of a later one; one block ends an epoch, and all nodes go on behind it.
    """

    genesis_id: bytes
    agreed: dict[int, bytes] = field(default_factory=dict)
    tips: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    signed: dict[tuple[bytes, str, int, int], Hashable] = field(default_factory=dict)
    commits: int = 0
    epochs: dict[int, int] = field(default_factory=dict)
    ends: dict[int, bytes] = field(default_factory=dict)
    signing: dict[bytes, int] = field(default_factory=dict)

    def started(self, node: int, height: int, block_id: bytes, epoch: int = 0) -> None:
        """Note where a node's chain stands when its process starts; it must be on the agreed chain."""
        if height > 0 and self.agreed.get(height) != block_id:
            raise Violation(f"node {node} starts from a block at height {height} that was never committed")
        self.tips[node] = (height, block_id)
        self.epochs[node] = epoch

    def entered(self, node: int, start: Block) -> None:
        """Note that a node begins an epoch on its root: behind one block that ended the last one, the same for all."""
        header = start.header
        if self.agreed.get(header.height) != header.parent:
            raise Violation(
                f"node {node} begins epoch {header.epoch} behind a block that was never committed"
            )
        if self.ends.setdefault(header.epoch, header.parent) != header.parent:
            raise Violation(f"two different blocks begin epoch {header.epoch} (node {node})")
        self.tips[node] = (header.height, start.id)
        self.epochs[node] = header.epoch

    def committed(self, node: int, block: Block) -> None:
        """Note one committed block of one node."""
        height, tip = self.tips[node]
        header = block.header
        if header.height != height + 1:
            raise Violation(f"node {node} commits height {header.height} after {height}")
        if header.parent != tip:
            raise Violation(
                f"node {node} commits at height {header.height} a block that is no child of its last"
            )
        if header.epoch != self.epochs.get(node, 0):
            raise Violation(f"node {node} commits a block of epoch {header.epoch} in another one")
        earlier = self.agreed.setdefault(header.height, block.id)
        if earlier != block.id:
            raise Violation(f"two different blocks are committed at height {header.height} (node {node})")
        self.tips[node] = (header.height, block.id)
        self.commits += 1

    def sent(self, key: bytes, message: Message) -> None:
        """Note what an honest key signed, as it leaves its process."""
        match message:
            case ProposalMessage(block=block):
                if block.header.proposer == key:
                    self._once(key, "proposal", block.header.epoch, block.round, block.id)
            case VoteMessage(vote=vote):
                statement: Hashable = (vote.block_id, vote.parent_id, vote.parent_round)
                self._once(key, "vote", vote.epoch, vote.round, statement)
            case CommitVoteMessage(commit_vote=commit):
                self._once(key, "commit", commit.epoch, commit.round, (commit.block_id, commit.height))
            case TimeoutMessage(timeout=timeout):
                self._once(key, "timeout", timeout.epoch, timeout.round, timeout.high_qc_round)
            case _:
                pass

    def _once(self, key: bytes, kind: str, epoch: int, round_: int, statement: Hashable) -> None:
        if epoch < self.signing.get(key, 0):
            raise Violation(f"an honest key signs a {kind} of epoch {epoch} after it signed in a later one")
        self.signing[key] = epoch
        earlier = self.signed.setdefault((key, kind, epoch, round_), statement)
        if earlier != statement:
            raise Violation(f"an honest key signed two different {kind}s in round {round_}")

    def top(self) -> int:
        """The greatest height that anybody committed."""
        return max(self.agreed, default=0)

    def kept(self, node: int, height: int) -> None:
        """Require that a node has again, or still, what anybody had committed up to `height`."""
        if self.tips[node][0] < height:
            raise Violation(
                f"node {node} stands at height {self.tips[node][0]}; {height} was committed and is lost"
            )

    def alive(self, node: int, height_at_heal: int, growth_min: int) -> None:
        """Require that a node's chain grew by at least `growth_min` blocks since the network healed."""
        height = self.tips[node][0]
        if height < height_at_heal + growth_min:
            raise Violation(
                f"node {node} stands at height {height}, was at {height_at_heal} when the network healed"
            )
