"""Executes committed blocks, oldest first, and says what came out.

A block's state changes, receipts and height are one atomic write: a process that dies is between two blocks, never
inside one. Others have their turn while a long one executes, or it would hold up votes.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog
import trio

from consensus.crypto import Verifier
from consensus.leaders import missed_leaders
from consensus.types import Block, is_boundary
from node.epochs import Epochs
from node.ledger.accumulator import Accumulator, decode_accumulator, encode_accumulator
from node.ledger.batch import Batch, decode_batch
from node.ledger.blobs import REFERRING, blob_referred
from node.ledger.block import BlockContext, BlockOutcome, ReceiptStatus, SystemCode
from node.ledger.entries import ACCOUNT, VALIDATORS_KEY
from node.ledger.execute import block_steps
from node.ledger.overlay import StateReader
from node.ledger.reading import TransactionReader
from node.ledger.stakes import CANDIDATES_KEY, NEXT_VALIDATORS_KEY
from node.snapshot.making import Maker
from node.storage.chain import ChainStore, ExecutedHead, Outcome
from node.storage.errors import StorageError

log = structlog.get_logger(__name__)

BATCHES_REMEMBERED_MAX = 1024
BATCHES_READ_MAX = 64
"""As they were read; one takes up to about a MiB."""

ACCOUNTS_RECENT_MAX = 16_384
"""Accounts of recent blocks, in each of two generations, and one block's more; some 8 MB."""

TAKE_BACK_HEIGHTS = 128
"""So many of the newest blocks can be taken back (`openledger rollback`)."""


AUDIT_ENDS = frozenset(
    {SystemCode.SETTLED, SystemCode.REFUNDED, SystemCode.SLASHED, SystemCode.SLASHED_NO_REVEAL}
)


class Remembering(StateReader):
    """Reads a state once for each key, and remembers what it read: execution looks again at what it replaces."""

    __slots__ = ("_base", "seen")

    def __init__(self, base: StateReader) -> None:
        self._base = base
        self.seen: dict[bytes, bytes | None] = {}

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        if key in self.seen:
            return self.seen[key]
        value = self.seen[key] = self._base.get(key)
        return value


