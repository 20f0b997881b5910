"""The way of a transaction into this node: check, wait for its blob, pool, pass on.

A validator passes transactions to the other validators over direct streams; a full node gossips them in
batches, and again until they are executed, since gossip may be lost. What may wait is decided in `node.admission`, blobs are seen to
in `node.vouching`; here `_door` lets one group in at a time, so that votes wait for one at most, however many
clients and peers send.
"""

from collections.abc import Callable, Sequence

import structlog
import trio

from node.admission import Admission
from node.directory import Directory, Identity
from node.errors import NodeError
from node.executor import ExecutedBlock, Executor, SharedVerifier
from node.fetch import Fetcher
from node.inbox import Inbox
from node.ledger.batch import Item
from node.ledger.bodies import InferenceRecord, ProviderBond, Transfer
from node.ledger.errors import InvalidCode, LedgerError, MalformedError
from node.ledger.transaction import Transaction
from node.mempool import Mempool, Pooled
from node.network.errors import NetworkError
from node.network.network import Network
from node.receipts import ReceiptBook
from node.storage.blobs import BlobStore
from node.storage.chain import ChainStore
from node.storage.errors import StorageError
from node.vouching import Voucher, claim_of
from node.wire import (
    TRANSACTIONS_BYTES_MAX,
    TRANSACTIONS_MAX,
    Frame,
    Topic,
    WireError,
    decode_transactions,
    encode_transactions,
)

log = structlog.get_logger(__name__)

