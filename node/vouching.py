"""Blobs that transactions name: fetched where they are missing, checked, and vouched for with storage receipts.

A transaction that names a blob is admitted only where the blob is present, and a validator vouches for the blob only after it has
checked the content against the transaction and the bytes are synced to disk.
"""

from collections.abc import Callable

import structlog
import trio

from node.clock import now_ms
from node.directory import Directory, Identity
from node.errors import BlobMissing
from node.executor import Executor
from node.fetch import Fetcher
from node.ledger.batch import StorageClaim, sign_storage_receipt, storage_claim
from node.ledger.blobs import blob_named
from node.ledger.bodies import ContributionSubmit, InferenceReveal
from node.ledger.errors import MalformedError
from node.ledger.records import decode_records, records_root, token_count
from node.ledger.transaction import Transaction
from node.mempool import Mempool, Pooled
from node.network.network import Network
from node.receipts import ReceiptBook
from node.storage.blobs import BlobStore, Note
from node.storage.errors import LooseQuotaExceeded
from node.wire import Frame, StorageReceiptFrame, WireError, decode_storage_receipt, encode_storage_receipt

log = structlog.get_logger(__name__)

BLOB_TASKS_MAX = 64
# A sender whose blobs are nowhere to be had must not keep everybody else's waiting.
BLOB_TASKS_PER_SENDER_MAX = 8
# Millions of token ids can be in one blob; decoding more of them at once would take gigabytes.
BLOB_CHECKS_MAX = 2
FALSE_RECEIPT_POINTS = 20


class Voucher:
    """Sees to the blobs of waiting transactions, and to the receipts for them."""

    def __init__(
        self,
        identity: Identity,
        directory: Directory,
        chain_id: bytes,
        network: Network,
        blobs: BlobStore,
        fetcher: Fetcher,
        executor: Executor,
        mempool: Mempool,
        receipts: ReceiptBook,
        changed: Callable[[], None],
        start: Callable[..., bool],
    ) -> None:
        """`changed` is told when the pool may offer more or less; `start` runs a small task beside the others, if it can."""
        self._identity = identity
        self._directory = directory
        self._chain_id = chain_id
        self._network = network
        self._blobs = blobs
        self._fetcher = fetcher
        self._executor = executor
        self._mempool = mempool
        self._receipts = receipts
        self._changed = changed
        self._start = start
        self._validator = identity.consensus_key is not None
        self._fetching: dict[bytes, bytes] = {}  # hash of a transaction whose blob is fetched -> its sender
        self._checks = trio.CapacityLimiter(BLOB_CHECKS_MAX)

    def receive_receipt(self, peer_id: str, data: bytes) -> None:
        """Take a storage receipt from a peer."""
        try:
            frame = decode_storage_receipt(data)
        except WireError as error:
            self._network.penalise(peer_id, FALSE_RECEIPT_POINTS, str(error))
            return
        claim = StorageClaim(
            frame.blob_digest,
            frame.blob_bytes,
            frame.content_root,
            frame.content_count,
            frame.content_tokens,
        )
        if not self._receipts.add(claim, frame.validator, frame.signature):
            self._network.penalise(peer_id, FALSE_RECEIPT_POINTS, "a storage receipt that does not verify")
            return
        self._changed()

    def want_blob(self, pooled: Pooled, claim: StorageClaim, peer_id: str) -> None:
        """Fetch a waiting transaction's blob, from who sent it first, and vouch for it; past the bounds its repetition may ask again."""
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
            self._mempool.discard(pooled.tx_hash)
            return
        if self._start(self._fetch_and_vouch, pooled, claim, peer_id):
            self._fetching[pooled.tx_hash] = sender

    async def _fetch_and_vouch(self, pooled: Pooled, claim: StorageClaim, peer_id: str) -> None:
        try:
            note = self._note(pooled)
            if await self._fetcher.blob(claim.blob_digest, claim.blob_bytes, (peer_id,), note):
                self.claim(pooled, claim)
                await self.vouch(pooled, claim)
                self._changed()
            else:
                self._mempool.discard(pooled.tx_hash)
        except (MalformedError, BlobMissing, LooseQuotaExceeded, OSError) as error:
            log.warning("blob_refused", tx_hash=pooled.tx_hash.hex(), error=str(error))
        finally:
            self._fetching.pop(pooled.tx_hash, None)

    def _note(self, pooled: Pooled) -> Note:
        transaction = pooled.transaction
        return Note(
            transaction.sender, self._executor.head.height, now_ms(), until_height=transaction.valid_until
        )

    def claim(self, pooled: Pooled, claim: StorageClaim) -> None:
        """Count the blob for the transaction's sender from now on, until the transaction has expired; else drop it and raise."""
        try:
            if not self._blobs.has(claim.blob_digest):
                raise BlobMissing(claim.blob_digest)
            self._blobs.claim(claim.blob_digest, self._note(pooled))
        except (BlobMissing, LooseQuotaExceeded, OSError):
            self._mempool.discard(pooled.tx_hash)
            raise

    def blobs_named(self) -> set[bytes]:
        """Blobs that waiting transactions name."""
        named = (blob_named(pooled.transaction.body) for pooled in self._mempool)
        return {name for name in named if name is not None}

    async def vouch(self, pooled: Pooled, claim: StorageClaim) -> None:
        """Check a blob against its transaction and, as a validator, say with a signature that it is stored."""
        problem = await trio.to_thread.run_sync(
            _blob_problem, self._blobs, pooled.transaction, limiter=self._checks
        )
        if problem is not None:
            self._mempool.discard(pooled.tx_hash)
            raise MalformedError(problem, "blob")
        if not self._validator:
            return
        signature = sign_storage_receipt(self._identity.account_seed, claim, self._chain_id)
        self._receipts.add(claim, self._identity.account, signature)
        self._broadcast_receipt(claim, signature)

    def meet_again(self, tx_hash: bytes, peer_id: str) -> None:
        """A transaction gossiped again may wait for its blob, or for a receipt that was lost: see to both."""
        pooled = self._mempool.get(tx_hash)
        claim = None if pooled is None else claim_of(pooled.transaction)
        if pooled is None or claim is None:
            return
        own = self._receipts.signature(claim, self._identity.account)
        if own is not None:
            self._broadcast_receipt(claim, own)
        elif self._validator or not self._blobs.has(claim.blob_digest):
            self.want_blob(pooled, claim, peer_id)

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


def claim_of(transaction: Transaction) -> StorageClaim | None:
    """What storage receipts of a transaction vouch for; None for one that names no blob."""
    body = transaction.body
    return storage_claim(body) if isinstance(body, ContributionSubmit | InferenceReveal) else None


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
