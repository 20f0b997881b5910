"""The chain on disk: blocks, batches, proofs, the safety record, the state and what execution said.

Keys are a letter and a name:

    b block id       block                      h height     id of the committed block
    u block id       empty: not committed yet   q height     proof that this height is committed
    p batch digest   batch                      o height     outcome of its execution
    s ledger key     ledger value               t tx hash    (height, position) of an executed transaction
    e number         epoch (`node.epochs`)          n batch digest   height of the last committed block that names it
    j height         what its execution replaced    x height         root of the snapshot of the state after it
    m name           single values: safety record, certificates, reveals, how far committed and executed
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from consensus import codec
from consensus.effects import Persist
from consensus.safety import ForeignSignature
from consensus.types import (
    Block,
    CommitProof,
    SyncInfo,
    decode_block,
    decode_proof,
    decode_sync_info,
    encode_block,
    encode_proof,
    encode_sync_info,
)
from node.storage.database import Database
from node.storage.errors import StorageError
from node.storage.guard import SafetyGuard

OUTCOME_BYTES_MAX = 64 << 20
_SAFETY = b"msafety"
_CERTIFICATES = b"mcertificates"
REVEALS_KEY = b"mreveals"
COMMITTED_KEY = b"mcommitted"
EXECUTED_KEY = b"mexecuted"
_CHAIN_ID = b"mchain_id"
_EPOCH = b"mepoch"
PRUNED_KEY = b"mpruned"


@dataclass(frozen=True, slots=True)
class ExecutedHead:
    """How far the ledger has come; `lthash` and `accumulator` continue it, in their own encodings."""

    height: int
    block_id: bytes
    state_digest: bytes
    accumulator_root: bytes
    lthash: bytes
    accumulator: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What execution of one block said: digest and roots after it, receipts in order.

    `next_validators_hash` and `snapshot_root` as in `consensus.inputs.Executed`; empty where there is none.
    """

    state_digest: bytes
    receipts_root: bytes
    accumulator_root: bytes
    receipts: tuple[bytes, ...]
    next_validators_hash: bytes = b""
    snapshot_root: bytes = b""


