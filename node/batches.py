"""Batches of transactions, the payload of blocks: made where this node leads, taken and fetched where others do.

    mempool -> BatchMaker.offer -> store, peers          peers -> Batches.take, Batches.fetch -> store
    mempool -> PendingPayload -> consensus                             Batches -> consensus

Blocks name batches by digest, so a batch goes ahead of the proposal that names it.
"""

from collections.abc import Callable

import structlog
import trio

from consensus.codec import encode
from consensus.effects import FetchPayload, RequestPayload
from consensus.inputs import Input, PayloadAvailable, PayloadPending
from node.clock import now_ms
from node.directory import Directory, Identity
from node.executor import Executor
from node.fetch import Fetcher, read_batch
from node.intake import Intake
from node.ledger.batch import (
    BATCH_BYTES_MAX,
    BATCH_ITEMS_MAX,
    Item,
    make_batch,
)
from node.ledger.errors import LedgerError
from node.ledger.state import get_batch_window
from node.mempool import Pooled
from node.network.network import Network
from node.pushed import PushedBatches
from node.storage.chain import ChainStore
from node.wire import Frame, WireError

log = structlog.get_logger(__name__)

# Room in a batch for storage receipts beside the transactions, and for what is around all of them.
BATCH_OVERHEAD_BYTES = 96 << 10
BATCH_ENVELOPE_BYTES = 256
# Most that a transaction without storage receipts takes in a batch beside its own bytes.
ITEM_BYTES = 8
# How often batches that nothing used are looked for.
EXPIRY_HEIGHTS = 100
# Looking through the pool takes time, and a busy network changes it hundreds of times a second.
PAYLOAD_DELAY_S = 0.005


class BatchMaker:
    """Makes this node's own batches, for the rounds that it leads."""

    def __init__(
        self,
        identity: Identity,
        chain_id: bytes,
        network: Network,
        store: ChainStore,
        executor: Executor,
        intake: Intake,
        transactions_max: int,
    ) -> None:
        """`transactions_max` is the operator's limit of transactions in a batch; the ledger's own holds besides."""
        self._identity = identity
        self._chain_id = chain_id
        self._network = network
        self._store = store
        self._executor = executor
        self._intake = intake
        self._transactions_max = min(BATCH_ITEMS_MAX, transactions_max)
        self._sequence = 0

    def offer(self, request: RequestPayload) -> tuple[bytes, ...]:
        """Make one batch of what waits, store it, and send it ahead of the proposal that will name it.

        Returns its digest (32 bytes); nothing where nothing may be ordered now, or where a batch in flight is not here.
        """
        if request.empty_only:
            return ()
        if not self._executor.knows_in_flight(request.uncommitted_payload):
            return ()
        items = self._choose(self._executor.transactions_in_flight(request.uncommitted_payload))
        if not items:
            return ()
        # A sequence is used once; time keeps it unique over restarts without another synced record, and the state
        # says what was used before a clock that was set back.
        window = get_batch_window(self._store, self._identity.account)
        used = max((window.floor, *window.executed))
        self._sequence = max(self._sequence + 1, used + 1, now_ms())
        try:
            name, batch, data = make_batch(self._identity.account_seed, self._chain_id, self._sequence, items)
        except LedgerError as error:
            log.error("batch_too_large", transactions=len(items), error=str(error))
            return ()
        self._store.put_batch(name, data)
        self._executor.remember_batch(name, batch)
        self._network.broadcast(Frame.BATCH, data)
        return (name,)

    def _choose(self, in_flight: set[bytes]) -> tuple[Item, ...]:
        """What of the pool goes into one batch, besides the transactions with these hashes, which are ordered already."""
        intake = self._intake
        chosen = intake.mempool.select(
            intake.next_nonce,
            intake.includable,
            intake.withheld(in_flight),
            bytes_max=BATCH_BYTES_MAX - BATCH_OVERHEAD_BYTES,
            count_max=self._transactions_max,
        )
        return self._fitting(intake.affordable(chosen, in_flight))

    def _fitting(self, chosen: list[Pooled]) -> tuple[Item, ...]:
        """As many of the chosen, from the first on, as fit into one batch with their storage receipts."""
        items: list[Item] = []
        size = BATCH_ENVELOPE_BYTES
        for pooled in chosen:
            item = self._intake.item(pooled)
            size += len(pooled.raw) + ITEM_BYTES if not item[1] else len(encode(item))
            if size > BATCH_BYTES_MAX:
                break
            items.append(item)
        return tuple(items)


