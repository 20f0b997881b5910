"""Votes and commit votes: casting our own when the rules allow, counting everybody's."""

from consensus.certificates import apply_cc, apply_qc
from consensus.core import ROUNDS_AHEAD_MAX, ROUNDS_BEHIND_MAX, Core
from consensus.custody import notice_statement
from consensus.effects import Diverged
from consensus.errors import InvalidCertificate, InvalidSignature, SafetyRefusal
from consensus.execution import Claim, claimed, compare
from consensus.leading import proposes_soon
from consensus.messages import CommitVoteMessage, VoteMessage
from consensus.tree import Node
from consensus.types import QC, CommitCertificate, CommitVote, Vote
from consensus.verify import verify_commit_vote, verify_qc, verify_vote
from consensus.watch import contradicts, watch_vote


def try_vote(core: Core) -> bool:
    """Vote for the current round's proposal if it is here, nothing is missing and the safety rules agree."""
    proposal = core.proposals.get(core.round)
    if core.safety is None or core.me is None or core.diverged or proposal is None:
        return False
    node = core.tree.get(proposal.id)
    if node is None or core.round <= core.safety.record.last_voted:
        return False
    if (
        not node.timely
        or node.rejected
        or not _payload_ready(core, node)
        or not _execution_agrees(core, node)
    ):
        return False
    try:
        vote = core.safety.sign_vote(node.block)
    except SafetyRefusal:
        core.unsigned = True
        return False
    send_vote(core, vote)
    count_vote(core, core.me, vote)
    return True


def send_vote(core: Core, vote: Vote) -> None:
    """Send a vote of ours to all, or to the leader that collects the round's votes."""
    collector = core.leader(vote.round + 1)
    if not core.collects:
        core.out.send(None, VoteMessage(vote))
    elif core.safety is not None and collector != core.safety.public:
        core.out.send(collector, VoteMessage(vote))


def _payload_ready(core: Core, node: Node) -> bool:
    """Whether every batch is here and none is invalid or already in an uncommitted ancestor; fetch what is missing."""
    header = node.block.header
    if any(batch in core.refused for batch in header.payload):
        return False
    missing = [batch for batch in header.payload if batch not in core.available]
    for batch in missing:
        everyone = tuple(validator.id for validator in core.context.validators.validators)
        core.payload_fetches.want(batch, header.round, core.others((header.proposer, *everyone)))
    if missing:
        return False
    ancestors = core.tree.path(header.parent)
    named = {batch for ancestor in ancestors for batch in ancestor.block.header.payload}
    return named.isdisjoint(header.payload)


def _execution_agrees(core: Core, node: Node) -> bool:
    """Whether we executed up to the claimed height and got the same; a wrong claim is reported once."""
    header = node.block.header
    claim = compare(core, node)
    if claim is Claim.DIFFERS:
        node.rejected = True
        own = core.results[header.executed_height]
        expected = claimed(header).state_digest
        core.out.report(Diverged(own.height, node.block.id, expected, own.state_digest, False))
    return claim is Claim.AGREES


def try_commit_vote(core: Core) -> bool:
    """COMMIT-VOTE for the highest QC's block, once it is here.

    Older QCs get none: whoever extends the highest one commits them as ancestors. Blocks past the epoch's boundary get none:
    nothing of them is to be final, and the boundary below them has its commit votes or their two-chain.
    """
    node = core.tree.get(core.high_qc.block_id)
    if core.safety is None or core.me is None or node is None or node is core.tree.root:
        return False
    if node.past_boundary or (core.collects and not _spreads(core)):
        return False
    last = core.safety.record.last_commit_vote
    if last is not None and last.round >= core.high_qc.round:
        return False
    try:
        vote = core.safety.sign_commit_vote(core.high_qc, node.block.header)
    except SafetyRefusal:
        core.unsigned = True
        return False
    core.out.send(None, CommitVoteMessage(vote, core.high_qc))
    count_commit_vote(core, core.me, vote)
    return True


