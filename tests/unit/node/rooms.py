"""Rooms of several nodes side by side: real stores, ledger, mempool and receipts, and a network in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

import trio

from consensus.crypto import sign
from consensus.effects import Persist
from consensus.inputs import BlocksSynced
from consensus.leaders import Leaders
from consensus.types import (
    QC,
    Block,
    CommitCertificate,
    Header,
    genesis_qc,
    header_id,
)
from consensus.verify import commit_vote_message, proposal_message, vote_message
from node.config import MempoolSection
from node.directory import Directory, Identity, make_directory
from node.epochs import Epochs, first_row
from node.executor import ExecutedBlock, Executor, SharedVerifier
from node.fetch import Fetcher, store_batch
from node.intake import Intake
from node.ledger.batch import Batch, StorageReceipts, encode_batch, sign_batch, sign_storage_receipt
from node.ledger.batch import storage_claim as claim_of_body
from node.ledger.bodies import DUTY_KINDS, Body, ContributionSubmit, InferenceReveal
from node.ledger.entries import ValidatorSet
from node.ledger.genesis import Genesis, genesis_state
from node.ledger.params import Params
from node.ledger.state import get_account, get_params, get_validators
from node.ledger.transaction import (
    decode_transaction,
    encode_transaction,
    fee_estimate,
    hash_transaction_bytes,
    sign_transaction,
)
from node.mempool import Mempool
from node.network.errors import PeerUnavailable
from node.network.network import Network
from node.receipts import ReceiptBook
from node.snapshot.files import Shelf
from node.snapshot.making import Maker
from node.startup import open_chain
from node.storage.blobs import BlobStore
from node.storage.chain import ChainStore
from node.storage.database import Database
from node.storage.upkeep import Upkeep
from node.sync import Sync
from node.wire import Frame
from tests.unit.node_ledger.world import PARAMS, VALIDATORS, address, consensus_key, genesis, seed

WAIT_S = 20.0

Answer = Callable[[str, int, bytes], Awaitable[bytes]]
"""(asker, kind, payload) -> answer, as a node's request handler has it."""


def peer_id(name: str) -> str:
    return f"peer-{name}"


def identity(name: str) -> Identity:
    """Keys of a validator of `world.VALIDATORS`, or of an observer of any other name."""
    if name not in VALIDATORS:
        return Identity(seed(f"node {name}"), seed(name), None, None)
    return Identity(seed(f"node {name}"), seed(name), seed(f"consensus {name}"), seed(f"beacon {name}"))


@dataclass(frozen=True)
class Connected:
    """What of a peer's status the rooms look at."""

    peer_id: str
    connected: bool = True


@dataclass
class LoopbackNetwork:
    """Stands in for the network: requests are calls of the other node's handler; frames and blame are written down."""

    name: str
    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[tuple[str, int, bytes]] = field(default_factory=list)
    frames: list[tuple[int, bytes]] = field(default_factory=list)
    published: list[tuple[str, bytes]] = field(default_factory=list)
    blamed: list[str] = field(default_factory=list)

    def peers(self) -> tuple[Connected, ...]:
        return tuple(Connected(peer) for peer in self.answers)

    async def request(self, peer: str, kind: int, payload: bytes, timeout_s: float) -> bytes:
        self.requests.append((peer, kind, payload))
        await trio.lowlevel.checkpoint()
        if peer not in self.answers:
            raise PeerUnavailable(peer, "not connected")
        with trio.move_on_after(timeout_s):
            return await self.answers[peer](peer_id(self.name), kind, payload)
        raise PeerUnavailable(peer, "no answer in time")

    def penalise(self, peer: str, points: int, reason: str) -> None:
        self.blamed.append(peer)

    def broadcast(self, kind: int, payload: bytes, *, bulk: bool = False) -> int:
        self.frames.append((kind, payload))
        return len(self.answers)

    async def publish(self, topic: str, data: bytes, timeout_s: float = 5.0) -> None:
        self.published.append((topic, data))

    def sent(self, kind: Frame) -> list[bytes]:
        """Frames of one kind that were broadcast."""
        return [payload for frame, payload in self.frames if frame == kind]


