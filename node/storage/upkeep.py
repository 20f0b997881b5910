"""What else is done with the chain's database than following the chain: taking blocks back, pruning, starting from a snapshot.

Keys are those of `node.storage.chain`. Each step is one atomic write that leaves a database from which a node can start;
the installation of a snapshot, which takes many, leaves a mark until its last write, and is begun again where the mark is found.
The safety record is never touched by anything here.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from consensus import codec
from consensus.types import Block, CommitProof, encode_block, encode_proof
from node.storage.chain import (
    COMMITTED_KEY,
    EXECUTED_KEY,
    PRUNED_KEY,
    REVEALS_KEY,
    ChainStore,
    ExecutedHead,
    Outcome,
    decode_head,
    encode_head,
    encode_outcome,
    height_key,
)
from node.storage.database import Database, Frozen
from node.storage.errors import StorageError

REPLACED_BYTES_MAX = 512 << 20
REPLACED_VALUES_MAX = 1 << 23
"""A block changes at most as many keys as its transactions name: some three millions at the limits of batches."""

ROWS_PER_WRITE = 4096
HEIGHTS_PER_WRITE = 64
ROOTS_KEPT = 16

_INSTALLING = b"minstalling"
_CERTIFICATES = b"mcertificates"
_REPLACEABLE = (b"b", b"h", b"u", b"q", b"p", b"o", b"t", b"s", b"j", b"n", b"x")
"""Everything but epochs, which are light and stay, and single values."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """The state's head before a block, and the value that each key had which the block changed (None: none)."""

    head: ExecutedHead
    values: Mapping[bytes, bytes | None]


@dataclass(frozen=True, slots=True)
class Installation:
    """Everything besides the state itself that a database needs to go on from a snapshot.

    Attributes:
        mark: 32 bytes that name the snapshot (its root).
        head: of the state at the snapshot's height.
        outcome: of that height; without receipts, which a snapshot does not hold.
        blocks: the block at that height and those after it, up to the one that `proof` is of.
        proof: that the last of the blocks is committed.
        reveals: (count, last) by validator index after the last of the blocks.
        roots: roots of snapshots by height: this one's, and the one before where there is one.
    """

    mark: bytes
    head: ExecutedHead
    outcome: Outcome
    blocks: tuple[Block, ...]
    proof: CommitProof
    reveals: tuple[tuple[int, bytes], ...]
    roots: Mapping[int, bytes]


