"""What is signed, what certifies it, and blocks; each with canonical bytes.

Every `to_obj` gives nested tuples for `codec.encode`; every `*_from_obj` reads the decoded lists back, checks
shape and limits, and raises `CodecError`. Nothing here checks a signature: that is `consensus.verify`.
Certificates name signers by index into the epoch's `ValidatorSet`, strictly ascending, so no signer appears twice.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from consensus import fields
from consensus.codec import decode, encode
from consensus.crypto import SIGNATURE_BYTES
from consensus.digest import ZERO32, digest
from consensus.errors import CodecError
from consensus.validators import VALIDATORS_MAX

HEADER_VERSION = 2
STORED_VERSION = 1
PAYLOAD_DIGESTS_MAX = 64
BLOCK_BYTES_MAX = 64 * 1024
CERTIFICATE_BYTES_MAX = 48 * 1024
HANDOVER_HEADERS_MAX = 512
"""Headers in a `Handover`, the boundary's included. More need as many rounds that ended in a certificate and failed next."""
PROOF_BYTES_MAX = 256 * 1024
"""A `Handover` of `HANDOVER_HEADERS_MAX` headers, of which only the boundary names batches, and its two certificates."""

Signatures: TypeAlias = tuple[tuple[int, bytes], ...]
"""(validator index, 64-byte signature), strictly ascending by index."""


@dataclass(frozen=True, slots=True)
class Vote:
    """A vote for a block: `author`'s signature over (epoch, round, block, parent, parent_round)."""

    epoch: int
    round: int
    block_id: bytes
    parent_id: bytes
    parent_round: int
    author: bytes
    signature: bytes

    def to_obj(self) -> tuple[Any, ...]:
        """Return the nested tuples to encode."""
        return (
            self.epoch,
            self.round,
            self.block_id,
            self.parent_id,
            self.parent_round,
            self.author,
            self.signature,
        )


@dataclass(frozen=True, slots=True)
class CommitVote:
    """A promise that `block` is certified and locked: signature over (epoch, round, block, height)."""

    epoch: int
    round: int
    block_id: bytes
    height: int
    author: bytes
    signature: bytes

    def to_obj(self) -> tuple[Any, ...]:
        """Return the nested tuples to encode."""
        return (self.epoch, self.round, self.block_id, self.height, self.author, self.signature)


@dataclass(frozen=True, slots=True)
class Timeout:
    """A declaration that the round failed: signature over (epoch, round, high_qc_round)."""

    epoch: int
    round: int
    high_qc_round: int
    author: bytes
    signature: bytes

    def to_obj(self) -> tuple[Any, ...]:
        """Return the nested tuples to encode."""
        return (self.epoch, self.round, self.high_qc_round, self.author, self.signature)


@dataclass(frozen=True, slots=True)
class QC:
    """Quorum certificate: more than two thirds of the stake voted for the block.

    The genesis QC (round 0, no signatures) is valid by definition.
    """

    epoch: int
    round: int
    block_id: bytes
    parent_id: bytes
    parent_round: int
    signatures: Signatures

    def to_obj(self) -> tuple[Any, ...]:
        """Return the nested tuples to encode."""
        return (self.epoch, self.round, self.block_id, self.parent_id, self.parent_round, self.signatures)


@dataclass(frozen=True, slots=True)
class CommitCertificate:
    """CC: more than two thirds of the stake commit-voted; the block and all its ancestors are final."""

    epoch: int
    round: int
    block_id: bytes
    height: int
    signatures: Signatures

    def to_obj(self) -> tuple[Any, ...]:
        """Return the nested tuples to encode."""
        return (self.epoch, self.round, self.block_id, self.height, self.signatures)


@dataclass(frozen=True, slots=True)
class TwoChain:
    """The other proof of finality: QCs of a block and of its child in the very next round."""

    qc: QC
    child_qc: QC

    def to_obj(self) -> tuple[Any, ...]:
        """Return the nested tuples to encode."""
        return (self.qc.to_obj(), self.child_qc.to_obj())


