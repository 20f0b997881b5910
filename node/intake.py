"""The way of a transaction into this node: check, wait for its blob, pool, pass on.

A validator passes transactions to the other validators over direct streams; a full node gossips them in
batches, and again until they are executed, since gossip may be lost. A transaction that names a blob is
admitted only where the blob is present, and a validator vouches for the blob (a storage receipt) only after
it has checked the content against the transaction and the bytes are synced to disk.

Signatures are verified in a thread, each once; `_door` keeps admissions in the order they came.
"""

from collections.abc import Callable
from dataclasses import dataclass

import structlog
import trio

from node.clock import now_ms
from node.directory import Directory, Identity
from node.duties import is_owed
from node.errors import BlobMissing, NodeError
from node.executor import ExecutedBlock, Executor, SharedVerifier
from node.fetch import Fetcher
from node.inbox import Inbox
from node.ledger.admission import mempool_check_unsigned
from node.ledger.batch import Item, StorageClaim, sign_storage_receipt, storage_claim
from node.ledger.blobs import blob_named
from node.ledger.bodies import (
    DUTY_KINDS,
    STORED_KINDS,
    AttestCommit,
    AttestOpen,
    ContributionSubmit,
    Held,
    InferenceRecord,
    InferenceReveal,
    ProviderBond,
    Transfer,
)
from node.ledger.errors import InvalidCode, InvalidTransactionError, LedgerError, MalformedError
from node.ledger.records import decode_records, records_root, token_count
from node.ledger.state import Account, get_account
from node.ledger.transaction import (
    Transaction,
    decode_transaction,
    hash_transaction_bytes,
    signing_digest,
)
from node.mempool import Mempool, Pooled
from node.network.errors import NetworkError
from node.network.network import Network
from node.receipts import ReceiptBook
from node.storage.blobs import BlobStore, Note
from node.storage.chain import ChainStore
from node.storage.errors import LooseQuotaExceeded
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
VERIFIED_AT_ONCE_MAX = 64
"""Signatures that one visit to the thread verifies: a few milliseconds, after which somebody else may be admitted."""