def _spreads(core: Core) -> bool:
    """Whether others may learn the highest QC from nobody else: we collected it, and shall not propose on it at once.

    A collector's commit vote is a way to broadcast that QC. Otherwise its proposal does, and two QCs in a row commit.
    """
    return core.collected == core.high_qc.round and not proposes_soon(core)


def in_window(core: Core, round_: int) -> bool:
    """Whether votes of a round are worth keeping."""
    lowest = max(core.root.round + 1, core.round - ROUNDS_BEHIND_MAX)
    return lowest <= round_ <= core.round + ROUNDS_AHEAD_MAX


def on_vote(core: Core, vote: Vote) -> None:
    """Verify and count a vote, unless it can no longer matter."""
    if not in_window(core, vote.round) or _certified(core, vote.block_id):
        return
    author = core.context.validators.index_of(vote.author)
    if author is None:
        raise InvalidSignature("signer is not a validator")
    if core.votes.has(vote.round, author, _vote_statement(vote)):
        return
    verify_vote(core.context, vote)
    count_vote(core, author, vote)


def count_vote(core: Core, author: int, vote: Vote) -> None:
    """Add a verified vote; a quorum makes a QC."""
    notice_statement(core, author, vote)
    earlier = core.votes.add(vote.round, author, _vote_statement(vote), vote)
    if earlier is not None:
        contradicts(core, earlier, vote, "two votes in a round")
        return
    watch_vote(core, author, vote)
    rows = core.votes.matching(vote.round, _vote_statement(vote))
    validators = core.context.validators
    if not validators.is_quorum(sum(validators.stake_at(index) for index, _ in rows)):
        return
    signatures = tuple((index, row.signature) for index, row in rows)
    qc = QC(vote.epoch, vote.round, vote.block_id, vote.parent_id, vote.parent_round, signatures)
    if qc.round > core.high_qc.round:
        core.collected = qc.round
    apply_qc(core, qc, None)


def on_commit_vote(core: Core, sender: bytes | None, message: CommitVoteMessage) -> None:
    """Take the QC, then verify and count the commit vote, unless the round is already committed."""
    vote, qc = message.commit_vote, message.qc
    if vote.round <= core.root.round:
        return
    if (qc.round, qc.block_id) != (vote.round, vote.block_id):
        raise InvalidCertificate("commit vote without its QC")
    if not _certified(core, qc.block_id):
        verify_qc(core.context, qc)
        apply_qc(core, qc, sender)
    author = core.context.validators.index_of(vote.author)
    if author is None:
        raise InvalidSignature("signer is not a validator")
    statement = (vote.block_id, vote.height)
    if not in_window(core, vote.round) or core.commit_votes.has(vote.round, author, statement):
        return
    verify_commit_vote(core.context, vote)
    count_commit_vote(core, author, vote)


def count_commit_vote(core: Core, author: int, vote: CommitVote) -> None:
    """Add a verified commit vote; a quorum makes a CC."""
    notice_statement(core, author, vote)
    statement = (vote.block_id, vote.height)
    earlier = core.commit_votes.add(vote.round, author, statement, vote)
    if earlier is not None:
        contradicts(core, earlier, vote, "two commit votes in a round")
        return
    watch_vote(core, author, vote)
    rows = core.commit_votes.matching(vote.round, statement)
    validators = core.context.validators
    if not validators.is_quorum(sum(validators.stake_at(index) for index, _ in rows)):
        return
    signatures = tuple((index, row.signature) for index, row in rows)
    apply_cc(core, CommitCertificate(vote.epoch, vote.round, vote.block_id, vote.height, signatures), None)


def _vote_statement(vote: Vote) -> tuple[bytes, bytes, int]:
    return (vote.block_id, vote.parent_id, vote.parent_round)


def _certified(core: Core, block_id: bytes) -> bool:
    """Whether a QC of the block is already known here."""
    node = core.tree.get(block_id)
    return core.high_qc.block_id == block_id or (node is not None and node.qc is not None)