@dataclass(frozen=True, slots=True)
class TC:
    """Timeout certificate: more than two thirds of the stake timed out of `round`.

    Attributes:
        entries: (validator index, the high QC round that validator signed, signature), ascending by index.
        high_qc: the QC whose round is the largest signed one.
    """

    epoch: int
    round: int
    entries: tuple[tuple[int, int, bytes], ...]
    high_qc: QC

    @property
    def max_high_qc_round(self) -> int:
        """The largest high QC round any signer claimed."""
        return max((entry[1] for entry in self.entries), default=0)

    def to_obj(self) -> tuple[Any, ...]:
        """Return the nested tuples to encode."""
        return (self.epoch, self.round, self.entries, self.high_qc.to_obj())


@dataclass(frozen=True, slots=True)
class Header:
    """What a block's id covers.

    Attributes:
        chain_id: 32-byte genesis hash.
        epoch: epoch of the validator set that votes on it.
        round: round it was proposed in; genesis 0.
        height: parent's height + 1; genesis 0.
        parent: id of the block its QC certifies.
        proposer: validator id of the round's leader.
        timestamp_ms: Unix milliseconds, above the parent's.
        payload: digests of transaction batches, in order, at most `PAYLOAD_DIGESTS_MAX`, each once.
        beacon_reveal: next preimage of the proposer's hash chain.
        executed_height: e; the proposer's ledger had executed the committed block at this height.
        state_digest: ledger digest after the block at height e.
        receipts_accumulator: root over all receipt roots up to height e.
        next_validators_hash: empty, or the next set's hash in an epoch's last block.
        snapshot_root: empty, or the Merkle root of the latest snapshot known after the block at height e.
    """

    chain_id: bytes
    epoch: int
    round: int
    height: int
    parent: bytes
    proposer: bytes
    timestamp_ms: int
    payload: tuple[bytes, ...]
    beacon_reveal: bytes
    executed_height: int
    state_digest: bytes
    receipts_accumulator: bytes
    next_validators_hash: bytes = b""
    snapshot_root: bytes = b""

    def to_obj(self) -> tuple[Any, ...]:
        """Return the nested tuples to encode."""
        return (
            HEADER_VERSION,
            self.chain_id,
            self.epoch,
            self.round,
            self.height,
            self.parent,
            self.proposer,
            self.timestamp_ms,
            self.payload,
            self.beacon_reveal,
            self.executed_height,
            self.state_digest,
            self.receipts_accumulator,
            self.next_validators_hash,
            self.snapshot_root,
        )


def header_id(header: Header) -> bytes:
    """Return the block id: the 32-byte digest of the header under its chain id."""
    return digest("header", encode(header.to_obj()), header.chain_id)


def is_boundary(header: Header) -> bool:
    """Whether the block ends its epoch. The synthetic root of an epoch, of round 0, names its own set and ends nothing."""
    return header.next_validators_hash != b"" and header.round > 0


@dataclass(frozen=True, slots=True)
class Handover:
    """Proof that an epoch ended with a boundary block, for a light client and for nodes that lag.

    Attributes:
        headers: the boundary's header, then those of its descendants down to the one that `proof` proves.
        proof: finality of the last header, and through it of the boundary.
    """

    headers: tuple[Header, ...]
    proof: "CommitCertificate | TwoChain"

    @property
    def epoch(self) -> int:
        """The epoch that ended."""
        return self.headers[0].epoch

    def to_obj(self) -> tuple[Any, ...]:
        """Return the nested tuples to encode."""
        return (tuple(header.to_obj() for header in self.headers), proof_to_obj(self.proof))


CommitProof: TypeAlias = CommitCertificate | TwoChain | Handover
"""Proof that a block, and with it every ancestor, is final; a `Handover` proves its first header's block."""