@dataclass
class Room:
    """One node's rooms, without consensus: `commit` says what was ordered."""

    name: str
    folder: Path
    params: Params = PARAMS
    limits: MempoolSection = field(default_factory=MempoolSection)
    blobs_bytes_max: int = 1 << 30
    starts: bool = True
    document: Genesis | None = None
    snapshots_kept: int = 2

    def __post_init__(self) -> None:
        self.database = Database(self.folder / self.name / "chain")
        self.store = ChainStore(self.database)
        document = self.document or genesis(self.params)
        self.upkeep = Upkeep(self.database, self.store)
        self.shelf = Shelf(self.folder / self.name / "snapshots", self.snapshots_kept)
        self.genesis = open_chain(self.store, document)
        self.chain_id = self.genesis.header.chain_id
        self.epochs = Epochs(
            self.store, self.chain_id, first_row(self.genesis, ValidatorSet(document.validators))
        )
        self.directory: Directory = make_directory(self.epochs.current.validators)
        self.blobs = BlobStore(self.folder / self.name / "blobs", self.blobs_bytes_max)
        self.loopback = LoopbackNetwork(self.name)
        self.network = cast("Network", self.loopback)
        self.verifier = SharedVerifier()
        self.fetcher = Fetcher(self.network, self.store, self.blobs, self.chain_id)
        self.done: list[ExecutedBlock] = []
        every = document.params.snapshot_heights
        self.snapshots = Maker(self.store, self.upkeep, self.chain_id, every, self.shelf)
        self.executor = Executor(
            self.store,
            self.chain_id,
            self._make_available,
            self._executed,
            self.verifier,
            self.epochs,
            self.snapshots,
        )
        self.mempool = Mempool(self.limits)
        self.receipts = ReceiptBook(self.chain_id, self.directory)
        self.changes = 0
        self.nursery: trio.Nursery | None = None
        self.told: list[object] = []
        self.intake = Intake(
            identity(self.name),
            self.directory,
            self.chain_id,
            self.network,
            self.store,
            self.blobs,
            self.fetcher,
            self.executor,
            self.mempool,
            self.receipts,
            self.verifier,
            self._changed,
            self.start,
        )
        self.sync = Sync(
            self.network,
            self.store,
            self.blobs,
            self.fetcher,
            self.executor,
            self.directory,
            self.epochs,
            self.chain_id,
            self.told.append,
            self._perform,
            lambda block_id, height: (),
            lead_blocks_min=lambda: 1,
            shelf=self.shelf,
        )

    def close(self) -> None:
        self.database.close()

    def start(self, task: Callable[..., Any], *args: object) -> bool:
        if self.nursery is None or not self.starts:
            return False
        self.nursery.start_soon(task, *args)
        return True

    def connect(self, *others: Room) -> None:
        for other in others:
            self.loopback.answers[peer_id(other.name)] = other.sync.answer

    def commit(self, block: Block, proof: bool = True) -> None:
        """Write a block as committed, with the proof of it, and hand it to the executor."""
        certificate = cc_of(block) if proof else None
        self.store.persist(Persist(False, None, None, (), (block,), cc_of(block), (), ()))
        if certificate is None:  # as for all but the last block of one commit
            self.database.write({b"q" + block.height.to_bytes(8, "big"): None}, sync=False)
        self.executor.deliver((block,))

    def put(self, batch: Batch) -> bytes:
        return store_batch(self.store, encode_batch(batch), self.chain_id)

    async def reach(self, height: int) -> None:
        with trio.fail_after(WAIT_S):
            while self.executor.head.height < height:
                await self.executor.progress()

    async def order(self, *batches: Batch) -> Block:
        """Commit and execute one block of these batches."""
        block = next_block(self.top(), [self.put(batch) for batch in batches])
        self.commit(block)
        await self.reach(block.height)
        return block

    def top(self) -> Block:
        block = self.store.block_at(self.store.committed_height())
        assert block is not None
        return block

    def tx(self, name: str, body: Body, **overrides: int) -> bytes:
        """A transaction that would execute in the next block, unless `overrides` spoil it."""
        duty = body.KIND in DUTY_KINDS
        fields = {
            "nonce": 0 if duty else get_account(self.store, address(name)).nonce,
            "fee": 0 if duty else fee_estimate(get_params(self.store), body),
            "valid_until": self.executor.head.height + 50,
        } | overrides
        return encode_transaction(sign_transaction(seed(name), chain_id=self.chain_id, body=body, **fields))

    def hash(self, raw: bytes) -> bytes:
        return hash_transaction_bytes(raw, self.chain_id)

    def batch(self, sequence: int, *items: tuple[bytes, StorageReceipts] | bytes) -> Batch:
        pairs = tuple((item, ()) if isinstance(item, bytes) else item for item in items)
        return sign_batch(seed("val0"), self.chain_id, sequence, pairs)

    def stored(self, raw: bytes, holders: Sequence[str] = VALIDATORS) -> StorageReceipts:
        body = decode_transaction(raw).body
        assert isinstance(body, ContributionSubmit | InferenceReveal)
        claim = claim_of_body(body)
        rows = ((address(name), sign_storage_receipt(seed(name), claim, self.chain_id)) for name in holders)
        return tuple(sorted(rows))

    async def _make_available(self, block: Block) -> None:
        await self.sync.make_available(block)

    def _executed(self, done: ExecutedBlock) -> None:
        self.done.append(done)
        self.intake.settle(done)

    def _changed(self) -> None:
        self.changes += 1

    async def _perform(self, event: object) -> None:
        """What consensus would do with a range that it finds good: commit it."""
        self.told.append(event)
        if isinstance(event, BlocksSynced):
            for block in event.blocks:
                if block.height > self.store.committed_height():
                    self.commit(block)


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        with trio.fail_after(WAIT_S):
            await main()

    trio.run(limited)


