"""From one epoch to the next: where the next one starts, and what of the beacon it takes along.

An epoch ends with its boundary, the first block that claims a ledger in which the next set is frozen (`execution`,
`rules`). The next epoch is a new `Replica` for the next set, rooted in a block that everybody computes. A light client
needs `verify.verify_handover` alone.
"""

from dataclasses import replace

from consensus.crypto import SIGNATURE_BYTES
from consensus.digest import ZERO32
from consensus.errors import LocalError
from consensus.tree import Reveals
from consensus.types import QC, Block, is_boundary
from consensus.validators import ValidatorSet


def epoch_start(boundary: Block, next_set: ValidatorSet) -> Block:
    """Return the root of the next epoch: committed by definition, signed by nobody, the same on every machine.

    It stands for the boundary: at its height, with its time and its claims about the ledger, and has it for a parent.

    Raises:
        LocalError: the block ends no epoch, or `next_set` is not the set it names.
    """
    header = boundary.header
    if not is_boundary(header):
        raise LocalError("the block does not end its epoch")
    if next_set.epoch != header.epoch + 1 or next_set.hash != header.next_validators_hash:
        raise LocalError("the boundary names another validator set")
    start = replace(
        header,
        epoch=next_set.epoch,
        round=0,
        parent=boundary.id,
        proposer=ZERO32,
        payload=(),
        beacon_reveal=ZERO32,
    )
    return Block(start, QC(next_set.epoch, 0, ZERO32, ZERO32, 0, ()), None, bytes(SIGNATURE_BYTES))


def carry_reveals(old_set: ValidatorSet, reveals: Reveals, next_set: ValidatorSet) -> Reveals:
    """Return the beacon state that the next epoch starts with, by index in the next set.

    A validator that stays with its anchor goes on where it was; one that is new or has re-anchored begins its chain.

    Args:
        old_set: the set of the epoch that ended.
        reveals: state after its boundary, by index in it.
        next_set: the next set.

    Raises:
        LocalError: `reveals` is not of `old_set`.
    """
    if len(reveals) != len(old_set):
        raise LocalError("reveals of another validator set")
    carried = []
    for validator in next_set.validators:
        index = old_set.index_of(validator.id)
        if index is not None and old_set.validators[index].beacon_anchor == validator.beacon_anchor:
            carried.append(reveals[index])
        else:
            carried.append((0, validator.beacon_anchor))
    return tuple(carried)
