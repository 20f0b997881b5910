"""A `node.rpc.backend.Backend` over the real ledger in memory, and a real server on loopback in front of it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from node.config import RpcSection
from node.errors import BlobMissing, MempoolFull, NotReady
from node.ledger.admission import mempool_check
from node.ledger.batch import Item
from node.ledger.block import BlockOutcome, Receipt, ReceiptStatus
from node.ledger.bodies import BODIES, ContributionSubmit, InferenceReveal
from node.ledger.lthash import state_digest
from node.ledger.overlay import StateReader
from node.ledger.state import get_account
from node.ledger.transaction import decode_transaction, hash_transaction_bytes
from node.metrics import Metrics
from node.rpc.backend import BlockView, NodeStatus, Outcome, PeerView, TransactionView
from node.rpc.server import serve_rpc
from node.spans.shelf import DatanetSpans, Found
from node.storage.blobs import blob_digest
from node.storage.errors import BlobQuotaExceeded, BlobTooLarge
from tests.unit.node_ledger.world import World

T = TypeVar("T")

OUTCOMES: dict[int, Outcome] = {
    ReceiptStatus.OK: "ok",
    ReceiptStatus.FAILED: "failed",
    ReceiptStatus.INVALID: "invalid",
}


@dataclass
class LedgerBackend:
    """Admits like a node, executes when told to (or at once, with `execute_at_once`)."""

    world: World = field(default_factory=World)
    execute_at_once: bool = False
    pending_max: int = 8
    blob_bytes_max: int = 4096
    blobs_max: int = 4
    ready: bool = True
    pending: dict[bytes, bytes] = field(default_factory=dict)
    blobs: dict[bytes, bytes] = field(default_factory=dict)
    spans_of: DatanetSpans | None = None
    answers: dict[bytes, tuple[int, ...]] = field(default_factory=dict)
    slow: trio.Event | None = None
    broken: bool = False
    metrics: Metrics = field(default_factory=Metrics)
    executed: trio.Event = field(default_factory=trio.Event)

    async def metrics_text(self) -> bytes:
        await trio.lowlevel.checkpoint()
        return self.metrics.render()

    async def wait_executed(self, height: int) -> int:
        while self.world.height <= height:
            await self.executed.wait()
        return self.world.height

    def tell_executed(self) -> None:
        self.executed.set()
        self.executed = trio.Event()

    def status(self) -> NodeStatus:
        world = self.world
        if self.broken:
            raise RuntimeError("a fault of the node")
        return NodeStatus(
            chain_id=world.chain,
            moniker="tested",
            version="0.1.0",
            peer_id="16Uiu2HAmTested",
            validator=False,
            consensus_key=None,
            height=world.height,
            height_committed=world.height,
            round=world.height + 1,
            epoch=0,
            state_digest=state_digest(world.lthash, world.chain),
            peers=(PeerView("16Uiu2HAmOther", "/ip4/127.0.0.1/tcp/1", True),),
            syncing=not self.ready,
            ready=self.ready,
            not_ready_reason="" if self.ready else "catching up",
            mempool_transactions=len(self.pending),
        )

    def reader(self) -> StateReader:
        return self.world.state

    def block(self, height: int) -> BlockView | None:
        if not 1 <= height <= self.world.height:
            return None
        outcome, (context, _) = self.world.outcomes[height - 1], self.world.inputs[height - 1]
        receipts = outcome.receipts
        return BlockView(
            height=height,
            block_hash=bytes([height]) * 32,
            parent_hash=bytes([height - 1]) * 32,
            epoch=context.epoch,
            round=context.round,
            proposer=context.proposer,
            timestamp_ms=context.timestamp_ms,
            height_executed=context.executed_height,
            state_digest_executed=bytes(32),
            receipts_root=outcome.receipts_root,
            state_digest=outcome.state_digest,
            transactions=tuple(
                self._committed(entry, height) for entry in receipts if entry.status in OUTCOMES
            ),
            events=tuple(entry for entry in receipts if entry.status == ReceiptStatus.SYSTEM),
        )

    def _committed(self, receipt: Receipt, height: int) -> TransactionView:
        for batch in self.world.inputs[height - 1][1]:
            for raw, _ in batch.items:
                if self.world.id(raw) == receipt.subject:
                    decoded = decode_transaction(raw)
                    kind = BODIES[receipt.kind].NAME
                    return TransactionView(
                        receipt.subject,
                        "committed",
                        kind,
                        decoded.sender,
                        decoded.nonce,
                        height,
                        OUTCOMES[receipt.status],
                        receipt.code,
                        "",
                        receipt.fee,
                        raw,
                    )
        raise LookupError(receipt.subject.hex())

    def next_nonce(self, address: bytes) -> int:
        waiting = [decode_transaction(raw) for raw in self.pending.values()]
        return get_account(self.world.state, address).nonce + sum(
            entry.sender == address for entry in waiting
        )

    def transaction(self, tx_hash: bytes) -> TransactionView | None:
        if tx_hash in self.pending:
            decoded = decode_transaction(self.pending[tx_hash])
            kind = BODIES[decoded.kind].NAME
            raw = self.pending[tx_hash]
            return TransactionView(tx_hash, "pending", kind, decoded.sender, decoded.nonce, raw=raw)
        for height, outcome in enumerate(self.world.outcomes, 1):
            for receipt in outcome.receipts:
                if receipt.subject == tx_hash and receipt.status in OUTCOMES:
                    return self._committed(receipt, height)
        return None

    async def submit_transaction(self, raw: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        if self.slow is not None:
            await self.slow.wait()
        transaction = decode_transaction(raw)
        tx_hash = hash_transaction_bytes(raw, self.world.chain)
        if self.transaction(tx_hash) is not None:
            return tx_hash
        mempool_check(self.world.state, transaction, self.world.height, chain_id=self.world.chain)
        body = transaction.body
        if isinstance(body, ContributionSubmit | InferenceReveal) and body.blob_digest not in self.blobs:
            raise BlobMissing(body.blob_digest)
        if len(self.pending) >= self.pending_max:
            raise MempoolFull(self.pending_max)
        self.pending[tx_hash] = raw
        if self.execute_at_once:
            self.execute()
        return tx_hash

    async def submit_transactions(self, raws: Sequence[bytes]) -> list[bytes | Exception]:
        taken: list[bytes | Exception] = []
        for raw in raws:
            try:
                taken.append(await self.submit_transaction(raw))
            except Exception as error:
                taken.append(error)
        return taken

    def execute(self) -> BlockOutcome:
        """Execute what waits in one block, stored blobs vouched for by all validators."""
        items: list[Item] = []
        for raw in self.pending.values():
            stored = isinstance(decode_transaction(raw).body, ContributionSubmit | InferenceReveal)
            items.append((raw, self.world.stored(raw) if stored else ()))
        self.pending.clear()
        outcome = self.world.block(*items)
        self.tell_executed()
        return outcome

    async def put_blob(self, data: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        if len(data) > self.blob_bytes_max:
            raise BlobTooLarge(len(data), self.blob_bytes_max)
        if len(self.blobs) >= self.blobs_max:
            raise BlobQuotaExceeded(self.blobs_max, self.blobs_max)
        name = blob_digest(data)
        self.blobs[name] = data
        return name

    async def spans(self, datanet: bytes, tokens: Sequence[int], length_min: int) -> Found:
        await trio.lowlevel.checkpoint()
        if self.spans_of is None:
            raise NotReady("this node has no span index")
        return Found(datanet, 1, tuple(self.spans_of.spans(tokens, length_min)))

    async def answer_of(self, inference: bytes) -> tuple[int, ...] | None:
        await trio.lowlevel.checkpoint()
        return self.answers.get(inference)

    async def get_blob(self, digest: bytes) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return self.blobs.get(digest)


@dataclass
class RunningServer:
    """A server in a thread of its own: `url` answers, `do` runs a function in its thread."""

    url: str
    backend: LedgerBackend
    token: trio.lowlevel.TrioToken
    shutdown: trio.Event
    thread: threading.Thread

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def do(self, function: Callable[..., T], *arguments: object) -> T:
        return trio.from_thread.run_sync(function, *arguments, trio_token=self.token)

    def stop(self, timeout_s: float) -> bool:
        """Ask it to stop; return whether it did in time."""
        if self.thread.is_alive():
            self.token.run_sync_soon(self.shutdown.set)
            self.thread.join(timeout_s)
        return not self.thread.is_alive()


@contextmanager
def running_server(
    backend: LedgerBackend | None = None, config: RpcSection | None = None
) -> Iterator[RunningServer]:
    """Run `serve_rpc` on a free port of loopback for the length of the context."""
    served = backend or LedgerBackend()
    section = config or RpcSection(port=0)
    started: queue.Queue[RunningServer | BaseException] = queue.Queue()

    async def main() -> None:
        shutdown = trio.Event()
        async with trio.open_nursery() as nursery:
            url = await nursery.start(serve_rpc, served, section, shutdown)
            token = trio.lowlevel.current_trio_token()
            started.put(RunningServer(url, served, token, shutdown, threading.current_thread()))

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as error:
            started.put(error)
            raise

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    server = started.get(timeout=10)
    if isinstance(server, BaseException):
        raise server
    try:
        yield server
    finally:
        assert server.stop(5), "the server did not stop"
