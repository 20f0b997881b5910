"""What ``/metrics`` shows, in Prometheus' text format: CometBFT's vocabulary, base units, ``_total`` on counters.

What happens is counted when it happens (`Metrics`); what is, is read when somebody asks (`Snapshot`), so that nobody pays
for a node that nobody watches. Labels have bounded values only: methods of the table, codes, kinds of jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from node import __version__

CONTENT_TYPE = CONTENT_TYPE_LATEST

# Creation times would double the number of series, and the process's own start time says nearly the same.
disable_created_metrics()  # type: ignore[no-untyped-call]

_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_JOB_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The node at one moment, read by `node.observe`. Sizes in bytes, stake in units; flags are 0 or 1."""

    consensus_height: int
    consensus_executed_height: int
    consensus_round: int
    consensus_validators: int
    consensus_validators_power: int
    consensus_missing_validators: int
    consensus_stalled: int
    consensus_diverged: int
    consensus_peer_messages_dropped: int
    state_blocks_waiting: int
    blocksync_syncing: int
    ready: int
    mempool_size: int
    mempool_size_bytes: int
    p2p_peers: int
    p2p_peers_banned: int
    p2p_penalty_points: int
    p2p_penalties: int
    p2p_bans: int
    p2p_send_queue_bytes: int
    p2p_received_bytes: int
    p2p_sent_bytes: int
    storage_database_bytes: int
    storage_blobs_bytes: int
    storage_free_bytes: int
    storage_snapshot_failed: int
    worker_jobs: int


_HELP: dict[str, str] = {
    "consensus_height": "Height of the last committed block",
    "consensus_executed_height": "Height of the last executed block",
    "consensus_round": "Round that consensus is in",
    "consensus_validators": "Validators in force",
    "consensus_validators_power": "Stake of the validators in force, in units",
    "consensus_missing_validators": "Validators in force that this node neither is nor is connected to",
    "consensus_stalled": "1 while no block commits although there is work",
    "consensus_diverged": "1 once this node's state differs from the quorum's",
    "consensus_peer_messages_dropped": "Consensus messages of peers dropped because too many waited",
    "state_blocks_waiting": "Committed blocks that wait to be executed",
    "blocksync_syncing": "1 while the node fetches committed blocks that it lacks",
    "ready": "1 while GET /ready answers 200",
    "mempool_size": "Transactions that wait for a block",
    "mempool_size_bytes": "Bytes of the transactions that wait for a block",
    "p2p_peers": "Connected peers",
    "p2p_peers_banned": "Known peers that are banned now",
    "p2p_penalty_points": "Points held against known peers now",
    "p2p_penalties": "Penalties that peers earned",
    "p2p_bans": "Bans that peers earned",
    "p2p_send_queue_bytes": "Bytes of frames that wait to be written to peers",
    "p2p_received_bytes": "Bytes received from peers, as multiplexed, as far as their connections were seen here",
    "p2p_sent_bytes": "Bytes sent to peers, as multiplexed, as far as their connections were seen here",
    "storage_database_bytes": "Bytes of the database's files",
    "storage_blobs_bytes": "Bytes of the kept blobs",
    "storage_free_bytes": "Bytes free on the file system of the node's home",
    "storage_snapshot_failed": "1 while the newest snapshot could not be written, so that nobody can start from it here",
    "worker_jobs": "Recomputations that wait or run",
}
_COUNTERS = frozenset(
    {
        "consensus_peer_messages_dropped",
        "p2p_penalties",
        "p2p_bans",
        "p2p_received_bytes",
        "p2p_sent_bytes",
    }
)


