"""Real processes start from snapshots: a newcomer across epochs, which then votes, and a validator that was away for long."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from node.cli.main import main
from node.client import RpcError
from node.ledger.bodies import Transfer
from node.ledger.params import OPEN
from tests.integration.cluster import Cluster, running_cluster
from tests.integration.test_epochs import (
    EPOCHS,
    NEWCOMER,
    epoch_of,
    operator_of,
    registration,
    wait_busily,
    wait_for_member,
)

pytestmark = pytest.mark.slow

LAG = 10
EVERY = 5


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    root = tmp_path_factory.mktemp("snapshots") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENLEDGER_SYNC_LAG_HEIGHTS_MAX", str(LAG))
        patch.setenv("OPENLEDGER_STORAGE_RETAIN_HEIGHTS", "1")
        params = replace(EPOCHS, snapshot_heights=EVERY)
        with running_cluster(root, {}, candidates=1, params=params) as cluster:
            yield cluster


def height_of(cluster: Cluster, name: str) -> int:
    return int(cluster.client_of(name).status()["height"])


def whole_log(cluster: Cluster, name: str) -> str:
    return cluster.children[name].log.read_text(errors="replace")


def wait_for_height(cluster: Cluster, name: str, height: int) -> None:
    wait_busily(cluster, f"{name} at height {height}", lambda: height_of(cluster, name) >= height)


def has_block(cluster: Cluster, name: str, height: int) -> bool:
    try:
        cluster.client_of(name).call("block", height=height)
    except RpcError:
        return False
    return True


def agree(cluster: Cluster, names: list[str]) -> None:
    """The same block and state at a height that all of them executed."""
    common = min(height_of(cluster, name) for name in names)
    rows = {
        json.dumps(cluster.client_of(name).call("block", height=common), sort_keys=True) for name in names
    }
    assert len(rows) == 1


def test_a_newcomer_starts_from_a_snapshot_votes_and_one_that_was_away_comes_back(cluster: Cluster) -> None:
    newcomer = cluster.node(NEWCOMER)
    wait_for_height(cluster, "validator-1", 3 * EVERY + LAG)
    assert epoch_of(cluster, "validator-1") >= 1
    cluster.send(operator_of(cluster, newcomer), registration(cluster, newcomer))
    wait_for_height(cluster, "validator-1", height_of(cluster, "validator-1") + EVERY)

    cluster.start(NEWCOMER)
    cluster.wait("the snapshot", lambda: "snapshot_installed" in whole_log(cluster, NEWCOMER))
    wait_for_member(cluster, newcomer, True)
    assert not has_block(cluster, NEWCOMER, 5)
    assert has_block(cluster, "validator-1", 5)

    # Of five equal stakes four are a quorum: without one of the old ones, the newcomer's votes are needed.
    cluster.kill("validator-2")
    away_at = height_of(cluster, "validator-1")
    wait_for_height(cluster, "validator-1", away_at + EVERY + LAG)
    agree(cluster, [NEWCOMER, "validator-1", "validator-3", "full-node"])

    cluster.start("validator-2")
    cluster.wait("its snapshot", lambda: "snapshot_installed" in whole_log(cluster, "validator-2"))
    # Its safety record is the one that it had, so that it may sign, and it follows again.
    back_at = height_of(cluster, "validator-1")
    wait_for_height(cluster, "validator-2", back_at + 2)
    agree(cluster, [NEWCOMER, "validator-1", "validator-2", "full-node"])
    sent = cluster.send(cluster.network.account("trainer"), Transfer(newcomer.address, OPEN))
    wait_for_height(cluster, NEWCOMER, sent["height"] + 1)
    balances = {
        cluster.client_of(name).call("account", address=newcomer.address.hex())["balance"]
        for name in (NEWCOMER, "validator-1")
    }
    assert len(balances) == 1


def test_a_live_node_is_dumped_with_its_stacks_and_metrics(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, out = cluster.node("validator-1").home, tmp_path / "dump.tar.gz"
    assert main(["debug", "dump", "--home", str(home.root), "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["missing"]] == ["inspect.json"]
    with tarfile.open(out) as archive:
        stacks = archive.extractfile("debug/stacks.txt")
        status = archive.extractfile("debug/status.json")
        assert stacks is not None
        assert status is not None
        assert b"node.driver" in stacks.read() or b"driver.py" in stacks.read()
        assert json.loads(status.read())["result"]["height"] > 0
    assert main(["inspect", "--home", str(home.root), "--json"]) == 1  # it runs
