"""One node: its rooms, built from a home and wired together.

    frames, gossip, requests, RPC -> intake, driver, sync -> executor -> duties -> worker

The tasks share one trio thread, so a method that does not await is atomic to all of them.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import structlog
import trio

from consensus.beacon import BeaconChain
from consensus.codec import encode
from consensus.effects import Behind, FetchBlock, FetchPayload, HelpEpoch, Misbehaved, RequestPayload
from consensus.errors import ConsensusError
from consensus.inputs import Executed, MessageReceived, PayloadAvailable, PayloadPending
from consensus.messages import HandoverMessage, SyncMessage, decode_message, encode_message
from consensus.replica import Replica
from consensus.types import Block, is_boundary
from node.artefacts import Artefacts, hold_shipped_base
from node.backend import DaemonBackend
from node.clock import ClockWatch, moved_ms, now_ms
from node.config import Config
from node.directory import make_directory
from node.driver import Driver, DriverPorts
from node.duties import Duties, forget_opening
from node.epochs import Epochs, first_row
from node.evidence import EvidenceReporter
from node.executor import ExecutedBlock, Executor, SharedVerifier
from node.fetch import Fetcher, read_batch
from node.home import Home, write_atomic
from node.intake import Intake
from node.keeper import Keeper, loose_limits
from node.ledger.batch import (
    BATCH_BYTES_MAX,
    BATCH_ITEMS_MAX,
    Item,
    batch_digest,
    encode_batch,
    sign_batch,
)
from node.ledger.errors import LedgerError
from node.ledger.genesis import chain_id
from node.ledger.stakes import get_candidates, get_next_validators, get_stake
from node.ledger.state import ValidatorSet, get_batch_window, get_inference
from node.mempool import Mempool, Pooled
from node.metrics import Metrics
from node.network import Limits, NetworkConfig, PeerAddress, PeerEvent
from node.network.errors import NetworkError, UnknownPeer
from node.network.network import Network
from node.observe import MeteredWorker, Observer
from node.pruning import Pruner
from node.pushed import PushedBatches
from node.receipts import ReceiptBook
from node.recompute.process import worker_command
from node.rpc.server import serve_rpc
from node.signer.choice import signer_link
from node.signer.protocol import Status as SignerStatus
from node.signer.remote import RemoteSigner
from node.snapshot.fetching import SnapshotClient
from node.snapshot.files import Shelf
from node.snapshot.late import Latecomer
from node.snapshot.making import Maker
from node.snapshot.plan import install_ready
from node.startup import (
    BEACON_REVEALS,
    check_retention,
    check_validator,
    consensus_config,
    guard_record,
    load_genesis,
    load_identity,
    open_chain,
    recovered_state,
    refuse_lost_record,
)
from node.storage.blobs import BlobStore
from node.storage.chain import ChainStore
from node.storage.database import Database
from node.storage.errors import BlobDigestMismatch
from node.storage.upkeep import Upkeep
from node.sync import Sync
from node.wire import (
    Frame,
    Topic,
    WireError,
    decode_announcement,
    decode_transactions,
    encode_announcement,
)

log = structlog.get_logger(__name__)

BACKGROUND_TASKS_MAX = 1024
MALFORMED_POINTS = 20
# Room in a batch for storage receipts beside the transactions, and for what is around all of them.
BATCH_OVERHEAD_BYTES = 96 << 10
# How often batches that nothing used are looked for.
EXPIRY_HEIGHTS = 100
BATCH_ENVELOPE_BYTES = 256
# Most that a transaction without storage receipts takes in a batch beside its own bytes.
ITEM_BYTES = 8
PUBLISH_TIMEOUT_S = 2.0
# How long a validator that comes back listens before it starts something: an idle chain is heard once in a heartbeat.
LISTEN_HEARTBEATS = 2
FRESH_CHAIN_MS = 60_000
# Looking through the pool takes time, and a busy network changes it hundreds of times a second.
PAYLOAD_DELAY_S = 0.005
# Between two announcements of this node; the last block of a busy time is announced once it has passed.
ANNOUNCE_PAUSE_S = 0.5
# The same where only validators would hear it: they follow consensus, and ask when they hear nothing.
ANNOUNCE_AMONG_VALIDATORS_PAUSE_S = 5.0
LOOK_HEIGHTS = 8
RPC_END_S_MAX = 1.0


class Node:
    """Everything one daemon runs. `open` builds it, `run` runs it, `close` releases the database."""

    def __init__(self, home: Home, config: Config) -> None:
        """Open the home's database and wire the rooms; raises NodeError, StorageError, LedgerError."""
        self.home = home
        self.config = config
        self.identity = load_identity(home, config)
        self._database = Database(home.data_path / "chain")
        self.store = ChainStore(self._database)
        document = load_genesis(home)
        check_retention(document, config.storage.retain_heights)
        signs = self.identity.consensus_seed is not None
        if signs:
            refuse_lost_record(home, self.store, chain_id(document))
        genesis = open_chain(self.store, document)
        self.chain_id = genesis.header.chain_id
        self.upkeep = Upkeep(self._database, self.store)
        self.shelf = Shelf(home.snapshots_path, config.storage.snapshots_kept)
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
        self._beacon: BeaconChain | None = None
        self.blobs = BlobStore(home.blobs_path, config.storage.blobs_bytes_max, loose_limits(config.storage))
        self.mempool = Mempool(config.mempool)
        self.network = Network(
            self._network_config(),
            on_request=self._on_request,
            validate_gossip=_plausible,
            on_peer=self._on_peer,
        )
        verifier = SharedVerifier()
        fetcher = Fetcher(self.network, self.store, self.blobs, self.chain_id)
        shelf = self.shelf if config.storage.snapshots_kept else None
        self.snapshots = Maker(self.store, self.upkeep, self.chain_id, every, shelf)
        self.executor = Executor(
            self.store,
            self.chain_id,
            self._make_available,
            self._on_executed,
            verifier,
            self.epochs,
            self.snapshots,
        )
        self.driver = Driver(
            self._replica(),
            self.store,
            self._ports(),
            listen_ms=self._listen_ms(genesis),
        )
        self.sync = Sync(
            self.network,
            self.store,
            self.blobs,
            fetcher,
            self.executor,
            self.directory,
            self.epochs,
            self.chain_id,
            self.driver.tell,
            self.driver.tell_and_wait,
            lambda block_id, known_height: self.driver.replica.uncommitted_chain(block_id, known_height),
            lead_blocks_min=lambda: 16 if self.votes else 1,
            shelf=shelf,
            late=Latecomer(
                self.store,
                SnapshotClient(self.network, self.chain_id, first, self.shelf.incoming(), every),
                config.sync,
                every,
            ).consider,
        )
        self.pruner = Pruner(
            self.store,
            self.upkeep,
            self.shelf,
            document.params,
            config.storage.retain_heights,
            self._ordered_payload,
        )
        self.intake = Intake(
            self.identity,
            self.directory,
            self.chain_id,
            self.network,
            self.store,
            self.blobs,
            fetcher,
            self.executor,
            self.mempool,
            ReceiptBook(self.chain_id, self.directory),
            verifier,
            self._payload_changed,
            self._start,
        )
        self.keeper = Keeper(
            self.store, self.blobs, config.storage, self.intake.blobs_named, self._ordered_payload
        )
        section = config.attribution
        self.metrics = Metrics()
        self.observer = Observer(self, self.metrics)
        command = worker_command(section.device, section.backend, section.threads)
        self.worker = MeteredWorker(command, self.metrics)
        self.artefacts = Artefacts(home.artefacts_path, self.blobs, self.store, fetcher, self.worker)
        self.duties = Duties(
            self.identity,
            self.chain_id,
            self.store,
            self.blobs,
            fetcher,
            self.artefacts,
            self.intake.submit,
            self._start,
        )
        self.evidence = EvidenceReporter(
            self.identity,
            self.chain_id,
            self.store,
            self.intake.next_nonce,
            self.intake.submit,
            self._start,
        )
        self.fetcher = fetcher
        self.stopping = trio.Event()
        self._rpc_ended: trio.Event | None = None
        self._executed_ms = now_ms()
        self._clock_watch = ClockWatch(config.consensus.drift_ms_max)
        self._addresses = {
            PeerAddress.parse(text).peer_id: text
            for text in (*config.network.mesh_peers, *config.network.gossip_peers)
        }
        self._batch_sequence = 0
        self._pushed = PushedBatches()
        self._background: trio.Nursery | None = None
        self._background_tasks = 0
        self._payload_told_soon = False
        self._announcing = False
        self._announce_from_s = 0.0
        self._connected: set[str] = set()
        self._fetching_payload: set[bytes] = set()
        self._fetching_blocks: set[bytes] = set()

    @property
    def validator(self) -> bool:
        """Whether this node has a validator's keys; it votes in the epochs whose set names it."""
        return self.identity.consensus_key is not None

    @property
    def votes(self) -> bool:
        """Whether this node is one of the current epoch's validators."""
        return self.identity.consensus_key in self.directory.peer_of

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
            self._follow_validators()
        self.executor.recover()
        self.snapshots.recover()
        await trio.to_thread.run_sync(self.keeper.recall, self.executor.head.height)
        await hold_shipped_base(self.artefacts)
        async with trio.open_nursery() as nursery, self._small_tasks():
            await nursery.start(self.network.run)
            nursery.start_soon(self._receive_frames)
            nursery.start_soon(self._receive_gossip)
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

    @asynccontextmanager
    async def _small_tasks(self) -> AsyncIterator[None]:
        """Where `_start` puts tasks. A daemon that ends has none: others' last steps may still ask for one."""
        async with trio.open_nursery() as background:
            self._background = background
            try:
                yield
            finally:
                self._background = None

    def _start(self, task: Callable[..., Any], *args: object) -> bool:
        """Run a bounded number of small tasks beside the others; False past the bound: it has to be asked for again."""
        if self._background is None or self._background_tasks >= BACKGROUND_TASKS_MAX:
            log.warning("task_dropped", task=getattr(task, "__qualname__", str(task)))
            return False
        self._background_tasks += 1
        self._background.start_soon(self._run_task, task, args)
        return True

    async def _run_task(self, task: Callable[..., Any], args: tuple[object, ...]) -> None:
        try:
            await task(*args)
        finally:
            self._background_tasks -= 1

    # --- construction ---

    def _network_config(self) -> NetworkConfig:
        section = self.config.network
        mesh = tuple(PeerAddress.parse(text) for text in section.mesh_peers)
        gossip = tuple(PeerAddress.parse(text) for text in section.gossip_peers)
        allowed = {entry.peer_id for entry in self.epochs.genesis.validators.validators}
        return NetworkConfig(
            key_seed=self.identity.node_seed,
            chain_id=self.chain_id,
            listen_host=section.listen_host,
            listen_port=section.listen_port,
            mesh_peers=mesh,
            gossip_peers=gossip,
            allowed=frozenset(allowed | set(section.peer_ids_allowed)),
            topics=(Topic.TRANSACTIONS, Topic.BLOCKS),
            limits=Limits(
                frame_bytes_max=section.message_bytes_max,
                send_queue_frames_max=section.queue_messages_max,
                connections_max=section.peers_max,
                ping_interval_ms=section.ping_interval_ms,
                ping_timeout_ms=section.ping_timeout_ms,
                redial_delay_ms_max=section.dial_backoff_ms_max,
            ),
        )

    def _replica(self) -> Replica:
        """The current epoch's replica; an observer's where this node is not in the set."""
        settings, epoch = consensus_config(self.config), self.epochs.current
        recovered = recovered_state(self.store, epoch, settings)
        signer = None
        if self.signer is not None and self.votes:
            signer = RemoteSigner(self.signer, epoch.number, recovered.record)
        return Replica(
            epoch.consensus_set,
            epoch.start,
            settings,
            seed=self.identity.consensus_seed if self.votes else None,
            signer=signer,
            beacon=self._beacon_chain() if self.votes else None,
            recovered=recovered,
        )

    def _on_signer(self, status: SignerStatus) -> None:
        """The signer is there (again): take the certificates that its signatures rely on, and ask for what is due."""
        info = status.certificates
        if info is None or status.record.epoch != self.epochs.current.number:
            info = self.driver.replica.sync_info
        self.driver.tell(MessageReceived(None, SyncMessage(info), now_ms()))

    def _beacon_chain(self) -> BeaconChain | None:
        """The chain that this validator's anchor ends, or None: without it a validator votes but never leads."""
        if self.identity.beacon_seed is None:
            return None
        if self._beacon is None:
            self._beacon = BeaconChain(self.identity.beacon_seed, BEACON_REVEALS)
        entry = self.directory.validators.by_account(self.identity.account)
        if entry is None or entry.beacon_anchor != self._beacon.anchor:
            log.error("beacon_not_anchored", remedy="openledger tx validator-anchor")
            return None
        return self._beacon

    def _listen_ms(self, genesis: Block) -> int:
        """How long to listen before starting anything: not at all with a key that cannot have signed on this chain yet."""
        fresh = now_ms() - genesis.header.timestamp_ms < FRESH_CHAIN_MS and self.store.safety_record() is None
        return 0 if fresh or not self.validator else LISTEN_HEARTBEATS * self.config.consensus.heartbeat_ms

    def _ports(self) -> DriverPorts:
        return DriverPorts(
            send=self._send,
            deliver=self.executor.deliver,
            offer_payload=self._offer_payload,
            fetch_payload=self._fetch_payload,
            fetch_block=self._fetch_block,
            behind=self._behind,
            misbehaved=self._misbehaved,
            help_epoch=self._help_epoch,
        )

    # --- effects of the replica ---

    def _send(self, to: bytes | None, message: bytes) -> None:
        if to is None:
            self.network.broadcast(Frame.CONSENSUS, message)
        elif (peer_id := self.directory.peer_of.get(to)) is not None:
            self._send_to(peer_id, message)

    def _send_to(self, peer_id: str, message: bytes) -> None:
        # Who left the mesh, or whose mesh we left, with an epoch that just ended needs none of its messages.
        with suppress(UnknownPeer):
            self.network.send(peer_id, Frame.CONSENSUS, message)

    def _offer_payload(self, request: RequestPayload) -> tuple[bytes, ...]:
        """Make one batch of what waits, store it, and send it ahead of the proposal that will name it."""
        if request.empty_only:
            return ()
        if not self.executor.knows_in_flight(request.uncommitted_payload):
            return ()
        in_flight = self.executor.transactions_in_flight(request.uncommitted_payload)
        chosen = self.mempool.select(
            self.intake.next_nonce,
            self.intake.includable,
            self.intake.withheld(in_flight),
            bytes_max=BATCH_BYTES_MAX - BATCH_OVERHEAD_BYTES,
            count_max=min(BATCH_ITEMS_MAX, self.config.consensus.batch_transactions_max),
        )
        items = self._fitting(self.intake.affordable(chosen, in_flight))
        if not items:
            return ()
        # A sequence is used once; time keeps it unique over restarts without another synced record, and the state
        # says what was used before a clock that was set back.
        window = get_batch_window(self.store, self.identity.account)
        used = max((window.floor, *window.executed))
        self._batch_sequence = max(self._batch_sequence + 1, used + 1, now_ms())
        try:
            batch = sign_batch(self.identity.account_seed, self.chain_id, self._batch_sequence, items)
            data = encode_batch(batch)
        except LedgerError as error:
            log.error("batch_too_large", transactions=len(items), error=str(error))
            return ()
        name = batch_digest(batch, self.chain_id)
        self.store.put_batch(name, data)
        self.executor.remember_batch(name, batch)
        self.network.broadcast(Frame.BATCH, data)
        return (name,)

    def _fitting(self, chosen: list[Pooled]) -> tuple[Item, ...]:
        """As many of the chosen, from the first on, as fit into one batch with their storage receipts."""
        items: list[Item] = []
        size = BATCH_ENVELOPE_BYTES
        for pooled in chosen:
            item = self.intake.item(pooled)
            size += len(pooled.raw) + ITEM_BYTES if not item[1] else len(encode(item))
            if size > BATCH_BYTES_MAX:
                break
            items.append(item)
        return tuple(items)

    def _fetch_payload(self, effect: FetchPayload) -> None:
        for name in effect.digests:
            if self.store.batch(name) is not None:
                self.driver.tell(PayloadAvailable(name, now_ms()))
            elif name not in self._fetching_payload and self._start(self._fetch_batch, name, effect.sources):
                self._fetching_payload.add(name)

    async def _fetch_batch(self, name: bytes, sources: tuple[bytes, ...]) -> None:
        try:
            if await self.fetcher.batch(name, self.directory.peers(sources)):
                self.driver.tell(PayloadAvailable(name, now_ms()))
        finally:
            self._fetching_payload.discard(name)

    def _fetch_block(self, effect: FetchBlock) -> None:
        if effect.block_id not in self._fetching_blocks and self._start(self._fetch_ancestry, effect):
            self._fetching_blocks.add(effect.block_id)

    async def _fetch_ancestry(self, effect: FetchBlock) -> None:
        try:
            await self.sync.fetch_block(effect.block_id, effect.known_height, effect.sources)
        finally:
            self._fetching_blocks.discard(effect.block_id)

    def _behind(self, effect: Behind) -> None:
        self.sync.behind(effect.target_height, effect.sources)

    def _misbehaved(self, effect: Misbehaved) -> None:
        peer_id = None if effect.peer is None else self.directory.peer_of.get(effect.peer)
        if peer_id is not None:
            self.network.penalise(peer_id, MALFORMED_POINTS, effect.reason)
        if effect.evidence and self.votes:
            self.evidence.note(effect.evidence, self.executor.head.height)

    # --- epochs ---

    def _help_epoch(self, effect: HelpEpoch) -> None:
        """Show a peer that still works in an epoch that ended how it ended."""
        after = self.epochs.row(effect.epoch + 1)
        peer_id = self.directory.peer_of.get(effect.to)
        if peer_id is not None and after is not None and after.handover is not None:
            self._send_to(peer_id, encode_message(HandoverMessage(after.handover)))

    def _change_epoch(self) -> None:
        """The epoch's last block has been executed: go on under the set that it hands over to."""
        if not self.epochs.begin_next():
            return
        epoch = self.epochs.current
        self.directory.install(epoch.validators)
        if self.signer is not None:
            # A new connection begins with the hand-overs that the signer has not heard of.
            self.signer.drop("an epoch began")
        self.driver.succeed(self._replica())
        log.info(
            "epoch_began",
            epoch=epoch.number,
            height=epoch.start.height,
            validators=len(epoch.validators.validators),
            votes=self.votes,
        )

    def _follow_validators(self) -> None:
        """Keep direct streams with the validators of this epoch and, once it is frozen, of the next; none as an observer.

        Candidates are let in: they have to come up with the chain before they can be chosen.
        """
        candidates = (get_stake(self.store, account) for account in get_candidates(self.store))
        self.network.admit(stake.peer_id for stake in candidates if stake is not None)
        entries = [*self.directory.validators.validators]
        following = get_next_validators(self.store)
        if following is not None:
            entries += following.validators
        peers = {entry.peer_id for entry in entries}
        self.network.set_mesh(peers if self.network.peer_id in peers else ())

    # --- what peers send ---

    async def _receive_frames(self) -> None:
        async for frame in self.network.frames:
            try:
                await self._on_frame(frame.peer_id, frame.kind, frame.payload)
            except (ConsensusError, LedgerError, BlobDigestMismatch, WireError) as error:
                self.network.penalise(frame.peer_id, MALFORMED_POINTS, str(error))

    async def _on_frame(self, peer_id: str, kind: int, payload: bytes) -> None:
        match kind:
            case Frame.CONSENSUS:
                sender = self.directory.validator_of.get(peer_id)
                self.driver.offer(MessageReceived(sender, decode_message(payload), now_ms()))
            case Frame.BATCH:
                self._take_batch(peer_id, payload)
            case Frame.TRANSACTIONS:
                self.intake.offer(peer_id, payload)
            case Frame.STORAGE_RECEIPT:
                self.intake.receive_receipt(peer_id, payload)
            case _:
                raise WireError(f"unknown frame kind {kind}")

    def _take_batch(self, peer_id: str, data: bytes) -> None:
        """Store a batch that a validator pushes, if it is its own and within its quota."""
        key = self.directory.validator_of.get(peer_id)
        entry = None if key is None else self.directory.validators.by_consensus_key(key)
        if entry is None:
            raise WireError("a batch from a peer that is no validator")
        name, batch = read_batch(data, self.chain_id, author=entry.account)
        if self.store.batch(name) is None:
            if not self._pushed.add(entry.account, name, len(data), self.executor.head.height):
                if self._pushed.worth_telling(entry.account, self.executor.head.height):
                    log.warning("batch_not_taken", author=entry.account.hex(), reason="its quota is used up")
                return
            self.store.put_batch(name, data)
            self.executor.remember_batch(name, batch)
            # Once: a peer that repeats itself must not fill the driver's queue. Consensus asks for what it forgot.
            self.driver.tell(PayloadAvailable(name, now_ms()))

    async def _receive_gossip(self) -> None:
        async for message in self.network.gossip:
            if message.topic == Topic.TRANSACTIONS:
                await self.intake.receive(message.peer_id, message.data, forwarded=True)
            else:
                try:
                    self.sync.announced(message.peer_id, message.data)
                except WireError as error:
                    self.network.penalise(message.peer_id, MALFORMED_POINTS, str(error))

    async def _on_request(self, peer_id: str, kind: int, payload: bytes) -> bytes:
        return await self.sync.answer(peer_id, kind, payload)

    def _on_peer(self, event: PeerEvent) -> None:
        log.info("peer", peer=event.peer_id, connected=event.connected)
        if event.connected:
            self._connected.add(event.peer_id)
        else:
            self._connected.discard(event.peer_id)
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
            self._change_epoch()
        if done.validators_changed:
            self._follow_validators()
        self.evidence.look(head.height)
        self._pushed.used(header.payload)
        self.pruner.executed(head.height)
        if head.height % EXPIRY_HEIGHTS == 0:
            self._expire_batches(head.height)
        self._clock_watch.note_moved(moved_ms())
        if not self.executor.waiting_blocks:
            self._clock_watch.compare(header.timestamp_ms, now_ms(), trio.current_time())
        self.keeper.executed(done)
        if self.keeper.due(head.height):
            self._start(self.keeper.collect, head.height)
        self.intake.settle(done)
        self._payload_changed()
        # While more blocks wait, what this one asks for may be long over: the last of them, or one of many, is looked at.
        if self.votes and (not self.executor.waiting_blocks or head.height % LOOK_HEIGHTS == 0):
            self.duties.look(head.height)
        for inference in done.audits_ended:
            self._start(self._forget_opening, inference)
        if header.proposer == self.identity.consensus_key or (self.votes and self._has_followers()):
            self._announce_soon()

    def _expire_batches(self, height: int) -> None:
        """Remove old batches that no block came to use; what a block in flight names stays."""
        needed = set(self._ordered_payload())
        for name in self._pushed.expire(height, needed):
            self.store.drop_batch(name)

    def _ordered_payload(self) -> list[bytes]:
        """Batches of blocks that are stored but not executed."""
        # In this order: a block that is committed meanwhile is found on one side or on both, never on neither.
        blocks = [*self.store.uncommitted_blocks()]
        for waiting in range(self.executor.head.height + 1, self.store.committed_height() + 1):
            block = self.store.block_at(waiting)
            if block is not None:
                blocks.append(block)
        return [name for block in blocks for name in block.header.payload]

    async def _forget_opening(self, inference: bytes) -> None:
        """Prune the text of an audited call once its audit has ended; commitments and result stay on the ledger."""
        record = get_inference(self.store, inference)
        # The same bytes may answer another call, whose audit is not over.
        if record is not None and record.blob_digest and not self.keeper.refers(record.blob_digest):
            await trio.to_thread.run_sync(forget_opening, self.blobs, record)

    def _has_followers(self) -> bool:
        """Whether a peer is connected that is no validator, and so learns from announcements how far the chain is."""
        return any(peer_id not in self.directory.validator_of for peer_id in self._connected)

    def _announce_soon(self) -> None:
        """Say how far this node has come, soon: gossip costs every node milliseconds, so blocks that follow at once go together."""
        if not self._announcing:
            self._announcing = self._start(
                self._announce, max(0.0, self._announce_from_s - trio.current_time())
            )

    async def _announce(self, delay_s: float) -> None:
        await trio.sleep(delay_s)
        self._announcing = False
        pause_s = ANNOUNCE_PAUSE_S if self._has_followers() else ANNOUNCE_AMONG_VALIDATORS_PAUSE_S
        self._announce_from_s = trio.current_time() + pause_s
        try:
            data = encode_announcement(self.sync.announcement())
            await self.network.publish(Topic.BLOCKS, data, PUBLISH_TIMEOUT_S)
        except NetworkError as error:
            log.debug("announcement_failed", error=str(error))

    def _payload_changed(self) -> None:
        """Tell the replica soon whether there is something to order; changes that follow at once are told together."""
        if not self._payload_told_soon:
            self._payload_told_soon = self._start(self._tell_payload)

    async def _tell_payload(self) -> None:
        await trio.sleep(PAYLOAD_DELAY_S)
        self._payload_told_soon = False
        pending = self.mempool.has_ready(
            self.intake.next_nonce,
            self.intake.includable,
            self.intake.withheld(self.executor.transactions_in_flight(())),
        )
        self.driver.tell(PayloadPending(pending, now_ms()))


def _plausible(topic: str, data: bytes) -> bool:
    """Cheap check before gossip is passed on: the shape alone. Who forwards what fails it is to blame."""
    try:
        if topic == Topic.BLOCKS:
            decode_announcement(data)
        else:
            decode_transactions(data)
    except WireError:
        return False
    return True
