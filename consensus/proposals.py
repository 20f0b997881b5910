"""Blocks: proposals as they arrive, fetched ancestors, and how they find their place in the tree."""

from consensus.certificates import apply_cc, apply_qc, apply_tc, certify, commit, want_block
from consensus.core import ORPHANS_MAX, TREE_BLOCKS_MAX, Core
from consensus.custody import notice_block
from consensus.errors import InvalidBlock
from consensus.messages import BlocksMessage, ProposalMessage
from consensus.rules import check_child, verify_block
from consensus.tree import Node
from consensus.types import Block, CommitCertificate
from consensus.verify import verify_cc
from consensus.watch import two_proposals

PROPOSALS_MAX = 512
"""Rounds whose proposal is remembered to spot a second one; past it the oldest round goes."""


def on_proposal(core: Core, sender: bytes | None, message: ProposalMessage) -> None:
    """ON PROPOSAL, up to the vote: verify all of it, take its certificates first, then place the block."""
    block = message.block
    if block.round > core.root.round and block.id not in core.tree and block.id not in core.orphans:
        verify_block(core.context, core.config, core.leaders, block)
        take_cc = _verified_cc(core, message.high_cc)
        source = sender if sender is not None else block.header.proposer
        apply_qc(core, block.qc, source)
        if block.tc is not None:
            apply_tc(core, block.tc, forward=False)
        if _first_of_its_round(core, block):
            add_block(core, block, source)
    else:
        take_cc = _verified_cc(core, message.high_cc)
    if take_cc is not None:
        apply_cc(core, take_cc, sender)


def _verified_cc(core: Core, cc: CommitCertificate | None) -> CommitCertificate | None:
    """Return the CC if it is news and verifies; raise if it is news and does not."""
    if (
        cc is None
        or cc.round <= core.root.round
        or (core.high_cc is not None and cc.round <= core.high_cc.round)
    ):
        return None
    verify_cc(core.context, cc)
    return cc


def _first_of_its_round(core: Core, block: Block) -> bool:
    """Remember the first proposal of a round; a second is evidence, and enters only if a QC asks for it by id."""
    earlier = core.proposals.get(block.round)
    if earlier is None:
        core.proposals[block.round] = block
        if len(core.proposals) > PROPOSALS_MAX:
            del core.proposals[min(core.proposals)]
        return True
    if earlier.id == block.id:
        return True
    two_proposals(core, earlier, block)
    return block.id in core.block_fetches.entries


def on_blocks(core: Core, sender: bytes | None, message: BlocksMessage) -> None:
    """Take fetched blocks. Newest first, so that each accepted block makes its parent wanted; others are ignored."""
    for block in sorted(message.blocks, key=lambda block: block.round, reverse=True):
        if block.id not in core.block_fetches.entries:
            continue
        verify_block(core.context, core.config, core.leaders, block)
        proposed = core.proposals.get(block.round)
        if proposed is not None and proposed.id != block.id:
            two_proposals(core, proposed, block)
        add_block(core, block, sender)


def add_block(core: Core, block: Block, source: bytes | None) -> None:
    """Put a verified block into the tree, or among the orphans until its parent is here."""
    if core.ended is not None:
        return
    notice_block(core, block)
    core.block_fetches.got(block.id)
    if block.id in core.tree or block.round <= core.root.round or block.qc.round < core.root.round:
        return
    if block.header.parent in core.tree:
        _connect(core, block, core.now_ms)
        return
    if len(core.orphans) >= ORPHANS_MAX:
        del core.orphans[min(core.orphans, key=lambda key: core.orphans[key][0].round)]
    core.orphans[block.id] = (block, core.now_ms)
    want_block(core, block.qc, source)


def _connect(core: Core, first: Block, arrived_ms: int) -> None:
    """Insert a block whose parent is in the tree, then every orphan that waited for it."""
    ready = [(first, arrived_ms)]
    while ready:
        block, arrived = ready.pop()
        if not insert(core, block, arrived):
            continue
        for key in [key for key, (orphan, _) in core.orphans.items() if orphan.header.parent == block.id]:
            ready.append(core.orphans.pop(key))


def insert(core: Core, block: Block, arrived_ms: int | None) -> bool:
    """Insert one block if its parent is (still) in the tree and it follows the parent; apply what is known of it."""
    parent = core.tree.get(block.header.parent)
    if parent is None or block.id in core.tree:
        return False
    try:
        reveals = check_child(core.context, parent, block)
    except InvalidBlock as fault:
        core.accuse(block.header.proposer, fault.reason)
        return False
    drift_ms = core.config.drift_ms_max
    timely = arrived_ms is not None and abs(block.header.timestamp_ms - arrived_ms) <= drift_ms
    core.tree.insert(Node(block, reveals, arrived_ms, timely, past_boundary=parent.closes))
    certify(core, block.qc)
    if core.high_qc.block_id == block.id:
        certify(core, core.high_qc)
    if core.high_cc is not None and core.high_cc.block_id == block.id and block.id in core.tree:
        commit(core, block.id, core.high_cc)
    if core.handover is not None and core.handover[0] == block.id:
        commit(core, block.id, core.handover[1])
    _bound_tree(core)
    return True


def _bound_tree(core: Core) -> None:
    """Past the limit drop blocks of past rounds that are off the highest QC's path; a QC brings one back by fetch."""
    if len(core.tree) <= TREE_BLOCKS_MAX:
        return
    dropped = core.tree.drop_except(core.high_qc.block_id, core.round)
    core.out.forgotten.extend(node.block.id for node in dropped if node.stored)
