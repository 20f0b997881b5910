"""The epoch a signer knows: whose signatures make a quorum, and the block that the epoch begins with.

The first comes from the signer's own genesis.json, each later one from a verified hand-over; the daemon is not believed.
"""

from dataclasses import dataclass
from pathlib import Path

from consensus import codec, fields
from consensus.crypto import SIGNATURE_BYTES
from consensus.digest import DIGEST_BYTES, ZERO32, digest
from consensus.epochs import epoch_start
from consensus.errors import CodecError
from consensus.types import QC, Block, Header, block_from_obj
from consensus.validators import ValidatorSet
from node.ledger.epochs import consensus_set
from node.ledger.genesis import Genesis
from node.ledger.state import get_validators
from node.signer.protocol import set_from_obj, set_to_obj
from node.startup import first_head
from node.storage.errors import SafetyRecordUnusable

ROOT_VERSION = 1
ROOT_BYTES_MAX = 128 * 1024


@dataclass(frozen=True, slots=True)
class EpochRoot:
    """One epoch: its validators, and the block its tree is rooted at (genesis, or `consensus.epochs.epoch_start`)."""

    validators: ValidatorSet
    start: Block

    def to_bytes(self) -> bytes:
        """Return the bytes of its file: a checksum, then canonical bytes."""
        body = codec.encode((ROOT_VERSION, set_to_obj(self.validators), self.start.to_obj()))
        return digest("signer-epoch", body) + body


def root_from_bytes(data: bytes) -> EpochRoot:
    """Read `EpochRoot.to_bytes`; raises CodecError."""
    body = data[DIGEST_BYTES:]
    if data[:DIGEST_BYTES] != digest("signer-epoch", body):
        fields.fail("signer's epoch: wrong checksum")
    version, validators, start = fields.array(codec.decode(body, ROOT_BYTES_MAX), 3, "signer's epoch")
    if type(version) is not int or version != ROOT_VERSION:
        fields.fail("signer's epoch: unknown version")
    return EpochRoot(set_from_obj(validators), block_from_obj(start))


def root_after(boundary: Header, validators: ValidatorSet) -> EpochRoot:
    """Return the root of the epoch that follows a boundary; raises LocalError where the two do not fit together."""
    # Only the header counts: of the block a hand-over shows no more.
    block = Block(boundary, QC(boundary.epoch, 0, ZERO32, ZERO32, 0, ()), None, bytes(SIGNATURE_BYTES))
    return EpochRoot(validators, epoch_start(block, validators))


def genesis_root(genesis: Genesis) -> EpochRoot:
    """Return the chain's first epoch."""
    block, state, _ = first_head(genesis)
    return EpochRoot(consensus_set(get_validators(state), block.header.epoch), block)


def load_root(path: Path, genesis: Genesis) -> EpochRoot:
    """Return the epoch that the signer has come to; raises SafetyRecordUnusable where its file is damaged or another chain's."""
    first = genesis_root(genesis)
    if not path.exists():
        return first
    remedy = "bring back the signer's home as it was when it last stopped (never a backup)"
    try:
        root = root_from_bytes(path.read_bytes()[: ROOT_BYTES_MAX + DIGEST_BYTES])
    except CodecError as error:
        raise SafetyRecordUnusable(f"{path} is damaged ({error})", remedy) from error
    if root.start.header.chain_id != first.start.header.chain_id:
        raise SafetyRecordUnusable(f"{path} is of another chain than genesis.json", remedy)
    return root