@dataclass(frozen=True, slots=True)
class Block:
    """A proposal: header, the QC of its parent, the TC that permits a skipped round, the leader's signature.

    `id` and `encoded` are computed from the rest. The id does not cover `qc`, `tc` and `signature`: it covers the
    parent, which any QC of that parent proves.
    """

    header: Header
    qc: QC
    tc: TC | None
    signature: bytes
    id: bytes = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", header_id(self.header))

    @property
    def round(self) -> int:
        """Round of the header."""
        return self.header.round

    @property
    def height(self) -> int:
        """Height of the header."""
        return self.header.height

    def to_obj(self) -> tuple[Any, ...]:
        """Return the nested tuples to encode."""
        tc = None if self.tc is None else self.tc.to_obj()
        return (self.header.to_obj(), self.qc.to_obj(), tc, self.signature)


@dataclass(frozen=True, slots=True)
class SyncInfo:
    """The highest certificates a node knows; they carry a laggard forward."""

    high_qc: QC
    last_tc: TC | None
    high_cc: CommitCertificate | None

    def to_obj(self) -> tuple[Any, ...]:
        """Return the nested tuples to encode."""
        tc = None if self.last_tc is None else self.last_tc.to_obj()
        cc = None if self.high_cc is None else self.high_cc.to_obj()
        return (self.high_qc.to_obj(), tc, cc)


def genesis_block(
    chain_id: bytes,
    state_digest: bytes,
    epoch: int = 0,
    timestamp_ms: int = 0,
    receipts_accumulator: bytes = ZERO32,
) -> Block:
    """Return the block at height 0 and round 0, committed by definition, executed by everyone."""
    header = Header(
        chain_id=chain_id,
        epoch=epoch,
        round=0,
        height=0,
        parent=ZERO32,
        proposer=ZERO32,
        timestamp_ms=timestamp_ms,
        payload=(),
        beacon_reveal=ZERO32,
        executed_height=0,
        state_digest=state_digest,
        receipts_accumulator=receipts_accumulator,
    )
    return Block(header, QC(epoch, 0, ZERO32, ZERO32, 0, ()), None, bytes(SIGNATURE_BYTES))


def genesis_qc(genesis: Block) -> QC:
    """Return the QC of the genesis block: no signatures, valid by definition."""
    return QC(genesis.header.epoch, 0, genesis.id, ZERO32, 0, ())


def vote_from_obj(obj: Any) -> Vote:
    """Read a `Vote`."""
    epoch, round_, block_id, parent_id, parent_round, author, signature = fields.array(obj, 7, "vote")
    return Vote(
        fields.uint(epoch, "vote epoch"),
        fields.uint(round_, "vote round"),
        fields.hash32(block_id, "vote block"),
        fields.hash32(parent_id, "vote parent"),
        fields.uint(parent_round, "vote parent round"),
        fields.hash32(author, "vote author"),
        fields.signature64(signature),
    )


def commit_vote_from_obj(obj: Any) -> CommitVote:
    """Read a `CommitVote`."""
    epoch, round_, block_id, height, author, signature = fields.array(obj, 6, "commit vote")
    return CommitVote(
        fields.uint(epoch, "commit vote epoch"),
        fields.uint(round_, "commit vote round"),
        fields.hash32(block_id, "commit vote block"),
        fields.uint(height, "commit vote height"),
        fields.hash32(author, "commit vote author"),
        fields.signature64(signature),
    )


def timeout_from_obj(obj: Any) -> Timeout:
    """Read a `Timeout`."""
    epoch, round_, high_qc_round, author, signature = fields.array(obj, 5, "timeout")
    return Timeout(
        fields.uint(epoch, "timeout epoch"),
        fields.uint(round_, "timeout round"),
        fields.uint(high_qc_round, "timeout high QC round"),
        fields.hash32(author, "timeout author"),
        fields.signature64(signature),
    )


