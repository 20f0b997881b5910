"""Whose votes the certificates in a chain carry: read from a stopped node's disk."""

from dataclasses import dataclass, field

from consensus.types import Block
from consensus.validators import ValidatorSet
from node.epochs import EpochRow, row_from_bytes
from node.storage.chain import ChainStore


@dataclass(slots=True)
class Ballots:
    """For each consensus key: the heights of the blocks whose parent's certificate it voted for, rising."""

    heights: dict[bytes, list[int]] = field(default_factory=dict)

    def count(self, key: bytes, above: int = 0, up_to: int | None = None) -> int:
        """In how many certificates of blocks above a height, and not beyond another, the key's vote is."""
        return sum(
            above < height and (up_to is None or height <= up_to) for height in self.heights.get(key, ())
        )

    def voters_at(self, height: int) -> list[bytes]:
        """Whose votes for the parent the block at a height carries; none in the first of an epoch."""
        return [key for key, heights in self.heights.items() if height in heights]


def read_ballots(store: ChainStore, genesis: EpochRow) -> Ballots:
    """Look through all committed blocks that are kept. Raises what a damaged row raises."""
    found = Ballots()
    sets = {genesis.number: genesis.consensus_set}
    for height in range(store.pruned_below(), store.committed_height() + 1):
        block = store.block_at(height)
        if block is not None:
            for key in voters(block, _set_of(store, sets, block.qc.epoch)):
                found.heights.setdefault(key, []).append(height)
    return found


def voters(block: Block, validators: ValidatorSet) -> list[bytes]:
    """The consensus keys whose votes for the parent a block carries; none in the first of an epoch."""
    return [validators.validators[index].id for index, _ in block.qc.signatures]


def _set_of(store: ChainStore, sets: dict[int, ValidatorSet], number: int) -> ValidatorSet:
    if number not in sets:
        row = store.epoch(number)
        if row is None:
            raise LookupError(f"no epoch {number} on this disk")
        sets[number] = row_from_bytes(row).consensus_set
    return sets[number]
