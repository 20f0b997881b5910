"""The daemon as its RPC server sees it: reads of what was executed, and two ways in (transactions, blobs)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog
import trio

from consensus.errors import CodecError
from node import __version__
from node.duties import opening_of
from node.errors import NotReady, TransactionDropped
from node.ledger.batch import decode_batch
from node.ledger.block import Receipt, ReceiptStatus, decode_receipt
from node.ledger.bodies import BODIES
from node.ledger.errors import MalformedError
from node.ledger.overlay import StateReader
from node.ledger.reading import TransactionReader
from node.ledger.state import get_account, get_inference
from node.metrics import Metrics
from node.observe import not_ready_reason, standing_of
from node.rpc.backend import BlockView, NodeStatus, Outcome, PeerView, TransactionView
from node.spans.shelf import Found

if TYPE_CHECKING:
    from node.node import Node

log = structlog.get_logger(__name__)

_OUTCOMES: dict[int, Outcome] = {
    ReceiptStatus.OK: "ok",
    ReceiptStatus.FAILED: "failed",
    ReceiptStatus.INVALID: "invalid",
}


class DaemonBackend:
    """Implements `node.rpc.backend.Backend` over a running `Node`."""

    def __init__(self, node: "Node") -> None:
        self._node = node

    def status(self) -> NodeStatus:
        """Where the node stands now."""
        node = self._node
        head = node.executor.head
        peers = tuple(
            PeerView(
                peer.peer_id, node.peer_address(peer.peer_id), peer.peer_id in node.directory.validator_of
            )
            for peer in node.network.peers()
            if peer.connected
        )
        reason = not_ready_reason(standing_of(node, frozenset(peer.peer_id for peer in peers)))
        return NodeStatus(
            chain_id=node.chain_id,
            moniker=node.config.node.moniker,
            version=__version__,
            peer_id=node.network.peer_id,
            validator=node.validator,
            consensus_key=node.identity.consensus_key,
            height=head.height,
            height_committed=node.store.committed_height(),
            round=node.driver.replica.round,
            epoch=node.epochs.current.number,
            state_digest=head.state_digest,
            peers=peers,
            syncing=node.sync.syncing,
            ready=not reason,
            not_ready_reason=reason,
            mempool_transactions=len(node.mempool),
        )

    @property
    def metrics(self) -> Metrics:
        """Where calls are counted."""
        return self._node.metrics

    async def metrics_text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return await self._node.observer.render()

    async def wait_executed(self, height: int) -> int:
        """The executed height, once it is above `height`."""
        executor = self._node.executor
        while executor.head.height <= height:
            await executor.progress()
        return executor.head.height

    def reader(self) -> StateReader:
        """The ledger's state at the executed height."""
        return self._node.store

    def block(self, height: int) -> BlockView | None:
        """An executed block, or None."""
        store = self._node.store
        if height > self._node.executor.head.height:
            return None
        block, outcome = store.block_at(height), store.outcome(height)
        if block is None or (outcome is None and height > 0):
            return None
        header = block.header
        receipts = () if outcome is None else tuple(decode_receipt(data) for data in outcome.receipts)
        raws = self._transactions_of(header.payload)
        return BlockView(
            height=height,
            block_hash=block.id,
            parent_hash=header.parent,
            epoch=header.epoch,
            round=header.round,
            proposer=header.proposer,
            timestamp_ms=header.timestamp_ms,
            height_executed=header.executed_height,
            state_digest_executed=header.state_digest,
            receipts_root=bytes(32) if outcome is None else outcome.receipts_root,
            state_digest=header.state_digest if outcome is None else outcome.state_digest,
            transactions=tuple(
                _committed(receipt, raws.get(receipt.subject), height, self._node.executor.read)
                for receipt in receipts
                if receipt.status in _OUTCOMES
            ),
            events=tuple(receipt for receipt in receipts if receipt.status not in _OUTCOMES),
        )

    def _transactions_of(self, payload: tuple[bytes, ...]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for name in payload:
            data = self._node.store.batch(name)
            if data is not None:
                for raw, _ in decode_batch(data).items:
                    found[self._node.executor.read.hash(raw)] = raw
        return found

    def next_nonce(self, address: bytes) -> int:
        """The nonce an account's next transaction takes, counting what waits here."""
        return self._node.mempool.next_nonce(address, get_account(self._node.store, address).nonce)

    def transaction(self, tx_hash: bytes) -> TransactionView | None:
        """A pending or committed transaction, or None; raises TransactionDropped for one that had to give way."""
        place = self._node.store.transaction_place(tx_hash)
        if place is None:
            pooled = self._node.mempool.get(tx_hash)
            if pooled is None:
                self._say_dropped(tx_hash)
                return None
            transaction = pooled.transaction
            kind = BODIES[transaction.kind].NAME
            return TransactionView(
                tx_hash, "pending", kind, transaction.sender, transaction.nonce, raw=pooled.raw
            )
        height, position = place
        outcome, block = self._node.store.outcome(height), self._node.store.block_at(height)
        if outcome is None or block is None:
            return None
        raw = self._transactions_of(block.header.payload).get(tx_hash)
        return _committed(decode_receipt(outcome.receipts[position]), raw, height, self._node.executor.read)

    def _say_dropped(self, tx_hash: bytes) -> None:
        """Raise TransactionDropped for one that left the pool for another: who waits for it should know."""
        reason = self._node.mempool.dropped(tx_hash)
        if reason is not None:
            raise TransactionDropped(self._node.config.mempool.transactions_max, reason)

    async def submit_transaction(self, raw: bytes) -> bytes:
        """Check, pool and pass on a transaction; returns its hash."""
        (taken,) = await self.submit_transactions([raw])
        if isinstance(taken, Exception):
            raise taken
        return taken

    async def submit_transactions(self, raws: Sequence[bytes]) -> list[bytes | Exception]:
        """Check, pool and pass on transactions, in their order; a hash for each, or why it was refused."""
        self._need_state()
        return [_refusal(taken) for taken in await self._node.intake.submit_many(raws)]

    async def put_blob(self, data: bytes) -> bytes:
        """Store a blob durably; validators fetch it when a transaction names it."""
        try:
            note = self._node.keeper.fresh_note(self._node.executor.head.height)
            return await trio.to_thread.run_sync(self._node.blobs.put, data, None, note)
        except OSError as error:  # most often: the disk is full
            log.error("blob_not_stored", error=str(error))
            raise NotReady(f"the blob cannot be stored: {error.strerror or error}") from error

    async def get_blob(self, digest: bytes) -> bytes | None:
        """A blob's bytes from this node's store, else from a peer that has it, or None."""
        data = await trio.to_thread.run_sync(self._node.blobs.get, digest)
        if data is not None:
            return data
        return await self._node.fetcher.any_blob(
            digest, self._node.keeper.fresh_note(self._node.executor.head.height)
        )

    async def spans(self, datanet: bytes, tokens: Sequence[int], length_min: int) -> Found:
        """Stretches of ``tokens`` that stand word for word in a datanet's records; raises NotReady."""
        return await self._node.spans.spans(datanet, tokens, length_min)

    async def answer_of(self, inference: bytes) -> tuple[int, ...] | None:
        """An inference's answer, while what its provider revealed for the audit is here."""
        record = get_inference(self._node.store, inference)
        if record is None or not record.blob_digest:
            return None
        data = await trio.to_thread.run_sync(self._node.blobs.get, record.blob_digest)
        opening = None if data is None else await trio.to_thread.run_sync(opening_of, record, data)
        return None if opening is None else opening.output_ids

    def _need_state(self) -> None:
        diverged = self._node.driver.diverged
        if diverged is not None and diverged.committed:
            raise NotReady(f"this node's state differs from the quorum's at height {diverged.height}")


def _refusal(taken: bytes | Exception) -> bytes | Exception:
    """What became of a submitted transaction, where the disk failed with what a client may know of it."""
    if not isinstance(taken, OSError):
        return taken
    log.error("blob_not_noted", error=str(taken))
    refusal = NotReady(f"the blob cannot be accounted for: {taken.strerror or taken}")
    refusal.__cause__ = taken
    return refusal


def _committed(receipt: Receipt, raw: bytes | None, height: int, read: TransactionReader) -> TransactionView:
    """View of an executed transaction; bytes that do not decode have neither kind nor sender."""
    kind, sender, nonce = "", b"", 0
    if raw is not None:
        try:
            transaction = read(raw).transaction
            kind, sender, nonce = BODIES[transaction.kind].NAME, transaction.sender, transaction.nonce
        except (MalformedError, CodecError):
            kind = ""
    return TransactionView(
        receipt.subject,
        "committed",
        kind,
        sender,
        nonce,
        height,
        _OUTCOMES[receipt.status],
        receipt.code,
        receipt.code.replace("-", " "),
        receipt.fee,
        raw or b"",
    )