class Metrics:
    """One daemon's metrics, in a registry of their own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        ProcessCollector(registry=self.registry)
        Info("openledger_build", "Version of the node", registry=self.registry).info({"version": __version__})
        self._rpc_requests = self._counter(
            "rpc_requests", "Calls by method and by the name of their error code, or OK", "method", "code"
        )
        self._rpc_seconds = self._histogram("rpc_request_seconds", "Time that calls took", _SECONDS, "method")
        self._called: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        self._refusals = self._counter(
            "rpc_refusals", "Requests and connections refused before a call, by reason", "reason"
        )
        self._interval = self._histogram(
            "consensus_block_interval_seconds",
            "Time between a block and its parent, by their headers",
            _SECONDS,
        )
        self._execution = self._histogram(
            "state_block_processing_seconds", "Time that executing a block took", _SECONDS
        )
        self._blocks = self._counter("consensus_blocks", "Blocks executed since the start")
        self._transactions = self._counter(
            "consensus_txs", "Transactions executed since the start, by outcome", "outcome"
        )
        self._block_bytes = self._counter(
            "consensus_block_bytes", "Bytes of the transactions in executed blocks"
        )
        self._last = _LastBlock()
        self.registry.register(self._last)
        self._jobs = self._counter(
            "worker_jobs_done", "Recomputations done, by kind and outcome", "kind", "outcome"
        )
        self._job_seconds = self._histogram(
            "worker_job_seconds", "Time from asking for a recomputation to its result", _JOB_SECONDS, "kind"
        )

    def render(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def watch(self, read: Callable[[], Snapshot]) -> None:
        """Show, beside what is counted, what ``read`` says whenever somebody asks."""
        self.registry.register(_Watched(read))

    def called(self, method: str, code: str, seconds: float) -> None:
        """A call was answered. ``method`` is one of the table or "unknown", ``code`` an error code's name or "OK"."""
        known = self._called.get((method, code))
        if known is None:  # both are of few values, and asking for labels takes longer than counting
            known = self._called[method, code] = (
                self._rpc_requests.labels(method, code),
                self._rpc_seconds.labels(method),
            )
        known[0].inc()
        known[1].observe(seconds)

    def refused(self, reason: str) -> None:
        """A request or connection was refused before any call: ``reason`` is an error code's name."""
        self._refusals.labels(reason).inc()

    def executed(
        self, timestamp_ms: int, round_: int, performed: int, invalid: int, size_bytes: int, seconds: float
    ) -> None:
        """A block was executed: its header's time and round, its transactions by outcome, and how long it took."""
        self._blocks.inc()
        self._transactions.labels("performed").inc(performed)
        self._transactions.labels("invalid").inc(invalid)
        self._block_bytes.inc(size_bytes)
        self._execution.observe(seconds)
        if self._last.timestamp_ms is not None:
            self._interval.observe(max(0, timestamp_ms - self._last.timestamp_ms) / 1000)
            self._last.rounds = round_ - self._last.round
        self._last.timestamp_ms, self._last.round = timestamp_ms, round_
        self._last.txs, self._last.size_bytes = performed + invalid, size_bytes

    def job_done(self, kind: str, outcome: str, seconds: float) -> None:
        """The worker answered a job: "audit" or "index", "done" or "refused"."""
        self._jobs.labels(kind, outcome).inc()
        self._job_seconds.labels(kind).observe(seconds)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"openledger_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"openledger_{name}", text, labels, registry=self.registry, buckets=buckets)


class _LastBlock(Collector):
    """Gauges of the last executed block; absent before the first."""

    def __init__(self) -> None:
        self.timestamp_ms: int | None = None
        self.round = 0
        self.rounds = 1
        self.txs = 0
        self.size_bytes = 0

    def collect(self) -> Iterator[GaugeMetricFamily]:
        if self.timestamp_ms is None:
            return
        yield GaugeMetricFamily(
            "openledger_consensus_rounds", "Rounds from the last block's parent to it", value=self.rounds
        )
        yield GaugeMetricFamily(
            "openledger_consensus_num_txs", "Transactions of the last block", value=self.txs
        )
        yield GaugeMetricFamily(
            "openledger_consensus_block_size_bytes",
            "Bytes of the transactions in the last block",
            value=self.size_bytes,
        )


class _Watched(Collector):
    """A snapshot's fields as gauges and counters."""

    def __init__(self, read: Callable[[], Snapshot]) -> None:
        self._read = read

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing: the registry would otherwise read a node that does not run yet, to learn the names."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        snapshot = self._read()
        for entry in fields(Snapshot):
            kind = CounterMetricFamily if entry.name in _COUNTERS else GaugeMetricFamily
            yield kind(f"openledger_{entry.name}", _HELP[entry.name], value=getattr(snapshot, entry.name))
