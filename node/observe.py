"""Reads a running node for its metrics and its readiness. Nothing here changes anything."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from node.metrics import Metrics, Snapshot
from node.network import PeerStatus
from node.recompute.jobs import AuditJob, EraseJob, IndexJob, Job, JobRefused, JobResult
from node.recompute.process import RecomputeProcess

if TYPE_CHECKING:
    from node.executor import ExecutedBlock
    from node.node import Node

SILENCE_MS_MAX = 15_000
"""A node that executed nothing for so long is not ready: several heartbeats and view changes."""

STUCK_TIMEOUTS = 5
"""With transactions that wait, so many of a round's first timeouts without a block are too long already."""

BLOCKS_WAITING_MAX = 64
"""More committed blocks than this wait for execution only where it does not keep up."""

DISK_FREE_BYTES_MIN = 64 << 20
"""With less room the next write may fail, and the node ends at the first that does."""

DISK_LOOK_S_MIN = 60.0
"""How often the disk is looked at at most: a store of many blobs takes a while to count."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What decides whether a node is ready.

    ``diverged_height`` is where the node's committed state differs from the quorum's, or None. ``silence_ms`` is the time
    since a block was executed; ``blocks_waiting`` are committed and not executed, ``transactions_waiting`` in the mempool;
    ``signer_problem`` is what keeps a validator's signer from signing, empty where nothing does or the daemon signs itself.
    While blocks or transactions wait ``pending_silence_ms_max`` is the longest silence.
    """

    stopping: bool
    diverged_height: int | None
    syncing: bool
    quorum_connected: bool
    stalled: bool
    silence_ms: int
    blocks_waiting: int
    transactions_waiting: int
    signer_problem: str = ""
    pending_silence_ms_max: int = SILENCE_MS_MAX
    disk_free_bytes: int = DISK_FREE_BYTES_MIN


def not_ready_reason(standing: Standing) -> str:
    """Return why the node should get no traffic, or "" when it is ready. The gravest reason wins."""
    if standing.stopping:
        return "the node is stopping"
    if standing.diverged_height is not None:
        return f"this node's state differs from the quorum's at height {standing.diverged_height}"
    if standing.syncing:
        return "catching up with the chain"
    if not standing.quorum_connected:
        return "no quorum of validators is connected"
    if standing.disk_free_bytes < DISK_FREE_BYTES_MIN:
        return f"the disk is full: {standing.disk_free_bytes >> 20} MiB are free"
    if standing.blocks_waiting > BLOCKS_WAITING_MAX:
        return f"execution is {standing.blocks_waiting} committed blocks behind"
    waits = standing.blocks_waiting or standing.transactions_waiting
    silence_ms_max = standing.pending_silence_ms_max if waits else SILENCE_MS_MAX
    if standing.silence_ms > silence_ms_max:
        waiting = f"{standing.blocks_waiting} committed blocks and {standing.transactions_waiting} transactions wait"
        return f"nothing was executed for {standing.silence_ms // 1000} s; {waiting}"
    if standing.signer_problem:
        return f"this validator does not vote, its signer does not answer: {standing.signer_problem}"
    if standing.stalled:
        return f"consensus is stalled; {standing.transactions_waiting} transactions wait"
    return ""


def standing_of(node: Node, connected: frozenset[str]) -> Standing:
    """Return where a node stands that is connected to the peers with these ids."""
    diverged = node.driver.diverged
    seen = {node.directory.validator_of[peer] for peer in connected if peer in node.directory.validator_of}
    if node.identity.consensus_key is not None:
        seen.add(node.identity.consensus_key)
    validators = node.directory.validators
    accounts = frozenset(entry.account for entry in validators.validators if entry.consensus_key in seen)
    return Standing(
        stopping=node.stopping.is_set(),
        diverged_height=diverged.height if diverged is not None and diverged.committed else None,
        syncing=node.sync.syncing,
        quorum_connected=validators.is_quorum(accounts),
        stalled=node.driver.stalled,
        silence_ms=node.silence_ms(),
        blocks_waiting=node.executor.waiting_blocks,
        transactions_waiting=len(node.mempool),
        pending_silence_ms_max=min(SILENCE_MS_MAX, STUCK_TIMEOUTS * node.config.consensus.timeout_ms_base),
        disk_free_bytes=shutil.disk_usage(node.home.root).free,
        signer_problem="" if node.signer is None or not node.votes else node.signer.problem,
    )


class MeteredWorker(RecomputeProcess):
    """A worker whose jobs are counted and timed."""

    def __init__(self, command: Sequence[str], metrics: Metrics) -> None:
        super().__init__(command)
        self.jobs = 0
        self._metrics = metrics

    async def submit(self, job: Job) -> JobResult:
        """`RecomputeProcess.submit`, counted."""
        self.jobs += 1
        began_s = time.monotonic()
        try:
            result = await super().submit(job)
        finally:
            self.jobs -= 1
        kind = {AuditJob: "audit", IndexJob: "index", EraseJob: "erase"}[type(job)]
        outcome = "refused" if isinstance(result, JobRefused) else "done"
        self._metrics.job_done(kind, outcome, time.monotonic() - began_s)
        return result


