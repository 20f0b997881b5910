"""Proof, for everyone and for ever, that a validator broke its word: two signed statements that no honest one makes both of.

An `Evidence` is checked from its bytes and the chain id alone. Whether the author was a validator of that epoch, still has
something at stake, and has not been punished already, is for the ledger to say.

What an honest validator never signs both of, in one epoch (each follows from the record of `consensus.safety`):

- two proposals, two votes, two commit votes or two timeouts of one round that say different things;
- a commit vote of round r, and a timeout of a round >= r that claims a high QC of a round < r: the commit vote locked r,
  and after the timeout it would have been refused;
- a vote of round r for a child of round p, and a timeout of a round >= r that claims less than p: likewise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeAlias

from consensus import crypto, fields
from consensus.codec import decode, encode
from consensus.errors import RemoteError
from consensus.types import (
    Block,
    CommitVote,
    Header,
    Timeout,
    Vote,
    commit_vote_from_obj,
    header_from_obj,
    header_id,
    timeout_from_obj,
    vote_from_obj,
)
from consensus.verify import commit_vote_message, proposal_message, timeout_message, vote_message

EVIDENCE_VERSION = 1
EVIDENCE_BYTES_MAX = 8 * 1024
"""Two headers with `PAYLOAD_DIGESTS_MAX` digests each are the longest, about 5.5 KiB."""


class InvalidEvidence(RemoteError):
    """Two statements that prove nothing: they agree, are not of one author and epoch, or are not signed."""


class OffenceKind(IntEnum):
    """What was done; the number is in the evidence's bytes."""

    TWO_PROPOSALS = 1
    TWO_VOTES = 2
    TWO_COMMIT_VOTES = 3
    TWO_TIMEOUTS = 4
    TIMEOUT_BELOW_COMMIT_VOTE = 5
    TIMEOUT_BELOW_VOTE = 6


@dataclass(frozen=True, slots=True)
class SignedHeader:
    """A proposal without what it carries: the leader signs the header's id."""

    header: Header
    signature: bytes

    def to_obj(self) -> tuple[Any, ...]:
        """Return the nested tuples to encode."""
        return (self.header.to_obj(), self.signature)


Statement: TypeAlias = SignedHeader | Vote | CommitVote | Timeout


@dataclass(frozen=True, slots=True)
class Offence:
    """What evidence proves.

    Attributes:
        author: consensus key that signed both.
        epoch: of both statements.
        round: of both statements; of the vote or commit vote where the other is a timeout.
        kind: which rule was broken.
    """

    author: bytes
    epoch: int
    round: int
    kind: OffenceKind


@dataclass(frozen=True, slots=True)
class Evidence:
    """Two statements: of one kind, ascending by their bytes, or a vote or commit vote and then a timeout."""

    first: Statement
    second: Statement

    def to_bytes(self) -> bytes:
        """Return canonical bytes: (version, kind, first, second)."""
        kind = _KIND_BY_TYPES.get((type(self.first), type(self.second)))
        if kind is None:
            raise ValueError("no offence consists of such statements")
        return encode((EVIDENCE_VERSION, int(kind), self.first.to_obj(), self.second.to_obj()))


def make_evidence(one: Statement, other: Statement) -> Evidence:
    """Return the two statements in their one order; whether they prove anything is `verify_evidence`'s to say."""
    if type(one) is type(other):
        first, second = sorted((one, other), key=lambda statement: encode(statement.to_obj()))
        return Evidence(first, second)
    return Evidence(other, one) if isinstance(one, Timeout) else Evidence(one, other)


def signed_header(block: Block) -> SignedHeader:
    """Return a proposal's part of evidence."""
    return SignedHeader(block.header, block.signature)


def evidence_from_bytes(data: bytes) -> Evidence:
    """Read `Evidence.to_bytes`; `CodecError` past `EVIDENCE_BYTES_MAX` or when malformed."""
    version, tag, first, second = fields.array(decode(data, EVIDENCE_BYTES_MAX), 4, "evidence")
    if type(version) is not int or version != EVIDENCE_VERSION:
        fields.fail("evidence: unknown version")
    if type(tag) is not int or tag not in _READERS_BY_KIND:
        fields.fail("evidence: unknown kind")
    read_first, read_second = _READERS_BY_KIND[OffenceKind(tag)]
    return Evidence(read_first(first), read_second(second))


