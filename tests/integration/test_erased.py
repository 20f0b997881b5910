"""A record is erased on a network of real daemons, one of them killed in the middle: its bytes go, payouts go on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from attribution.index import Index
from node.client import RpcError
from node.ledger.bodies import RecordsErase
from node.ledger.erased import read_remaining
from tests.integration.cluster import TEXTS, Cluster, running_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KILLED = "validator-2"
LOST = "validator-3"
ERASED = TEXTS["alice"][0]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("OPENLEDGER_SPANS_ENABLED", "true")
    with running_cluster(tmp_path / "devnet", {}) as running:
        running.publish_adapter(tmp_path)
        yield running


def files_with(cluster: Cluster, text: str) -> list[Path]:
    """Blobs and span indices of all nodes in which a text stands."""
    folders = [
        folder
        for node in cluster.network.nodes
        for folder in (node.home.blobs_path, node.home.root / "spans")
        if folder.is_dir()
    ]
    return [
        path
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file() and text.encode() in path.read_bytes()
    ]


def spans_of(cluster: Cluster, datanet: str, text: str) -> list[tuple[str, int]]:
    """Records, as the full node shows them, that have a stretch of the text."""
    tokens = b"".join(byte.to_bytes(4, "big") for byte in text.encode()).hex()
    found = cluster.client.call("spans", datanet=datanet, tokens=tokens, length_min=16, first=0, count=9)
    return [(place["contribution"], place["record"]) for span in found["spans"] for place in span["places"]]


def test_an_erased_record_leaves_every_disk_and_no_audit_disagrees(cluster: Cluster) -> None:
    client, alice = cluster.client, cluster.network.account("alice")
    adapter = client.call("adapter", id=cluster.adapter.hex())

    def held() -> bool:
        base = client.call("base", base_hash=adapter["base_hash"])
        return len(base["held"]) == len(client.call("adapter", id=cluster.adapter.hex())["held"]) == 4

    cluster.wait("every holder", held)  # an erasure waits for those that may still rebuild the index
    contribution = adapter["contributions"][0]
    on_ledger = client.call("contribution", id=contribution)
    assert on_ledger["contributor"] == alice.address.hex()
    assert files_with(cluster, ERASED)

    def indexed() -> bool:
        return (contribution, 0) in spans_of(cluster, on_ledger["datanet"], ERASED)

    cluster.wait("the span index", indexed)
    before = cluster.ask_until_audited(ERASED[:20])
    cluster.send(alice, RecordsErase(bytes.fromhex(contribution), (0,)))
    cluster.kill(KILLED)
    cluster.reveal(before)
    settled = cluster.wait_closed(before)
    assert settled["status"] == "settled"
    cluster.start(KILLED)

    def done() -> bool:
        (entry,) = client.call("erasures", contribution=contribution)["erasures"]
        return entry["done_height"] is not None

    cluster.wait("the erasure", done)
    cluster.wait("all disks", lambda: not files_with(cluster, ERASED))
    assert files_with(cluster, TEXTS["alice"][1])  # what was not erased is still there
    index = Path("indices") / cluster.adapter.hex()

    def rows_blank() -> bool:
        homes = [node.home for node in cluster.network.nodes if (node.home.artefacts_path / index).is_dir()]
        standings = [Index.open(home.artefacts_path / index).standing for home in homes]
        return len(homes) == 4 and all(set(standing.erased) == {0} for standing in standings)

    cluster.wait("all indices", rows_blank)
    assert (contribution, 0) not in spans_of(cluster, on_ledger["datanet"], ERASED)
    # One loses its index, which nobody can build any more: it has the others' and audits with them.
    cluster.kill(LOST)
    (lost,) = (node.home.artefacts_path / index for node in cluster.network.nodes if node.name == LOST)
    shutil.rmtree(lost)
    cluster.start(LOST)
    after = cluster.ask_until_audited(ERASED[:20])
    cluster.reveal(after)
    settled = cluster.wait_closed(after)
    assert settled["status"] == "settled"
    assert len({entry["result_hash"] for entry in settled["attesters"]}) == 1
    cluster.wait("the lost index", lost.is_dir)
    root = bytes.fromhex(client.call("adapter", id=cluster.adapter.hex())["index_root"])
    assert set(Index.open(lost, root).standing.erased) == {0}
    assert client.call("adapter", id=cluster.adapter.hex())["trained_on_erased"] == 1
    now = client.call("contribution", id=contribution)
    left = read_remaining(
        client.get_blob(bytes.fromhex(now["blob_remaining"])), bytes.fromhex(now["records_root"])
    )
    assert [isinstance(record, bytes) for record in left] == [True, False]
    with pytest.raises(RpcError):
        client.get_blob(bytes.fromhex(now["blob_digest"]))
