"""What each signature covers, and the checks of everything signed.

One signed kind per domain, so no signature of one kind is valid as another; each covers the chain id (through the
digest) and the epoch. All functions are pure; `Context` carries what they need.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from consensus.codec import encode
from consensus.crypto import Verifier
from consensus.digest import digest
from consensus.errors import InvalidCertificate, InvalidSignature, LocalError
from consensus.types import (
    HANDOVER_HEADERS_MAX,
    QC,
    TC,
    Block,
    CommitCertificate,
    CommitProof,
    CommitVote,
    Handover,
    Header,
    Timeout,
    Vote,
    genesis_qc,
    header_id,
    is_boundary,
)
from consensus.validators import ValidatorSet


def vote_message(
    chain_id: bytes, epoch: int, round_: int, block_id: bytes, parent_id: bytes, parent_round: int
) -> bytes:
    """Return the 32 bytes a vote signs."""
    return digest("vote", encode((epoch, round_, block_id, parent_id, parent_round)), chain_id)


def commit_vote_message(chain_id: bytes, epoch: int, round_: int, block_id: bytes, height: int) -> bytes:
    """Return the 32 bytes a commit vote signs."""
    return digest("commit-vote", encode((epoch, round_, block_id, height)), chain_id)


def timeout_message(chain_id: bytes, epoch: int, round_: int, high_qc_round: int) -> bytes:
    """Return the 32 bytes a timeout signs."""
    return digest("timeout", encode((epoch, round_, high_qc_round)), chain_id)


def proposal_message(chain_id: bytes, epoch: int, round_: int, block_id: bytes) -> bytes:
    """Return the 32 bytes a leader signs."""
    return digest("proposal", encode((epoch, round_, block_id)), chain_id)


@dataclass(frozen=True, slots=True)
class Context:
    """The chain, the epoch's validators, and the genesis QC that needs no signatures."""

    chain_id: bytes
    validators: ValidatorSet
    genesis_qc: QC
    verifier: Verifier = field(default_factory=Verifier)

    @property
    def epoch(self) -> int:
        """Epoch of the validator set."""
        return self.validators.epoch


def make_context(validators: ValidatorSet, genesis: Block, verifier: Verifier | None = None) -> Context:
    """Return the context of an epoch: `genesis` is the chain's, or `epochs.epoch_start` of a later one.

    Raises:
        LocalError: the block is of another epoch than the set.
    """
    if genesis.header.epoch != validators.epoch:
        raise LocalError("genesis and validator set are of different epochs")
    return Context(genesis.header.chain_id, validators, genesis_qc(genesis), verifier or Verifier())


def verify_vote(context: Context, vote: Vote) -> int:
    """Return the author's index, or raise `InvalidSignature`."""
    message = vote_message(
        context.chain_id, vote.epoch, vote.round, vote.block_id, vote.parent_id, vote.parent_round
    )
    return _single(context, vote.epoch, vote.author, message, vote.signature)


def verify_commit_vote(context: Context, vote: CommitVote) -> int:
    """Return the author's index, or raise `InvalidSignature`."""
    message = commit_vote_message(context.chain_id, vote.epoch, vote.round, vote.block_id, vote.height)
    return _single(context, vote.epoch, vote.author, message, vote.signature)


def verify_timeout(context: Context, timeout: Timeout) -> int:
    """Return the author's index, or raise `InvalidSignature`."""
    message = timeout_message(context.chain_id, timeout.epoch, timeout.round, timeout.high_qc_round)
    return _single(context, timeout.epoch, timeout.author, message, timeout.signature)


def verify_proposal_signature(context: Context, block: Block) -> None:
    """Raise `InvalidSignature` unless the header's proposer, a known validator, signed the block."""
    header = block.header
    message = proposal_message(context.chain_id, header.epoch, header.round, block.id)
    _single(context, header.epoch, header.proposer, message, block.signature)


def verify_qc(context: Context, qc: QC) -> None:
    """Raise `InvalidCertificate` unless the QC is the genesis QC or carries a quorum."""
    if qc.round == 0:
        if qc != context.genesis_qc:
            raise InvalidCertificate("QC of round 0 is not the genesis QC")
        return
    if qc.parent_round >= qc.round:
        raise InvalidCertificate("QC parent is not older")
    message = vote_message(context.chain_id, qc.epoch, qc.round, qc.block_id, qc.parent_id, qc.parent_round)
    _quorum(context, qc.epoch, ((index, message, sig) for index, sig in qc.signatures))


def verify_cc(context: Context, cc: CommitCertificate) -> None:
    """Raise `InvalidCertificate` unless the CC carries a quorum."""
    message = commit_vote_message(context.chain_id, cc.epoch, cc.round, cc.block_id, cc.height)
    _quorum(context, cc.epoch, ((index, message, sig) for index, sig in cc.signatures))