ACCOUNTS_REMEMBERED_MAX = 32_768
VOUCHED_HEIGHTS_MAX = 2_000
"""A blob that was vouched for stays until its transaction has expired, so that may not be far away."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A transaction whose form and envelope were found good at `height`; its signature was not looked at yet."""

    raw: bytes
    tx_hash: bytes
    transaction: Transaction
    signed: tuple[bytes, bytes, bytes]
    height: int


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
        check: SharedVerifier,
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
        self._door = trio.Lock()
        self._verifying = trio.CapacityLimiter(1)
        self._inbox = Inbox()
        self._inbox_filled = trio.Event()
        # What the state says of senders, read once: a leader asks for every sender before every block.
        self._accounts: dict[bytes, Account] = {}

    # --- in ---

    async def submit(self, raw: bytes) -> bytes:
        """Take a transaction from this node's own user or duties, and pass it on; returns its hash.

        Raises LedgerError, MempoolFull and kin, BlobMissing when it names a blob that this node does not have,
        LooseQuotaExceeded when its sender has too many blobs here that no executed transaction names.
        """
        async with self._door:
            candidate = self._examine(raw)
            if candidate is None:
                return hash_transaction_bytes(raw, self._chain_id)
            (good,) = await self._verified([candidate])
            pooled = self._pool(candidate, good)
            claim = _claim_of(pooled.transaction)
            if claim is not None:
                self._claim(pooled, claim)
        self._own[pooled.tx_hash] = trio.current_time()
        if claim is not None:
            await self._vouch(pooled, claim)
        self._pass_on(raw)
        self._changed()
        return pooled.tx_hash

    def offer(self, peer_id: str, data: bytes) -> None:
        """Take a message of transactions from a peer, to be admitted when its turn comes (`run_inbox`).

        Past a peer's limit its further messages are dropped: whoever sent them repeats what still waits.
        """
        if self._inbox.put(peer_id, data):
            self._inbox_filled.set()
        else:
            log.debug("transactions_dropped", peer=peer_id, reason="too many of this peer wait")

    async def run_inbox(self) -> None:
        """Admit what peers offered, one message of each peer in turn."""
        while True:
            while (message := self._inbox.take()) is not None:
                await self.receive(*message)
            self._inbox_filled = trio.Event()
            await self._inbox_filled.wait()

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
        for at in range(0, len(rows), VERIFIED_AT_ONCE_MAX):
            async with self._door:
                malformed = await self._admit_rows(peer_id, rows[at : at + VERIFIED_AT_ONCE_MAX])
            if malformed is not None:
                if not forwarded:
                    self._network.penalise(peer_id, MALFORMED_POINTS, str(malformed))
                break
        self._changed()

    async def _admit_rows(self, peer_id: str, rows: list[bytes]) -> MalformedError | None:
        """Admit some of a peer's transactions, in order; returns what is wrong with the first malformed one."""
        candidates: list[_Candidate] = []
        malformed = None
        for raw in rows:
            try:
                candidate = self._examine(raw)
            except MalformedError as error:
                malformed = error
                break
            except (LedgerError, NodeError) as error:
                log.debug("transaction_refused", peer=peer_id, error=str(error))
                continue
            finally:
                await trio.lowlevel.checkpoint()
            if candidate is None:
                self._meet_again(hash_transaction_bytes(raw, self._chain_id), peer_id)
            else:
                candidates.append(candidate)
        for candidate, good in zip(candidates, await self._verified(candidates), strict=True):
            try:
                pooled = self._pool(candidate, good)
            except (LedgerError, NodeError) as error:
                log.debug("transaction_refused", peer=peer_id, error=str(error))
                continue
            if (claim := _claim_of(pooled.transaction)) is not None:
                self._want_blob(pooled, claim, peer_id)
        return malformed

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

    def _examine(self, raw: bytes) -> _Candidate | None:
        """Check everything but the signature; None when it waits already or was executed. Raises LedgerError."""
        tx_hash = hash_transaction_bytes(raw, self._chain_id)
        if tx_hash in self.mempool:
            return None
        transaction = decode_transaction(raw)
        if self._performed(tx_hash, transaction):
            return None
        self._check_envelope(transaction, len(raw))
        signed = (transaction.sender, signing_digest(transaction), transaction.signature)
        return _Candidate(raw, tx_hash, transaction, signed, self._executor.head.height)

    async def _verified(self, candidates: list[_Candidate]) -> list[bool]:
        """Whether each one's signature is good: from memory, or verified in a thread, where the curve leaves this one free."""
        known = [self._check.knows(*candidate.signed) for candidate in candidates]
        unknown = [row.signed for row, is_known in zip(candidates, known, strict=True) if not is_known]
        if not unknown:
            return known

        def verify_all() -> list[bool]:
            return [self._check(*signed) for signed in unknown]

        found = iter(await trio.to_thread.run_sync(verify_all, limiter=self._verifying))
        return [is_known or next(found) for is_known in known]

    def _pool(self, candidate: _Candidate, good: bool) -> Pooled:
        """Pool what was examined, looking again where a block was executed meanwhile. Raises LedgerError, MempoolFull and kin."""
        transaction, sender = candidate.transaction, candidate.transaction.sender
        if not good:
            raise InvalidTransactionError(InvalidCode.BAD_SIGNATURE, sender=sender)
        if candidate.height != self._executor.head.height:
            self._check_envelope(transaction, len(candidate.raw))
        duty = transaction.kind in DUTY_KINDS
        if not duty:
            self._check_payable(transaction)
        pooled = self.mempool.add(
            candidate.raw, candidate.tx_hash, transaction, duty=duty, nonce_next=self.next_nonce(sender)
        )
        if duty and not self._owed(transaction):
            self._unowed[pooled.tx_hash] = self._executor.head.height
        return pooled

    def _check_payable(self, transaction: Transaction) -> None:
        """A sender's waiting transactions may not promise more in fees than it has: those past it would cost it nothing."""
        sender, balance = transaction.sender, self._account(transaction.sender).balance
        rival = self.mempool.rival(sender, transaction.nonce)
        promised = self.mempool.fees_of(sender) - (0 if rival is None else rival.transaction.fee)
        if promised + transaction.fee > balance:
            raise InvalidTransactionError(
                InvalidCode.FEE_UNPAYABLE,
                "the balance does not cover the fees of what waits already and this one",
                fee=transaction.fee,
                promised=promised,
                balance=balance,
            )

    def _performed(self, tx_hash: bytes, transaction: Transaction) -> bool:
        """Whether it has had its effect. One that was ordered but found invalid, without nonce consumed, has not."""
        if self._store.transaction_place(tx_hash) is None:
            return False
        if transaction.kind in DUTY_KINDS:
            return not self._owed(transaction)
        return transaction.nonce < self.next_nonce(transaction.sender)

    def _check_envelope(self, transaction: Transaction, size_bytes: int) -> None:
        height = self._executor.head.height
        mempool_check_unsigned(self._store, transaction, size_bytes, height, chain_id=self._chain_id)
        if transaction.kind in STORED_KINDS and transaction.valid_until > height + VOUCHED_HEIGHTS_MAX:
            raise InvalidTransactionError(
                InvalidCode.EXPIRY_TOO_FAR,
                f"a transaction with a blob may stay valid for {VOUCHED_HEIGHTS_MAX} heights here",
                valid_until=transaction.valid_until,
                height=height,
            )

    def settle(self, done: ExecutedBlock) -> None:
        """Drop what a block has dealt with.

        What was only ordered at the wrong time (before its turn, or without storage receipts) goes on waiting: otherwise
        one proposer could take other people's transactions out of every pool.
        """
        for address in done.accounts:
            self._accounts.pop(address, None)
        gone = set(done.performed)
        for tx_hash in done.invalid:
            pooled = self.mempool.get(tx_hash)
            if pooled is not None and not self._still_admissible(pooled):
                gone.add(tx_hash)
        self.mempool.settle(gone, self.next_nonce, done.head.height)
        self._weigh_duties(done.head.height)
        self._own = {tx_hash: since_s for tx_hash, since_s in self._own.items() if tx_hash in self.mempool}

    def _weigh_duties(self, height: int) -> None:
        """Note which waiting duties the state does not ask for, and drop those it has not asked for in a while."""
        unowed: dict[bytes, int] = {}
        for pooled in self.mempool.duties():
            if not self._owed(pooled.transaction):
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
            self._check_envelope(pooled.transaction, len(pooled.raw))
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
        if not self._blobs.has(claim.blob_digest) and not self._blobs.has_room(sender, claim.blob_bytes):
            log.info("blob_not_taken", tx_hash=pooled.tx_hash.hex(), reason="its sender's quota is used up")
            self.mempool.discard(pooled.tx_hash)
            return
        if self._start(self._fetch_and_vouch, pooled, claim, peer_id):
            self._fetching[pooled.tx_hash] = sender

    async def _fetch_and_vouch(self, pooled: Pooled, claim: StorageClaim, peer_id: str) -> None:
        try:
            note = self._note(pooled)
            if await self._fetcher.blob(claim.blob_digest, claim.blob_bytes, (peer_id,), note):
                self._claim(pooled, claim)
                await self._vouch(pooled, claim)
                self._changed()
            else:
                self.mempool.discard(pooled.tx_hash)
        except (MalformedError, BlobMissing, LooseQuotaExceeded, OSError) as error:
            log.warning("blob_refused", tx_hash=pooled.tx_hash.hex(), error=str(error))
        finally:
            self._fetching.pop(pooled.tx_hash, None)

    def _note(self, pooled: Pooled) -> Note:
        transaction = pooled.transaction
        return Note(
            transaction.sender, self._executor.head.height, now_ms(), until_height=transaction.valid_until
        )

    def _claim(self, pooled: Pooled, claim: StorageClaim) -> None:
        """Count the blob for the transaction's sender from now on, until the transaction has expired; else drop it and raise."""
        try:
            if not self._blobs.has(claim.blob_digest):
                raise BlobMissing(claim.blob_digest)
            self._blobs.claim(claim.blob_digest, self._note(pooled))
        except (BlobMissing, LooseQuotaExceeded, OSError):
            self.mempool.discard(pooled.tx_hash)
            raise

    def blobs_named(self) -> set[bytes]:
        """Blobs that waiting transactions name."""
        named = (blob_named(pooled.transaction.body) for pooled in self.mempool)
        return {name for name in named if name is not None}

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
        return self._account(transaction.sender).balance >= transaction.fee

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
            balance = self._account(sender).balance
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
        return self._account(sender).nonce

    def _account(self, sender: bytes) -> Account:
        known = self._accounts.get(sender)
        if known is None:
            if len(self._accounts) >= ACCOUNTS_REMEMBERED_MAX:
                self._accounts.clear()
            known = self._accounts[sender] = get_account(self._store, sender)
        return known


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
