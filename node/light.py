"""A light client: what a chain's validators vouch for, checked from one file and the genesis alone, without a network.

The file leads from the genesis set through every hand-over to the set of a later epoch, to a block that this set made final,
and through that block's accumulator to one receipt. Each step is proven by more than two thirds of the stake of the step before;
whoever made the file is believed in nothing. What it cannot show is that the chain has not gone on since, nor, to
who comes back after longer than the unbonding time, that the old sets' keys are still worth anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attribution.merkle import merkle_proof, verify_merkle_proof
from consensus import codec, fields
from consensus.errors import CodecError, LocalError, RemoteError
from consensus.types import (
    PROOF_BYTES_MAX,
    CommitProof,
    Handover,
    Header,
    decode_handover,
    decode_proof,
    encode_handover,
    encode_proof,
    header_from_obj,
    header_id,
)
from consensus.validators import ValidatorSet
from consensus.verify import make_context, verify_commit_proof, verify_handover
from node.epochs import Epochs
from node.errors import NodeError
from node.ledger.accumulator import AccumulatorProof, prove, verify_proof
from node.ledger.block import RECEIPT_BYTES_MAX, Receipt, decode_receipt
from node.ledger.errors import LedgerError
from node.ledger.fields import from_bytes, to_bytes
from node.signer.epoch import EpochRoot, root_after
from node.signer.protocol import SET_BYTES_MAX, set_from_obj, set_to_obj
from node.storage.chain import ChainStore

FILE_VERSION = 1
FILE_BYTES_MAX = 64 << 20
HEADER_BYTES_MAX = 8 << 10
EPOCHS_MAX = 20_000


class LightProofInvalid(NodeError):
    """The file does not prove what it says; the message names the step that fails."""


class LightProofImpossible(NodeError):
    """The home cannot show what was asked for; the message says why."""


@dataclass(frozen=True, slots=True)
class ReceiptStep:
    """From a block's accumulator to one receipt.

    Attributes:
        receipt: canonical bytes.
        index: its place among the `count` receipts of the block that it belongs to.
        path: Merkle path to that block's receipts root.
        receipts_root: 32 bytes.
        inclusion: that this root is in the accumulator; its index is the block's height - 1.
    """

    receipt: bytes
    index: int
    count: int
    path: tuple[bytes, ...]
    receipts_root: bytes
    inclusion: AccumulatorProof

    @property
    def height(self) -> int:
        """Height of the block whose execution the receipt is of."""
        return self.inclusion.index + 1


@dataclass(frozen=True, slots=True)
class LightProof:
    """The whole file: hand-overs from the first epoch on with the sets that they name, one final block, one receipt or none."""

    epochs: tuple[tuple[Handover, ValidatorSet], ...]
    header: Header
    proof: CommitProof
    receipt: ReceiptStep | None

    def to_bytes(self) -> bytes:
        """Return canonical bytes, version first; each part is bytes of its own, so that each has its own limits."""
        rows = tuple((encode_handover(end), codec.encode(set_to_obj(after))) for end, after in self.epochs)
        step = self.receipt
        return codec.encode(
            (
                FILE_VERSION,
                rows,
                codec.encode(self.header.to_obj()),
                encode_proof(self.proof),
                None
                if step is None
                else (
                    step.receipt,
                    step.index,
                    step.count,
                    step.path,
                    step.receipts_root,
                    to_bytes(step.inclusion),
                ),
            )
        )


@dataclass(frozen=True, slots=True)
class Verified:
    """What is proven: a final block, the epoch and set that finalised it, and a receipt where the file has one."""

    validators: ValidatorSet
    header: Header
    receipt_height: int
    receipt: Receipt | None

    @property
    def block_id(self) -> bytes:
        """Id of the final block."""
        return header_id(self.header)


def light_proof_from_bytes(data: bytes) -> LightProof:
    """Read `LightProof.to_bytes`; raises LightProofInvalid."""
    try:
        return _read(data)
    except (CodecError, LedgerError) as error:
        raise LightProofInvalid(f"the file is not a proof: {error}") from error


def _read(data: bytes) -> LightProof:
    version, rows, header, proof, step = fields.array(codec.decode(data, FILE_BYTES_MAX), 5, "proof file")
    if type(version) is not int or version != FILE_VERSION:
        fields.fail("unknown version")
    epochs = []
    for row in fields.array_upto(rows, EPOCHS_MAX, "epochs"):
        end, after = fields.array(row, 2, "epoch")
        epochs.append(
            (
                decode_handover(_bytes(end, PROOF_BYTES_MAX, "hand-over")),
                set_from_obj(codec.decode(_bytes(after, SET_BYTES_MAX, "validator set"), SET_BYTES_MAX)),
            )
        )
    return LightProof(
        tuple(epochs),
        header_from_obj(codec.decode(_bytes(header, HEADER_BYTES_MAX, "header"), HEADER_BYTES_MAX)),
        decode_proof(_bytes(proof, PROOF_BYTES_MAX, "commit proof")),
        None if step is None else _step(step),
    )


def _step(item: Any) -> ReceiptStep:
    receipt, index, count, path, root, inclusion = fields.array(item, 6, "receipt")
    return ReceiptStep(
        _bytes(receipt, RECEIPT_BYTES_MAX, "receipt"),
        fields.uint(index, "index"),
        fields.uint(count, "count"),
        tuple(fields.hash32(node, "path") for node in fields.array_upto(path, 64, "path")),
        fields.hash32(root, "receipts root"),
        from_bytes(AccumulatorProof, _bytes(inclusion, 8 << 10, "inclusion"), 8 << 10),
    )


def _bytes(item: Any, bytes_max: int, what: str) -> bytes:
    if type(item) is not bytes or len(item) > bytes_max:
        fields.fail(f"{what}: not at most {bytes_max} bytes")
    return item


def verify_light_proof(root: EpochRoot, proof: LightProof) -> Verified:
    """Return what `proof` shows to someone who knows the first epoch alone; raises LightProofInvalid.

    Args:
        root: the genesis' validators and block (`node.signer.epoch.genesis_root`).
        proof: the file.
    """
    for handover, validators in proof.epochs:
        where = f"the end of epoch {root.validators.epoch}"
        try:
            verify_handover(make_context(root.validators, root.start), handover)
            root = root_after(handover.headers[0], validators)
        except (RemoteError, LocalError) as error:
            raise LightProofInvalid(f"{where}: {error}") from error
    header, context = proof.header, make_context(root.validators, root.start)
    try:
        final = verify_commit_proof(context, proof.proof)
    except RemoteError as error:
        raise LightProofInvalid(f"the block: {error}") from error
    # Chain and epoch too: a header of another one has another id, but its validators could be the same.
    if final != (header_id(header), header.round) or header.chain_id != context.chain_id:
        raise LightProofInvalid("the block: what is proven to be final is another one")
    if header.epoch != context.epoch:
        raise LightProofInvalid("the block: of another epoch than its validators")
    step = proof.receipt
    if step is None:
        return Verified(root.validators, header, 0, None)
    if not verify_proof(header.receipts_accumulator, step.receipts_root, step.inclusion):
        raise LightProofInvalid("the receipt: its block's receipts are not under the accumulator")
    if step.inclusion.count != header.executed_height:
        raise LightProofInvalid("the receipt: the accumulator is of another height")
    if not verify_merkle_proof(step.receipts_root, step.receipt, step.index, step.count, step.path):
        raise LightProofInvalid("the receipt: it is not among its block's receipts")
    try:
        return Verified(root.validators, header, step.height, decode_receipt(step.receipt))
    except LedgerError as error:
        raise LightProofInvalid(f"the receipt: {error}") from error


def make_light_proof(store: ChainStore, epochs: Epochs, tx_hash: bytes | None = None) -> LightProof:
    """Return the proof of the newest final block, and of a transaction's receipt, out of a node's store.

    Raises LightProofImpossible: nothing is final yet, or what is needed was pruned, or the transaction is not known, or so new
    that no final block speaks of it.
    """
    height = store.committed_height()
    block, proof = store.block_at(height), store.proof_at(height)
    if block is None or proof is None:
        raise LightProofImpossible("nothing but the genesis is final here")
    rows = []
    for number in range(1, block.header.epoch + 1):
        row = epochs.row(number)
        if row is None or row.handover is None:
            raise LightProofImpossible(f"how epoch {number - 1} ended is not known here")
        rows.append((row.handover, row.consensus_set))
    step = None if tx_hash is None else _receipt_step(store, block.header, tx_hash)
    return LightProof(tuple(rows), block.header, proof, step)


def _receipt_step(store: ChainStore, header: Header, tx_hash: bytes) -> ReceiptStep:
    place = store.transaction_place(tx_hash)
    if place is None:
        raise LightProofImpossible(f"transaction {tx_hash.hex()} has not been executed here")
    height, index = place
    if height > header.executed_height:
        raise LightProofImpossible(
            f"transaction {tx_hash.hex()} is in block {height}, the newest final block speaks of "
            f"{header.executed_height}: try again in a moment"
        )
    receipts = _outcome(store, height)[1]
    roots = [_outcome(store, past)[0] for past in range(1, header.executed_height + 1)]
    return ReceiptStep(
        receipts[index],
        index,
        len(receipts),
        tuple(merkle_proof(receipts, index)),
        roots[height - 1],
        prove(roots, height - 1),
    )


def _outcome(store: ChainStore, height: int) -> tuple[bytes, Sequence[bytes]]:
    outcome = store.outcome(height)
    if outcome is None:
        raise LightProofImpossible(
            f"what block {height} came to is not kept here; ask a node that keeps all heights"
        )
    return outcome.receipts_root, outcome.receipts