def verify_tc(context: Context, tc: TC) -> None:
    """Raise `InvalidCertificate` unless a quorum timed out and the QC is the highest one they signed.

    The QC's round must equal the largest signed round: a TC that shows less would hide a lock, one that shows more
    would bind the next leader to something nobody vouched for.
    """
    if tc.high_qc.round != tc.max_high_qc_round or tc.high_qc.round >= tc.round:
        raise InvalidCertificate("TC does not carry the highest QC its signers claim")
    verify_qc(context, tc.high_qc)
    _quorum(
        context,
        tc.epoch,
        (
            (index, timeout_message(context.chain_id, tc.epoch, tc.round, high), sig)
            for index, high, sig in tc.entries
        ),
    )


def verify_commit_proof(context: Context, proof: CommitProof) -> tuple[bytes, int]:
    """Return (block id, round) of the block the proof makes final; of a hand-over, its boundary's.

    Raises:
        InvalidCertificate: a certificate does not verify, or the two QCs are not of a parent and its child in
            consecutive rounds (a two-chain with a gap proves nothing), or a hand-over is not one.
    """
    if isinstance(proof, Handover):
        verify_handover(context, proof)
        return header_id(proof.headers[0]), proof.headers[0].round
    if isinstance(proof, CommitCertificate):
        verify_cc(context, proof)
        return proof.block_id, proof.round
    verify_qc(context, proof.qc)
    verify_qc(context, proof.child_qc)
    if (proof.child_qc.parent_id, proof.child_qc.parent_round) != (proof.qc.block_id, proof.qc.round):
        raise InvalidCertificate("two-chain QCs are not of parent and child")
    if proof.child_qc.round != proof.qc.round + 1:
        raise InvalidCertificate("two-chain rounds are not consecutive")
    return proof.qc.block_id, proof.qc.round


def verify_handover(context: Context, handover: Handover) -> bytes:
    """Return the next validator set's hash, on the word of more than two thirds of the stake of the context's set.

    The headers must be a boundary and its descendants, each the parent of the next, and the proof of the last one's finality.
    Needs no block: a light client that knows a set learns the next one's hash, fetches the set from anybody, and goes on.

    Raises:
        InvalidCertificate: anything about it does not hold.
    """
    if not 1 <= len(handover.headers) <= HANDOVER_HEADERS_MAX:
        raise InvalidCertificate("hand-over: number of headers")
    boundary = handover.headers[0]
    if not is_boundary(boundary):
        raise InvalidCertificate("hand-over: does not begin with a boundary")
    parent = None
    for header in handover.headers:
        if header.chain_id != context.chain_id or header.epoch != context.epoch:
            raise InvalidCertificate("hand-over: another chain or epoch")
        if parent is not None:
            _require_descendant(parent, header)
        parent = header
    block_id, round_ = verify_commit_proof(context, handover.proof)
    last = handover.headers[-1]
    if (block_id, round_) != (header_id(last), last.round):
        raise InvalidCertificate("hand-over: the proof is of another block")
    if isinstance(handover.proof, CommitCertificate) and handover.proof.height != last.height:
        raise InvalidCertificate("hand-over: the proof is of another height")
    return boundary.next_validators_hash


def _require_descendant(parent: Header, header: Header) -> None:
    if (
        header.parent != header_id(parent)
        or header.height != parent.height + 1
        or header.round <= parent.round
    ):
        raise InvalidCertificate("hand-over: the headers do not link up")
    if header.payload or header.next_validators_hash:
        raise InvalidCertificate("hand-over: a descendant that is not empty")


def _single(context: Context, epoch: int, author: bytes, message: bytes, signature: bytes) -> int:
    if epoch != context.epoch:
        raise InvalidSignature("signed for another epoch")
    index = context.validators.index_of(author)
    if index is None:
        raise InvalidSignature("signer is not a validator")
    if not context.verifier(author, message, signature):
        raise InvalidSignature("bad signature")
    return index


def _quorum(context: Context, epoch: int, rows: Iterable[tuple[int, bytes, bytes]]) -> None:
    if epoch != context.epoch:
        raise InvalidCertificate("certificate of another epoch")
    validators = context.validators
    checked = []
    stake, previous = 0, -1
    for index, message, signature in rows:
        if not previous < index < len(validators):
            raise InvalidCertificate("signers repeated, out of order or unknown")
        previous = index
        stake += validators.stake_at(index)
        checked.append((index, message, signature))
    # Stake first: it costs nothing, curve operations do.
    if not validators.is_quorum(stake):
        raise InvalidCertificate("not a quorum")
    for index, message, signature in checked:
        if not context.verifier(validators.validators[index].id, message, signature):
            raise InvalidCertificate("bad signature in a certificate")
