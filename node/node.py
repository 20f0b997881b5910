"""One node: its rooms, built from a home and wired together, and their life.

    frames, gossip, requests, RPC -> dispatch, intake, batches, driver, sync -> executor -> duties -> worker

The tasks share one trio thread, so a method that does not await is atomic to all of them.
"""

from typing import Any

import structlog
import trio

from consensus.effects import Misbehaved
from consensus.inputs import Executed, Input, MessageReceived
from consensus.messages import SyncMessage
from consensus.types import Block, is_boundary
from node.announcing import Announcer
from node.artefacts import Artefacts, hold_shipped_base
from node.backend import DaemonBackend
from node.batches import Batches, BatchMaker, PendingPayload
from node.clock import ClockWatch, moved_ms, now_ms
from node.config import Config
from node.directory import make_directory
from node.dispatch import MALFORMED_POINTS, Dispatcher, plausible
from node.driver import Driver, DriverPorts
from node.duties import Duties, forget_opening
from node.effects import Effects
from node.epochs import Epochs, first_row
from node.erasing import Eraser
from node.evidence import EvidenceReporter
from node.executor import ExecutedBlock, Executor, SharedVerifier
from node.fetch import Fetcher
from node.home import Home, write_atomic
from node.intake import Intake
from node.keeper import Keeper, loose_limits
from node.ledger.entries import ValidatorSet
from node.ledger.genesis import Genesis, chain_id
from node.ledger.state import get_inference
from node.membership import Membership
from node.mempool import Mempool
from node.metrics import Metrics
from node.network import PeerAddress, PeerEvent
from node.network.network import Network
from node.network_settings import network_config
from node.observe import MeteredWorker, Observer
from node.pruning import Pruner
from node.receipts import ReceiptBook
from node.recompute.process import worker_command
from node.replicas import Replicas
from node.rpc.server import serve_rpc
from node.signer.choice import signer_link
from node.signer.protocol import Status as SignerStatus
from node.small_tasks import SmallTasks
from node.snapshot.fetching import SnapshotClient
from node.snapshot.files import Shelf
from node.snapshot.late import Latecomer
from node.snapshot.making import Maker
from node.snapshot.plan import install_ready
from node.spans.follower import SpanFollower
from node.startup import (
    check_retention,
    check_validator,
    guard_record,
    load_genesis,
    load_identity,
    open_chain,
    refuse_lost_record,
)
from node.storage.blobs import BlobStore
from node.storage.chain import ChainStore
from node.storage.database import Database
from node.storage.upkeep import Upkeep
from node.sync import Sync

log = structlog.get_logger(__name__)

# After a block that others wait behind, duties are looked at once in so many heights.
LOOK_HEIGHTS = 8
RPC_END_S_MAX = 1.0


