"""What the metrics are made of: traffic over many connections, and the worker's jobs."""

from __future__ import annotations

import sys

import pytest
import trio
import trio.testing

from node.metrics import Metrics
from node.network import PeerStatus
from node.observe import MeteredWorker, Traffic
from node.recompute.jobs import IndexBuilt, IndexJob
from tests.unit.node.test_metrics import value

JOB = IndexJob("base", "adapter", b"h" * 32, ("records",), "index")
ANSWER = """
import sys
from node.recompute.jobs import IndexBuilt, pack_frame, read_frame
while read_frame(sys.stdin.buffer) is not None:
    sys.stdout.buffer.write(pack_frame(IndexBuilt(b"i" * 32, 7).fields()))
    sys.stdout.buffer.flush()
"""


def peer(name: str, received: int, sent: int) -> PeerStatus:
    return PeerStatus(name, True, 1.0, "inbound", True, 0.0, 0, 0, 0, 0, 0, received, sent, 0, False)


def test_traffic_adds_up_over_peers_and_their_connections_and_never_goes_back() -> None:
    traffic = Traffic()
    readings: list[tuple[list[PeerStatus], int, int]] = [
        ([peer("a", 10, 1), peer("b", 5, 0)], 15, 1),
        ([peer("a", 30, 2), peer("b", 5, 0)], 35, 2),
        ([peer("a", 7, 1)], 42, 3),  # a has connected anew, b is gone
        ([peer("a", 7, 1), peer("b", 2, 2)], 44, 5),
        ([], 44, 5),
    ]
    for peers, received, sent in readings:
        traffic.count(peers)
        assert (traffic.received_bytes, traffic.sent_bytes) == (received, sent)
    assert traffic._seen == {}


def test_jobs_are_counted_while_they_run_and_when_they_are_done() -> None:
    metrics = Metrics()

    async def main() -> None:
        worker = MeteredWorker([sys.executable, "-c", ANSWER], metrics)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                assert worker.jobs == 0
                nursery.start_soon(worker.submit, JOB)
                await trio.testing.wait_all_tasks_blocked()
                assert worker.jobs == 1
                nursery.start_soon(worker.run)
                assert isinstance(await worker.submit(JOB), IndexBuilt)
                assert worker.jobs == 0
                nursery.cancel_scope.cancel()

    trio.run(main)
    text = metrics.render()
    assert value(text, 'openledger_worker_jobs_done_total{kind="index",outcome="done"}') == 2
    assert value(text, 'openledger_worker_job_seconds_count{kind="index"}') == 2


def test_a_job_that_is_given_up_does_not_stay_counted() -> None:
    async def main() -> int:
        worker = MeteredWorker([sys.executable, "-c", ANSWER], Metrics())
        with trio.move_on_after(0.01):
            await worker.submit(JOB)
        return worker.jobs

    assert trio.run(main) == 0


def test_nothing_is_read_before_somebody_asks() -> None:
    """A node is built before it runs: nothing may be asked of it to learn the names of its metrics."""
    Metrics().watch(lambda: pytest.fail("a node that does not run yet was read"))