def _signatures_from_obj(obj: Any) -> Signatures:
    rows = []
    previous = -1
    for row in fields.array_upto(obj, VALIDATORS_MAX, "signatures"):
        index, signature = fields.array(row, 2, "signature row")
        if fields.uint(index, "signer") <= previous:
            fields.fail("signers are not strictly ascending")
        previous = index
        rows.append((index, fields.signature64(signature)))
    return tuple(rows)


def qc_from_obj(obj: Any) -> QC:
    """Read a `QC`."""
    epoch, round_, block_id, parent_id, parent_round, signatures = fields.array(obj, 6, "QC")
    return QC(
        fields.uint(epoch, "QC epoch"),
        fields.uint(round_, "QC round"),
        fields.hash32(block_id, "QC block"),
        fields.hash32(parent_id, "QC parent"),
        fields.uint(parent_round, "QC parent round"),
        _signatures_from_obj(signatures),
    )


def cc_from_obj(obj: Any) -> CommitCertificate:
    """Read a `CommitCertificate`."""
    epoch, round_, block_id, height, signatures = fields.array(obj, 5, "CC")
    return CommitCertificate(
        fields.uint(epoch, "CC epoch"),
        fields.uint(round_, "CC round"),
        fields.hash32(block_id, "CC block"),
        fields.uint(height, "CC height"),
        _signatures_from_obj(signatures),
    )


def tc_from_obj(obj: Any) -> TC:
    """Read a `TC`."""
    epoch, round_, rows, high_qc = fields.array(obj, 4, "TC")
    entries = []
    previous = -1
    for row in fields.array_upto(rows, VALIDATORS_MAX, "TC entries"):
        index, high_qc_round, signature = fields.array(row, 3, "TC entry")
        if fields.uint(index, "signer") <= previous:
            fields.fail("signers are not strictly ascending")
        previous = index
        entries.append((index, fields.uint(high_qc_round, "high QC round"), fields.signature64(signature)))
    return TC(
        fields.uint(epoch, "TC epoch"),
        fields.uint(round_, "TC round"),
        tuple(entries),
        qc_from_obj(high_qc),
    )


def proof_to_obj(proof: CommitProof) -> tuple[Any, ...]:
    """Return the nested tuples of a commit proof, tagged 0 for a CC, 1 for a two-chain and 2 for a hand-over."""
    match proof:
        case CommitCertificate():
            return (0, proof.to_obj())
        case TwoChain():
            return (1, proof.to_obj())
        case Handover():
            return (2, proof.to_obj())


def proof_from_obj(obj: Any) -> CommitProof:
    """Read a tagged commit proof."""
    tag, body = fields.array(obj, 2, "commit proof")
    if type(tag) is int and tag == 2:
        return handover_from_obj(body)
    return _certificates_from_obj(tag, body)


def _certificates_from_obj(tag: Any, body: Any) -> CommitCertificate | TwoChain:
    if type(tag) is int and tag == 0:
        return cc_from_obj(body)
    if type(tag) is int and tag == 1:
        qc, child_qc = fields.array(body, 2, "two-chain")
        return TwoChain(qc_from_obj(qc), qc_from_obj(child_qc))
    fields.fail("commit proof: unknown tag")


def handover_from_obj(obj: Any) -> Handover:
    """Read a `Handover`: 1 to `HANDOVER_HEADERS_MAX` headers; what they prove is `verify.verify_handover`'s to say."""
    rows, proof = fields.array(obj, 2, "hand-over")
    headers = tuple(
        header_from_obj(row) for row in fields.array_upto(rows, HANDOVER_HEADERS_MAX, "hand-over headers")
    )
    if not headers:
        fields.fail("hand-over: no header")
    tag, body = fields.array(proof, 2, "commit proof")
    return Handover(headers, _certificates_from_obj(tag, body))


def _hash_or_empty(item: Any, what: str) -> bytes:
    return b"" if item == b"" else fields.hash32(item, what)