class Recent(StateReader):
    """The stored state, with the accounts that the last blocks wrote at hand: the database is asked for others only.

    Only what this process wrote is kept, told after each write (`wrote`); so nothing is ever older than the database.
    """

    __slots__ = ("_base", "_newer", "_older")

    def __init__(self, base: StateReader) -> None:
        self._base = base
        self._newer: dict[bytes, bytes] = {}
        self._older: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._newer) + len(self._older)

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        value = self._newer.get(key)
        if value is None:
            value = self._older.get(key)
        return self._base.get(key) if value is None else value

    def wrote(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Take over what a block wrote; past the bound what was not written for longest is read from the database again."""
        if len(self._newer) >= ACCOUNTS_RECENT_MAX:
            self._older, self._newer = self._newer, {}
        for key, value in changes.items():
            if value is None:
                self._newer.pop(key, None)
                self._older.pop(key, None)
            elif key.startswith(ACCOUNT):
                self._newer[key] = value


class SharedVerifier(Verifier):
    """One memory of good signatures for admission and execution, so that each is verified once."""

    __slots__ = ()

    def note_good(self, public: bytes, message: bytes, signature: bytes) -> None:
        """Remember a signature that was made, or found good, elsewhere."""
        self._good.setdefault((public, message, signature))
        if len(self._good) > self._capacity:
            del self._good[next(iter(self._good))]


@dataclass(frozen=True, slots=True)
class ExecutedBlock:
    """One block, what became of its transactions, the inferences whose audit it ended, and the head after it.

    `performed` consumed their nonce or their duty, whether they succeeded or failed; `invalid` changed nothing of their
    sender's, and some may still be owed a place (a proposer can order them too early, or without storage receipts).
    Transactions of a batch that the ledger skipped are in neither. `references` are the records that changed and may name a
    blob, each with the blob it needs now, and `accounts` the addresses whose balance or nonce changed.
    `transaction_bytes` is what its transactions take, `seconds` how long their execution took, with what others did in its
    pauses. The hash and the root are as in `consensus.inputs.Executed`; `validators_changed` says that those of this epoch, of the next, or the candidates did.
    """

    block: Block
    performed: tuple[bytes, ...]
    invalid: tuple[bytes, ...]
    audits_ended: tuple[bytes, ...]
    head: ExecutedHead
    references: tuple[tuple[bytes, bytes | None], ...] = ()
    accounts: tuple[bytes, ...] = ()
    transaction_bytes: int = 0
    seconds: float = 0.0
    next_validators_hash: bytes = b""
    snapshot_root: bytes = b""
    validators_changed: bool = False


class Executor:
    """Applies blocks to the stored state. `run` belongs in the daemon's nursery."""

    def __init__(
        self,
        store: ChainStore,
        chain_id: bytes,
        make_available: Callable[[Block], Awaitable[None]],
        executed: Callable[[ExecutedBlock], None],
        check: SharedVerifier,
        epochs: Epochs,
        snapshots: Maker | None = None,
    ) -> None:
        """Prepare to continue from the stored head; without `snapshots` no block can be taken back.

        `make_available` returns once every batch of a block is stored; `executed` is told of each block, in order;
        `check` remembers signatures found good on admission, so that each is verified once.
        """
        self.head = store.executed()
        self._store = store
        self._chain_id = chain_id
        self._make_available = make_available
        self._executed = executed
        self._check = check
        self._epochs = epochs
        self._snapshots = snapshots
        self._remembered_from: int | None = None
        self._waiting: deque[Block] = deque()
        self._wake = trio.Event()
        self._done = trio.Event()
        self._hashes: dict[bytes, tuple[bytes, ...]] = {}
        # A batch is met three times on its way: checked, ordered, executed; it is read once.
        self._batches: dict[bytes, Batch] = {}
        # As the last block left it: its bytes, and what they say.
        self._accumulator = (b"", Accumulator())
        self._recent = Recent(store)
        self.read = TransactionReader(chain_id)

    def recover(self) -> None:
        """Queue the blocks that were committed but not executed when the process ended."""
        for height in range(self.head.height + 1, self._store.committed_height() + 1):
            block = self._store.block_at(height)
            if block is None:
                raise StorageError(f"the committed block at height {height} is missing")
            self._waiting.append(block)

    def deliver(self, blocks: tuple[Block, ...]) -> None:
        """Queue committed blocks, oldest first. Bounded by the replica's lag limit and by one range of sync."""
        self._waiting.extend(blocks)
        self._wake.set()

    @property
    def waiting_blocks(self) -> int:
        """How many committed blocks wait to be executed."""
        return len(self._waiting)

    def transactions_in_flight(self, uncommitted_payload: tuple[bytes, ...]) -> set[bytes]:
        """Hashes of transactions that are ordered but not executed: in these batches, and in blocks that wait."""
        digests = [digest for block in self._waiting for digest in block.header.payload]
        return {tx for digest in (*digests, *uncommitted_payload) for tx in self.transaction_hashes(digest)}

    def knows_in_flight(self, uncommitted_payload: tuple[bytes, ...]) -> bool:
        """Whether every batch that is ordered but not executed is here: else its transactions could be ordered again."""
        digests = [digest for block in self._waiting for digest in block.header.payload]
        return all(self.transaction_hashes(digest) for digest in (*digests, *uncommitted_payload))

    def transaction_hashes(self, digest: bytes) -> tuple[bytes, ...]:
        """Hashes of a stored batch's transactions, in order; empty when the batch is not here."""
        known = self._hashes.get(digest)
        if known is None:
            if digest not in self._batches and self._store.batch(digest) is None:
                return ()
            known = tuple(self.read.hash(raw) for raw, _ in self._batch(digest).items)
            if len(self._hashes) >= BATCHES_REMEMBERED_MAX:
                del self._hashes[next(iter(self._hashes))]
            self._hashes[digest] = known
        return known

    async def progress(self) -> None:
        """Return after the next block has been executed."""
        await self._done.wait()

    async def run(self) -> None:
        """Execute for ever; where there are snapshots, `Maker.run` runs beside it."""
        while True:
            while self._waiting:
                # The block stays in the queue until it is done: what is in flight is computed from the queue.
                done = await self._execute(self._waiting[0])
                self._waiting.popleft()
                self._executed(done)
                self._done.set()
                self._done = trio.Event()
            self._wake = trio.Event()
            await self._wake.wait()

    async def _execute(self, block: Block) -> ExecutedBlock:
        if block.height != self.head.height + 1:
            raise StorageError(f"block {block.height} delivered where {self.head.height + 1} was due")
        await self._make_available(block)
        batches = [self._batch(digest) for digest in block.header.payload]
        began_s = trio.current_time()
        before = Remembering(self._recent)
        outcome = await self._apply(before, block, batches)
        seconds = trio.current_time() - began_s
        encoded = encode_accumulator(outcome.accumulator)
        self._accumulator = (encoded, outcome.accumulator)
        root = b"" if self._snapshots is None else await self._snapshots.root_for(block.height)
        self.head = ExecutedHead(
            block.height,
            block.id,
            outcome.state_digest,
            outcome.accumulator_root,
            outcome.lthash,
            encoded,
        )
        kept = Outcome(
            outcome.state_digest,
            outcome.receipts_root,
            self.head.accumulator_root,
            outcome.receipts_encoded,
            outcome.next_validators_hash,
            root,
        )
        told = tell_apart(outcome, lambda subject: self._store.transaction_place(subject) is not None)
        if self._snapshots is None:
            self._store.record_execution(self.head, outcome.changes, kept, told.places)
        else:
            forget = self._forgettable(self._snapshots, block.height)
            self._store.record_execution(self.head, outcome.changes, kept, told.places, before.seen, forget)
            self._snapshots.executed(self.head, kept)
        self._recent.wrote(outcome.changes)
        if batches:
            log.info(
                "executed", height=block.height, transactions=len(told.performed), invalid=len(told.invalid)
            )
        references = tuple(
            (key, blob_referred(key, value))
            for key, value in outcome.changes.items()
            if key.startswith(REFERRING)
        )
        accounts = tuple([key[len(ACCOUNT) :] for key in outcome.changes if key.startswith(ACCOUNT)])
        size_bytes = sum(len(raw) for batch in batches for raw, _ in batch.items)
        return ExecutedBlock(
            block,
            tuple(told.performed),
            tuple(told.invalid),
            tuple(told.audits_ended),
            self.head,
            references,
            accounts,
            size_bytes,
            seconds,
            kept.next_validators_hash,
            kept.snapshot_root,
            any(key in outcome.changes for key in (VALIDATORS_KEY, NEXT_VALIDATORS_KEY, CANDIDATES_KEY)),
        )

    def _forgettable(self, snapshots: Maker, height: int) -> range:
        """Heights of which need not be known any longer what they replaced, once `height` has been executed."""
        if self._remembered_from is None:
            self._remembered_from = snapshots.remembered_from(height)
        needed = height - TAKE_BACK_HEIGHTS + 1
        if snapshots.needs_above is not None:
            needed = min(needed, snapshots.needs_above + 1)
        # Twice as fast as blocks come, and no faster: after a late snapshot there are many.
        end = max(self._remembered_from, min(needed, self._remembered_from + 2))
        forgotten = range(self._remembered_from, end)
        self._remembered_from = end
        return forgotten

    async def _apply(self, before: StateReader, block: Block, batches: list[Batch]) -> BlockOutcome:
        """Execute a block, here rather than in a thread: both would wait for Python's lock, and take longer (docs/adr/023)."""
        header, (encoded, accumulator) = block.header, self._accumulator
        context = BlockContext(
            chain_id=header.chain_id,
            height=header.height,
            epoch=header.epoch,
            round=header.round,
            timestamp_ms=header.timestamp_ms,
            proposer=header.proposer,
            beacon_reveal=header.beacon_reveal,
            executed_height=header.executed_height,
            ends_epoch=is_boundary(header),
            missed=self._missed(block),
        )
        steps = block_steps(
            before,
            self.head.lthash,
            accumulator if encoded == self.head.accumulator else decode_accumulator(self.head.accumulator),
            context,
            batches,
            check=self._check,
            read=self.read,
        )
        while True:
            await trio.lowlevel.checkpoint()
            try:
                next(steps)
            except StopIteration as done:
                outcome: BlockOutcome = done.value
                return outcome

    def _missed(self, block: Block) -> tuple[bytes, ...]:
        """Consensus keys of the leaders of the rounds that were skipped between a block and its parent."""
        header, epoch = block.header, self._epochs.row(block.header.epoch)
        leaders, context = self._epochs.leaders(header.epoch), self._epochs.context(header.epoch)
        if epoch is None or leaders is None or context is None:
            raise StorageError(f"block {block.height} is of epoch {header.epoch}, which did not begin here")
        parent = None if header.parent == epoch.start.id else self._store.block(header.parent)
        if header.parent != epoch.start.id and parent is None:
            raise StorageError(f"the parent of block {block.height} is missing")
        members = context.validators.validators
        skipped = missed_leaders(leaders, 0 if parent is None else parent.round, block.round)
        return tuple(members[index].id for index in skipped)

    def remember_batch(self, digest: bytes, batch: Batch) -> None:
        """Keep a stored batch as it was read, for when it executes; past the bound the oldest is read again then.

        Its author must have been found to have signed this digest: the signature is not verified again.
        """
        self._batches[digest] = batch
        self._check.note_good(batch.author, digest, batch.signature)
        if len(self._batches) > BATCHES_READ_MAX:
            del self._batches[next(iter(self._batches))]

    def _batch(self, digest: bytes) -> Batch:
        known = self._batches.get(digest)
        if known is not None:
            return known
        data = self._store.batch(digest)
        if data is None:
            raise StorageError(f"batch {digest.hex()} was made available and is missing")
        return decode_batch(data)


@dataclass(frozen=True, slots=True)
class Told:
    """A block's receipts told apart, and where each transaction's receipt stands; the lists as in `ExecutedBlock`."""

    performed: list[bytes]
    invalid: list[bytes]
    audits_ended: list[bytes]
    places: dict[bytes, int]


def tell_apart(outcome: BlockOutcome, is_placed: Callable[[bytes], bool]) -> Told:
    """One look at each receipt. A replay, which is invalid, never hides what happened before.

    `is_placed` says whether an earlier block has a receipt of this transaction.
    """
    told = Told([], [], [], {})
    executed, invalid = (ReceiptStatus.OK, ReceiptStatus.FAILED), ReceiptStatus.INVALID
    performed, places = told.performed, told.places
    for position, receipt in enumerate(outcome.receipts):
        status, subject = receipt.status, receipt.subject
        if status in executed:
            performed.append(subject)
            places[subject] = position
        elif status == invalid:
            told.invalid.append(subject)
            if subject not in places and not is_placed(subject):
                places[subject] = position
        elif receipt.code in AUDIT_ENDS:
            told.audits_ended.append(subject)
    return told
