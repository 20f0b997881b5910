"""Two validators of machine code and two of text, with a full node of text, are one network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from node.ledger.bodies import Transfer
from node.ledger.params import OPEN
from tests.compiled.compiled_daemon import SITE
from tests.compiled.made import made
from tests.integration.cluster import Cluster, running_cluster

COMPILED = ("validator-2", "validator-4")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    root: Path = tmp_path_factory.mktemp("compiled") / "devnet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SITE, str(made()))
        with running_cluster(root, dict.fromkeys(COMPILED, "tests.compiled.compiled_daemon")) as running:
            running.publish_adapter(root / "work")
            yield running


def test_each_daemon_says_in_its_first_line_which_form_it_is(cluster: Cluster) -> None:
    for name, child in cluster.children.items():
        first = next(line for line in child.log.read_text().splitlines() if "starting" in line)
        assert ("machine code of" in first) is (name in COMPILED), first


def test_an_audit_is_settled_by_all_four(cluster: Cluster) -> None:
    call = cluster.ask_until_audited("turtle.forward: ")
    cluster.reveal(call)
    receipt = cluster.wait_closed(call)
    assert receipt["status"] == "settled"
    assert {entry["result_hash"] for entry in receipt["attesters"]} == {receipt["result_hash"]}
    assert len([entry for entry in receipt["payouts"] if entry["role"] == "validator"]) == 4


def test_all_come_to_the_same_state_and_each_form_leads_rounds(cluster: Cluster) -> None:
    trainer = cluster.network.account("trainer")
    for amount in range(1, 13):
        cluster.send(trainer, Transfer(cluster.network.account("user").address, amount * OPEN))
    height = cluster.client.status()["height"] - 2
    names = list(cluster.children)
    cluster.wait(
        "all to be there", lambda: all(cluster.client_of(name).status()["height"] > height for name in names)
    )
    blocks = {name: cluster.client_of(name).block(height) for name in names}
    assert len({row["block_hash"] for row in blocks.values()}) == 1
    assert len({row["state_digest_executed"] for row in blocks.values()}) == 1
    accounts = [cluster.client_of(name).call("supply") for name in names]
    assert all(row == accounts[0] for row in accounts)
    keys = {name: cluster.client_of(name).status()["consensus_key"] for name in names}
    led = {cluster.client.block(at)["proposer"] for at in range(1, height + 1)}
    assert {keys[name] for name in COMPILED} <= led
    assert led - {keys[name] for name in COMPILED}
