"""Header rules: what every honest proposer keeps, whatever clock or ledger the checker has.

A block that breaks one never enters the tree. What depends on the checker (timestamp drift, payload at hand, execution)
gates only its vote and is in `consensus.voting`.
"""

from consensus.beacon import reveal_hash
from consensus.config import ConsensusConfig
from consensus.errors import InvalidBlock
from consensus.leaders import Leaders
from consensus.tree import Node, Reveals
from consensus.types import Block
from consensus.verify import Context, verify_proposal_signature, verify_qc, verify_tc


def verify_block(context: Context, config: ConsensusConfig, leaders: Leaders, block: Block) -> None:
    """Check everything about a block that needs no parent: header, leader, signature, QC and TC.

    Raises:
        InvalidBlock: a header rule is broken.
        InvalidSignature: the proposer did not sign it.
        InvalidCertificate: its QC or TC proves nothing.
    """
    header, qc, tc = block.header, block.qc, block.tc
    _require(header.chain_id == context.chain_id, "block of another chain")
    _require(header.epoch == context.epoch, "block of another epoch")
    _require(header.parent == qc.block_id, "block does not extend its QC")
    _require(header.round > qc.round, "block is not newer than its QC")
    leader = context.validators.validators[leaders.index(header.round)].id
    _require(header.proposer == leader, "proposer does not lead the round")
    _require(header.height >= 1, "height of genesis")
    _require(header.executed_height < header.height, "executed height is not below the block")
    _require(len(header.payload) <= config.payload_digests_max, "too many payload digests")
    lag = header.height - header.executed_height
    _require(not header.payload or lag <= config.lag_max, "payload while execution lags")
    _require((tc is None) == (qc.round + 1 == header.round), "TC attached without need, or missing")
    if tc is not None:
        _require(tc.round + 1 == header.round, "TC is not of the round before")
        _require(qc.round >= tc.max_high_qc_round, "extends less than the TC's highest QC")
    verify_proposal_signature(context, block)
    verify_qc(context, qc)
    if tc is not None:
        verify_tc(context, tc)


def check_child(context: Context, parent: Node, block: Block) -> Reveals:
    """Check a verified block against its parent and return the beacon state after it.

    Raises:
        InvalidBlock: height, time, executed height or beacon reveal do not follow from the parent, or it carries something
            past the epoch's boundary.
    """
    header, above = block.header, parent.block.header
    _require(header.height == above.height + 1, "height does not follow the parent's")
    _require(block.qc.round == above.round, "QC round is not the parent's")
    _require(header.timestamp_ms > above.timestamp_ms, "timestamp is not above the parent's")
    _require(header.executed_height >= above.executed_height, "executed height falls")
    _require(
        not parent.closes or (not header.payload and header.next_validators_hash == b""),
        "past the epoch's boundary and not empty",
    )
    index = context.validators.index_of(header.proposer)
    if index is None:
        raise InvalidBlock("proposer is not a validator")
    count, last = parent.reveals[index]
    _require(reveal_hash(header.beacon_reveal) == last, "beacon reveal does not hash to the last one")
    after = list(parent.reveals)
    after[index] = (count + 1, header.beacon_reveal)
    return tuple(after)


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise InvalidBlock(reason)