@dataclass(slots=True)
class _Disk:
    """Sizes on disk as they were last counted."""

    looked_s: float = float("-inf")
    database_bytes: int = 0
    blobs_bytes: int = 0
    free_bytes: int = 0


@dataclass(slots=True)
class Traffic:
    """Bytes of all connections together, from the counts of each, which begin anew with every connection.

    What a connection carried between the last reading and its end is missing: a lower bound, that never goes back.
    """

    received_bytes: int = 0
    sent_bytes: int = 0
    _seen: dict[str, tuple[int, int]] = field(default_factory=dict)

    def count(self, peers: Iterable[PeerStatus]) -> None:
        """Add what connections carried since the last reading; a count that went down is a new connection's."""
        seen = {}
        for peer in peers:
            before_in, before_out = self._seen.get(peer.peer_id, (0, 0))
            self.received_bytes += peer.bytes_in - (before_in if peer.bytes_in >= before_in else 0)
            self.sent_bytes += peer.bytes_out - (before_out if peer.bytes_out >= before_out else 0)
            seen[peer.peer_id] = (peer.bytes_in, peer.bytes_out)
        # Peers that are gone are forgotten, so that strangers who come and go take no memory.
        self._seen = seen


@dataclass(slots=True)
class Observer:
    """Renders one node's metrics."""

    node: Node
    metrics: Metrics
    _disk: _Disk = field(default_factory=_Disk)
    _traffic: Traffic = field(default_factory=Traffic)

    def __post_init__(self) -> None:
        self.metrics.watch(self._snapshot)

    async def render(self) -> bytes:
        """Everything in Prometheus' text format; looks at the disk in a thread, rarely."""
        if time.monotonic() - self._disk.looked_s >= DISK_LOOK_S_MIN:
            home = self.node.home
            self._disk.looked_s = time.monotonic()  # before the look: nobody else starts one meanwhile
            self._disk = await trio.to_thread.run_sync(_look, home.root, home.data_path, home.blobs_path)
        return self.metrics.render()

    def executed(self, done: ExecutedBlock) -> None:
        """Count an executed block."""
        header = done.block.header
        self.metrics.executed(
            header.timestamp_ms,
            header.round,
            len(done.performed),
            len(done.invalid),
            done.transaction_bytes,
            done.seconds,
        )

    def _snapshot(self) -> Snapshot:
        node, peers = self.node, self.node.network.peers()
        self._traffic.count(peers)
        connected = frozenset(peer.peer_id for peer in peers if peer.connected)
        standing = standing_of(node, connected)
        entries = node.directory.validators.validators
        own = node.network.peer_id
        penalties, bans = node.network.penalties
        return Snapshot(
            consensus_height=node.store.committed_height(),
            consensus_executed_height=node.executor.head.height,
            consensus_round=node.driver.replica.round,
            consensus_validators=len(entries),
            consensus_validators_power=sum(entry.stake for entry in entries),
            consensus_missing_validators=sum(
                entry.peer_id != own and entry.peer_id not in connected for entry in entries
            ),
            consensus_stalled=int(standing.stalled),
            consensus_diverged=int(standing.diverged_height is not None),
            consensus_peer_messages_dropped=node.driver.peer_inputs_dropped,
            state_blocks_waiting=standing.blocks_waiting,
            blocksync_syncing=int(standing.syncing),
            ready=int(not not_ready_reason(standing)),
            mempool_size=standing.transactions_waiting,
            mempool_size_bytes=sum(len(pooled.raw) for pooled in node.mempool),
            p2p_peers=len(connected),
            p2p_peers_banned=sum(peer.banned for peer in peers),
            p2p_penalty_points=sum(peer.points for peer in peers),
            p2p_penalties=penalties,
            p2p_bans=bans,
            p2p_send_queue_bytes=sum(peer.queue_bytes for peer in peers),
            p2p_received_bytes=self._traffic.received_bytes,
            p2p_sent_bytes=self._traffic.sent_bytes,
            storage_database_bytes=self._disk.database_bytes,
            storage_blobs_bytes=self._disk.blobs_bytes,
            storage_free_bytes=self._disk.free_bytes,
            storage_snapshot_failed=int(bool(node.snapshots.problem)),
            worker_jobs=node.worker.jobs,
        )


def _look(root: Path, database: Path, blobs: Path) -> _Disk:
    return _Disk(time.monotonic(), _size_bytes(database), _size_bytes(blobs), shutil.disk_usage(root).free)


def _size_bytes(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(path, name)).st_size
            except OSError:
                continue  # removed meanwhile
    return total
