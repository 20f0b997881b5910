"""The demonstration itself, on real processes: what a new user is promised, checked from outside.

One devnet serves all tests, in this order; the last one stops it.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attribution.models import BASE_HASH
from node.client import Client
from node.keys import load_seed, public_key
from tests.integration.conftest import COMMAND, Devnet

SHARES_TOTAL = 10**9

pytestmark = pytest.mark.timeout(600)


def digest_at(client: Client, height: int) -> str:
    client.wait_height(height, timeout_s=60)
    return client.block(height)["state_digest"]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] not in "ZX"
    except FileNotFoundError:
        return False


def test_every_promise_held_whatever_this_machines_load(devnet: Devnet) -> None:
    report = devnet.report()
    assert [
        check for check in report["checks"] if not check["passed"] and "at most" not in check["name"]
    ] == []


def test_the_processes_are_named_in_devnet_json_and_run(devnet: Devnet) -> None:
    document = devnet.document()
    assert set(document) == {"nodes", "accounts"}
    assert [node["validator"] for node in document["nodes"]] == [True] * 4 + [False]
    for node in document["nodes"]:
        assert set(node) == {"home", "pid", "rpc_url", "peer_id", "validator"}
        status = Client(node["rpc_url"]).status()
        assert status["peer_id"] == node["peer_id"]
        assert status["validator"] == node["validator"]
        words = Path(f"/proc/{node['pid']}/cmdline").read_bytes().split(b"\0")
        assert b"start" in words
        assert node["home"].encode() in words


def test_the_accounts_keys_are_plain_and_their_owners_only(devnet: Devnet) -> None:
    accounts = devnet.document()["accounts"]
    assert {account["name"] for account in accounts} == {
        "alice",
        "bob",
        "carol",
        "trainer",
        "provider",
        "user",
    }
    for account in accounts:
        assert set(account) == {"name", "address", "secret_key_file"}
        path = Path(account["secret_key_file"])
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert public_key(load_seed(path)).hex() == account["address"]


def test_all_four_validators_attest_the_same_hash_of_every_audited_call(devnet: Devnet) -> None:
    calls = devnet.report()["inferences"]
    audited = [call for call in calls if call["audited"]]
    assert len(audited) >= 4
    assert len(calls) - len(audited) >= 2
    for call in audited:
        assert [entry["name"] for entry in call["attesters"]] == [
            f"validator-{number}" for number in range(1, 5)
        ]
        assert {entry["result_hash"] for entry in call["attesters"]} == {call["result_hash"]}
        assert sum(entry["share"] for entry in call["shares"]) == SHARES_TOTAL
        assert sum(int(entry["amount"]) for entry in call["payouts"]) + int(call["burned"]) == int(
            call["fee"]
        )


def test_the_report_says_what_the_ledger_says(devnet: Devnet) -> None:
    report, document = devnet.report(), devnet.document()
    full = Client(document["nodes"][-1]["rpc_url"])
    supply = full.call("supply")
    assert (supply["total"], supply["escrowed"]) == (report["supply_after"], report["escrowed"])
    assert int(report["supply_before"]) == int(report["supply_after"]) + int(report["burned"])
    assert report["model"]["base_hash"] == BASE_HASH.hex()
    for call in report["inferences"]:
        receipt = full.call("receipt", inference=call["id"])
        assert receipt["result_hash"] == call["result_hash"]
        assert [entry["amount"] for entry in receipt["payouts"]] == [
            entry["amount"] for entry in call["payouts"]
        ]
    for node in report["nodes"]:
        assert node["state_digest"] == digest_at(Client(node["rpc_url"]), report["height"])


def test_a_second_devnet_in_the_same_home_is_refused(devnet: Devnet) -> None:
    done = subprocess.run(
        [*COMMAND, "demo", "--home", str(devnet.home)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert f"process {devnet.process.pid}" in done.stderr
    assert devnet.document()["nodes"]


@pytest.mark.slow
def test_whoever_retrains_from_the_ledger_gets_the_same_adapter(devnet: Devnet) -> None:
    report = devnet.report()
    url = devnet.document()["nodes"][-1]["rpc_url"]
    command = [*COMMAND, "verify", "adapter", report["model"]["adapter"], "--rpc", url, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert report["model"]["adapter_hash"] in json.dumps(json.loads(done.stdout))


def test_a_killed_validator_stops_nobody_and_comes_back_to_the_same_state(devnet: Devnet) -> None:
    document = devnet.document()
    victim, full = document["nodes"][2], Client(document["nodes"][-1]["rpc_url"])
    os.kill(victim["pid"], signal.SIGKILL)
    height = full.status()["height"]
    full.wait_height(height + 3, timeout_s=60)
    assert devnet.process.poll() is None
    assert devnet.document() == document
    with (devnet.home / "restarted.log").open("wb") as log:
        command = [sys.executable, "-m", "node.cli.main", "start", "--home", victim["home"]]
        restarted = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        back = Client(victim["rpc_url"], retries=0)
        back.wait_until("the restarted validator", lambda: _answers(back, height + 3), timeout_s=90)
        common = min(back.status()["height"], full.status()["height"])
        assert digest_at(back, common) == digest_at(full, common)
    finally:
        restarted.send_signal(signal.SIGTERM)
        assert restarted.wait(10) == 0


def _answers(client: Client, height: int) -> bool:
    from node.client import ClientError

    try:
        return client.status()["height"] >= height
    except ClientError:
        return False


def test_ctrl_c_ends_every_process_within_five_seconds(devnet: Devnet) -> None:
    pids = [node["pid"] for node in devnet.document()["nodes"]]
    start = time.monotonic()
    devnet.process.send_signal(signal.SIGINT)
    assert devnet.process.wait(30) == 0
    assert time.monotonic() - start < 5
    assert not [pid for pid in pids if alive(pid)]
    assert (devnet.home / "report.json").exists()