class ChainStore:
    """Typed access to a node's database; every method is one point read or one atomic write.

    `guard`, set for a validator, is told of each safety record once the database has it and before `persist` returns.
    """

    def __init__(self, database: Database) -> None:
        self.guard: SafetyGuard | None = None
        self._db = database

    # --- genesis ---

    def chain_id(self) -> bytes | None:
        """Return the chain this database belongs to, or None when it is new."""
        return self._db.get(_CHAIN_ID)

    def create(
        self, chain_id: bytes, genesis: Block, state: Mapping[bytes, bytes], head: ExecutedHead
    ) -> None:
        """Write the genesis state; nothing else may be stored before it."""
        changes: dict[bytes, bytes | None] = {b"s" + key: value for key, value in state.items()}
        changes |= {
            b"b" + genesis.id: encode_block(genesis),
            b"h" + height_key(0): genesis.id,
            COMMITTED_KEY: height_key(0),
            EXECUTED_KEY: encode_head(head),
            _CHAIN_ID: chain_id,
        }
        self._db.write(changes, sync=True)

    # --- consensus ---

    def persist(self, effect: Persist) -> None:
        """Perform a replica's `Persist`: one atomic write; a safety record is also noted in the guard, after it."""
        changes: dict[bytes, bytes | None] = {}
        if effect.record is not None:
            changes[_SAFETY] = effect.record
        if effect.certificates is not None:
            changes[_CERTIFICATES] = encode_sync_info(effect.certificates)
        for block_id in effect.forgotten:
            # A block that was committed earlier is forgotten as uncommitted only; an abandoned one goes for good.
            if self._db.get(b"u" + block_id) is not None:
                changes[b"u" + block_id] = None
                changes[b"b" + block_id] = None
        for block in effect.blocks:
            changes[b"b" + block.id] = encode_block(block)
            changes[b"u" + block.id] = b""
        for block in effect.committed:
            changes[b"b" + block.id] = encode_block(block)
            changes[b"u" + block.id] = None
            changes[b"h" + height_key(block.height)] = block.id
            for name in block.header.payload:
                changes[b"n" + name] = height_key(block.height)
        if effect.committed and effect.proof is not None:
            last = effect.committed[-1]
            changes[b"q" + height_key(last.height)] = encode_proof(effect.proof)
            changes[COMMITTED_KEY] = height_key(last.height)
            changes[REVEALS_KEY] = codec.encode([[count, reveal] for count, reveal in effect.reveals])
        if changes:
            self._db.write(changes, sync=effect.sync)
        if effect.record is not None and self.guard is not None:
            # After the database: a crash in between leaves the record ahead of the guard, which is no rollback.
            self.guard.note(effect.record)

    def disown(self, found: ForeignSignature) -> None:
        """Note a signature of this key that its record does not know: no later start may go on from that record."""
        if self.guard is not None:
            self.guard.note_foreign(found)

    def safety_record(self) -> bytes | None:
        """Return the stored safety record's bytes."""
        return self._db.get(_SAFETY)

    def certificates(self) -> SyncInfo | None:
        """Return the stored certificates."""
        data = self._db.get(_CERTIFICATES)
        return None if data is None else decode_sync_info(data)

    def reveals(self) -> tuple[tuple[int, bytes], ...]:
        """Return (count, last reveal) per validator index at the committed height; empty at genesis."""
        data = self._db.get(REVEALS_KEY)
        return () if data is None else tuple((count, last) for count, last in codec.decode(data, len(data)))

    def uncommitted_blocks(self) -> tuple[Block, ...]:
        """Return the stored blocks that are not committed, lowest height first."""
        blocks = [self.block(block_id) for block_id, _ in self._db.scan(b"u")]
        return tuple(sorted((block for block in blocks if block), key=lambda block: (block.height, block.id)))

    def committed_height(self) -> int:
        """Return the height of the last committed block."""
        return int.from_bytes(self._need(COMMITTED_KEY), "big")

    def committed_id(self, height: int) -> bytes | None:
        """Return the id of the committed block at `height`, or None."""
        return self._db.get(b"h" + height_key(height))

    def block(self, block_id: bytes) -> Block | None:
        """Return a stored block, or None."""
        data = self._db.get(b"b" + block_id)
        return None if data is None else decode_block(data)

    def block_at(self, height: int) -> Block | None:
        """Return the committed block at `height`, or None."""
        block_id = self.committed_id(height)
        return None if block_id is None else self.block(block_id)

    def proof_at(self, height: int) -> CommitProof | None:
        """Return the stored proof that `height` is committed; only the last block of each commit has one."""
        data = self._db.get(b"q" + height_key(height))
        return None if data is None else decode_proof(data)

    def pruned_below(self) -> int:
        """Blocks from 1 to below this height are gone, or were never here; 1 where none is."""
        data = self._db.get(PRUNED_KEY)
        return 1 if data is None else int.from_bytes(data, "big")

    # --- epochs ---

    def put_epoch(self, number: int, row: bytes) -> None:
        """Store an epoch that begins, with sync: its blocks are not understood without it.

        What was not committed belongs to the one before, and goes, like its certificates.
        """
        changes: dict[bytes, bytes | None] = {b"e" + height_key(number): row, _EPOCH: height_key(number)}
        changes[_CERTIFICATES] = None
        for block_id, _ in self._db.scan(b"u"):
            changes[b"u" + block_id] = changes[b"b" + block_id] = None
        self._db.write(changes, sync=True)

    def epoch(self, number: int) -> bytes | None:
        """Return a stored epoch's bytes, or None; the first one is the genesis file's."""
        return self._db.get(b"e" + height_key(number))

    def last_epoch(self) -> int | None:
        """Return the number of the newest stored epoch, or None before the first change."""
        data = self._db.get(_EPOCH)
        return None if data is None else int.from_bytes(data, "big")

    # --- batches ---

    def put_batch(self, digest: bytes, batch: bytes) -> None:
        """Store a batch, not synced: the next synced write covers it (one write-ahead log)."""
        self._db.write({b"p" + digest: batch}, sync=False)

    def drop_batch(self, digest: bytes) -> None:
        """Forget a batch that no committed block names."""
        self._db.write({b"p" + digest: None}, sync=False)

    def batch(self, digest: bytes) -> bytes | None:
        """Return a stored batch's bytes, or None."""
        return self._db.get(b"p" + digest)

    # --- ledger ---

    def get(self, key: bytes) -> bytes | None:
        """Return a ledger value at the executed height (node.ledger.overlay.StateReader)."""
        return self._db.get(b"s" + key)

    def executed(self) -> ExecutedHead:
        """Return how far the ledger has come."""
        return decode_head(self._need(EXECUTED_KEY))

    def record_execution(
        self,
        head: ExecutedHead,
        changes: Mapping[bytes, bytes | None],
        outcome: Outcome,
        places: Mapping[bytes, int],
        replaced: Mapping[bytes, bytes | None] | None = None,
        forget_replaced: Iterable[int] = (),
    ) -> None:
        """Write state, outcome and height of one executed block in one atomic write.

        `places` maps transaction hashes to positions among the receipts; `replaced` are the values that `changes` replaces, kept
        so that the block can be taken back (`node.storage.upkeep`) until its height is in `forget_replaced`. Not synced: a lost
        tail is executed again from blocks that are.
        """
        writes: dict[bytes, bytes | None] = {b"s" + key: value for key, value in changes.items()}
        at = height_key(head.height)
        if replaced is not None:
            flat = [item for key in changes for item in (key, replaced[key])]
            writes[b"j" + at] = codec.encode_known([self._need(EXECUTED_KEY), flat])
        for height in forget_replaced:
            writes[b"j" + height_key(height)] = None
        writes[b"o" + at] = encode_outcome(outcome)
        begin, number = b"\x92" + codec.encode(head.height), codec.encode_known
        for tx_hash, position in places.items():
            writes[b"t" + tx_hash] = begin + number(position)  # as `codec.encode([head.height, position])`
        writes[EXECUTED_KEY] = encode_head(head)
        self._db.write(writes, sync=False)

    def outcome(self, height: int) -> Outcome | None:
        """Return what execution of the block at `height` said, or None."""
        data = self._db.get(b"o" + height_key(height))
        if data is None:
            return None
        digest, root, accumulator, receipts, validators, snapshot = codec.decode(data, OUTCOME_BYTES_MAX)
        return Outcome(digest, root, accumulator, tuple(receipts), validators, snapshot)

    def transaction_place(self, tx_hash: bytes) -> tuple[int, int] | None:
        """Return (height, position among its block's receipts) of an executed transaction, or None."""
        data = self._db.get(b"t" + tx_hash)
        if data is None:
            return None
        height, position = codec.decode(data, 64)
        return height, position

    def scan_state(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield every ledger key and value, in key order; only those under a prefix, without it, where one is given."""
        return self._db.scan(b"s" + prefix)

    def _need(self, key: bytes) -> bytes:
        value = self._db.get(key)
        if value is None:
            raise StorageError(f"the database lacks {key[1:].decode()}; it was not created by this version")
        return value


def height_key(height: int) -> bytes:
    """A height as part of a key: big-endian, so that keys are in its order."""
    return height.to_bytes(8, "big")


def encode_outcome(outcome: Outcome) -> bytes:
    """Bytes of an outcome as they are stored."""
    return codec.encode_known(
        [
            outcome.state_digest,
            outcome.receipts_root,
            outcome.accumulator_root,
            outcome.receipts,
            outcome.next_validators_hash,
            outcome.snapshot_root,
        ]
    )


def encode_head(head: ExecutedHead) -> bytes:
    """Bytes of a head as they are stored."""
    return codec.encode_known(
        [head.height, head.block_id, head.state_digest, head.accumulator_root, head.lthash, head.accumulator]
    )


def decode_head(data: bytes) -> ExecutedHead:
    """Read a stored head."""
    height, block_id, state_digest, accumulator_root, lthash, accumulator = codec.decode(data, len(data))
    return ExecutedHead(height, block_id, state_digest, accumulator_root, lthash, accumulator)
