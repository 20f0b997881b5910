"""What a daemon asks of its signer, and what it is answered: (version, kind, body) in canonical bytes.

One request at a time on a connection, each answered by one frame. Reading checks shape and limits alone; what a request
is worth is the safety rules' to say (`node.signer.custodian`), and a daemon holds each signature against what it asked for.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

from consensus import fields
from consensus.codec import decode, encode
from consensus.safety import RECORD_BYTES_MAX, ForeignSignature, SafetyRecord, record_from_bytes
from consensus.types import (
    CERTIFICATE_BYTES_MAX,
    PROOF_BYTES_MAX,
    QC,
    TC,
    Block,
    CommitVote,
    Handover,
    Header,
    SyncInfo,
    Timeout,
    Vote,
    block_from_obj,
    commit_vote_from_obj,
    handover_from_obj,
    header_from_obj,
    qc_from_obj,
    sync_info_from_obj,
    tc_from_obj,
    timeout_from_obj,
    vote_from_obj,
)
from consensus.validators import VALIDATORS_MAX, Validator, ValidatorSet

VERSION = 1
SET_BYTES_MAX = 32 * 1024
"""`VALIDATORS_MAX` validators of at most 90 bytes each, and what is around them."""
REQUEST_BYTES_MAX = PROOF_BYTES_MAX + SET_BYTES_MAX
"""The largest is an epoch's hand-over with the next set; a block or two certificates are smaller."""
ANSWER_BYTES_MAX = RECORD_BYTES_MAX + 3 * CERTIFICATE_BYTES_MAX
REASON_CHARACTERS_MAX = 200
FOREIGN_KINDS = ("vote", "commit vote", "timeout", "proposal")


@dataclass(frozen=True, slots=True)
class AskStatus:
    """Say who you are, and how far you have come."""


@dataclass(frozen=True, slots=True)
class AskVote:
    """Sign a vote for this block."""

    block: Block


@dataclass(frozen=True, slots=True)
class AskCommitVote:
    """Sign a commit vote for the block of `header`, certified by `qc`."""

    qc: QC
    header: Header


@dataclass(frozen=True, slots=True)
class AskTimeout:
    """Sign a timeout of a round that was reached through `high_qc` or `last_tc`."""

    round: int
    high_qc: QC
    last_tc: TC | None


@dataclass(frozen=True, slots=True)
class AskProposal:
    """Sign an own block."""

    header: Header


@dataclass(frozen=True, slots=True)
class AskForeign:
    """Say whether this is yours: a verified signature of the key that my copy of the record does not know."""

    found: ForeignSignature


@dataclass(frozen=True, slots=True)
class AskEpoch:
    """The epoch ended: here is the proof, and the set that it names."""

    handover: Handover
    validators: ValidatorSet


Request: TypeAlias = AskStatus | AskVote | AskCommitVote | AskTimeout | AskProposal | AskForeign | AskEpoch


@dataclass(frozen=True, slots=True)
class Status:
    """Who signs, and what it stands by.

    Attributes:
        public: 32-byte validator id.
        chain_id: 32 bytes.
        record: the safety record; its epoch is the signer's.
        certificates: the highest certificates that its signatures rely on; None before the first. Whoever asks for more
            signatures needs them: without them nothing can be signed that goes on from the record.
    """

    public: bytes
    chain_id: bytes
    record: SafetyRecord
    certificates: SyncInfo | None


@dataclass(frozen=True, slots=True)
class Signed:
    """The signature, or what carries it, and the record that is on the signer's disk by now."""

    item: Vote | CommitVote | tuple[Timeout, QC] | bytes
    record: SafetyRecord


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing was signed; `reason` is short. The record says how far the signer has come."""

    reason: str
    record: SafetyRecord


@dataclass(frozen=True, slots=True)
class Judged:
    """Whether the signature that was asked about was made without the signer; if so it signs nothing more."""

    foreign: bool
    record: SafetyRecord


Answer: TypeAlias = Status | Signed | Refused | Judged


def encode_request(request: Request) -> bytes:
    """Return a request's canonical bytes."""
    match request:
        case AskStatus():
            body: tuple[str, Any] = ("status", ())
        case AskVote(block):
            body = ("vote", (block.to_obj(),))
        case AskCommitVote(qc, header):
            body = ("commit vote", (qc.to_obj(), header.to_obj()))
        case AskTimeout(round_, qc, tc):
            body = ("timeout", (round_, qc.to_obj(), None if tc is None else tc.to_obj()))
        case AskProposal(header):
            body = ("proposal", (header.to_obj(),))
        case AskForeign(found):
            body = ("foreign", (found.kind, found.round, found.known_round))
        case AskEpoch(handover, validators):
            body = ("epoch", (handover.to_obj(), set_to_obj(validators)))
    return encode((VERSION, *body))