class Node:
    """Everything one daemon runs. Construct it, `run` it; `close` releases the database."""

    def __init__(self, home: Home, config: Config) -> None:
        """Open the home's database and wire the rooms; raises NodeError, StorageError, LedgerError."""
        self.home = home
        self.config = config
        self.identity = load_identity(home, config)
        self.stopping = trio.Event()
        self.tasks = SmallTasks()
        self.metrics = Metrics()
        self._rpc_ended: trio.Event | None = None
        self._addresses = {
            PeerAddress.parse(text).peer_id: text
            for text in (*config.network.mesh_peers, *config.network.gossip_peers)
        }
        self._database = Database(home.data_path / "chain")
        self.store = ChainStore(self._database)
        document = load_genesis(home)
        genesis = self._open_chain(document)
        self._wire_ledger(document)
        self._wire_payload()
        self._wire_sync(document)
        self._wire_consensus(genesis)
        self._wire_upkeep(document)
        self._wire_duties()
        self._executed_ms = now_ms()
        self._clock_watch = ClockWatch(config.consensus.drift_ms_max)

    @property
    def validator(self) -> bool:
        """Whether this node has a validator's keys; it votes in the epochs whose set names it."""
        return self.identity.consensus_key is not None

    @property
    def votes(self) -> bool:
        """Whether this node is one of the current epoch's validators."""
        return self.replicas.votes

    def peer_address(self, peer_id: str) -> str:
        """The multiaddr a peer is configured at; empty for one that dialled us."""
        return self._addresses.get(peer_id, "")

    def silence_ms(self) -> int:
        """Milliseconds since the last block was executed, or since the start."""
        return now_ms() - self._executed_ms

    def close(self) -> None:
        """Release the database."""
        if self.signer is not None:
            self.signer.close()
        self._database.close()

    # --- life ---

    async def run(self, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled; reports the RPC's URL once everything listens."""
        if self.epochs.dynamic:
            self.membership.follow_validators()
        self.executor.recover()
        self.snapshots.recover()
        await trio.to_thread.run_sync(self.eraser.recall)
        await trio.to_thread.run_sync(self.spans.recall)
        await trio.to_thread.run_sync(self.keeper.recall, self.executor.head.height)
        await hold_shipped_base(self.artefacts)
        async with trio.open_nursery() as nursery, self.tasks.opened():
            await nursery.start(self.network.run)
            nursery.start_soon(self.dispatcher.run_frames)
            nursery.start_soon(self.dispatcher.run_gossip)
            nursery.start_soon(self.intake.run_inbox)
            nursery.start_soon(self.intake.run_gossip)
            if self.signer is not None:
                nursery.start_soon(self.signer.run, self._on_signer)
            nursery.start_soon(self.driver.run)
            nursery.start_soon(self.executor.run)
            nursery.start_soon(self.snapshots.run)
            nursery.start_soon(self.sync.run)
            nursery.start_soon(self.pruner.run)
            if self.validator:
                nursery.start_soon(self._run_worker)
                nursery.start_soon(self.intake.run_repeats)
                if self.votes:
                    self.duties.look(self.executor.head.height)
            url = await nursery.start(self._serve_rpc)
            write_atomic(self.home.rpc_url_path, f"{url}\n".encode(), mode=0o644)
            log.info("listening", rpc=url, p2p=str(self.network.address), height=self.executor.head.height)
            task_status.started(url)
            await trio.sleep_forever()

    async def _serve_rpc(self, task_status: Any) -> None:
        self._rpc_ended = trio.Event()
        await serve_rpc(DaemonBackend(self), self.config.rpc, self.stopping, task_status)
        self._rpc_ended.set()

    async def stop(self) -> None:
        """Say so to whoever asks or listens, and return once the RPC's clients have been dealt with: within a second."""
        self.stopping.set()
        if self._rpc_ended is not None:
            with trio.move_on_after(RPC_END_S_MAX):
                await self._rpc_ended.wait()

    async def _run_worker(self) -> None:
        """Start the worker after the first block: its import of torch would slow down a node that is joining."""
        await self.executor.progress()
        await self.worker.run()

    # --- construction ---

    def _open_chain(self, document: Genesis) -> Block:
        """Open the home's chain at the epoch it is in; returns the genesis block."""
        home, config = self.home, self.config
        check_retention(document, config.storage.retain_heights)
        signs = self.identity.consensus_seed is not None
        if signs:
            refuse_lost_record(home, self.store, chain_id(document))
        genesis = open_chain(self.store, document)
        self.chain_id = genesis.header.chain_id
        self.upkeep = Upkeep(self._database, self.store)
        self.shelf = Shelf(home.snapshots_path, config.storage.snapshots_kept)
        self._served_shelf = self.shelf if config.storage.snapshots_kept else None
        every = document.params.snapshot_heights
        installed = install_ready(self.store, self.upkeep, self.shelf.incoming(), self.chain_id, every)
        if installed is not None:
            log.info("snapshot_installed", height=installed)
        first = first_row(genesis, ValidatorSet(document.validators))
        self.epochs = Epochs(self.store, self.chain_id, first, dynamic=bool(document.params.epoch_heights))
        self.epochs.begin_next()  # where the process ended right before it
        self.directory = make_directory(self.epochs.current.validators)
        if not self.epochs.dynamic:
            check_validator(self.identity, self.directory.validators)
        if signs:
            guard_record(home, self.store, self.chain_id, self.epochs.current.number)
        self.signer = signer_link(home, config, self.identity, self.chain_id, self.epochs)
        return genesis

    def _wire_ledger(self, document: Genesis) -> None:
        """What executes blocks, and what brings transactions to be ordered."""
        config = self.config
        self.blobs = BlobStore(
            self.home.blobs_path, config.storage.blobs_bytes_max, loose_limits(config.storage)
        )
        self.mempool = Mempool(config.mempool)
        self.network = Network(
            network_config(config, self.identity, self.chain_id, self.epochs.genesis.validators),
            on_request=self._on_request,
            validate_gossip=plausible,
            on_peer=self._on_peer,
        )
        self.fetcher = Fetcher(self.network, self.store, self.blobs, self.chain_id)
        verifier = SharedVerifier()
        self.snapshots = Maker(
            self.store, self.upkeep, self.chain_id, document.params.snapshot_heights, self._served_shelf
        )
        self.executor = Executor(
            self.store,
            self.chain_id,
            self._make_available,
            self._on_executed,
            verifier,
            self.epochs,
            self.snapshots,
        )
        self.intake = Intake(
            self.identity,
            self.directory,
            self.chain_id,
            self.network,
            self.store,
            self.blobs,
            self.fetcher,
            self.executor,
            self.mempool,
            ReceiptBook(self.chain_id, self.directory),
            verifier,
            lambda: self.pending.changed(),
            self.tasks.start,
        )

    def _wire_payload(self) -> None:
        """What is ordered."""
        self.batch_maker = BatchMaker(
            self.identity,
            self.chain_id,
            self.network,
            self.store,
            self.executor,
            self.intake,
            self.config.consensus.batch_transactions_max,
        )
        self.batches = Batches(
            self.directory,
            self.chain_id,
            self.store,
            self.executor,
            self.fetcher,
            self._tell,
            self.tasks.start,
        )
        self.pending = PendingPayload(self.executor, self.intake, self._tell, self.tasks.start)

    def _wire_sync(self, document: Genesis) -> None:
        """What catches up with peers, and tells them how far this node is."""
        every = document.params.snapshot_heights
        client = SnapshotClient(
            self.network, self.chain_id, self.epochs.genesis, self.shelf.incoming(), every
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
            self._tell,
            lambda event: self.driver.tell_and_wait(event),
            lambda block_id, known_height: self.driver.replica.uncommitted_chain(block_id, known_height),
            lead_blocks_min=lambda: 16 if self.votes else 1,
            shelf=self._served_shelf,
            late=Latecomer(self.store, client, self.config.sync, every).consider,
            index_part=lambda adapter, file, offset: self.artefacts.index_part(adapter, file, offset),
        )
        self.announcer = Announcer(self.network, self.directory, self.sync, self.tasks.start)

    def _wire_consensus(self, genesis: Block) -> None:
        """Who orders it, and what peers say to that."""
        self.replicas = Replicas(
            self.config, self.identity, self.store, self.directory, self.epochs, self.signer
        )
        self.effects = Effects(self.network, self.directory, self.epochs, self.sync, self.tasks.start)
        self.driver = Driver(
            self.replicas.make(),
            self.store,
            self._ports(),
            listen_ms=self.replicas.listen_ms(genesis),
            block_interval_ms=self.config.consensus.block_interval_ms,
        )
        self.membership = Membership(
            self.network, self.store, self.directory, self.epochs, self.replicas, self.driver, self.signer
        )
        self.dispatcher = Dispatcher(
            self.network, self.directory, self.intake, self.batches, self.sync, self.driver.offer
        )

    def _wire_upkeep(self, document: Genesis) -> None:
        """What keeps the disk bounded."""
        section = self.config.storage
        self.pruner = Pruner(
            self.store, self.upkeep, self.shelf, document.params, section.retain_heights, self.batches.ordered
        )
        self.keeper = Keeper(self.store, self.blobs, section, self.intake.blobs_named, self.batches.ordered)

    def _wire_duties(self) -> None:
        """What a validator owes the ledger, and what counts this node's work."""
        section = self.config.attribution
        self.observer = Observer(self, self.metrics)
        command = worker_command(section.device, section.backend, section.threads, section.processes)
        self.worker = MeteredWorker(command, self.metrics)
        self.artefacts = Artefacts(
            self.home.artefacts_path, self.blobs, self.store, self.fetcher, self.worker
        )
        self.eraser = Eraser(
            self.store, self.blobs, self.artefacts if self.validator else None, self.tasks.start
        )
        self.spans = SpanFollower(
            self.home.root / "spans",
            self.config.spans,
            self.store,
            self.blobs,
            self.fetcher,
            self.tasks.start,
        )
        self.duties = Duties(
            self.identity,
            self.chain_id,
            self.store,
            self.blobs,
            self.fetcher,
            self.artefacts,
            self.intake.submit,
            self.tasks.start,
        )
        self.evidence = EvidenceReporter(
            self.identity,
            self.chain_id,
            self.store,
            self.intake.next_nonce,
            self.intake.submit,
            self.tasks.start,
        )

    def _ports(self) -> DriverPorts:
        return DriverPorts(
            send=self.effects.send,
            deliver=self.executor.deliver,
            offer_payload=self.batch_maker.offer,
            fetch_payload=self.batches.fetch,
            fetch_block=self.effects.fetch_block,
            behind=self.effects.behind,
            misbehaved=self._misbehaved,
            help_epoch=self.effects.help_epoch,
        )

    # --- consensus ---

    def _tell(self, event: Input) -> None:
        """The way back to consensus, for rooms that it also acts on."""
        self.driver.tell(event)

    def _on_signer(self, status: SignerStatus) -> None:
        """The signer is there (again): take the certificates that its signatures rely on, and ask for what is due."""
        info = status.certificates
        if info is None or status.record.epoch != self.epochs.current.number:
            info = self.driver.replica.sync_info
        self.driver.tell(MessageReceived(None, SyncMessage(info), now_ms()))

    def _misbehaved(self, effect: Misbehaved) -> None:
        peer_id = None if effect.peer is None else self.directory.peer_of.get(effect.peer)
        if peer_id is not None:
            self.network.penalise(peer_id, MALFORMED_POINTS, effect.reason)
        if effect.evidence and self.votes:
            self.evidence.note(effect.evidence, self.executor.head.height)

    # --- peers ---

    async def _on_request(self, peer_id: str, kind: int, payload: bytes) -> bytes:
        return await self.sync.answer(peer_id, kind, payload)

    def _on_peer(self, event: PeerEvent) -> None:
        log.info("peer", peer=event.peer_id, connected=event.connected)
        self.announcer.peer_changed(event)
        if not event.connected:
            self.sync.forget(event.peer_id)

    # --- blocks ---

    async def _make_available(self, block: Block) -> None:
        await self.sync.make_available(block)

    def _on_executed(self, done: ExecutedBlock) -> None:
        """Tell everyone what a block changed."""
        header, head = done.block.header, done.head
        self._executed_ms = now_ms()
        self.observer.executed(done)
        self.driver.tell(
            Executed(
                head.height,
                head.block_id,
                head.state_digest,
                head.accumulator_root,
                now_ms(),
                done.next_validators_hash,
                done.snapshot_root,
            )
        )
        if is_boundary(header):
            self.membership.change_epoch()
        if done.validators_changed:
            self.membership.follow_validators()
        self.evidence.look(head.height)
        self.batches.executed(head.height, header.payload)
        self.pruner.executed(head.height)
        self._clock_watch.note_moved(moved_ms())
        if not self.executor.waiting_blocks:
            self._clock_watch.compare(header.timestamp_ms, now_ms(), trio.current_time())
        self.keeper.executed(done)
        self.eraser.executed(done)
        self.spans.executed(done)
        if self.keeper.due(head.height):
            self.tasks.start(self.keeper.collect, head.height)
        self.intake.settle(done)
        self.pending.changed()
        # While more blocks wait, what this one asks for may be long over: the last of them, or one of many, is looked at.
        if self.votes and (not self.executor.waiting_blocks or head.height % LOOK_HEIGHTS == 0):
            self.duties.look(head.height)
        for inference in done.audits_ended:
            self.tasks.start(self.prune_opening, inference)
        if header.proposer == self.identity.consensus_key or (self.votes and self.announcer.followed):
            self.announcer.announce_soon()

    async def prune_opening(self, inference: bytes) -> None:
        """Prune the text of an audited call once its audit has ended; commitments and result stay on the ledger."""
        record = get_inference(self.store, inference)
        # The same bytes may answer another call, whose audit is not over.
        if record is not None and record.blob_digest and not self.keeper.refers(record.blob_digest):
            await trio.to_thread.run_sync(forget_opening, self.blobs, record)