async def until(condition: Callable[[], object]) -> None:
    """Return once what other tasks work at has come about."""
    while not condition():  # noqa: ASYNC110
        await trio.sleep(0.001)


async def with_rooms(rooms: Sequence[Room], body: Callable[[], Awaitable[None]]) -> None:
    """Run `body` while every room executes what it is given."""
    async with trio.open_nursery() as nursery:
        for room in rooms:
            room.nursery = nursery
            nursery.start_soon(room.executor.run)
            nursery.start_soon(room.snapshots.run)
        await body()
        nursery.cancel_scope.cancel()
    for room in rooms:
        room.nursery = None


# --- blocks by hand ---

_KEYS = sorted((consensus_key(name), seed(f"consensus {name}")) for name in VALIDATORS)


@cache
def _leaders() -> Leaders:
    return Leaders(make_directory(get_validators(genesis_state(genesis()))).consensus_set(0))


def next_block(parent: Block, payload: Sequence[bytes] = ()) -> Block:
    """A block that every header rule accepts (but for its beacon reveal), one round after its parent."""
    round_ = parent.round + 1
    key, secret = _KEYS[_leaders().index(round_)]
    header = Header(
        chain_id=parent.header.chain_id,
        epoch=0,
        round=round_,
        height=parent.height + 1,
        parent=parent.id,
        proposer=key,
        timestamp_ms=parent.header.timestamp_ms + 1_000,
        payload=tuple(payload),
        beacon_reveal=header_id(parent.header),
        executed_height=parent.height,
        state_digest=parent.header.state_digest,
        receipts_accumulator=parent.header.receipts_accumulator,
    )
    message = proposal_message(header.chain_id, 0, round_, header_id(header))
    return Block(header, qc_of(parent), None, sign(secret, message))


def qc_of(block: Block) -> QC:
    if block.height == 0:
        return genesis_qc(block)
    args = (0, block.round, block.id, block.qc.block_id, block.qc.round)
    message = vote_message(block.header.chain_id, *args)
    return QC(*args, tuple((index, sign(secret, message)) for index, (_, secret) in enumerate(_KEYS[:3])))


def cc_of(block: Block) -> CommitCertificate:
    message = commit_vote_message(block.header.chain_id, 0, block.round, block.id, block.height)
    rows = tuple((index, sign(secret, message)) for index, (_, secret) in enumerate(_KEYS[:3]))
    return CommitCertificate(0, block.round, block.id, block.height, rows)
