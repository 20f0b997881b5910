"""The daemon as its RPC server sees it: reads of what was executed, and two ways in (transactions, blobs)."""

from typing import TYPE_CHECKING

import structlog
import trio

from consensus.errors import CodecError
from node import __version__
from node.errors import NotReady
from node.ledger.batch import decode_batch
from node.ledger.block import Receipt, ReceiptStatus, decode_receipt
from node.ledger.bodies import BODIES
from node.ledger.errors import MalformedError
from node.ledger.state import StateReader, get_account
from node.ledger.transaction import decode_transaction, hash_transaction_bytes
from node.rpc.backend import BlockView, NodeStatus, Outcome, PeerView, TransactionView

if TYPE_CHECKING:
    from node.node import Node

log = structlog.get_logger(__name__)

# A validator that executed nothing for so long is not ready: several heartbeats and view changes.
SILENCE_MS_MAX = 15_000

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
        reason = self._not_ready_reason(peers)
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
            epoch=node.epoch,
            state_digest=head.state_digest,
            peers=peers,
            syncing=node.sync.syncing,
            ready=not reason,
            not_ready_reason=reason,
            mempool_transactions=len(node.mempool),
        )

    def _not_ready_reason(self, peers: tuple[PeerView, ...]) -> str:
        node = self._node
        if node.driver.diverged is not None and node.driver.diverged.committed:
            return f"this node's state differs from the quorum's at height {node.driver.diverged.height}"
        if node.sync.syncing:
            return "catching up with the chain"
        seen = {node.directory.validator_of[peer.peer_id] for peer in peers if peer.validator}
        if node.identity.consensus_key is not None:
            seen.add(node.identity.consensus_key)
        entries = node.directory.validators.validators
        if not node.directory.validators.is_quorum(
            frozenset(entry.account for entry in entries if entry.consensus_key in seen)
        ):
            return "no quorum of validators is connected"
        silence_ms = node.silence_ms()
        if silence_ms > SILENCE_MS_MAX:
            return f"nothing was executed for {silence_ms // 1000} s"
        return ""

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
                _committed(receipt, raws.get(receipt.subject), height)
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
                    found[hash_transaction_bytes(raw, self._node.chain_id)] = raw
        return found

    def next_nonce(self, address: bytes) -> int:
        """The nonce an account's next transaction takes, counting what waits here."""
        return self._node.mempool.next_nonce(address, get_account(self._node.store, address).nonce)

    def transaction(self, tx_hash: bytes) -> TransactionView | None:
        """A pending or committed transaction, or None."""
        place = self._node.store.transaction_place(tx_hash)
        if place is None:
            pooled = self._node.mempool.get(tx_hash)
            if pooled is None:
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
        return _committed(decode_receipt(outcome.receipts[position]), raw, height)

    async def submit_transaction(self, raw: bytes) -> bytes:
        """Check, pool and pass on a transaction; returns its hash."""
        self._need_state()
        return await self._node.intake.submit(raw)

    async def put_blob(self, data: bytes) -> bytes:
        """Store a blob durably; validators fetch it when a transaction names it."""
        try:
            return await trio.to_thread.run_sync(self._node.blobs.put, data)
        except OSError as error:  # most often: the disk is full
            log.error("blob_not_stored", error=str(error))
            raise NotReady(f"the blob cannot be stored: {error.strerror or error}") from error

    async def get_blob(self, digest: bytes) -> bytes | None:
        """A blob's bytes from this node's store, else from a peer that has it, or None."""
        data = await trio.to_thread.run_sync(self._node.blobs.get, digest)
        return data if data is not None else await self._node.fetcher.any_blob(digest)

    def _need_state(self) -> None:
        diverged = self._node.driver.diverged
        if diverged is not None and diverged.committed:
            raise NotReady(f"this node's state differs from the quorum's at height {diverged.height}")


def _committed(receipt: Receipt, raw: bytes | None, height: int) -> TransactionView:
    """View of an executed transaction; bytes that do not decode have neither kind nor sender."""
    kind, sender, nonce = "", b"", 0
    if raw is not None:
        try:
            transaction = decode_transaction(raw)
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
