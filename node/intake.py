"""The way of a transaction into this node: check, wait for its blob, pool, pass on.

A validator passes transactions to the other validators over direct streams; a full node gossips them in
batches, and again until they are executed, since gossip may be lost. A transaction that names a blob is
admitted only where the blob is present, and a validator vouches for the blob (a storage receipt) only after
it has checked the content against the transaction and the bytes are synced to disk.
"""

from collections.abc import Callable
from functools import cache

import structlog
import trio

from consensus.crypto import Verifier
from node.directory import Directory, Identity
from node.duties import is_owed
from node.errors import BlobMissing, NodeError
from node.executor import ExecutedBlock, Executor
from node.fetch import Fetcher
from node.ledger.admission import mempool_check
from node.ledger.batch import Item, StorageClaim, sign_storage_receipt, storage_claim
from node.ledger.bodies import (
    DUTY_KINDS,
    AttestCommit,
    AttestOpen,
    ContributionSubmit,
    Held,
    InferenceRecord,
    InferenceReveal,
    ProviderBond,
    Transfer,
)
from node.ledger.errors import LedgerError, MalformedError
from node.ledger.records import decode_records, records_root, token_count
from node.ledger.state import get_account
from node.ledger.transaction import Transaction, decode_transaction, hash_transaction_bytes
from node.mempool import Mempool, Pooled
from node.network.errors import NetworkError
from node.network.network import Network
from node.receipts import ReceiptBook
from node.storage.blobs import BlobStore
from node.storage.chain import ChainStore
from node.wire import (
    TRANSACTIONS_BYTES_MAX,
    TRANSACTIONS_MAX,
    Frame,
    StorageReceiptFrame,
    Topic,
    WireError,
    decode_storage_receipt,
    decode_transactions,
    encode_storage_receipt,
    encode_transactions,
)

log = structlog.get_logger(__name__)

GOSSIP_DELAY_S = 0.05
REPUBLISH_S = 2.5
PUBLISH_TIMEOUT_S = 5.0
# New transactions between two gossip messages; publishing may wait for a peer while users go on.
OUTBOX_MAX = 4096
BLOB_TASKS_MAX = 64
# A sender whose blobs are nowhere to be had must not keep everybody else's waiting.
BLOB_TASKS_PER_SENDER_MAX = 8
# A duty that the state does not ask for (yet: its sender may be ahead) is kept so long.
UNOWED_HEIGHTS_MAX = 8
# Millions of token ids can be in one blob; decoding more of them at once would take gigabytes.
BLOB_CHECKS_MAX = 2
MALFORMED_POINTS = 20


