"""The epochs of the chain, as a node keeps them: who voted in each, where it began, and how the one before handed over.

A row is written, with sync, once the boundary block has been executed and before a replica of the new epoch is built. So
whatever was executed or lost, a node that starts again finds the set that its last committed blocks were voted by.
"""

import threading
from dataclasses import dataclass, field

from consensus import codec, fields
from consensus.epochs import epoch_start
from consensus.errors import CodecError, InvalidBlock
from consensus.leaders import Leaders
from consensus.tree import Reveals
from consensus.types import (
    BLOCK_BYTES_MAX,
    PROOF_BYTES_MAX,
    Block,
    CommitProof,
    Handover,
    decode_block,
    decode_handover,
    encode_block,
    encode_handover,
    genesis_qc,
    is_boundary,
)
from consensus.validators import ValidatorSet as ConsensusValidators
from consensus.verify import Context, verify_handover
from node.ledger.entries import VALIDATORS_MAX, ValidatorSet
from node.ledger.epochs import consensus_set, reveals_at
from node.ledger.fields import from_bytes, to_bytes
from node.ledger.overlay import StateReader
from node.ledger.state import get_validators
from node.storage.chain import ChainStore
from node.storage.errors import StorageError

ROW_VERSION = 1
SET_BYTES_MAX = 64 << 10
ROW_BYTES_MAX = BLOCK_BYTES_MAX + PROOF_BYTES_MAX + 2 * SET_BYTES_MAX
CONTEXTS_MAX = 8


@dataclass(frozen=True, slots=True)
class EpochRow:
    """One epoch.

    Attributes:
        number: 0 for the first.
        start: the block its tree is rooted at: genesis, or `consensus.epochs.epoch_start` of the boundary before.
        validators: the ledger's set, in force from `start` on.
        reveals: (count, last) of each validator's beacon chain at `start`, in order of the set; empty at genesis.
        handover: how the epoch before ended; None for the first.
    """

    number: int
    start: Block
    validators: ValidatorSet
    reveals: Reveals
    handover: Handover | None

    @property
    def consensus_set(self) -> ConsensusValidators:
        """The set as consensus knows it."""
        return consensus_set(self.validators, self.number)

    def to_bytes(self) -> bytes:
        """Canonical bytes, version first."""
        return codec.encode(
            (
                ROW_VERSION,
                self.number,
                encode_block(self.start),
                to_bytes(self.validators),
                tuple(self.reveals),
                b"" if self.handover is None else encode_handover(self.handover),
            )
        )


def row_from_bytes(data: bytes) -> EpochRow:
    """Read `EpochRow.to_bytes`; raises CodecError, or MalformedError where the ledger's set is damaged.

    Its set is one that consensus can have, in the ledger's order: a stranger's row is as likely to hold any other.
    """
    items = fields.array(codec.decode(data, ROW_BYTES_MAX), 6, "epoch")
    version, number, start, validators, reveals, handover = items
    if type(version) is not int or version != ROW_VERSION:
        raise CodecError("epoch: unknown version")
    if not isinstance(start, bytes) or not isinstance(validators, bytes) or not isinstance(handover, bytes):
        raise CodecError("epoch: not bytes")
    rows = []
    for item in fields.array_upto(reveals, VALIDATORS_MAX, "reveals"):
        count, last = fields.array(item, 2, "reveal")
        rows.append((fields.uint(count, "reveals"), fields.hash32(last, "reveal")))
    row = EpochRow(
        number=fields.uint(number, "epoch"),
        start=decode_block(start),
        validators=from_bytes(ValidatorSet, validators, SET_BYTES_MAX),
        reveals=tuple(rows),
        handover=decode_handover(handover) if handover else None,
    )
    try:
        ordered = [validator.id for validator in row.consensus_set.validators]
    except ValueError as error:
        raise CodecError(f"epoch: {error}") from error
    if ordered != [entry.consensus_key for entry in row.validators.validators]:
        raise CodecError("epoch: validators out of order")
    return row


def first_row(genesis: Block, validators: ValidatorSet) -> EpochRow:
    """The epoch that the genesis begins."""
    return EpochRow(genesis.header.epoch, genesis, validators, (), None)