def header_from_obj(obj: Any) -> Header:
    """Read a `Header`; a version other than `HEADER_VERSION` is refused."""
    items = fields.array(obj, 15, "header")
    if type(items[0]) is not int or items[0] != HEADER_VERSION:
        fields.fail("header: unknown version")
    payload = tuple(
        fields.hash32(item, "payload digest")
        for item in fields.array_upto(items[8], PAYLOAD_DIGESTS_MAX, "payload")
    )
    if len(set(payload)) != len(payload):
        fields.fail("payload: a digest twice")
    return Header(
        chain_id=fields.hash32(items[1], "chain id"),
        epoch=fields.uint(items[2], "epoch"),
        round=fields.uint(items[3], "round"),
        height=fields.uint(items[4], "height"),
        parent=fields.hash32(items[5], "parent"),
        proposer=fields.hash32(items[6], "proposer"),
        timestamp_ms=fields.uint(items[7], "timestamp"),
        payload=payload,
        beacon_reveal=fields.hash32(items[9], "beacon reveal"),
        executed_height=fields.uint(items[10], "executed height"),
        state_digest=fields.hash32(items[11], "state digest"),
        receipts_accumulator=fields.hash32(items[12], "receipts accumulator"),
        next_validators_hash=_hash_or_empty(items[13], "next validators"),
        snapshot_root=_hash_or_empty(items[14], "snapshot root"),
    )


def block_from_obj(obj: Any) -> Block:
    """Read a `Block`."""
    header, qc, tc, signature = fields.array(obj, 4, "block")
    return Block(
        header_from_obj(header),
        qc_from_obj(qc),
        None if tc is None else tc_from_obj(tc),
        fields.signature64(signature),
    )


def sync_info_from_obj(obj: Any) -> SyncInfo:
    """Read a `SyncInfo`."""
    qc, tc, cc = fields.array(obj, 3, "sync info")
    return SyncInfo(
        qc_from_obj(qc),
        None if tc is None else tc_from_obj(tc),
        None if cc is None else cc_from_obj(cc),
    )


def _stored(data: bytes, bytes_max: int, read: Callable[[Any], Any]) -> Any:
    version, body = fields.array(decode(data, bytes_max), 2, "stored object")
    if type(version) is not int or version != STORED_VERSION:
        raise CodecError("stored object: unknown version")
    return read(body)


def encode_block(block: Block) -> bytes:
    """Return a block's canonical bytes for disk and for range sync, version first."""
    return encode((STORED_VERSION, block.to_obj()))


def decode_block(data: bytes) -> Block:
    """Read `encode_block`'s bytes; `CodecError` past `BLOCK_BYTES_MAX` or when malformed."""
    block: Block = _stored(data, BLOCK_BYTES_MAX, block_from_obj)
    return block


def encode_proof(proof: CommitProof) -> bytes:
    """Return a commit proof's canonical bytes, version first."""
    return encode((STORED_VERSION, proof_to_obj(proof)))


def decode_proof(data: bytes) -> CommitProof:
    """Read `encode_proof`'s bytes."""
    proof: CommitProof = _stored(data, PROOF_BYTES_MAX, proof_from_obj)
    return proof


def encode_handover(handover: Handover) -> bytes:
    """Return a hand-over's canonical bytes for disk and for light clients, version first."""
    return encode((STORED_VERSION, handover.to_obj()))


def decode_handover(data: bytes) -> Handover:
    """Read `encode_handover`'s bytes; `CodecError` past `PROOF_BYTES_MAX` or when malformed."""
    handover: Handover = _stored(data, PROOF_BYTES_MAX, handover_from_obj)
    return handover


def encode_sync_info(info: SyncInfo) -> bytes:
    """Return the certificates' canonical bytes for disk, version first."""
    return encode((STORED_VERSION, info.to_obj()))


def decode_sync_info(data: bytes) -> SyncInfo:
    """Read `encode_sync_info`'s bytes."""
    info: SyncInfo = _stored(data, 3 * CERTIFICATE_BYTES_MAX, sync_info_from_obj)
    return info