class Intake:
    """Admits transactions from RPC, peers and this validator's own duties."""

    def __init__(
        self,
        identity: Identity,
        directory: Directory,
        chain_id: bytes,
        network: Network,
        store: ChainStore,
        blobs: BlobStore,
        fetcher: Fetcher,
        executor: Executor,
        mempool: Mempool,
        receipts: ReceiptBook,
        check: Verifier,
        changed: Callable[[], None],
        start: Callable[..., bool],
    ) -> None:
        """`changed` is told when the pool may offer more or less; `start` runs a small task beside the others, if it can."""
        self.mempool = mempool
        self._identity = identity
        self._directory = directory
        self._chain_id = chain_id
        self._network = network
        self._store = store
        self._blobs = blobs
        self._fetcher = fetcher
        self._executor = executor
        self._receipts = receipts
        self._check = check
        self._changed = changed
        self._start = start
        self._validator = identity.consensus_seed is not None
        self._outbox: list[bytes] = []
        self._fetching: dict[bytes, bytes] = {}  # hash of a transaction whose blob is fetched -> its sender
        self._checks = trio.CapacityLimiter(BLOB_CHECKS_MAX)
        # Waiting duties that the state does not ask for, with the height each was met at.
        self._unowed: dict[bytes, int] = {}
        # Hashes of what was submitted here and may still wait, with the time of it (s).
        self._own: dict[bytes, float] = {}
        self._wake = trio.Event()

    # --- in ---

    async def submit(self, raw: bytes) -> bytes:
        """Take a transaction from this node's own user or duties, and pass it on; returns its hash.

        Raises LedgerError, MempoolFull and kin, BlobMissing when it names a blob that this node does not have.
        """
        pooled = self._admit(raw)
        if pooled is None:
            return hash_transaction_bytes(raw, self._chain_id)
        self._own[pooled.tx_hash] = trio.current_time()
        claim = _claim_of(pooled.transaction)
        if claim is not None:
            if not self._blobs.has(claim.blob_digest):
                self.mempool.discard(pooled.tx_hash)
                raise BlobMissing(claim.blob_digest)
            await self._vouch(pooled, claim)
        self._pass_on(raw)
        self._changed()
        return pooled.tx_hash

    async def receive(self, peer_id: str, data: bytes, *, forwarded: bool = False) -> None:
        """Take transactions from a peer; those that the ledger refuses are dropped without blame.

        A refusal is no proof of malice: the peer may be a block ahead or behind. Nor are malformed transactions where
        `forwarded` says that the peer may only have passed the message on, which is done before they are read.
        """
        try:
            rows = decode_transactions(data)
        except WireError as error:
            if not forwarded:
                self._network.penalise(peer_id, MALFORMED_POINTS, str(error))
            return
        for raw in rows:
            try:
                pooled = self._admit(raw)
            except MalformedError as error:
                if not forwarded:
                    self._network.penalise(peer_id, MALFORMED_POINTS, str(error))
                break
            except (LedgerError, NodeError) as error:
                log.debug("transaction_refused", peer=peer_id, error=str(error))
                continue
            if pooled is None:
                self._meet_again(hash_transaction_bytes(raw, self._chain_id), peer_id)
            elif (claim := _claim_of(pooled.transaction)) is not None:
                self._want_blob(pooled, claim, peer_id)
            await trio.lowlevel.checkpoint()
        self._changed()

    def receive_receipt(self, peer_id: str, data: bytes) -> None:
        """Take a storage receipt from a peer."""
        try:
            frame = decode_storage_receipt(data)
        except WireError as error:
            self._network.penalise(peer_id, MALFORMED_POINTS, str(error))
            return
        claim = StorageClaim(
            frame.blob_digest,
            frame.blob_bytes,
            frame.content_root,
            frame.content_count,
            frame.content_tokens,
        )
        if not self._receipts.add(claim, frame.validator, frame.signature):
            self._network.penalise(peer_id, MALFORMED_POINTS, "a storage receipt that does not verify")
            return
        self._changed()

    def _admit(self, raw: bytes) -> Pooled | None:
        """Check and pool; None when it waits already or was executed."""
        tx_hash = hash_transaction_bytes(raw, self._chain_id)
        if tx_hash in self.mempool:
            return None
        transaction = decode_transaction(raw)
        if self._performed(tx_hash, transaction):
            return None
        self._check_admissible(transaction)
        pooled = self.mempool.add(raw, tx_hash, transaction, duty=transaction.kind in DUTY_KINDS)
        if pooled.duty and not self._owed(transaction):
            self._unowed[tx_hash] = self._executor.head.height
        return pooled

    def _performed(self, tx_hash: bytes, transaction: Transaction) -> bool:
        """Whether it has had its effect. One that was ordered but found invalid, without nonce consumed, has not."""
        if self._store.transaction_place(tx_hash) is None:
            return False
        if transaction.kind in DUTY_KINDS:
            return not self._owed(transaction)
        return transaction.nonce < self.next_nonce(transaction.sender)

    def _check_admissible(self, transaction: Transaction) -> None:
        mempool_check(
            self._store,
            transaction,
            self._executor.head.height,
            chain_id=self._chain_id,
            check=self._check,
        )

    def settle(self, done: ExecutedBlock) -> None:
        """Drop what a block has dealt with.

        What was only ordered at the wrong time (before its turn, or without storage receipts) goes on waiting: otherwise
        one proposer could take other people's transactions out of every pool.
        """
        gone = set(done.performed)
        for tx_hash in done.invalid:
            pooled = self.mempool.get(tx_hash)
            if pooled is not None and not self._still_admissible(pooled):
                gone.add(tx_hash)
        self.mempool.settle(gone, cache(self.next_nonce), done.head.height)
        self._weigh_duties(done.head.height)
        self._own = {tx_hash: since_s for tx_hash, since_s in self._own.items() if tx_hash in self.mempool}

    def _weigh_duties(self, height: int) -> None:
        """Note which waiting duties the state does not ask for, and drop those it has not asked for in a while."""
        unowed: dict[bytes, int] = {}
        for pooled in self.mempool:
            if pooled.duty and not self._owed(pooled.transaction):
                since = self._unowed.get(pooled.tx_hash, height)
                if height - since < UNOWED_HEIGHTS_MAX:
                    unowed[pooled.tx_hash] = since
                else:
                    self.mempool.discard(pooled.tx_hash)
        self._unowed = unowed

    def _owed(self, transaction: Transaction) -> bool:
        body = transaction.body
        if not isinstance(body, Held | AttestCommit | AttestOpen):
            return True
        return is_owed(self._store, transaction.sender, body)

    def _still_admissible(self, pooled: Pooled) -> bool:
        try:
            self._check_admissible(pooled.transaction)
        except LedgerError:
            return False
        return not pooled.duty

    # --- blobs ---

    def _want_blob(self, pooled: Pooled, claim: StorageClaim, peer_id: str) -> None:
        sender = pooled.transaction.sender
        senders = list(self._fetching.values())
        if (
            pooled.tx_hash in self._fetching
            or len(senders) >= BLOB_TASKS_MAX
            or senders.count(sender) >= BLOB_TASKS_PER_SENDER_MAX
        ):
            return  # gossip brings the transaction again
        if self._start(self._fetch_and_vouch, pooled, claim, peer_id):
            self._fetching[pooled.tx_hash] = sender

    async def _fetch_and_vouch(self, pooled: Pooled, claim: StorageClaim, peer_id: str) -> None:
        try:
            if await self._fetcher.blob(claim.blob_digest, claim.blob_bytes, (peer_id,)):
                await self._vouch(pooled, claim)
                self._changed()
            else:
                self.mempool.discard(pooled.tx_hash)
        except (MalformedError, OSError) as error:
            log.warning("blob_refused", tx_hash=pooled.tx_hash.hex(), error=str(error))
        finally:
            self._fetching.pop(pooled.tx_hash, None)

    async def _vouch(self, pooled: Pooled, claim: StorageClaim) -> None:
        """Check a blob against its transaction and, as a validator, say with a signature that it is stored."""
        problem = await trio.to_thread.run_sync(
            _blob_problem, self._blobs, pooled.transaction, limiter=self._checks
        )
        if problem is not None:
            self.mempool.discard(pooled.tx_hash)
            raise MalformedError(problem, "blob")
        if not self._validator:
            return
        signature = sign_storage_receipt(self._identity.account_seed, claim, self._chain_id)
        self._receipts.add(claim, self._identity.account, signature)
        self._broadcast_receipt(claim, signature)

    def _meet_again(self, tx_hash: bytes, peer_id: str) -> None:
        """A transaction gossiped again may wait for its blob, or for a receipt that was lost: see to both."""
        pooled = self.mempool.get(tx_hash)
        claim = None if pooled is None else _claim_of(pooled.transaction)
        if pooled is None or claim is None:
            return
        own = self._receipts.signature(claim, self._identity.account)
        if own is not None:
            self._broadcast_receipt(claim, own)
        elif self._validator or not self._blobs.has(claim.blob_digest):
            self._want_blob(pooled, claim, peer_id)

    def _broadcast_receipt(self, claim: StorageClaim, signature: bytes) -> None:
        frame = StorageReceiptFrame(
            claim.blob_digest,
            claim.blob_bytes,
            claim.content_root,
            claim.content_count,
            claim.content_tokens,
            self._identity.account,
            signature,
        )
        self._network.broadcast(Frame.STORAGE_RECEIPT, encode_storage_receipt(frame))

    # --- out ---

    def _pass_on(self, raw: bytes) -> None:
        if self._validator:
            self._network.broadcast(Frame.TRANSACTIONS, encode_transactions([raw]))
        elif (
            len(self._outbox) < OUTBOX_MAX
        ):  # past it the next repetition brings what still waits in the mempool
            self._outbox.append(raw)
            self._wake.set()

    async def run_gossip(self) -> None:
        """On a full node: publish new transactions in batches, and those still waiting again and again."""
        republish_s = trio.current_time() + REPUBLISH_S
        while True:
            with trio.move_on_at(republish_s):
                await self._wake.wait()
            if self._wake.is_set():
                await trio.sleep(GOSSIP_DELAY_S)  # let a burst become one message
                rows, self._outbox = self._outbox, []
                self._wake = trio.Event()
            else:
                rows = []
            if trio.current_time() >= republish_s:  # however busy the users are
                rows = [pooled.raw for pooled in self.mempool]
                republish_s = trio.current_time() + REPUBLISH_S
            for message in _messages(rows):
                try:
                    await self._network.publish(Topic.TRANSACTIONS, message, PUBLISH_TIMEOUT_S)
                except NetworkError as error:
                    log.warning("gossip_failed", error=str(error))

    async def run_repeats(self) -> None:
        """On a validator: send what was submitted here and still waits again; a frame may have been lost.

        Those that know a transaction already answer with their storage receipt, which may have been lost as well.
        """
        while True:
            await trio.sleep(REPUBLISH_S)
            long_ago_s = trio.current_time() - REPUBLISH_S
            waiting = [self.mempool.get(name) for name, since_s in self._own.items() if since_s <= long_ago_s]
            for message in _messages([pooled.raw for pooled in waiting if pooled is not None]):
                self._network.broadcast(Frame.TRANSACTIONS, message)

    # --- blocks ---

    def includable(self, pooled: Pooled) -> bool:
        """Whether a block may carry it now: its fee can be paid, and more than two thirds of stake hold its blob."""
        transaction = pooled.transaction
        claim = _claim_of(transaction)
        if claim is not None and self._receipts.quorum(claim) is None:
            return False
        return get_account(self._store, transaction.sender).balance >= transaction.fee

    def withheld(self, in_flight: set[bytes]) -> set[bytes]:
        """What must not be chosen now: transactions that are ordered already, and duties the state does not ask for."""
        return in_flight | self._unowed.keys()

    def affordable(self, chosen: list[Pooled], in_flight: set[bytes]) -> list[Pooled]:
        """What of `chosen` its senders can pay, after what of theirs is ordered already and what comes before it.

        A transaction whose fee cannot be paid where it executes costs the validator that ordered it, not its sender.
        """
        spent: dict[bytes, int] = {}
        ordered = (self.mempool.get(tx_hash) for tx_hash in in_flight)
        for pooled in ordered:
            if pooled is not None:
                _spend(spent, pooled.transaction)
        kept: list[Pooled] = []
        broke: set[bytes] = set()
        for pooled in chosen:
            sender, fee = pooled.transaction.sender, pooled.transaction.fee
            balance = get_account(self._store, sender).balance
            if not pooled.duty and (sender in broke or balance - spent.get(sender, 0) < fee):
                broke.add(sender)  # the rest of its line would have the wrong nonce
                continue
            _spend(spent, pooled.transaction)
            kept.append(pooled)
        return kept

    def item(self, pooled: Pooled) -> Item:
        """The transaction as a batch carries it."""
        claim = _claim_of(pooled.transaction)
        return (pooled.raw, () if claim is None else self._receipts.quorum(claim) or ())

    def next_nonce(self, sender: bytes) -> int:
        """The nonce that the ledger expects of a sender at the executed height."""
        return get_account(self._store, sender).nonce