def verify_evidence(chain_id: bytes, evidence: Evidence) -> Offence:
    """Return what the evidence proves about its author, whoever validates.

    Raises:
        InvalidEvidence: it proves nothing.
    """
    first, second = evidence.first, evidence.second
    kind = _KIND_BY_TYPES.get((type(first), type(second)))
    if kind is None:
        raise InvalidEvidence("evidence: no such offence")
    author, epoch, round_ = _who_and_when(first)
    if (author, epoch) != _who_and_when(second)[:2]:
        raise InvalidEvidence("evidence: not of one author and epoch")
    if isinstance(second, Timeout) and not isinstance(first, Timeout):
        conflict = _timeout_below(first, second)
    else:
        conflict = _two_of_a_round(first, second)
    if not conflict:
        raise InvalidEvidence("evidence: the statements do not contradict each other")
    for statement in (first, second):
        if isinstance(statement, SignedHeader) and statement.header.chain_id != chain_id:
            raise InvalidEvidence("evidence: another chain")
        if not crypto.verify(author, _message(chain_id, statement), statement.signature):
            raise InvalidEvidence("evidence: a bad signature")
    return Offence(author, epoch, round_, kind)


def _who_and_when(statement: Statement) -> tuple[bytes, int, int]:
    if isinstance(statement, SignedHeader):
        header = statement.header
        return header.proposer, header.epoch, header.round
    return statement.author, statement.epoch, statement.round


def _timeout_below(first: Statement, timeout: Timeout) -> bool:
    """Whether the timeout hides what the vote or commit vote had locked."""
    if isinstance(first, CommitVote):
        return timeout.round >= first.round > timeout.high_qc_round
    return (
        isinstance(first, Vote)
        and timeout.round >= first.round
        and timeout.high_qc_round < first.parent_round
    )


def _two_of_a_round(first: Statement, second: Statement) -> bool:
    """Whether two statements of one kind and round differ in what is signed; they must stand in their one order."""
    if _who_and_when(first) != _who_and_when(second):
        return False
    ordered = encode(first.to_obj()) < encode(second.to_obj())
    return ordered and _content(first) != _content(second)


def _content(statement: Statement) -> tuple[Any, ...]:
    """What the statement says, without its signature: there can be several good ones of the same words."""
    match statement:
        case SignedHeader(header=header):
            return (header_id(header),)
        case Vote():
            return (statement.block_id, statement.parent_id, statement.parent_round)
        case CommitVote():
            return (statement.block_id, statement.height)
        case Timeout():
            return (statement.high_qc_round,)


def _message(chain_id: bytes, statement: Statement) -> bytes:
    """The 32 bytes that the statement's author signed."""
    match statement:
        case SignedHeader(header=header):
            return proposal_message(chain_id, header.epoch, header.round, header_id(header))
        case Vote(epoch=epoch, round=round_, block_id=block_id, parent_id=parent_id):
            return vote_message(chain_id, epoch, round_, block_id, parent_id, statement.parent_round)
        case CommitVote(epoch=epoch, round=round_, block_id=block_id):
            return commit_vote_message(chain_id, epoch, round_, block_id, statement.height)
        case Timeout(epoch=epoch, round=round_):
            return timeout_message(chain_id, epoch, round_, statement.high_qc_round)


def _signed_header_from_obj(obj: Any) -> SignedHeader:
    header, signature = fields.array(obj, 2, "signed header")
    return SignedHeader(header_from_obj(header), fields.signature64(signature))


_Reader: TypeAlias = Callable[[Any], Statement]

_KIND_BY_TYPES: dict[tuple[type, type], OffenceKind] = {
    (SignedHeader, SignedHeader): OffenceKind.TWO_PROPOSALS,
    (Vote, Vote): OffenceKind.TWO_VOTES,
    (CommitVote, CommitVote): OffenceKind.TWO_COMMIT_VOTES,
    (Timeout, Timeout): OffenceKind.TWO_TIMEOUTS,
    (CommitVote, Timeout): OffenceKind.TIMEOUT_BELOW_COMMIT_VOTE,
    (Vote, Timeout): OffenceKind.TIMEOUT_BELOW_VOTE,
}
_READERS_BY_KIND: dict[OffenceKind, tuple[_Reader, _Reader]] = {
    OffenceKind.TWO_PROPOSALS: (_signed_header_from_obj, _signed_header_from_obj),
    OffenceKind.TWO_VOTES: (vote_from_obj, vote_from_obj),
    OffenceKind.TWO_COMMIT_VOTES: (commit_vote_from_obj, commit_vote_from_obj),
    OffenceKind.TWO_TIMEOUTS: (timeout_from_obj, timeout_from_obj),
    OffenceKind.TIMEOUT_BELOW_COMMIT_VOTE: (commit_vote_from_obj, timeout_from_obj),
    OffenceKind.TIMEOUT_BELOW_VOTE: (vote_from_obj, timeout_from_obj),
}
