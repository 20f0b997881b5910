"""Header rules behind which others stand: each is refused by its own name."""

from dataclasses import replace

import pytest

from consensus.errors import InvalidBlock
from consensus.rules import verify_block
from tests.unit.consensus.lab import CONFIG, CONTEXT, GENESIS, KEYS, LEADERS, Chain, follower, signed_block


def test_only_the_rounds_leader_may_propose() -> None:
    block, other = Chain().block(GENESIS, 1), follower(1)
    verify_block(CONTEXT, CONFIG, LEADERS, block)
    header = replace(block.header, proposer=KEYS[other])
    with pytest.raises(InvalidBlock, match="does not lead"):
        verify_block(CONTEXT, CONFIG, LEADERS, signed_block(header, block.qc, None, other))


def test_a_block_names_the_block_that_its_qc_certifies() -> None:
    block = Chain().block(GENESIS, 1)
    header = replace(block.header, parent=bytes(32))
    with pytest.raises(InvalidBlock, match="does not extend"):
        verify_block(CONTEXT, CONFIG, LEADERS, signed_block(header, block.qc, None))
