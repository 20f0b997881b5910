"""Executes committed blocks, oldest first, and says what came out.

A block's state changes, receipts and height are one atomic write: a process that dies is between two blocks, never
inside one. The ledger runs in a thread, so that a long block does not hold up votes.
"""

import threading
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog
import trio

from consensus.crypto import Verifier, verify
from consensus.types import Block
from node.ledger.accumulator import decode_accumulator, encode_accumulator
from node.ledger.batch import Batch, decode_batch
from node.ledger.blobs import REFERRING, blob_referred
from node.ledger.block import BlockContext, BlockOutcome, ReceiptStatus, SystemCode, encode_receipt
from node.ledger.execute import execute_block
from node.ledger.state import ACCOUNT
from node.ledger.transaction import hash_transaction_bytes
from node.storage.chain import ChainStore, ExecutedHead, Outcome
from node.storage.errors import StorageError

log = structlog.get_logger(__name__)

BATCHES_REMEMBERED_MAX = 1024


AUDIT_ENDS = frozenset(
    {SystemCode.SETTLED, SystemCode.REFUNDED, SystemCode.SLASHED, SystemCode.SLASHED_NO_REVEAL}
)


class SharedVerifier(Verifier):
    """A `Verifier` for several threads: execution checks signatures in one, admission in another."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def __call__(self, public: bytes, message: bytes, signature: bytes) -> bool:
        """Return whether the signature is good, from memory where possible."""
        key = (public, message, signature)
        with self._lock:
            if key in self._good:
                return True
        # Not under the lock: the curve takes many times longer than the memory, and threads would wait in turn.
        if not verify(public, message, signature):
            return False
        with self._lock:
            self._good.setdefault(key)
            if len(self._good) > self._capacity:
                del self._good[next(iter(self._good))]
        return True

    def knows(self, public: bytes, message: bytes, signature: bytes) -> bool:
        """Whether the signature was found good before and is remembered."""
        with self._lock:
            return (public, message, signature) in self._good


@dataclass(frozen=True, slots=True)
class ExecutedBlock:
    """One block, what became of its transactions, the inferences whose audit it ended, and the head after it.

    `performed` consumed their nonce or their duty, whether they succeeded or failed; `invalid` changed nothing of their
    sender's, and some may still be owed a place (a proposer can order them too early, or without storage receipts).
    Transactions of a batch that the ledger skipped are in neither. `references` are the records that changed and may name a
    blob, each with the blob it needs now, and `accounts` the addresses whose balance or nonce changed.
    `transaction_bytes` is what its transactions take, `seconds` how long their execution took.
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


class Executor:
    """Applies blocks to the stored state. `run` belongs in the daemon's nursery."""

    def __init__(
        self,
        store: ChainStore,
        chain_id: bytes,
        make_available: Callable[[Block], Awaitable[None]],
        executed: Callable[[ExecutedBlock], None],
        check: Verifier,
    ) -> None:
        """Prepare to continue from the stored head.

        `make_available` returns once every batch of a block is stored; `executed` is told of each block, in order;
        `check` remembers signatures found good on admission, so that each is verified once.
        """
        self.head = store.executed()
        self._store = store
        self._chain_id = chain_id
        self._make_available = make_available
        self._executed = executed
        self._check = check
        self._waiting: deque[Block] = deque()
        self._wake = trio.Event()
        self._done = trio.Event()
        self._hashes: dict[bytes, tuple[bytes, ...]] = {}

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
            data = self._store.batch(digest)
            if data is None:
                return ()
            known = tuple(hash_transaction_bytes(raw, self._chain_id) for raw, _ in decode_batch(data).items)
            if len(self._hashes) >= BATCHES_REMEMBERED_MAX:
                del self._hashes[next(iter(self._hashes))]
            self._hashes[digest] = known
        return known

    async def progress(self) -> None:
        """Return after the next block has been executed."""
        await self._done.wait()

    async def run(self) -> None:
        """Execute for ever."""
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
        outcome = await trio.to_thread.run_sync(self._apply, block, batches)
        seconds = trio.current_time() - began_s
        self.head = ExecutedHead(
            block.height,
            block.id,
            outcome.state_digest,
            outcome.accumulator_root,
            outcome.lthash,
            encode_accumulator(outcome.accumulator),
        )
        kept = Outcome(
            outcome.state_digest,
            outcome.receipts_root,
            self.head.accumulator_root,
            tuple(encode_receipt(receipt) for receipt in outcome.receipts),
        )
        self._store.record_execution(self.head, outcome.changes, kept, self._places(outcome))
        performed = _subjects(outcome, ReceiptStatus.OK, ReceiptStatus.FAILED)
        invalid = _subjects(outcome, ReceiptStatus.INVALID)
        if batches:
            log.info("executed", height=block.height, transactions=len(performed), invalid=len(invalid))
        ended = tuple(
            receipt.subject
            for receipt in outcome.receipts
            if receipt.status == ReceiptStatus.SYSTEM and receipt.code in AUDIT_ENDS
        )
        references = tuple(
            (key, blob_referred(key, value))
            for key, value in outcome.changes.items()
            if key.startswith(REFERRING)
        )
        accounts = tuple(key[len(ACCOUNT) :] for key in outcome.changes if key.startswith(ACCOUNT))
        size_bytes = sum(len(raw) for batch in batches for raw, _ in batch.items)
        return ExecutedBlock(
            block, performed, invalid, ended, self.head, references, accounts, size_bytes, seconds
        )

    def _apply(self, block: Block, batches: list[Batch]) -> BlockOutcome:
        header = block.header
        context = BlockContext(
            chain_id=header.chain_id,
            height=header.height,
            epoch=header.epoch,
            round=header.round,
            timestamp_ms=header.timestamp_ms,
            proposer=header.proposer,
            beacon_reveal=header.beacon_reveal,
            executed_height=header.executed_height,
        )
        return execute_block(
            self._store,
            self.head.lthash,
            decode_accumulator(self.head.accumulator),
            context,
            batches,
            check=self._check,
        )

    def _places(self, outcome: BlockOutcome) -> dict[bytes, int]:
        """Where each transaction's receipt stands. A replay, which is invalid, never hides what happened before."""
        places: dict[bytes, int] = {}
        for position, receipt in enumerate(outcome.receipts):
            subject = receipt.subject
            if receipt.status in (ReceiptStatus.OK, ReceiptStatus.FAILED) or (
                receipt.status == ReceiptStatus.INVALID
                and subject not in places
                and self._store.transaction_place(subject) is None
            ):
                places[subject] = position
        return places

    def _batch(self, digest: bytes) -> Batch:
        data = self._store.batch(digest)
        if data is None:
            raise StorageError(f"batch {digest.hex()} was made available and is missing")
        return decode_batch(data)


def _subjects(outcome: BlockOutcome, *statuses: ReceiptStatus) -> tuple[bytes, ...]:
    return tuple(receipt.subject for receipt in outcome.receipts if receipt.status in statuses)
