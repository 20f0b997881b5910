"""Catching up by height, and starting again from what was stored."""

from consensus.certificates import apply_cc, apply_qc, commit, far_behind, want_block
from consensus.core import Core
from consensus.effects import Behind, FetchBlock, FetchPayload
from consensus.ending import end_epoch, handover_of, take_handover
from consensus.errors import InvalidBlock, LocalError
from consensus.execution import add_result
from consensus.inputs import BlocksSynced
from consensus.messages import CommitVoteMessage, HandoverMessage, ProposalMessage
from consensus.pacemaker import cast_timeout
from consensus.proposals import insert
from consensus.recovery import RecoveredState
from consensus.rules import verify_block
from consensus.tree import BlockTree, Node
from consensus.types import Block, CommitCertificate, Handover, Header, TwoChain, is_boundary
from consensus.verify import verify_commit_proof
from consensus.voting import send_vote

SYNC_BLOCKS_MAX = 64
"""Blocks in one `BlocksSynced`: it bounds how long one step takes (about half a millisecond a block)."""
BEHIND_REPEAT_MS = 500


def on_synced(core: Core, event: BlocksSynced) -> None:
    """Verify a committed range, link by link and by its proof, and deliver what is new of it.

    Raises:
        RemoteError: the range does not link up to our last committed block, breaks a rule, or is not proven.
    """
    if len(event.blocks) > SYNC_BLOCKS_MAX:
        raise InvalidBlock("committed range: too long")
    blocks = [block for block in event.blocks if block.height > core.root.height]
    if not blocks or any(block.header.epoch > core.context.epoch for block in blocks):
        # Past the end of this epoch another set certifies: not the sender's fault, and not to be checked here.
        return
    parent = core.root
    for block in blocks:
        if block.header.parent != parent.id or block.height != parent.height + 1:
            raise InvalidBlock("committed range: does not link up")
        verify_block(core.context, core.config, core.leaders, block)
        parent = block
    block_id, _ = verify_commit_proof(core.context, event.proof)
    if block_id != parent.id:
        raise InvalidBlock("committed range: the proof is of another block")
    for block in blocks:
        apply_qc(core, block.qc, None)
        insert(core, block, None)
    match event.proof:
        case CommitCertificate():
            apply_cc(core, event.proof, None)
        case TwoChain():
            apply_qc(core, event.proof.qc, None)
            apply_qc(core, event.proof.child_qc, None)
        case Handover():
            pass  # its certificates are of blocks past the boundary, which nobody needs
    if block_id in core.tree:
        commit(core, block_id, event.proof)


def on_handover(core: Core, sender: bytes | None, message: HandoverMessage) -> None:
    """Our epoch has ended elsewhere: commit its boundary if it is here, else it is fetched by height (`_tell_behind`)."""
    boundary_id = take_handover(core, sender, message)
    if boundary_id is not None:
        commit(core, boundary_id, message.handover)


def request_missing(core: Core) -> None:
    """Emit the fetches that are due, grouped by whom to ask."""
    qc = core.high_qc
    if qc.round > core.root.round:
        want_block(core, qc, None)
    for key, sources in core.block_fetches.due(core.now_ms):
        core.out.report(FetchBlock(key, core.root.height, sources))
    if core.payload_fetches.entries:
        groups: dict[tuple[bytes, ...], list[bytes]] = {}
        for key, sources in core.payload_fetches.due(core.now_ms):
            groups.setdefault(sources, []).append(key)
        for sources, keys in groups.items():
            core.out.report(FetchPayload(tuple(keys), sources))
    _tell_behind(core)


def _tell_behind(core: Core) -> None:
    found = _ahead_of_us(core)
    if found is None:
        return
    height, sources = found
    target, told_ms = core.behind_told
    arrived = core.root.height >= target  # what was told before has come: more is asked for at once
    further = height >= target + core.config.behind_heights_min
    if not arrived and not further and core.now_ms < told_ms + BEHIND_REPEAT_MS:
        return
    core.behind_told = (height, core.now_ms)
    core.newer = {}
    core.out.report(Behind(core.root.height, height, sources))


def _ahead_of_us(core: Core) -> tuple[int, tuple[bytes, ...]] | None:
    """Return a height committed elsewhere and whom to ask for the blocks up to it; None if blocks come one by one."""
    if core.handover is not None:
        _, handover, sender = core.handover
        proof = handover.proof
        signed = proof.signatures if isinstance(proof, CommitCertificate) else proof.child_qc.signatures
        first = () if sender is None else (sender,)
        return handover.headers[0].height, core.others(first + core.signers(signed))
    if core.high_cc is not None and far_behind(core):
        return core.high_cc.height, core.others(core.signers(core.high_cc.signatures))
    proposal = _claims_unknown(core)
    if proposal is not None:
        return proposal.executed_height, core.others((proposal.proposer,))
    if core.newer:
        # Unproven: a validator of a later epoch speaks, or somebody who pretends. The latest is asked first.
        return core.root.height + 1, core.others(tuple(reversed(core.newer)))
    return None