class Upkeep:
    """Housekeeping of one `ChainStore`'s database."""

    def __init__(self, database: Database, store: ChainStore) -> None:
        self._db = database
        self._store = store

    # --- taking blocks back ---

    def replaced(self, height: int) -> Replaced | None:
        """What the block at `height` replaced, or None where that was forgotten."""
        data = self._db.get(b"j" + height_key(height))
        if data is None:
            return None
        head, flat = codec.decode(data, REPLACED_BYTES_MAX, REPLACED_VALUES_MAX)
        return Replaced(decode_head(head), dict(zip(flat[::2], flat[1::2], strict=True)))

    def replaced_heights(self) -> Iterator[int]:
        """Heights whose blocks can be taken back, newest first; taking one back needs all above it."""
        return (int.from_bytes(key, "big") for key in self._db.keys(b"j", newest_first=True))

    def lowest_replaced(self) -> int | None:
        """The lowest height whose block can be taken back."""
        return next((int.from_bytes(key, "big") for key in self._db.keys(b"j")), None)

    def take_back(self, subjects: Callable[[Outcome], Iterable[bytes]]) -> ExecutedHead:
        """Undo the execution of the newest executed block, in one synced write, and return the head after it.

        `subjects` gives the hashes of the transactions of an outcome. Raises StorageError where nothing is remembered.
        """
        head = self._store.executed()
        found = self.replaced(head.height)
        outcome = self._store.outcome(head.height)
        if found is None or outcome is None or found.head.height != head.height - 1:
            raise StorageError(f"what the block at height {head.height} replaced is not remembered any more")
        changes: dict[bytes, bytes | None] = {b"s" + key: value for key, value in found.values.items()}
        for subject in subjects(outcome):
            place = self._store.transaction_place(subject)
            if place is not None and place[0] == head.height:
                changes[b"t" + subject] = None
        height = height_key(head.height)
        changes |= {b"o" + height: None, b"j" + height: None, b"x" + height: None}
        changes[EXECUTED_KEY] = encode_head(found.head)
        self._db.write(changes, sync=True)
        return found.head

    def cut_chain(self, height: int, reveals: tuple[tuple[int, bytes], ...]) -> int:
        """Forget committed and uncommitted blocks above `height`, in one synced write; returns how many were committed.

        `height` is executed, and has a proof (or is 0). Batches and certificates stay: they say nothing false.
        """
        top = self._store.committed_height()
        changes: dict[bytes, bytes | None] = {}
        for block in self._store.uncommitted_blocks():
            changes |= {b"u" + block.id: None, b"b" + block.id: None}
        for above in range(height + 1, top + 1):
            block_id = self._store.committed_id(above)
            if block_id is not None:
                changes[b"b" + block_id] = None
            changes |= {b"h" + height_key(above): None, b"q" + height_key(above): None}
        changes[COMMITTED_KEY] = height_key(height)
        changes[REVEALS_KEY] = (
            codec.encode([[count, last] for count, last in reveals]) if height else codec.encode([])
        )
        self._db.write(changes, sync=True)
        return top - height

    # --- roots of snapshots ---

    def snapshot_root(self, height: int) -> bytes | None:
        """The Merkle root of the snapshot of the state after `height`, or None where it is not known (yet)."""
        return self._db.get(b"x" + height_key(height))

    def put_snapshot_root(self, height: int, root: bytes) -> None:
        """Remember a root, with sync: votes rest on it. Of older ones the newest few stay."""
        changes: dict[bytes, bytes | None] = {b"x" + height_key(height): root}
        known = list(self._db.keys(b"x"))
        for key in known[: max(0, len(known) - ROOTS_KEPT)]:
            changes[b"x" + key] = None
        self._db.write(changes, sync=True)

    def freeze(self) -> Frozen:
        """The database as it is now, for a thread that reads the state (`scan(b"s")`) at leisure."""
        return self._db.freeze()

    # --- pruning ---

    def prune(self, below: int, subjects: Callable[[Outcome], Iterable[bytes]]) -> int:
        """Forget at most `HEIGHTS_PER_WRITE` of the oldest blocks below a height, with all that hangs on them; returns how many.

        A batch goes with the last block that names it. Genesis stays.
        """
        low = self._store.pruned_below()
        end = min(below, low + HEIGHTS_PER_WRITE, self._store.executed().height)
        if end <= low:
            return 0
        changes: dict[bytes, bytes | None] = {PRUNED_KEY: height_key(end)}
        for height in range(low, end):
            changes |= self._rows_of(height, subjects)
        self._db.write(changes, sync=False)
        return end - low

    def _rows_of(self, height: int, subjects: Callable[[Outcome], Iterable[bytes]]) -> dict[bytes, None]:
        key = height_key(height)
        rows: dict[bytes, None] = dict.fromkeys((b"h" + key, b"q" + key, b"o" + key, b"j" + key))
        block, outcome = self._store.block_at(height), self._store.outcome(height)
        if block is not None:
            rows[b"b" + block.id] = None
            for name in block.header.payload:
                if self._db.get(b"n" + name) == key:
                    rows |= {b"n" + name: None, b"p" + name: None}
        if outcome is not None:
            for subject in subjects(outcome):
                place = self._store.transaction_place(subject)
                if place is not None and place[0] == height:
                    rows[b"t" + subject] = None
        return rows

    def compact(self) -> None:
        """Give back the room that pruning made. Takes long; call it in a thread."""
        for prefix in (b"b", b"h", b"j", b"n", b"o", b"p", b"q", b"t"):
            self._db.compact(prefix)

    def unused_batches(self) -> list[bytes]:
        """Names of stored batches that no committed block names."""
        return [name for name in self._db.keys(b"p") if self._db.get(b"n" + name) is None]

    def is_named(self, batch: bytes) -> bool:
        """Whether a committed block that is still here names this batch."""
        return self._db.get(b"n" + batch) is not None

    def count_rows(self) -> dict[str, tuple[int, int]]:
        """(rows, bytes of keys and values) by the first letter of their key. Reads everything; for a node at rest."""
        found: dict[str, tuple[int, int]] = {}
        for key, value in self._db.scan(b""):
            letter = chr(key[0])
            rows, size = found.get(letter, (0, 0))
            found[letter] = (rows + 1, size + len(key) + len(value))
        return found

    # --- starting from a snapshot ---

    def installing(self) -> bytes | None:
        """The mark of a snapshot whose installation was begun and not finished: nothing else here is to be believed."""
        return self._db.get(_INSTALLING)

    def install(self, plan: Installation, state: Iterable[tuple[bytes, bytes]]) -> None:
        """Replace chain and state by a snapshot's, already verified. Interrupted, it is begun again from the start.

        The genesis block, epochs and the safety record stay. The last write makes the database whole again.
        """
        genesis_id = self._store.committed_id(0)
        if genesis_id is None:
            raise StorageError("the database has no genesis block")
        kept = (b"b" + genesis_id, b"h" + height_key(0))
        self._db.write({_INSTALLING: plan.mark}, sync=True)
        for prefix in _REPLACEABLE:
            rows = (prefix + key for key in self._db.keys(prefix))
            self._write_many((key, None) for key in rows if key not in kept)
        self._write_many((b"s" + key, value) for key, value in state)
        last = plan.blocks[-1]
        changes: dict[bytes, bytes | None] = {
            _INSTALLING: None,
            _CERTIFICATES: None,
            PRUNED_KEY: height_key(plan.head.height),
            EXECUTED_KEY: encode_head(plan.head),
            COMMITTED_KEY: height_key(last.height),
            REVEALS_KEY: codec.encode([[count, reveal] for count, reveal in plan.reveals]),
            b"o" + height_key(plan.head.height): encode_outcome(plan.outcome),
            b"q" + height_key(last.height): encode_proof(plan.proof),
        }
        for block in plan.blocks:
            changes[b"b" + block.id] = encode_block(block)
            changes[b"h" + height_key(block.height)] = block.id
            for name in block.header.payload:
                changes[b"n" + name] = height_key(block.height)
        for height, root in plan.roots.items():
            changes[b"x" + height_key(height)] = root
        self._db.write(changes, sync=True)

    def _write_many(self, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Write rows in batches of bounded number, not synced: the write that counts comes after them in the same log."""
        batch: dict[bytes, bytes | None] = {}
        for key, value in rows:
            batch[key] = value
            if len(batch) >= ROWS_PER_WRITE:
                self._db.write(batch, sync=False)
                batch = {}
        if batch:
            self._db.write(batch, sync=False)
