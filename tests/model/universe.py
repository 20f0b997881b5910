"""Every block that can exist within a bound of rounds, as bits.

A block is (round, parent, tag): the tag tells apart two blocks that one leader makes for the same parent. Genesis is
block 0 at round 0. A set of blocks is an integer with one bit a block, so that certificates are counted with `&` and `|`.
"""

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class Universe:
    """All blocks up to a round.

    Attributes:
        rounds_max: the last round that has blocks.
        rounds: round of each block, ascending; genesis is block 0.
        parents: parent of each block; genesis is its own.
        tags: tag of each block.
        ancestors: per block the set of itself and all blocks below it.
        at_round: per round the set of its blocks.
        direct: per block the set of its children in the very next round.
        children: per block the set of its children.
    """

    rounds_max: int
    rounds: tuple[int, ...]
    parents: tuple[int, ...]
    tags: tuple[int, ...]
    ancestors: tuple[int, ...]
    at_round: tuple[int, ...]
    direct: tuple[int, ...]
    children: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rounds)


@cache
def universe(rounds_max: int, tags_max: int) -> Universe:
    """Return all blocks of rounds 1 to `rounds_max` with `tags_max` tags for each parent."""
    rounds, parents, tags, ancestors, at_round = [0], [0], [0], [1], [1]
    for round_ in range(1, rounds_max + 1):
        here = 0
        for parent in range(len(rounds)):
            if rounds[parent] == round_:
                break
            for tag in range(tags_max):
                block = len(rounds)
                rounds.append(round_)
                parents.append(parent)
                tags.append(tag)
                ancestors.append(ancestors[parent] | 1 << block)
                here |= 1 << block
        at_round.append(here)
    children = [0] * len(rounds)
    direct = [0] * len(rounds)
    for block in range(1, len(rounds)):
        children[parents[block]] |= 1 << block
        if rounds[block] == rounds[parents[block]] + 1:
            direct[parents[block]] |= 1 << block
    return Universe(
        rounds_max,
        tuple(rounds),
        tuple(parents),
        tuple(tags),
        tuple(ancestors),
        tuple(at_round),
        tuple(direct),
        tuple(children),
    )


def members(blocks: int) -> tuple[int, ...]:
    """The blocks of a set, ascending."""
    found = []
    while blocks:
        low = blocks & -blocks
        found.append(low.bit_length() - 1)
        blocks ^= low
    return tuple(found)
