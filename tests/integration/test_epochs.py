"""Validators join, leave and hand over on a running network of processes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from consensus.beacon import BeaconChain
from node.client import Client
from node.devnet.network import PARAMS, Account, NodePlan
from node.keys import load_seed, public_key
from node.ledger.bodies import Transfer, ValidatorLeave, ValidatorRegister
from node.ledger.params import OPEN
from node.ledger.stakes import sign_possession
from node.startup import BEACON_REVEALS
from tests.integration.cluster import Cluster, running_cluster

EPOCHS = replace(
    PARAMS,
    epoch_heights=10,
    epoch_ms=500,
    stake_min=1_000 * OPEN,
    unbonding_heights=40,
    unbonding_ms=4_000,
    evidence_heights=40,
    evidence_ms=4_000,
    slash_equivocation_ppm=50_000,
)
NEWCOMER = "candidate-1"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    root = tmp_path_factory.mktemp("epochs") / "home"
    with running_cluster(root, {}, candidates=1, params=EPOCHS) as cluster:
        yield cluster


def operator_of(cluster: Cluster, node: NodePlan) -> Account:
    path = node.home.account_key_path
    return Account(node.name, node.address, load_seed(path), path)


def epoch_of(cluster: Cluster, name: str) -> int:
    return int(cluster.client_of(name).status()["epoch"])


def members(cluster: Cluster, name: str) -> set[str]:
    return {row["account"] for row in cluster.client_of(name).call("validators")["validators"]}


def is_member(cluster: Cluster, name: str, node: NodePlan, present: bool) -> bool:
    return (node.address.hex() in members(cluster, name)) is present


def has_reached(cluster: Cluster, epoch: int) -> bool:
    return epoch_of(cluster, "full-node") >= epoch


def is_at(client: Client, height: int) -> bool:
    return client.status()["height"] >= height


def wait_busily(cluster: Cluster, what: str, done: Callable[[], bool]) -> None:
    """Wait while transfers drive the chain: an idle one takes its time for the heights of an epoch."""
    trainer = cluster.network.account("trainer")

    def drive() -> bool:
        cluster.send(trainer, Transfer(trainer.address, 1))
        return done()

    cluster.wait(what, drive)


def wait_for_member(cluster: Cluster, node: NodePlan, present: bool) -> None:
    """Wait until every node runs an epoch whose set does, or does not, hold this validator."""
    for name in cluster.children:
        wait_busily(
            cluster,
            f"{name} in an epoch with{'' if present else 'out'} {node.name}",
            partial(is_member, cluster, name, node, present),
        )


def registration(cluster: Cluster, node: NodePlan) -> ValidatorRegister:
    consensus = load_seed(node.home.consensus_key_path)
    return ValidatorRegister(
        consensus_key=public_key(consensus),
        possession=sign_possession(consensus, cluster.network.chain_id, node.address),
        peer_id=node.peer_id,
        beacon_anchor=BeaconChain(load_seed(node.home.beacon_key_path), BEACON_REVEALS).anchor,
        stake=10_000 * OPEN,
    )


def test_a_newcomer_registers_catches_up_votes_and_another_leaves(cluster: Cluster) -> None:
    newcomer, leaver = cluster.node(NEWCOMER), cluster.node("validator-2")
    cluster.send(operator_of(cluster, newcomer), registration(cluster, newcomer))
    cluster.start(NEWCOMER)
    wait_for_member(cluster, newcomer, True)

    # Of five equal stakes four are a quorum: without one of the old ones, the newcomer's votes are needed.
    cluster.kill("validator-1")
    trainer = cluster.network.account("trainer")
    cluster.send(trainer, Transfer(leaver.address, OPEN))  # for the fee of leaving
    before = epoch_of(cluster, NEWCOMER)
    wait_busily(cluster, "an epoch without the killed one", lambda: epoch_of(cluster, NEWCOMER) > before)
    cluster.start("validator-1")

    cluster.send(operator_of(cluster, leaver), ValidatorLeave())
    wait_for_member(cluster, leaver, False)
    sent = cluster.send(trainer, Transfer(newcomer.address, OPEN))
    blocks = set()
    for name in cluster.children:
        client = cluster.client_of(name)
        cluster.wait(f"{name} at the transfer's height", partial(is_at, client, sent["height"]))
        block = client.call("block", height=sent["height"])
        blocks.add((block["block_hash"], block["state_digest"]))
    assert len(blocks) == 1
    assert len(cluster.children) == 6


@pytest.mark.slow
def test_an_equivocator_is_slashed_once_jailed_and_out_of_the_next_set(tmp_path: Path) -> None:
    misdeed = {"validator-4": "tests.integration.misdeeds.equivocating_daemon"}
    with running_cluster(tmp_path / "home", misdeed, params=EPOCHS) as cluster:
        liar = cluster.node("validator-4")

        def registration_of() -> dict[str, Any]:
            return dict(cluster.client.call("stake", address=liar.address.hex())["registration"])

        wait_busily(cluster, "the slash", lambda: int(registration_of()["slashed"]) > 0)
        wait_for_member(cluster, liar, False)
        # It signed a thousand contradictions in its epochs, and each epoch burns its part once.
        found = registration_of()
        assert found["jailed_height"]
        stake, slashed = 10_000 * OPEN, 0
        for _ in range(3):
            slashed += (stake - slashed) * EPOCHS.slash_equivocation_ppm // 1_000_000
            if slashed == int(found["slashed"]):
                break
        assert slashed == int(found["slashed"])
        assert slashed + int(found["bonded"]) == stake


@pytest.mark.slow
def test_processes_killed_at_any_moment_of_many_epochs_lose_nothing(tmp_path: Path) -> None:
    rng = random.Random("epochs")
    with running_cluster(tmp_path / "home", {}, params=replace(EPOCHS, epoch_heights=3)) as cluster:
        trainer = cluster.network.account("trainer")
        names = [node.name for node in cluster.network.validators]
        for number in range(4):
            done = cluster.send(trainer, Transfer(trainer.address, 1))
            epoch = epoch_of(cluster, "full-node")
            dead = names if number == 3 else rng.sample(names, number + 1)
            for name in dead:
                cluster.kill(name)
            for name in dead:
                cluster.start(name)
            wait_busily(cluster, "two more epochs", partial(has_reached, cluster, epoch + 2))
            for name in names:
                client = cluster.client_of(name)
                cluster.wait(f"{name} to be back", partial(is_at, client, done["height"]))
                found = client.transaction(bytes.fromhex(done["tx_hash"]))
                assert found is not None
                assert found["height"] == done["height"]
