"""A validator that was away: it catches up faster than the chain grows, and its votes are in certificates again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.rejoin import faster_than_the_chain, measure
from node.epochs import first_row
from node.keys import load_seed, public_key
from node.ledger.entries import ValidatorSet
from node.startup import load_genesis, open_chain
from node.storage.chain import ChainStore
from node.storage.database import Database
from tests.chaos.ballots import Ballots, read_ballots
from tests.integration.cluster import Cluster, running_cluster
from tests.integration.test_epochs import EPOCHS, wait_busily

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LAG = 10
EVERY = 5
AWAY_BLOCKS = 150
VOTE_AFTER_ANSWER_S_MAX = 60.0
AWAY = "validator-2"


def test_a_validator_that_was_away_for_a_while_executes_faster_than_the_chain_grows_and_votes(
    tmp_path: Path,
) -> None:
    figures = measure(tmp_path, 4, AWAY_BLOCKS, 60)
    assert figures["away_blocks"] >= AWAY_BLOCKS  # type: ignore[operator]
    assert faster_than_the_chain(figures), figures
    assert figures["vote_again_after_answer_s"] < VOTE_AFTER_ANSWER_S_MAX, figures  # type: ignore[operator]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("OPENLEDGER_SYNC_LAG_HEIGHTS_MAX", str(LAG))
    monkeypatch.setenv("OPENLEDGER_STORAGE_RETAIN_HEIGHTS", "1")
    with running_cluster(tmp_path / "home", {}, params=replace(EPOCHS, snapshot_heights=EVERY)) as cluster:
        yield cluster


def height_of(cluster: Cluster, name: str) -> int:
    return int(cluster.client_of(name).status()["height"])


def ballots_on(cluster: Cluster, name: str) -> Ballots:
    """Whose votes are in the certificates of a stopped node's chain."""
    home = cluster.node(name).home
    database = Database(home.data_path / "chain")
    try:
        store, document = ChainStore(database), load_genesis(home)
        genesis = first_row(open_chain(store, document), ValidatorSet(document.validators))
        return read_ballots(store, genesis)
    finally:
        database.close()


def test_after_its_return_from_a_snapshot_a_validators_votes_are_in_certificates_again(
    cluster: Cluster,
) -> None:
    def reach(name: str, height: int) -> None:
        wait_busily(cluster, f"{name} at height {height}", lambda: height_of(cluster, name) >= height)

    key = public_key(load_seed(cluster.node(AWAY).home.consensus_key_path))
    reach("validator-1", EVERY + LAG)
    cluster.kill(AWAY)
    gone_at = height_of(cluster, "validator-1")
    reach("validator-1", gone_at + 2 * EVERY + LAG)

    cluster.start(AWAY)
    log = cluster.children[AWAY].log
    cluster.wait("its snapshot", lambda: "snapshot_installed" in log.read_text(errors="replace"))
    reach(AWAY, gone_at + 2 * EVERY + LAG)
    # Of four equal stakes three are a quorum: without another one, nothing is certified that it does not vote for.
    cluster.kill("validator-3")
    back_at = height_of(cluster, "validator-1")
    reach("validator-1", back_at + 3 * EVERY)

    cluster.kill("validator-1")
    ballots = ballots_on(cluster, "validator-1")
    certified_from = back_at + 3  # what was under way when the other one was killed may have its vote
    assert ballots.count(key, 0, gone_at) > 0
    assert ballots.count(key, gone_at + 2, gone_at + 2 * EVERY + LAG) == 0
    last = back_at + 3 * EVERY
    boundaries = [height for height in range(certified_from + 1, last + 1) if not ballots.voters_at(height)]
    assert ballots.count(key, certified_from, last) == last - certified_from - len(boundaries)
    assert len(boundaries) <= 1 + (last - certified_from) // EPOCHS.epoch_heights