class PendingPayload:
    """Tells consensus whether there is something to order."""

    def __init__(
        self,
        executor: Executor,
        intake: Intake,
        tell: Callable[[Input], None],
        start: Callable[..., bool],
    ) -> None:
        """`tell` queues an input of consensus; `start` runs a small task beside the others, if it can."""
        self._executor = executor
        self._intake = intake
        self._tell = tell
        self._start = start
        self._told_soon = False

    def changed(self) -> None:
        """Tell the replica soon whether there is something to order; changes that follow at once are told together."""
        if not self._told_soon:
            self._told_soon = self._start(self._tell_pending)

    async def _tell_pending(self) -> None:
        await trio.sleep(PAYLOAD_DELAY_S)
        self._told_soon = False
        intake = self._intake
        pending = intake.mempool.has_ready(
            intake.next_nonce,
            intake.includable,
            intake.withheld(self._executor.transactions_in_flight(())),
        )
        self._tell(PayloadPending(pending, now_ms()))


class Batches:
    """The batches of others: taken as they are pushed, fetched where a block names one that is not here, dropped unused."""

    def __init__(
        self,
        directory: Directory,
        chain_id: bytes,
        store: ChainStore,
        executor: Executor,
        fetcher: Fetcher,
        tell: Callable[[Input], None],
        start: Callable[..., bool],
    ) -> None:
        """`tell` queues an input of consensus; `start` runs a small task beside the others, if it can."""
        self._directory = directory
        self._chain_id = chain_id
        self._store = store
        self._executor = executor
        self._fetcher = fetcher
        self._tell = tell
        self._start = start
        self._pushed = PushedBatches()
        self._fetching: set[bytes] = set()

    def take(self, peer_id: str, data: bytes) -> None:
        """Store a batch that a validator pushes, if it is its own and within its quota.

        Raises WireError where the peer is no validator, LedgerError where the batch is not in form or not its own.
        """
        key = self._directory.validator_of.get(peer_id)
        entry = None if key is None else self._directory.validators.by_consensus_key(key)
        if entry is None:
            raise WireError("a batch from a peer that is no validator")
        name, batch = read_batch(data, self._chain_id, author=entry.account)
        if self._store.batch(name) is None:
            height = self._executor.head.height
            if not self._pushed.add(entry.account, name, len(data), height):
                if self._pushed.worth_telling(entry.account, height):
                    log.warning("batch_not_taken", author=entry.account.hex(), reason="its quota is used up")
                return
            self._store.put_batch(name, data)
            self._executor.remember_batch(name, batch)
            # Once: a peer that repeats itself must not fill the driver's queue. Consensus asks for what it forgot.
            self._tell(PayloadAvailable(name, now_ms()))

    def fetch(self, effect: FetchPayload) -> None:
        """Make batches available that a proposal names, and tell consensus of each; its sources are asked first."""
        for name in effect.digests:
            if self._store.batch(name) is not None:
                self._tell(PayloadAvailable(name, now_ms()))
            elif name not in self._fetching and self._start(self._fetch, name, effect.sources):
                self._fetching.add(name)

    async def _fetch(self, name: bytes, sources: tuple[bytes, ...]) -> None:
        try:
            if await self._fetcher.batch(name, self._directory.peers(sources)):
                self._tell(PayloadAvailable(name, now_ms()))
        finally:
            self._fetching.discard(name)

    def ordered(self) -> list[bytes]:
        """Batches of blocks that are stored but not executed."""
        # In this order: a block that is committed meanwhile is found on one side or on both, never on neither.
        blocks = [*self._store.uncommitted_blocks()]
        for waiting in range(self._executor.head.height + 1, self._store.committed_height() + 1):
            block = self._store.block_at(waiting)
            if block is not None:
                blocks.append(block)
        return [name for block in blocks for name in block.header.payload]

    def executed(self, height: int, payload: tuple[bytes, ...]) -> None:
        """A block with this payload was executed: what it names stays; now and then, what no block came to use goes."""
        self._pushed.used(payload)
        if height % EXPIRY_HEIGHTS == 0:
            self._expire(height)

    def _expire(self, height: int) -> None:
        """Remove old batches that no block came to use; what a block in flight names stays."""
        needed = set(self.ordered())
        for name in self._pushed.expire(height, needed):
            self._store.drop_batch(name)