def _claims_unknown(core: Core) -> Header | None:
    """The round's proposal if its leader executed what is not committed here, which stops us from voting and proposing.

    A two-chain of which a liar showed one certificate late, and to some, commits for those alone: nothing that they send
    later has it. So whoever speaks of its result is asked for the blocks and their proof.
    """
    proposal = core.proposals.get(core.round)
    if proposal is None or proposal.header.executed_height <= core.root.height:
        return None
    return proposal.header


def fetch_deadline(core: Core) -> int | None:
    """Return when something must be asked for again."""
    behind = core.handover is not None or far_behind(core) or _claims_unknown(core) is not None
    times = [core.behind_told[1] + BEHIND_REPEAT_MS] if behind else []
    for fetches in (core.block_fetches, core.payload_fetches):
        times.extend(fetch.next_ms for fetch in fetches.entries.values())
    return min(times) if times else None


def recover(core: Core, state: RecoveredState) -> None:
    """Rebuild the state from what was stored. Our own disk is trusted: signatures are not checked again."""
    committed, epoch = state.committed, core.context.epoch
    if committed.height <= core.genesis.height:
        _recover_root(core, state)
    else:
        if state.proof is None or len(state.reveals) != len(core.context.validators):
            raise LocalError("a committed block was stored without its proof or reveals")
        if committed.header.epoch != epoch:
            raise LocalError("the last committed block is of another epoch")
        core.tree = BlockTree(Node(committed, state.reveals, None, True, None, True))
        core.proof = state.proof
    for result in state.executed:
        add_result(core, result)
    if is_boundary(committed.header) and committed.header.epoch == epoch and core.proof is not None:
        end_epoch(core, handover_of([core.tree.root], core.proof))
        return
    info = state.certificates
    if info is not None and info.high_qc.epoch == epoch:
        core.high_qc, core.last_tc, core.high_cc = info.high_qc, info.last_tc, info.high_cc
        core.stored_certificates = info
    passed = 0 if core.last_tc is None else core.last_tc.round
    core.round_by_tc = passed > core.high_qc.round
    core.round = max(core.high_qc.round, passed) + 1
    for block in sorted(state.blocks, key=lambda block: block.round):
        if block.header.epoch != epoch:
            continue
        if block.round > core.root.round and insert(core, block, core.now_ms):
            core.proposals.setdefault(block.round, block)
            _mark_stored(core, block)
    if core.high_qc.block_id in core.tree:
        apply_qc(core, core.high_qc, None)
    if core.high_cc is not None:
        apply_cc(core, core.high_cc, None)


def _recover_root(core: Core, state: RecoveredState) -> None:
    """Nothing of this epoch is committed: what is stored must be its root, or the boundary that the root stands for."""
    committed, genesis = state.committed, core.genesis
    if committed.id == genesis.id and genesis.height == 0:
        return
    if committed.id not in (genesis.id, genesis.header.parent):
        raise LocalError("the stored genesis block is not this chain's")
    if len(state.reveals) != len(core.context.validators):
        raise LocalError("an epoch begins without the reveals of the one before")
    core.tree.root.reveals = state.reveals


def _mark_stored(core: Core, block: Block) -> None:
    node = core.tree.get(block.id)
    if node is not None:
        node.stored = True


def repeat_own(core: Core) -> None:
    """After a restart say again what we last said about rounds that are still open: it may never have left.

    Nothing is signed here: the record hands out the same bytes.
    """
    if core.safety is None or core.me is None:
        return
    record = core.safety.record
    own = core.proposals.get(core.round)
    if own is not None and own.header.proposer == core.safety.public:
        core.out.send(None, ProposalMessage(own, core.high_cc))
    vote, commit_vote = record.last_vote, record.last_commit_vote
    if vote is not None and vote.round >= core.round:
        core.votes.add(vote.round, core.me, (vote.block_id, vote.parent_id, vote.parent_round), vote)
        send_vote(core, vote)
    if commit_vote is not None and core.high_qc.block_id == commit_vote.block_id:
        statement = (commit_vote.block_id, commit_vote.height)
        core.commit_votes.add(commit_vote.round, core.me, statement, commit_vote)
        core.out.send(None, CommitVoteMessage(commit_vote, core.high_qc))
    if record.last_timeout is not None and record.last_timeout.round == core.round:
        cast_timeout(core)
