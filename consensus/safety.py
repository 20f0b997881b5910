"""The safety rules: the only code that signs, and the record that makes it keep its word after a crash.

Each method checks its rule, signs, and advances the record. The caller must persist `record` (fsync) before any
signature leaves; the replica's `Persist` effect, which comes before `Send`, does that. Rules from Jolteon (arXiv
2106.10362, figure 2, "safety rules"), commit votes after Commit Moonshot (arXiv 2401.01791, section 5).

Why it is safe: let CC(r) exist for B. Any TC for a round >= r shares an honest validator with it, who commit-voted
before it timed out there (a commit vote after such a timeout is refused), hence with lock >= r, hence its timeout
carries a QC of round >= r. Every proposal that skips a round must extend at least that QC. By induction over rounds
all certified blocks above r descend from B.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol

from consensus import crypto, fields
from consensus.codec import decode, encode
from consensus.errors import LocalError, SafetyRefusal
from consensus.types import (
    QC,
    TC,
    Block,
    CommitVote,
    Header,
    Timeout,
    Vote,
    commit_vote_from_obj,
    header_id,
    qc_from_obj,
    timeout_from_obj,
    vote_from_obj,
)
from consensus.verify import (
    Context,
    commit_vote_message,
    proposal_message,
    timeout_message,
    verify_qc,
    verify_tc,
    vote_message,
)

RECORD_VERSION = 1
RECORD_BYTES_MAX = 64 * 1024


@dataclass(frozen=True, slots=True)
class SafetyRecord:
    """Everything that must survive a crash for the validator never to contradict itself.

    Attributes:
        epoch: epoch the other fields belong to.
        last_voted: highest round voted or timed out in.
        lock: highest QC round seen when voting or commit-voting.
        highest_timeout: highest round timed out of.
        last_proposed: highest round proposed in.
        last_vote: the last vote, to repeat instead of signing another.
        last_commit_vote: the last commit vote.
        last_timeout: the last timeout.
        last_timeout_qc: the QC whose round the last timeout signed; a repeat must carry it.
    """

    epoch: int
    last_voted: int = 0
    lock: int = 0
    highest_timeout: int = 0
    last_proposed: int = 0
    last_vote: Vote | None = None
    last_commit_vote: CommitVote | None = None
    last_timeout: Timeout | None = None
    last_timeout_qc: QC | None = None

    def to_bytes(self) -> bytes:
        """Return canonical bytes, version first."""
        signed = (self.last_vote, self.last_commit_vote, self.last_timeout, self.last_timeout_qc)
        return encode(
            (
                RECORD_VERSION,
                self.epoch,
                self.last_voted,
                self.lock,
                self.highest_timeout,
                self.last_proposed,
                *(None if item is None else item.to_obj() for item in signed),
            )
        )


def record_from_bytes(data: bytes) -> SafetyRecord:
    """Read `SafetyRecord.to_bytes`; `CodecError` when damaged: then the validator must not sign at all."""
    items = fields.array(decode(data, RECORD_BYTES_MAX), 10, "safety record")
    if type(items[0]) is not int or items[0] != RECORD_VERSION:
        fields.fail("safety record: unknown version")

    def optional(item: Any, read: Any) -> Any:
        return None if item is None else read(item)

    return SafetyRecord(
        epoch=fields.uint(items[1], "epoch"),
        last_voted=fields.uint(items[2], "last voted"),
        lock=fields.uint(items[3], "lock"),
        highest_timeout=fields.uint(items[4], "highest timeout"),
        last_proposed=fields.uint(items[5], "last proposed"),
        last_vote=optional(items[6], vote_from_obj),
        last_commit_vote=optional(items[7], commit_vote_from_obj),
        last_timeout=optional(items[8], timeout_from_obj),
        last_timeout_qc=optional(items[9], qc_from_obj),
    )


@dataclass(frozen=True, slots=True)
class ForeignSignature:
    """A verified signature of our key that we did not make.

    Attributes:
        kind: "vote", "commit vote", "timeout" or "proposal".
        round: what it speaks of.
        known_round: the latest round for which our record knows a signature of that kind; 0 for none.
    """

    kind: str
    round: int
    known_round: int


class Signer(Protocol):
    """What a replica asks for signatures: `SafetyRules` here, or something that speaks with it in another process.

    Each method signs or raises `SafetyRefusal`, and then `record` is what must be on disk before the signature leaves.
    Anything else that it raises ends the replica.
    """

    @property
    def public(self) -> bytes:
        """The validator id."""

    @property
    def record(self) -> SafetyRecord:
        """What it remembers, of this epoch."""

    def sign_vote(self, block: Block) -> Vote:
        """Sign a vote, or return the last one if it was this one."""

    def sign_commit_vote(self, qc: QC, header: Header) -> CommitVote:
        """Sign a commit vote, or return the last one if it was this one."""

    def sign_timeout(self, round_: int, high_qc: QC, last_tc: TC | None) -> tuple[Timeout, QC]:
        """Sign a timeout, or return the last one if it was of this round; with the QC it signed for."""

    def sign_proposal(self, header: Header) -> bytes:
        """Return the signature of an own block."""

    def disowns(self, found: ForeignSignature) -> bool:
        """Whether a signature that `record` does not know was certainly made by somebody else."""


class SafetyRules:
    """Holds the key. Refuses with `SafetyRefusal`; verifies the certificates it relies on itself.

    Args:
        seed: 32-byte Ed25519 secret of a validator of the context's set.
        context: chain, epoch, validators.
        record: the stored record, or None for a key that has never signed. One of an earlier epoch is done with: a fresh
            one takes its place, and is on disk before the first signature of this epoch like any other.

    Raises:
        LocalError: the key is not in the validator set, or the record is of a later epoch: this replica is out of date, and
            what it would sign is nobody's business any more.
    """

    __slots__ = ("_context", "_seed", "public", "record")

    def __init__(self, seed: bytes, context: Context, record: SafetyRecord | None = None) -> None:
        self._seed = seed
        self._context = context
        self.public = crypto.public_key(seed)
        fresh = record is None or record.epoch < context.epoch
        self.record = SafetyRecord(context.epoch) if record is None or fresh else record
        if context.validators.index_of(self.public) is None:
            raise LocalError("the signing key is not a validator's")
        if self.record.epoch != context.epoch:
            raise LocalError("the safety record belongs to a later epoch")

    def sign_vote(self, block: Block) -> Vote:
        """Sign a vote for a proposal, or return the same vote if it was the last one signed.

        Rule: round > last_voted, and the proposal follows its QC directly or is permitted by its TC.
        """
        header, qc, tc, record = block.header, block.qc, block.tc, self.record
        last = record.last_vote
        if last is not None and last.round == header.round and last.block_id == block.id:
            return last
        self._require(header.epoch == record.epoch, "proposal of another epoch")
        self._require(header.round > record.last_voted, "already voted or timed out at this round or above")
        self._require(header.parent == qc.block_id and qc.round < header.round, "parent is not certified")
        verify_qc(self._context, qc)
        if header.round != qc.round + 1:
            self._require(tc is not None and tc.round + 1 == header.round, "skips rounds without a TC")
            if tc is not None:
                verify_tc(self._context, tc)
                self._require(qc.round >= tc.max_high_qc_round, "extends less than the TC's highest QC")
        message = vote_message(
            self._context.chain_id, header.epoch, header.round, block.id, qc.block_id, qc.round
        )
        vote = Vote(
            header.epoch, header.round, block.id, qc.block_id, qc.round, self.public, self._sign(message)
        )
        self.record = replace(
            record, last_voted=header.round, lock=max(record.lock, qc.round), last_vote=vote
        )
        return vote

    def sign_commit_vote(self, qc: QC, header: Header) -> CommitVote:
        """Sign a commit vote for the block `header`, certified by `qc`, or return the same one again.

        Rule: round > highest_timeout. Rounds only rise, so that one stored vote is enough to never sign two.
        """
        record = self.record
        block_id = header_id(header)
        last = record.last_commit_vote
        if last is not None and last.round == qc.round and last.block_id == block_id:
            return last
        self._require(qc.epoch == record.epoch, "QC of another epoch")
        self._require(qc.block_id == block_id and qc.round == header.round, "QC is of another block")
        self._require(qc.round > record.highest_timeout, "timed out at this round or above")
        self._require(last is None or qc.round > last.round, "commit-voted at this round or above")
        verify_qc(self._context, qc)
        message = commit_vote_message(self._context.chain_id, qc.epoch, qc.round, block_id, header.height)
        vote = CommitVote(qc.epoch, qc.round, block_id, header.height, self.public, self._sign(message))
        self.record = replace(record, lock=max(record.lock, qc.round), last_commit_vote=vote)
        return vote

    def sign_timeout(self, round_: int, high_qc: QC, last_tc: TC | None) -> tuple[Timeout, QC]:
        """Sign a timeout of `round_`, or return the last one if it was for this round; with the QC it signed for.

        Rule: high_qc.round >= lock, round >= last_voted, round > high_qc.round, and the round was reached through
        the QC or the TC.
        """
        record = self.record
        last, last_qc = record.last_timeout, record.last_timeout_qc
        if last is not None and last_qc is not None and last.round == round_:
            return last, last_qc
        self._require(high_qc.epoch == record.epoch, "QC of another epoch")
        self._require(high_qc.round >= record.lock, "high QC is below the lock")
        self._require(round_ >= record.last_voted, "voted or timed out above this round")
        self._require(round_ > record.highest_timeout, "timed out above this round")
        self._require(round_ > high_qc.round, "the round is certified")
        verify_qc(self._context, high_qc)
        if round_ != high_qc.round + 1:
            self._require(last_tc is not None and last_tc.round + 1 == round_, "round was not reached")
            if last_tc is not None:
                verify_tc(self._context, last_tc)
        message = timeout_message(self._context.chain_id, record.epoch, round_, high_qc.round)
        timeout = Timeout(record.epoch, round_, high_qc.round, self.public, self._sign(message))
        self.record = replace(
            record,
            last_voted=max(record.last_voted, round_),
            highest_timeout=max(record.highest_timeout, round_),
            last_timeout=timeout,
            last_timeout_qc=high_qc,
        )
        return timeout, high_qc

    def sign_proposal(self, header: Header) -> bytes:
        """Return the signature of an own block; one per round, rounds only rise."""
        record = self.record
        self._require(header.epoch == record.epoch, "proposal of another epoch")
        self._require(header.proposer == self.public, "proposal in another name")
        self._require(header.round > record.last_proposed, "already proposed at this round or above")
        message = proposal_message(self._context.chain_id, header.epoch, header.round, header_id(header))
        signature = self._sign(message)
        self.record = replace(record, last_proposed=header.round)
        return signature

    def disowns(self, found: ForeignSignature) -> bool:
        """Always: every signature is made here, and is in the record before it leaves."""
        return True

    def _sign(self, message: bytes) -> bytes:
        return crypto.sign(self._seed, message)

    @staticmethod
    def _require(condition: bool, reason: str) -> None:
        if not condition:
            raise SafetyRefusal(reason)
