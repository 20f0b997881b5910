"""What the RPC server needs of the daemon, and nothing more.

The daemon implements `Backend`; tests implement it over a ledger state in memory. Every method answers from what the
node has **executed**: the state that `Backend.reader` reads is the state at ``NodeStatus.height``. Synchronous
methods must not block for longer than a point lookup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from node.ledger.block import Receipt
from node.ledger.overlay import StateReader
from node.metrics import Metrics
from node.spans.shelf import Found

Outcome = Literal["ok", "failed", "invalid"]


@dataclass(frozen=True, slots=True)
class PeerView:
    """One connected peer: its libp2p id (base58), the multiaddr it is met at, and whether it is a validator."""

    peer_id: str
    address: str
    validator: bool


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """Where the node stands.

    ``height`` is the executed height and ``state_digest`` (32 bytes) the state's digest there; ``height_committed``
    may be ahead of it. ``syncing`` is true while the node knows of commits that it has not executed and is
    fetching them. ``ready`` is false while the daemon starts, syncs, stands still, stops or sees no quorum, with ``not_ready_reason``.
    """

    chain_id: bytes
    moniker: str
    version: str
    peer_id: str
    validator: bool
    consensus_key: bytes | None
    height: int
    height_committed: int
    round: int
    epoch: int
    state_digest: bytes
    peers: tuple[PeerView, ...]
    syncing: bool
    ready: bool
    not_ready_reason: str
    mempool_transactions: int


@dataclass(frozen=True, slots=True)
class TransactionView:
    """A transaction this node knows of.

    ``status`` is "pending" (in the mempool) or "committed"; then ``height``, ``outcome``, ``code`` (the ledger's
    error code, "" when ok), ``message`` and ``fee`` (units charged) are what its execution said. ``kind`` and
    ``sender`` (32 bytes) come from the transaction, "" and b"" where its bytes did not even decode. ``raw`` are its
    bytes, so that anybody can check hash and signature.
    """

    tx_hash: bytes
    status: Literal["pending", "committed"]
    kind: str
    sender: bytes
    nonce: int
    height: int | None = None
    outcome: Outcome | None = None
    code: str = ""
    message: str = ""
    fee: int = 0
    raw: bytes = b""


@dataclass(frozen=True, slots=True)
class BlockView:
    """An executed block: its header's fields, what became of its transactions, and the state's digest after it.

    ``height_executed`` and ``state_digest_executed`` are the header's own deferred claim (architecture.md, state
    commitment): the state at an earlier height. ``state_digest`` is the state right after this block. ``events`` are
    the block's receipts of the ledger's own steps (`ReceiptStatus.SYSTEM`). Hashes have 32 bytes.
    """

    height: int
    block_hash: bytes
    parent_hash: bytes
    epoch: int
    round: int
    proposer: bytes
    timestamp_ms: int
    height_executed: int
    state_digest_executed: bytes
    receipts_root: bytes
    state_digest: bytes
    transactions: tuple[TransactionView, ...]
    events: tuple[Receipt, ...] = ()


class Backend(Protocol):
    """The daemon, as the RPC server sees it. Called in the daemon's own trio thread only."""

    def status(self) -> NodeStatus:
        """Return where the node stands now."""
        ...

    def reader(self) -> StateReader:
        """Return the ledger's state at the executed height."""
        ...

    @property
    def metrics(self) -> Metrics:
        """Where the server counts its calls."""
        ...

    async def metrics_text(self) -> bytes:
        """Return all metrics of the node in Prometheus' text format."""
        ...

    async def wait_executed(self, height: int) -> int:
        """Return the executed height, once it is above ``height``; at once where it is already."""
        ...

    def block(self, height: int) -> BlockView | None:
        """Return an executed block, or None where it is unknown, not yet executed, or pruned."""
        ...

    def next_nonce(self, address: bytes) -> int:
        """Return the nonce an account's next transaction takes, counting what is pending in this node's mempool."""
        ...

    def transaction(self, tx_hash: bytes) -> TransactionView | None:
        """Return a pending or committed transaction by its 32-byte hash, or None."""
        ...

    async def submit_transaction(self, raw: bytes) -> bytes:
        """Check a signed transaction's canonical bytes, take it into the mempool, gossip it; return its hash.

        Submitting what is already pending or committed returns the hash again and does nothing.
        Raises: `node.ledger` errors (bad bytes, signature, nonce, expiry, fee), `node.errors.MempoolFull`,
        `MempoolSenderFull`, `TransactionUnderpriced`, `NotReady`.
        """
        ...

    async def submit_transactions(self, raws: Sequence[bytes]) -> list[bytes | Exception]:
        """`submit_transaction` for several, in their order: a hash, or what it would raise, for each."""
        ...

    async def put_blob(self, data: bytes) -> bytes:
        """Store a blob durably, spread it to the validators, and return its 32-byte digest.

        Raises: `node.storage.errors.BlobTooLarge`, `BlobQuotaExceeded`, `node.errors.NotReady`.
        """
        ...

    async def spans(self, datanet: bytes, tokens: Sequence[int], length_min: int) -> Found:
        """Return the stretches of ``tokens`` that stand word for word in a datanet's records; raises `NotReady`."""
        ...

    async def answer_of(self, inference: bytes) -> tuple[int, ...] | None:
        """Return an inference's answer (token ids) where what its provider revealed is here, or None."""
        ...

    async def get_blob(self, digest: bytes) -> bytes | None:
        """Return a blob's bytes from this node's store, or None. A full node may fetch it from its peers first."""
        ...
