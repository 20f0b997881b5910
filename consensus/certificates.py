"""What certificates do: raise the round, certify blocks, commit. Everything here is already verified."""

from consensus.core import Core
from consensus.custody import notice_cc, notice_qc, notice_tc
from consensus.ending import boundary_on, end_epoch, handover_of
from consensus.execution import check_committed_claims
from consensus.messages import SyncMessage
from consensus.pacemaker import advance, learn_timeout
from consensus.types import QC, TC, CommitCertificate, CommitProof, TwoChain
from consensus.watch import watch_cc, watch_qc, watch_tc


def apply_qc(core: Core, qc: QC, source: bytes | None) -> None:
    """ON QC: raise high_qc and the round, certify the block if it is here, else fetch it from `source` or the signers.

    The commit vote that the rule asks for is cast in `consensus.voting` once the block is known.
    """
    if core.ended is not None:
        return
    notice_qc(core, qc)
    watch_qc(core, qc)
    if qc.round > core.high_qc.round:
        core.high_qc = qc
    # First liveness guard: a QC older than the last TC must not remove it. That TC may be the only one that permits
    # the current round.
    if core.last_tc is not None and qc.round >= core.last_tc.round:
        core.last_tc = None
    advance(core, qc.round + 1, by_tc=False)
    if qc.block_id in core.tree:
        certify(core, qc)
    elif qc.round > core.root.round:
        want_block(core, qc, source)


def want_block(core: Core, qc: QC, source: bytes | None) -> None:
    """Fetch a certified block, unless it is known or so far ahead that range sync will bring it."""
    if qc.block_id in core.tree or qc.block_id in core.orphans or far_behind(core):
        return
    first = () if source is None else (source,)
    core.block_fetches.want(qc.block_id, qc.round, core.others(first + core.signers(qc.signatures)))


def far_behind(core: Core) -> bool:
    """Whether the highest CC is too far above the committed height to walk back block by block."""
    cc = core.high_cc
    return cc is not None and cc.height > core.root.height + core.config.behind_heights_min


def certify(core: Core, qc: QC) -> None:
    """Note the QC of a block in the tree, and commit its parent if their rounds are consecutive."""
    node = core.tree.get(qc.block_id)
    if node is None or node.qc is not None:
        return
    node.qc = qc
    parent = core.tree.get(node.block.header.parent)
    if parent is None or parent is core.tree.root:
        return
    # The rounds must be consecutive: with a gap a quorum may have moved on between the two without seeing either.
    if node.block.round == parent.block.round + 1:
        commit(core, parent.block.id, TwoChain(node.block.qc, qc))


def apply_tc(core: Core, tc: TC, *, forward: bool = True) -> None:
    """ON TC: take its QC, then enter the next round and hand the TC to that round's leader unless it is its own."""
    # Second liveness guard: a replayed TC of a past round must not replace the one that permits the current round.
    if tc.round < core.round:
        return
    if core.ended is not None:
        return
    notice_tc(core, tc)
    watch_tc(core, tc)
    apply_qc(core, tc.high_qc, None)
    core.last_tc = tc
    advance(core, tc.round + 1, by_tc=True)
    leader = core.leader(core.round)
    if forward and core.safety is not None and leader != core.safety.public:
        core.out.send(leader, SyncMessage(core.sync_info))


def apply_cc(core: Core, cc: CommitCertificate, source: bytes | None) -> None:
    """Commit the block if it is here; otherwise remember the certificate and fetch the block."""
    if core.ended is not None:
        return
    notice_cc(core, cc)
    watch_cc(core, cc)
    if core.high_cc is None or cc.round > core.high_cc.round:
        core.high_cc = cc
    if cc.round <= core.root.round:
        return
    if cc.block_id in core.tree:
        commit(core, cc.block_id, cc)
    elif cc.block_id not in core.orphans and not far_behind(core):
        first = () if source is None else (source,)
        sources = core.others(first + core.signers(cc.signatures))
        core.block_fetches.want(cc.block_id, cc.round, sources)


def commit(core: Core, block_id: bytes, proof: CommitProof) -> None:
    """Deliver the block and its uncommitted ancestors, oldest first, each once; prune what can no longer matter.

    Nothing past a block that ends the epoch is delivered: its descendants only carried the proof.
    """
    whole = [] if core.ended is not None else core.tree.path(block_id)
    if not whole:
        return
    at = boundary_on(whole)
    path = whole if at is None else whole[: at + 1]
    handover = None if at is None else handover_of(whole[at:], proof)
    if handover is not None and len(whole) > len(path):
        proof = handover
    # What an empty block took says little without commit votes: the next heartbeat committed it.
    if path[-1].block.header.payload or isinstance(proof, CommitCertificate):
        learn_timeout(core, path[-1].arrived_ms)
    dropped = core.tree.reroot(path[-1].block.id)
    core.proof = proof
    core.out.deliver(tuple(node.block for node in path), proof)
    core.out.forgotten.extend(node.block.id for node in (*path, *dropped) if node.stored)
    for node in path:
        for batch in node.block.header.payload:
            core.available.pop(batch, None)
    _prune(core)
    check_committed_claims(core, tuple(node.block for node in path))
    if handover is not None:
        end_epoch(core, handover)


def _prune(core: Core) -> None:
    """Drop everything about rounds up to the committed one."""
    round_ = core.root.round
    core.votes.drop_below(round_ + 1)
    core.commit_votes.drop_below(round_ + 1)
    core.block_fetches.drop_upto(round_)
    core.payload_fetches.drop_upto(round_)
    core.proposals = {key: block for key, block in core.proposals.items() if key > round_}
    core.orphans = {
        key: (block, arrived)
        for key, (block, arrived) in core.orphans.items()
        if block.round > round_ and block.qc.round >= round_
    }