def decode_request(data: bytes) -> Request:
    """Read `encode_request`'s bytes; raises CodecError."""
    kind, body = _read(data, REQUEST_BYTES_MAX)
    match kind:
        case "status":
            fields.array(body, 0, "status")
            return AskStatus()
        case "vote":
            return AskVote(block_from_obj(fields.array(body, 1, "vote")[0]))
        case "commit vote":
            qc, header = fields.array(body, 2, "commit vote")
            return AskCommitVote(qc_from_obj(qc), header_from_obj(header))
        case "timeout":
            round_, qc, tc = fields.array(body, 3, "timeout")
            return AskTimeout(
                fields.uint(round_, "round"), qc_from_obj(qc), None if tc is None else tc_from_obj(tc)
            )
        case "proposal":
            return AskProposal(header_from_obj(fields.array(body, 1, "proposal")[0]))
        case "foreign":
            return AskForeign(_foreign_from_obj(body))
        case "epoch":
            handover, validators = fields.array(body, 2, "epoch")
            return AskEpoch(handover_from_obj(handover), set_from_obj(validators))
        case _:
            fields.fail("signer request: unknown kind")


def encode_answer(answer: Answer) -> bytes:
    """Return an answer's canonical bytes."""
    match answer:
        case Status():
            info = answer.certificates
            body: tuple[str, Any] = (
                "status",
                (
                    answer.public,
                    answer.chain_id,
                    answer.record.to_bytes(),
                    None if info is None else info.to_obj(),
                ),
            )
        case Signed(item, record):
            body = (_kind_of(item), (_item_to_obj(item), record.to_bytes()))
        case Refused(reason, record):
            body = ("refused", (reason[:REASON_CHARACTERS_MAX], record.to_bytes()))
        case Judged(foreign, record):
            body = ("judged", (foreign, record.to_bytes()))
    return encode((VERSION, *body))


def decode_answer(data: bytes) -> Answer:
    """Read `encode_answer`'s bytes; raises CodecError."""
    kind, body = _read(data, ANSWER_BYTES_MAX)
    if kind == "status":
        public, chain_id, record, info = fields.array(body, 4, "status")
        return Status(
            fields.hash32(public, "public key"),
            fields.hash32(chain_id, "chain id"),
            _record(record),
            None if info is None else sync_info_from_obj(info),
        )
    item, record = fields.array(body, 2, "answer")
    match kind:
        case "refused":
            if type(item) is not str or len(item) > REASON_CHARACTERS_MAX:
                fields.fail("reason: not a short text")
            return Refused(item, _record(record))
        case "judged":
            if type(item) is not bool:
                fields.fail("judged: neither true nor false")
            return Judged(item, _record(record))
        case "vote":
            return Signed(vote_from_obj(item), _record(record))
        case "commit vote":
            return Signed(commit_vote_from_obj(item), _record(record))
        case "timeout":
            timeout, qc = fields.array(item, 2, "timeout")
            return Signed((timeout_from_obj(timeout), qc_from_obj(qc)), _record(record))
        case "proposal":
            return Signed(fields.signature64(item), _record(record))
        case _:
            fields.fail("signer answer: unknown kind")


def set_to_obj(validators: ValidatorSet) -> tuple[Any, ...]:
    """Return a validator set's nested tuples."""
    rows = tuple((v.id, v.stake, v.beacon_anchor, v.leader_weight) for v in validators.validators)
    return (validators.epoch, rows, validators.seed)


def set_from_obj(obj: Any) -> ValidatorSet:
    """Read `set_to_obj`'s value; raises CodecError, also for what is no set."""
    epoch, rows, seed = fields.array(obj, 3, "validator set")
    validators = []
    for row in fields.array_upto(rows, VALIDATORS_MAX, "validators"):
        key, stake, anchor, weight = fields.array(row, 4, "validator")
        validators.append(
            Validator(
                fields.hash32(key, "validator id"),
                fields.uint(stake, "stake"),
                fields.hash32(anchor, "beacon anchor"),
                fields.uint(weight, "leader weight"),
            )
        )
    try:
        return ValidatorSet(
            fields.uint(epoch, "epoch"), tuple(validators), fields.hash32(seed, "leaders' seed")
        )
    except ValueError as error:
        fields.fail(f"validator set: {error}")


def _read(data: bytes, bytes_max: int) -> tuple[Any, Any]:
    version, kind, body = fields.array(decode(data, bytes_max), 3, "signer frame")
    if type(version) is not int or version != VERSION:
        fields.fail("signer frame: unknown version")
    return kind, body


def _foreign_from_obj(body: Any) -> ForeignSignature:
    kind, round_, known = fields.array(body, 3, "foreign signature")
    if type(kind) is not str or kind not in FOREIGN_KINDS:
        fields.fail("foreign signature: unknown kind")
    return ForeignSignature(kind, fields.uint(round_, "round"), fields.uint(known, "known round"))


def _record(item: Any) -> SafetyRecord:
    if type(item) is not bytes:
        fields.fail("safety record: not bytes")
    return record_from_bytes(item)


def _kind_of(item: Vote | CommitVote | tuple[Timeout, QC] | bytes) -> str:
    match item:
        case Vote():
            return "vote"
        case CommitVote():
            return "commit vote"
        case bytes():
            return "proposal"
        case _:
            return "timeout"


def _item_to_obj(item: Vote | CommitVote | tuple[Timeout, QC] | bytes) -> Any:
    match item:
        case Vote() | CommitVote():
            return item.to_obj()
        case bytes():
            return item
        case (timeout, qc):
            return (timeout.to_obj(), qc.to_obj())
