"""The interfaces of real daemons: what they declare, stream, measure, and say when the others are gone."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest
from jsonschema import Draft7Validator
from prometheus_client.parser import text_string_to_metric_families

from node.client import Client, ClientError, Event
from node.devnet.layout import claim_home
from node.devnet.network import Network, NodePlan, create_network
from node.devnet.processes import Child, last_lines, spawn
from node.ledger.bodies import Transfer
from node.rpc.methods import METHODS

pytestmark = pytest.mark.timeout(200)

STOP_S_MAX = 2.0
WAIT_S = 60.0


@dataclass(slots=True)
class Pair:
    """One validator, which is the whole quorum, and a full node."""

    network: Network
    children: dict[str, Child]

    def plan(self, name: str) -> NodePlan:
        return next(node for node in self.network.nodes if node.name == name)

    def client(self, name: str = "validator-1") -> Client:
        return Client(self.plan(name).rpc_url, timeout_s=20)

    def start(self, name: str) -> None:
        plan = self.plan(name)
        command = [sys.executable, "-m", "node.cli.main", "start", "--home", str(plan.home.root)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.children[name] = spawn(name, command, plan.home.logs_path / "node.log", environment)

    def page(self, path: str, name: str = "validator-1") -> tuple[int, bytes]:
        address = urlsplit(self.plan(name).rpc_url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def wait(self, what: str, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                if done():
                    return
            except (ClientError, OSError):
                pass
            logs = "\n".join(last_lines(child.log) for child in self.children.values())
            assert time.monotonic() < deadline, f"{what}\n{logs}"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    patch = pytest.MonkeyPatch()
    patch.setattr("node.devnet.network.VALIDATORS_MIN", 1)
    with claim_home(tmp_path_factory.mktemp("live") / "devnet") as layout:
        running = Pair(create_network(layout, 1, ["alice"]), {})
        patch.undo()
        try:
            running.start("validator-1")
            running.wait("the first block", lambda: running.client().status()["height"] >= 1)
            running.start("full-node")
            running.wait("the full node", lambda: running.client("full-node").status()["height"] >= 1)
            yield running
        finally:
            for child in running.children.values():
                child.popen.kill()
                child.popen.wait()


def transfer(pair: Pair) -> str:
    sender, receiver = pair.network.account("user"), pair.network.account("trainer")
    done = pair.client().send_and_wait(sender.seed, Transfer(receiver.address, 5))
    return str(done["tx_hash"])


def test_what_a_daemon_answers_is_what_it_declares(pair: Pair) -> None:
    client = pair.client()
    tx_hash = transfer(pair)
    height = client.call("tx", hash=tx_hash)["height"]
    document = client.call("rpc.discover")
    blob = client.put_blob(b"a blob of a client").hex()
    raw = client.call("tx", hash=tx_hash)["raw"]
    parties = {name: pair.network.account(name).address.hex() for name in ("user", "provider")}
    calls: dict[str, list[dict[str, Any]]] = {
        **{name: [{}] for name in ("rpc.discover", "status", "validators", "params", "supply")},
        "block": [{"height": number} for number in (0, 1, height)],
        "tx": [{"hash": tx_hash}],
        "tx_submit": [{"tx": raw}],
        "account": [{"address": parties["user"]}, {"address": "00" * 32}],
        "voucher_sequence": [parties],
        "blob_put": [{"data": "00ff"}],
        "blob_get": [{"digest": blob}],
    }
    for method, parameters in calls.items():
        described = next(entry for entry in document["methods"] if entry["name"] == method)
        schema = {**described["result"]["schema"], "components": document["components"]}
        for given in parameters:
            found = [
                error.message for error in Draft7Validator(schema).iter_errors(client.call(method, **given))
            ]
            assert found == [], (method, given)
    assert {entry["name"] for entry in document["methods"]} == set(METHODS)


def test_the_metrics_of_a_daemon_tell_its_state_and_pass_promtool(pair: Pair) -> None:
    pair.client().put_blob(b"a blob that the disk's size counts")
    pair.wait("an interval between two blocks", lambda: pair.client().status()["height"] >= 2)
    status, text = pair.page("/metrics")
    assert status == 200
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if not sample.labels
    }
    assert values["openledger_consensus_executed_height"] >= 1
    assert values["openledger_consensus_blocks_total"] >= 1
    assert values["openledger_consensus_block_interval_seconds_count"] >= 1
    assert values["openledger_consensus_validators"] == 1
    assert values["openledger_consensus_missing_validators"] == 0
    assert values["openledger_ready"] == 1
    assert values["openledger_storage_database_bytes"] > 0
    assert values["openledger_storage_blobs_bytes"] > 0
    assert values["process_resident_memory_bytes"] > 2**20
    promtool = shutil.which("promtool")
    if promtool is not None:
        done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_transaction_is_announced_to_who_waits_for_it_and_a_resume_repeats_it(pair: Pair) -> None:
    """Events come from both daemons in the same words, and after the fact as they came live."""
    client = pair.client()
    sender, receiver = pair.network.account("user"), pair.network.account("trainer")
    before = client.status()["height"]
    raw, sent = client.build(sender.seed, Transfer(receiver.address, 5))
    live = client.events(after=str(before), hash=sent.tx_hash.hex())
    found: list[Event] = []
    listening = threading.Thread(target=lambda: found.append(next(live)), daemon=True)
    listening.start()
    client.submit(raw)
    client.wait_transaction(sent.tx_hash)
    listening.join(20)
    later = next(client.events(after=str(before), hash=sent.tx_hash.hex()))
    elsewhere = next(pair.client("full-node").events(after=str(before), hash=sent.tx_hash.hex()))
    assert found == [later] == [elsewhere]
    assert (later.kind, later.data["status"], later.data["sender"]) == (
        "transaction",
        "ok",
        sender.address.hex(),
    )


def test_every_executed_block_is_told_once_and_in_order(pair: Pair) -> None:
    events = pair.client("full-node").events(after="0", types="block")
    heights = [next(events).data["height"] for _ in range(pair.client().status()["height"] + 2)]
    assert heights == list(range(1, len(heights) + 1))


def test_a_full_node_without_the_quorum_says_so_and_recovers(pair: Pair) -> None:
    pair.wait("a ready full node", lambda: pair.page("/ready", "full-node")[0] == 200)
    pair.children["validator-1"].popen.kill()
    pair.children["validator-1"].popen.wait()
    pair.wait("it to notice", lambda: pair.page("/ready", "full-node")[0] == 503)
    document = json.loads(pair.page("/ready", "full-node")[1])
    assert document["reason"] == "no quorum of validators is connected"
    assert pair.page("/health", "full-node")[0] == 200
    pair.start("validator-1")
    pair.wait("it to be ready again", lambda: pair.page("/ready", "full-node")[0] == 200)


def test_a_stop_tells_subscribers_and_waits_for_none_of_them(pair: Pair) -> None:
    address = urlsplit(pair.plan("validator-1").rpc_url)
    connections = [
        http.client.HTTPConnection(address.hostname or "", address.port, timeout=20) for _ in range(4)
    ]
    for connection in connections:
        connection.request("GET", "/events")
    streams = [connection.getresponse() for connection in connections]
    assert [stream.readline() for stream in streams] == [b"retry: 2000\n"] * 4
    child = pair.children["validator-1"]
    began = time.monotonic()
    child.popen.send_signal(signal.SIGTERM)
    assert child.popen.wait(30) == 0
    took_s = time.monotonic() - began
    for stream in streams:
        assert b"event: end\n" in stream.read()
    for connection in connections:
        connection.close()
    assert took_s < STOP_S_MAX, last_lines(child.log)
