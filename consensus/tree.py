"""The uncommitted blocks, rooted at the last committed one."""

from dataclasses import dataclass

from consensus.types import QC, Block, is_boundary

Reveals = tuple[tuple[int, bytes], ...]
"""Per validator index: how many reveals the chain up to a block holds, and the last one (the anchor at 0)."""


@dataclass(slots=True)
class Node:
    """A block connected to the root.

    Attributes:
        block: the block.
        reveals: beacon state after it, on its own chain.
        arrived_ms: when it was first seen here; None when it was recovered or range-synced.
        timely: its timestamp lay within the drift limit of the clock when it arrived.
        qc: its QC once known.
        stored: it went to disk in a `Persist`.
        rejected: its claims contradict our execution: never to be voted for.
        past_boundary: an ancestor of it ends the epoch: it is empty, never delivered, and its reveals do not count.
    """

    block: Block
    reveals: Reveals
    arrived_ms: int | None
    timely: bool
    qc: QC | None = None
    stored: bool = False
    rejected: bool = False
    past_boundary: bool = False

    @property
    def closes(self) -> bool:
        """Whether its children are past the boundary: it is the boundary itself, or past it."""
        return self.past_boundary or is_boundary(self.block.header)


class BlockTree:
    """Blocks by id; every node's parent is in the tree, up to the root."""

    __slots__ = ("nodes", "root", "version")

    def __init__(self, root: Node) -> None:
        self.version = 0  # rises whenever a node comes or goes
        self.root = root
        self.nodes: dict[bytes, Node] = {root.block.id: root}

    def __len__(self) -> int:
        return len(self.nodes)

    def __contains__(self, block_id: bytes) -> bool:
        return block_id in self.nodes

    def get(self, block_id: bytes) -> Node | None:
        """Return the node, or None."""
        return self.nodes.get(block_id)

    def insert(self, node: Node) -> None:
        """Add a node whose parent is in the tree."""
        self.nodes[node.block.id] = node
        self.version += 1

    def path(self, block_id: bytes) -> list[Node]:
        """Return the nodes after the root up to `block_id`, oldest first; empty for the root itself."""
        path = []
        node = self.nodes[block_id]
        while node is not self.root:
            path.append(node)
            node = self.nodes[node.block.header.parent]
        path.reverse()
        return path

    def reroot(self, block_id: bytes) -> list[Node]:
        """Make a node the root; return the removed nodes that are not its ancestors (abandoned branches)."""
        ancestors = {node.block.id for node in self.path(block_id)} | {self.root.block.id}
        self.root = self.nodes[block_id]
        keep = {block_id: self.root}
        # Parents have lower rounds than children, so one pass in round order finds every descendant.
        for node in sorted(self.nodes.values(), key=lambda node: node.block.round):
            if node.block.header.parent in keep and node.block.id not in ancestors:
                keep[node.block.id] = node
        dropped = [node for key, node in self.nodes.items() if key not in keep and key not in ancestors]
        self.nodes = keep
        self.version += 1
        return dropped

    def drop_except(self, tip: bytes, round_min: int) -> list[Node]:
        """Drop blocks below `round_min` that are not on the path to `tip`, with their descendants; return them."""
        path = {node.block.id for node in self.path(tip)} if tip in self.nodes else set()
        keep = {self.root.block.id: self.root}
        dropped = []
        for key, node in sorted(self.nodes.items(), key=lambda item: item[1].block.round):
            if node is self.root:
                continue
            wanted = key in path or node.block.round >= round_min
            if wanted and node.block.header.parent in keep:
                keep[key] = node
            else:
                dropped.append(node)
        self.nodes = keep
        self.version += 1
        return dropped