GOSSIP_DELAY_S = 0.05
REPUBLISH_S = 2.5
PUBLISH_TIMEOUT_S = 5.0
# New transactions between two gossip messages; publishing may wait for a peer while users go on.
OUTBOX_MAX = 4096
# What was submitted here and left the pool unexecuted is forgotten once there is so much of it.
OWN_SLACK = 1024
MALFORMED_POINTS = 20
NEVER_PASSED_ON = frozenset({InvalidCode.MALFORMED, InvalidCode.BAD_SIGNATURE})
"""What an honest node finds out before it passes a transaction on, whatever the state it knows."""
ADMITTED_AT_ONCE = 16
"""Transactions admitted between two turns of everything else: some 1.3 ms, most of it their signatures. A message between validators
waits five or six turns on its way; with four times as many, rounds were timed out under twice the load that can be carried."""


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
        self.admission = Admission(chain_id, store, executor, mempool, check)
        self._vouching = Voucher(
            identity,
            directory,
            chain_id,
            network,
            blobs,
            fetcher,
            executor,
            mempool,
            receipts,
            changed,
            start,
        )
        self._network = network
        self._receipts = receipts
        self._changed = changed
        self._consensus_key = identity.consensus_key
        self._directory = directory
        self._outbox: list[bytes] = []
        # Hashes of what was submitted here and may still wait, with the time of it (s).
        self._own: dict[bytes, float] = {}
        self._wake = trio.Event()
        self._door = trio.Lock()
        self._inbox = Inbox()
        self._inbox_filled = trio.Event()

    # --- in ---

    async def submit(self, raw: bytes) -> bytes:
        """Take a transaction from this node's own user or duties, and pass it on; returns its hash.

        Raises LedgerError, MempoolFull and kin, BlobMissing when it names a blob that this node does not have,
        LooseQuotaExceeded when its sender has too many blobs here that no executed transaction names.
        """
        (taken,) = await self.submit_many([raw])
        if isinstance(taken, Exception):
            raise taken
        return taken

    async def submit_many(self, raws: Sequence[bytes]) -> list[bytes | Exception]:
        """`submit` for several at once, in their order; a refused one is answered by what `submit` would raise."""
        taken: list[bytes | Exception] = []
        fresh: list[Pooled] = []
        for at in range(0, len(raws), ADMITTED_AT_ONCE):
            async with self._door:
                taken += [self._admit_own(raw, fresh) for raw in raws[at : at + ADMITTED_AT_ONCE]]
        good: list[bytes] = []
        for pooled in fresh:
            claim = claim_of(pooled.transaction)
            if claim is not None:
                try:
                    await self._vouching.vouch(pooled, claim)
                except MalformedError as error:
                    taken[taken.index(pooled.tx_hash)] = error
                    continue
            good.append(pooled.raw)
        if good:
            self._pass_on(good)
            self._changed()
        return taken

    def _admit_own(self, raw: bytes, fresh: list[Pooled]) -> bytes | Exception:
        """Pool what may wait, with its blob counted for its sender; `fresh` gets what did not wait before."""
        try:
            pooled = self.admission.admit(raw)
            if pooled is None:
                return self.admission.hash(raw)
            if (claim := claim_of(pooled.transaction)) is not None:
                self._vouching.claim(pooled, claim)
        except (LedgerError, NodeError, StorageError, OSError) as error:
            return error
        # At once: what was admitted before a caller left is passed on by repetition.
        self._own[pooled.tx_hash] = trio.current_time()
        fresh.append(pooled)
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

        A refusal is no proof of malice: the peer may be a block ahead or behind. What no state makes good (`NEVER_PASSED_ON`) is,
        unless `forwarded` says that the peer may only have passed the message on, which is done before it is read; the rest of
        such a message is not looked at.
        """
        try:
            rows = decode_transactions(data)
        except WireError as error:
            if not forwarded:
                self._network.penalise(peer_id, MALFORMED_POINTS, str(error))
            return
        for at in range(0, len(rows), ADMITTED_AT_ONCE):
            async with self._door:
                proof = self._admit_rows(peer_id, rows[at : at + ADMITTED_AT_ONCE])
            if proof is not None:
                if not forwarded:
                    self._network.penalise(peer_id, MALFORMED_POINTS, str(proof))
                break
        self._changed()

    def _admit_rows(self, peer_id: str, rows: list[bytes]) -> LedgerError | None:
        """Admit some of a peer's transactions, in order, up to one that no honest node passes on: returns what is wrong with it."""
        for raw in rows:
            try:
                pooled = self.admission.admit(raw)
            except (LedgerError, NodeError) as error:
                if isinstance(error, LedgerError) and error.code in NEVER_PASSED_ON:
                    return error
                log.debug("transaction_refused", peer=peer_id, error=str(error))
                continue
            if pooled is None:
                self._vouching.meet_again(self.admission.hash(raw), peer_id)
            elif (claim := claim_of(pooled.transaction)) is not None:
                self._vouching.want_blob(pooled, claim, peer_id)
        return None

    def receive_receipt(self, peer_id: str, data: bytes) -> None:
        """Take a storage receipt from a peer."""
        self._vouching.receive_receipt(peer_id, data)

    def blobs_named(self) -> set[bytes]:
        """Blobs that waiting transactions name."""
        return self._vouching.blobs_named()

    # --- out ---

    @property
    def _votes(self) -> bool:
        return self._consensus_key in self._directory.peer_of

    def _pass_on(self, raws: list[bytes]) -> None:
        """Send new transactions to the others: as few frames as the limits of one allow, since the cost is by the frame."""
        if self._votes:
            for message in _messages(raws):
                self._network.broadcast(Frame.TRANSACTIONS, message)
            return
        # Past the bound the next repetition brings what still waits in the mempool.
        self._outbox += raws[: max(0, OUTBOX_MAX - len(self._outbox))]
        self._wake.set()

    async def run_gossip(self) -> None:
        """Where this node is no validator: publish new transactions in batches, and those still waiting again and again."""
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
                rows = [] if self._votes else [pooled.raw for pooled in self.mempool]
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

    def settle(self, done: ExecutedBlock) -> None:
        """Drop what a block has dealt with; see `Admission.settle`."""
        self.admission.settle(done)
        for tx_hash in done.performed:
            self._own.pop(tx_hash, None)
        if len(self._own) > 2 * len(self.mempool) + OWN_SLACK:
            self._own = {name: since_s for name, since_s in self._own.items() if name in self.mempool}

    def includable(self, pooled: Pooled) -> bool:
        """Whether a block may carry it now: its fee can be paid, and more than two thirds of stake hold its blob."""
        transaction = pooled.transaction
        claim = claim_of(transaction)
        if claim is not None and self._receipts.quorum(claim) is None:
            return False
        return self.admission.account(transaction.sender).balance >= transaction.fee

    def withheld(self, in_flight: set[bytes]) -> set[bytes]:
        """What must not be chosen now: transactions that are ordered already, and duties the state does not ask for."""
        return in_flight | self.admission.unowed

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
            balance = self.admission.account(sender).balance
            if not pooled.duty and (sender in broke or balance - spent.get(sender, 0) < fee):
                broke.add(sender)  # the rest of its line would have the wrong nonce
                continue
            _spend(spent, pooled.transaction)
            kept.append(pooled)
        return kept

    def item(self, pooled: Pooled) -> Item:
        """The transaction as a batch carries it."""
        claim = claim_of(pooled.transaction)
        return (pooled.raw, () if claim is None else self._receipts.quorum(claim) or ())

    def next_nonce(self, sender: bytes) -> int:
        """The nonce that the ledger expects of a sender at the executed height."""
        return self.admission.next_nonce(sender)


def _spend(spent: dict[bytes, int], transaction: Transaction) -> None:
    """Add what a transaction may take from whose balance."""
    sender, body = transaction.sender, transaction.body
    amount = body.amount if isinstance(body, Transfer | ProviderBond) else 0
    spent[sender] = spent.get(sender, 0) + transaction.fee + amount
    if isinstance(body, InferenceRecord):
        spent[body.voucher.user] = spent.get(body.voucher.user, 0) + body.voucher.fee


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
