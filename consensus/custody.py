"""Notices that somebody else signs with this validator's key.

A validator's record is written before a signature leaves, so no signature of ours can be of a later round than the record
says, nor of the record's round for another statement. One that is, verified, proves that a second process holds the key,
or that this one continues from an old copy of its disk; going on would contradict what is already said in our name.
A record that is kept elsewhere (`Signer`) is here as a copy that may lag: what it does not know, the signer is asked about.
Nothing here changes what the replica does: its driver asks (`Replica.foreign_signature`) before it performs effects.
"""

from consensus.core import Core
from consensus.safety import ForeignSignature, SafetyRecord
from consensus.types import QC, TC, Block, CommitCertificate, CommitVote, Timeout, Vote


def notice_qc(core: Core, qc: QC) -> None:
    """Look for our vote in a verified QC."""
    record = _record(core)
    if record is not None and any(index == core.me for index, _ in qc.signatures):
        _compare_vote(core, record, qc.round, qc.block_id)


def notice_cc(core: Core, cc: CommitCertificate) -> None:
    """Look for our commit vote in a verified CC."""
    record = _record(core)
    if record is not None and any(index == core.me for index, _ in cc.signatures):
        _compare_commit_vote(core, record, cc.round, cc.block_id)


def notice_tc(core: Core, tc: TC) -> None:
    """Look for our timeout in a verified TC."""
    record = _record(core)
    if record is None:
        return
    for index, high_qc_round, _ in tc.entries:
        if index == core.me:
            _compare_timeout(core, record, tc.round, high_qc_round)


def notice_statement(core: Core, author: int, statement: Vote | CommitVote | Timeout) -> None:
    """Look at a verified statement that came on its own."""
    record = _record(core)
    if record is None or author != core.me:
        return
    match statement:
        case Vote():
            _compare_vote(core, record, statement.round, statement.block_id)
        case CommitVote():
            _compare_commit_vote(core, record, statement.round, statement.block_id)
        case Timeout():
            _compare_timeout(core, record, statement.round, statement.high_qc_round)


def notice_block(core: Core, block: Block) -> None:
    """Look at the proposer of a verified block, and at the certificates it carries."""
    notice_qc(core, block.qc)
    if block.tc is not None:
        notice_tc(core, block.tc)
    record = _record(core)
    if record is None or core.safety is None or block.header.proposer != core.safety.public:
        return
    if block.round > record.last_proposed:
        _found(core, ForeignSignature("proposal", block.round, record.last_proposed))


def _record(core: Core) -> SafetyRecord | None:
    """The record to compare with; None for an observer, or once something was found."""
    return None if core.safety is None or core.foreign is not None else core.safety.record


def _compare_vote(core: Core, record: SafetyRecord, round_: int, block_id: bytes) -> None:
    last = record.last_vote
    known = (0, b"") if last is None else (last.round, last.block_id)
    _compare(core, "vote", (round_, block_id), known)


def _compare_commit_vote(core: Core, record: SafetyRecord, round_: int, block_id: bytes) -> None:
    last = record.last_commit_vote
    known = (0, b"") if last is None else (last.round, last.block_id)
    _compare(core, "commit vote", (round_, block_id), known)


def _compare_timeout(core: Core, record: SafetyRecord, round_: int, high_qc_round: int) -> None:
    last = record.last_timeout
    known = (0, 0) if last is None else (last.round, last.high_qc_round)
    _compare(core, "timeout", (round_, high_qc_round), known)


def _compare(core: Core, kind: str, seen: tuple[int, bytes | int], known: tuple[int, bytes | int]) -> None:
    # Rounds only rise from signature to signature: of earlier ones the record no longer knows what was signed.
    if seen[0] > known[0] or (seen[0] == known[0] and seen[1] != known[1]):
        _found(core, ForeignSignature(kind, seen[0], known[0]))


def _found(core: Core, found: ForeignSignature) -> None:
    """Believe it once the signer says so: our copy of a record that is kept elsewhere may lag."""
    if core.safety is not None and core.safety.disowns(found):
        core.foreign = found
