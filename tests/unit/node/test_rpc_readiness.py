"""When a node says that it is ready, and each reason why it says that it is not."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from consensus.effects import Diverged
from node import observe
from node.backend import DaemonBackend
from node.clock import now_ms
from node.config import load_config
from node.devnet.layout import claim_home
from node.devnet.network import create_network
from node.node import Node
from node.observe import SILENCE_MS_MAX, STUCK_TIMEOUTS, Standing, not_ready_reason, standing_of
from tests.unit.node.rooms import next_block

READY = Standing(
    stopping=False,
    diverged_height=None,
    syncing=False,
    quorum_connected=True,
    stalled=False,
    silence_ms=0,
    blocks_waiting=0,
    transactions_waiting=0,
)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A validator of four that has connected to nobody yet."""
    with claim_home(tmp_path_factory.mktemp("ready") / "devnet") as layout:
        home = create_network(layout, 4, ["alice"]).validators[0].home
        made = Node(home, load_config(home.config_path, environment={}))
        yield made
        made.close()


def standing(node: Node, others: int) -> Standing:
    """Of a node that is connected to so many other validators."""
    entries = node.directory.validators.validators
    peers = [entry.peer_id for entry in entries if entry.consensus_key != node.identity.consensus_key]
    return standing_of(node, frozenset(peers[:others]))


def test_a_snapshot_that_could_not_be_written_shows_in_the_metrics(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def shown() -> bytes:
        return node.metrics.render()

    assert b"openledger_storage_snapshot_failed 0.0" in trio.run(shown)
    monkeypatch.setattr(node.snapshots, "problem", "No space left on device")
    assert b"openledger_storage_snapshot_failed 1.0" in trio.run(shown)


def test_a_node_without_any_of_the_reasons_is_ready() -> None:
    assert not_ready_reason(READY) == ""
    assert not_ready_reason(replace(READY, silence_ms=SILENCE_MS_MAX)) == ""
    assert not_ready_reason(replace(READY, silence_ms=5_001, pending_silence_ms_max=5_000)) == ""
    assert not_ready_reason(replace(READY, blocks_waiting=64, transactions_waiting=9)) == ""


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (replace(READY, stopping=True), "the node is stopping"),
        (replace(READY, diverged_height=7), "this node's state differs from the quorum's at height 7"),
        (replace(READY, syncing=True), "catching up with the chain"),
        (replace(READY, quorum_connected=False), "no quorum of validators is connected"),
        (
            replace(READY, silence_ms=20_000, blocks_waiting=2, transactions_waiting=3),
            "nothing was executed for 20 s; 2 committed blocks and 3 transactions wait",
        ),
        (replace(READY, stalled=True, transactions_waiting=3), "consensus is stalled; 3 transactions wait"),
        (
            replace(READY, silence_ms=5_001, transactions_waiting=1, pending_silence_ms_max=5_000),
            "nothing was executed for 5 s; 0 committed blocks and 1 transactions wait",
        ),
        (replace(READY, blocks_waiting=65), "execution is 65 committed blocks behind"),
        (replace(READY, disk_free_bytes=7 << 20), "the disk is full: 7 MiB are free"),
    ],
    ids=["stopping", "diverged", "syncing", "no-quorum", "stuck", "stalled", "pending", "behind", "disk"],
)
def test_each_reason_alone_is_enough(changed: Standing, reason: str) -> None:
    assert not_ready_reason(changed) == reason


@pytest.mark.parametrize(("others", "quorum"), [(0, False), (1, False), (2, True), (3, True)])
def test_a_quorum_is_counted_with_the_node_itself(node: Node, others: int, quorum: bool) -> None:
    assert standing(node, others).quorum_connected == quorum


def test_a_stranger_counts_for_no_quorum(node: Node) -> None:
    strangers = frozenset({"stranger 1", "stranger 2", "stranger 3"})
    assert not standing_of(node, strangers).quorum_connected


def stopping(node: Node, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(node, "stopping", trio.Event())
    node.stopping.set()


def diverged(node: Node, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(node.driver, "diverged", Diverged(7, bytes(32), bytes(32), bytes(32), True))


def syncing(node: Node, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(node.sync, "syncing", True)


def stalled(node: Node, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(node.driver, "stalled", True)


def silent(node: Node, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(node, "_executed_ms", node._executed_ms - SILENCE_MS_MAX - 60_000)


def full_disk(node: Node, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(observe, "DISK_FREE_BYTES_MIN", 1 << 62)


def behind(node: Node, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(node.executor, "_waiting", deque([next_block(node.epochs.genesis.start)] * 65))


def pending(node: Node, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(node, "_executed_ms", now_ms() - STUCK_TIMEOUTS * node.config.consensus.timeout_ms_base - 1)
    patch.setattr(node.executor, "_waiting", deque([next_block(node.epochs.genesis.start)]))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (full_disk, "the disk is full"),
        (behind, "execution is 65"),
        (pending, "nothing was executed for"),
        (silent, "nothing was executed for"),
        (stalled, "consensus is stalled"),
        (syncing, "catching up"),
        (diverged, "differs from the quorum's at height 7"),
        (stopping, "stopping"),
    ],
)
def test_what_a_node_knows_of_itself_reaches_its_readiness(
    node: Node,
    spoil: Callable[[Node, pytest.MonkeyPatch], None],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil(node, monkeypatch)
    assert reason in not_ready_reason(standing(node, 3))


def test_a_single_proposer_that_claims_another_state_does_not_make_a_node_unready(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node.driver, "diverged", Diverged(7, bytes(32), bytes(32), bytes(32), False))
    assert not_ready_reason(standing(node, 3)) == ""


def test_a_node_that_sees_nobody_tells_so_by_rpc(tmp_path: Path) -> None:
    with claim_home(tmp_path / "devnet") as layout:
        home = create_network(layout, 4, ["alice"]).validators[0].home
        alone = Node(home, load_config(home.config_path, environment={}))

        async def main() -> tuple[bool, str]:
            status = DaemonBackend(alone).status()
            return status.ready, status.not_ready_reason

        try:
            assert trio.run(main) == (False, "no quorum of validators is connected")
        finally:
            alone.close()