def next_row(row: EpochRow, boundary: Block, proof: CommitProof, state: StateReader) -> EpochRow:
    """The epoch after `row`, out of the state after its boundary; raises StorageError where the two disagree."""
    handover = proof if isinstance(proof, Handover) else Handover((boundary.header,), proof)
    number, validators = row.number + 1, get_validators(state)
    members = consensus_set(validators, number)
    if members.hash != boundary.header.next_validators_hash:
        raise StorageError(
            f"the ledger's set of epoch {number} is not the one that block {boundary.height} hands over to: "
            "the state diverged; restore it from the network"
        )
    reveals = reveals_at(state, validators)
    return EpochRow(number, epoch_start(boundary, members), validators, reveals, handover)


def check_row(before: EpochRow, row: EpochRow, chain_id: bytes) -> None:
    """Raise unless `row`, from a stranger, follows `before`, on the word of two thirds of that epoch's stake.

    Its reveals are not vouched for: whoever starts in the middle of the epoch takes them from the state. Raises
    InvalidCertificate and InvalidBlock.
    """
    if row.handover is None or row.number != before.number + 1:
        raise InvalidBlock("epoch: does not follow the one before")
    promised = verify_handover(context_of(before, chain_id), row.handover)
    if row.consensus_set.hash != promised:
        raise InvalidBlock("epoch: not the validator set that was handed over to")
    boundary = Block(row.handover.headers[0], before.start.qc, None, before.start.signature)
    if row.start.id != epoch_start(boundary, row.consensus_set).id:
        raise InvalidBlock("epoch: does not begin at the boundary")


def context_of(row: EpochRow, chain_id: bytes) -> Context:
    """What certificates of the epoch are verified against."""
    return Context(chain_id, row.consensus_set, genesis_qc(row.start))


@dataclass(slots=True)
class Epochs:
    """The rows in a node's store, the newest at hand; several threads may ask.

    `genesis` is written by nobody: it is the genesis file's. `dynamic` says whether this chain ever has a second epoch.
    """

    store: ChainStore
    chain_id: bytes
    genesis: EpochRow
    dynamic: bool = False
    _current: EpochRow = field(init=False)
    _contexts: dict[int, tuple[Context, Leaders]] = field(default_factory=dict)
    _contexts_lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._current = self.genesis
        number = self.store.last_epoch()
        found = self.genesis if number is None else self.row(number)
        if found is None:
            raise StorageError(f"epoch {number} is missing from the database")
        self._current = found

    @property
    def current(self) -> EpochRow:
        """The newest epoch that began here."""
        return self._current

    def row(self, number: int) -> EpochRow | None:
        """One epoch, or None where it is not known here (yet)."""
        for known in (self._current, self.genesis):  # the newest is asked for with every block
            if number == known.number:
                return known
        data = self.store.epoch(number)
        return None if data is None else row_from_bytes(data)

    def context(self, number: int) -> Context | None:
        """What certificates of an epoch are verified against; None for an unknown one."""
        found = self._verification(number)
        return None if found is None else found[0]

    def leaders(self, number: int) -> Leaders | None:
        """Who leads an epoch's rounds; None for an unknown one."""
        found = self._verification(number)
        return None if found is None else found[1]

    def _verification(self, number: int) -> tuple[Context, Leaders] | None:
        # Execution asks in one thread, sync in another.
        with self._contexts_lock:
            known = self._contexts.get(number)
            if known is None:
                row = self.row(number)
                if row is None:
                    return None
                if len(self._contexts) >= CONTEXTS_MAX:
                    del self._contexts[min(self._contexts)]
                context = context_of(row, self.chain_id)
                known = self._contexts[number] = (context, Leaders(context.validators))
            return known

    def start_id(self, height: int, block: Block | None) -> bytes | None:
        """Id of what the block after `block`, committed at `height`, has as its parent; None where it is not known.

        After a boundary that is the root of the next epoch, so it is known once the boundary has been executed.
        """
        if block is None:
            return None
        if not is_boundary(block.header):
            return block.id
        row = self.row(block.header.epoch + 1)
        return None if row is None or row.start.height != height else row.start.id

    def begin_next(self) -> bool:
        """Begin the next epoch, if the committed chain ends in the current one's boundary and that has been executed.

        It is written down with sync, and is the current one from now on. Raises StorageError.
        """
        height = self.store.committed_height()
        last = self.store.block_at(height)
        proof = self.store.proof_at(height)
        if last is None or not is_boundary(last.header) or last.header.epoch != self._current.number:
            return False
        if proof is None or self.store.executed().height != height:
            return False
        row = next_row(self._current, last, proof, self.store)
        self.store.put_epoch(row.number, row.to_bytes())
        self._current = row
        return True