def _claim_of(transaction: Transaction) -> StorageClaim | None:
    body = transaction.body
    return storage_claim(body) if isinstance(body, ContributionSubmit | InferenceReveal) else None


def _spend(spent: dict[bytes, int], transaction: Transaction) -> None:
    """Add what a transaction may take from whose balance."""
    sender, body = transaction.sender, transaction.body
    amount = body.amount if isinstance(body, Transfer | ProviderBond) else 0
    spent[sender] = spent.get(sender, 0) + transaction.fee + amount
    if isinstance(body, InferenceRecord):
        spent[body.voucher.user] = spent.get(body.voucher.user, 0) + body.voucher.fee


def _blob_problem(blobs: BlobStore, transaction: Transaction) -> str | None:
    """What is wrong with the blob of a transaction, if anything; a reveal's content is judged by the audit."""
    body = transaction.body
    if not isinstance(body, ContributionSubmit | InferenceReveal):
        return None
    data = blobs.get(body.blob_digest)
    if data is None:
        return "the blob is missing or damaged"
    if len(data) != body.blob_bytes:
        return f"the blob has {len(data)} bytes, the transaction says {body.blob_bytes}"
    if isinstance(body, InferenceReveal):
        return None
    try:
        records = decode_records(data)
    except MalformedError as error:
        return str(error)
    found = (len(records), token_count(records), records_root(records))
    if found != (body.record_count, body.token_count, body.records_root):
        return "the blob's records are not those that the transaction describes"
    return None


def _messages(rows: list[bytes]) -> list[bytes]:
    """Group transactions into gossip messages within the limits of one."""
    messages: list[bytes] = []
    group: list[bytes] = []
    size = 0
    for raw in rows:
        if group and (size + len(raw) + 8 > TRANSACTIONS_BYTES_MAX or len(group) >= TRANSACTIONS_MAX):
            messages.append(encode_transactions(group))
            group, size = [], 0
        group.append(raw)
        size += len(raw) + 8
    if group:
        messages.append(encode_transactions(group))
    return messages
