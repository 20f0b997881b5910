"""What validators send each other: (version, kind, body) in canonical bytes.

`encode_message` and `decode_message` are the whole wire codec. Decoding checks shape and limits only; the
replica verifies every signature and certificate before it uses one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from consensus import fields
from consensus.codec import decode, encode
from consensus.types import (
    QC,
    TC,
    Block,
    CommitCertificate,
    CommitVote,
    Handover,
    SyncInfo,
    Timeout,
    Vote,
    block_from_obj,
    cc_from_obj,
    commit_vote_from_obj,
    handover_from_obj,
    qc_from_obj,
    sync_info_from_obj,
    tc_from_obj,
    timeout_from_obj,
    vote_from_obj,
)

WIRE_VERSION = 1
MESSAGE_BYTES_MAX = 1 << 20
BLOCKS_PER_MESSAGE_MAX = 16
"""Blocks in one `BlocksMessage`; 16 of the largest fit into `MESSAGE_BYTES_MAX`."""


@dataclass(frozen=True, slots=True)
class ProposalMessage:
    """A leader's block, with the highest commit certificate it knows."""

    block: Block
    high_cc: CommitCertificate | None

    def to_obj(self) -> tuple[Any, ...]:
        """Return the nested tuples to encode."""
        return (self.block.to_obj(), None if self.high_cc is None else self.high_cc.to_obj())


@dataclass(frozen=True, slots=True)
class VoteMessage:
    """One vote."""

    vote: Vote

    def to_obj(self) -> tuple[Any, ...]:
        """Return the nested tuples to encode."""
        return (self.vote.to_obj(),)


@dataclass(frozen=True, slots=True)
class CommitVoteMessage:
    """One commit vote with the QC that justifies it."""

    commit_vote: CommitVote
    qc: QC

    def to_obj(self) -> tuple[Any, ...]:
        """Return the nested tuples to encode."""
        return (self.commit_vote.to_obj(), self.qc.to_obj())


@dataclass(frozen=True, slots=True)
class TimeoutMessage:
    """One timeout, the QC whose round it signed, and the sender's last TC and highest CC."""

    timeout: Timeout
    high_qc: QC
    last_tc: TC | None
    high_cc: CommitCertificate | None

    def to_obj(self) -> tuple[Any, ...]:
        """Return the nested tuples to encode."""
        tc = None if self.last_tc is None else self.last_tc.to_obj()
        cc = None if self.high_cc is None else self.high_cc.to_obj()
        return (self.timeout.to_obj(), self.high_qc.to_obj(), tc, cc)


@dataclass(frozen=True, slots=True)
class SyncMessage:
    """Certificates alone: a TC forwarded to the next leader, or help for a node that lags."""

    info: SyncInfo

    def to_obj(self) -> tuple[Any, ...]:
        """Return the nested tuples to encode."""
        return self.info.to_obj()


@dataclass(frozen=True, slots=True)
class BlocksMessage:
    """Answer to a block request: the block asked for and some of its ancestors, oldest first."""

    blocks: tuple[Block, ...]

    def to_obj(self) -> tuple[Any, ...]:
        """Return the nested tuples to encode."""
        return (tuple(block.to_obj() for block in self.blocks),)


@dataclass(frozen=True, slots=True)
class HandoverMessage:
    """Help for a node of an epoch that has ended: how it ended."""

    handover: Handover

    def to_obj(self) -> tuple[Any, ...]:
        """Return the nested tuples to encode."""
        return self.handover.to_obj()


Message: TypeAlias = (
    ProposalMessage
    | VoteMessage
    | CommitVoteMessage
    | TimeoutMessage
    | SyncMessage
    | BlocksMessage
    | HandoverMessage
)


def _proposal(obj: Any) -> ProposalMessage:
    block, cc = fields.array(obj, 2, "proposal message")
    return ProposalMessage(block_from_obj(block), None if cc is None else cc_from_obj(cc))


def _vote(obj: Any) -> VoteMessage:
    (vote,) = fields.array(obj, 1, "vote message")
    return VoteMessage(vote_from_obj(vote))


def _commit_vote(obj: Any) -> CommitVoteMessage:
    vote, qc = fields.array(obj, 2, "commit vote message")
    return CommitVoteMessage(commit_vote_from_obj(vote), qc_from_obj(qc))


def _timeout(obj: Any) -> TimeoutMessage:
    timeout, qc, tc, cc = fields.array(obj, 4, "timeout message")
    return TimeoutMessage(
        timeout_from_obj(timeout),
        qc_from_obj(qc),
        None if tc is None else tc_from_obj(tc),
        None if cc is None else cc_from_obj(cc),
    )


def _sync(obj: Any) -> SyncMessage:
    return SyncMessage(sync_info_from_obj(obj))


def _blocks(obj: Any) -> BlocksMessage:
    (blocks,) = fields.array(obj, 1, "blocks message")
    items = fields.array_upto(blocks, BLOCKS_PER_MESSAGE_MAX, "blocks")
    return BlocksMessage(tuple(block_from_obj(item) for item in items))


def _handover(obj: Any) -> HandoverMessage:
    return HandoverMessage(handover_from_obj(obj))


_KINDS: tuple[tuple[int, type, Callable[[Any], Message]], ...] = (
    (1, ProposalMessage, _proposal),
    (2, VoteMessage, _vote),
    (3, CommitVoteMessage, _commit_vote),
    (4, TimeoutMessage, _timeout),
    (5, SyncMessage, _sync),
    (6, BlocksMessage, _blocks),
    (7, HandoverMessage, _handover),
)
_TAG_BY_TYPE = {kind: tag for tag, kind, _ in _KINDS}
_READER_BY_TAG = {tag: reader for tag, _, reader in _KINDS}


def message_epoch(message: Message) -> int | None:
    """Return the epoch a message belongs to; None for blocks, which are taken only where asked for by id."""
    match message:
        case ProposalMessage(block=block):
            return block.header.epoch
        case VoteMessage(vote=vote):
            return vote.epoch
        case CommitVoteMessage(commit_vote=commit_vote):
            return commit_vote.epoch
        case TimeoutMessage(timeout=timeout):
            return timeout.epoch
        case SyncMessage(info=info):
            return info.high_qc.epoch
        case HandoverMessage(handover=handover):
            return handover.epoch
        case BlocksMessage():
            return None


def encode_message(message: Message) -> bytes:
    """Return a message's canonical bytes."""
    return encode((WIRE_VERSION, _TAG_BY_TYPE[type(message)], message.to_obj()))


def decode_message(data: bytes) -> Message:
    """Read `encode_message`'s bytes.

    Raises:
        CodecError: longer than `MESSAGE_BYTES_MAX`, not canonical, of an unknown version or kind, or malformed.
    """
    version, tag, body = fields.array(decode(data, MESSAGE_BYTES_MAX), 3, "message")
    if type(version) is not int or version != WIRE_VERSION:
        fields.fail("message: unknown version")
    if type(tag) is not int or tag not in _READER_BY_TAG:
        fields.fail("message: unknown kind")
    return _READER_BY_TAG[tag](body)
