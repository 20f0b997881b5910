"""Looks for validators that contradict themselves, among the verified statements that are kept anyway.

What is found is reported once for each author, round and offence, with evidence that convinces anybody
(`consensus.evidence`). Nothing here changes what is counted.
"""

from consensus.core import Core, remember
from consensus.evidence import Offence, Statement, make_evidence, signed_header, verify_evidence
from consensus.types import QC, TC, Block, CommitCertificate, CommitVote, Timeout, Vote

ACCUSED_MAX = 512
"""Offences remembered as reported; past it the oldest is forgotten, and reported again if it is met again."""


def contradicts(core: Core, one: Statement, other: Statement, reason: str) -> None:
    """Report the author of two verified statements that exclude each other, once."""
    evidence = make_evidence(one, other)
    offence = verify_evidence(core.context.chain_id, evidence)
    key = _key(offence)
    if key not in core.accused:
        remember(core.accused, key, ACCUSED_MAX)
        core.accuse(offence.author, reason, evidence.to_bytes())


def two_proposals(core: Core, earlier: Block, block: Block) -> None:
    """Report the leader who proposed twice in a round."""
    contradicts(core, signed_header(earlier), signed_header(block), "two proposals in a round")


def watch_timeout(core: Core, author: int, timeout: Timeout) -> None:
    """Compare a timeout with what its author voted and commit-voted for up to its round."""
    for commit_vote in core.commit_votes.of(author):
        if timeout.round >= commit_vote.round > timeout.high_qc_round:
            contradicts(core, commit_vote, timeout, "timeout hides a commit vote")
    for vote in core.votes.of(author):
        if timeout.round >= vote.round and vote.parent_round > timeout.high_qc_round:
            contradicts(core, vote, timeout, "timeout hides a vote")


def watch_vote(core: Core, author: int, vote: Vote | CommitVote) -> None:
    """Compare a vote or commit vote with its author's timeouts of open rounds."""
    locked = vote.round if isinstance(vote, CommitVote) else vote.parent_round
    reason = "timeout hides a commit vote" if isinstance(vote, CommitVote) else "timeout hides a vote"
    for message in core.timeouts.of(author):
        if message.timeout.round >= vote.round and message.timeout.high_qc_round < locked:
            contradicts(core, vote, message.timeout, reason)


def watch_qc(core: Core, qc: QC) -> None:
    """Compare the votes in a verified QC with those that came here: who told each half its own story is caught so."""
    for index, signature in qc.signatures:
        came = core.votes.get(qc.round, index)
        if came is None or came.signature == signature:
            continue
        if (came.block_id, came.parent_id, came.parent_round) != (qc.block_id, qc.parent_id, qc.parent_round):
            author = core.context.validators.validators[index].id
            certified = Vote(
                qc.epoch, qc.round, qc.block_id, qc.parent_id, qc.parent_round, author, signature
            )
            contradicts(core, came, certified, "two votes in a round")


def watch_cc(core: Core, cc: CommitCertificate) -> None:
    """Likewise for the commit votes in a verified CC."""
    for index, signature in cc.signatures:
        came = core.commit_votes.get(cc.round, index)
        if came is None or came.signature == signature:
            continue
        if (came.block_id, came.height) != (cc.block_id, cc.height):
            author = core.context.validators.validators[index].id
            certified = CommitVote(cc.epoch, cc.round, cc.block_id, cc.height, author, signature)
            contradicts(core, came, certified, "two commit votes in a round")


def watch_tc(core: Core, tc: TC) -> None:
    """Likewise for the timeouts in a verified TC."""
    for index, high_qc_round, signature in tc.entries:
        came = core.timeouts.get(tc.round, index)
        if came is not None and came.timeout.high_qc_round != high_qc_round:
            author = core.context.validators.validators[index].id
            certified = Timeout(tc.epoch, tc.round, high_qc_round, author, signature)
            contradicts(core, came.timeout, certified, "two timeouts in a round")


def _key(offence: Offence) -> bytes:
    return offence.author + bytes([offence.kind]) + offence.round.to_bytes(8, "big")
