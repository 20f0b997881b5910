"""Real daemons whose validator's key is held by a signer: it is killed, shared by two daemons, away, and back.

One network serves all of it, in this order: `validator-1` and `standby` are two daemons for one validator, with one signer.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from consensus.safety import SafetyRecord
from node.client import Client, ClientError
from node.config import Config, load_config, render_toml
from node.devnet.layout import claim_home
from node.devnet.network import HOST, PARAMS, Network, create_network
from node.devnet.ports import free_ports
from node.devnet.processes import Child, last_lines, spawn
from node.home import Home
from node.keys import load_seed
from node.ledger.bodies import Transfer
from node.ledger.params import OPEN, Params
from node.network.address import PeerAddress, peer_id_of_seed
from node.signer.errors import SignerUnavailable
from node.signer.protocol import AskStatus, Status
from node.signer.remote import Channel

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ENTRY = [sys.executable, "-m", "node.cli.main"]
NAMES = ("validator-1", "validator-2", "validator-3", "validator-4", "standby")
WAIT_S = 90.0


@dataclass(slots=True)
class Desk:
    """The processes: four validators' daemons, a second one for the first validator, and that one's signer."""

    network: Network
    signer: Path
    key: str
    homes: dict[str, Home] = field(default_factory=dict)
    urls: dict[str, str] = field(default_factory=dict)
    children: dict[str, Child] = field(default_factory=dict)

    def start(self, name: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        if name == "signer":
            command, log = [*ENTRY, "signer", "--home", str(self.signer)], self.signer / "signer.log"
        else:
            home = self.homes[name]
            command, log = [*ENTRY, "start", "--home", str(home.root)], home.logs_path / "node.log"
        self.children[name] = spawn(name, command, log, environment)

    def kill(self, name: str) -> None:
        self.children[name].popen.send_signal(signal.SIGKILL)
        self.children[name].popen.wait()

    def log_of(self, name: str) -> str:
        return self.children[name].log.read_text()

    def height(self, name: str) -> int:
        return int(Client(self.urls[name], timeout_s=5, retries=0).status()["height"])

    def ready(self, name: str) -> tuple[bool, str]:
        """What ``/ready`` says, and why."""
        try:
            with urllib.request.urlopen(f"{self.urls[name]}/ready", timeout=5) as answer:
                return True, answer.read().decode()
        except HTTPError as error:
            with error:
                return False, error.read().decode()

    def record(self) -> SafetyRecord:
        """How far the running signer has come; raises SignerUnavailable."""
        channel = Channel(self.signer / "run" / "signer.sock")
        try:
            status = channel.ask(AskStatus())
        finally:
            channel.close()
        assert isinstance(status, Status)
        return status.record

    def wait_for_votes(self) -> None:
        """Wait until the signer is there, and then until it has signed more votes; rounds begin anew with each epoch."""
        self.wait("the signer", lambda: self.record() is not None)
        before = self.record()
        self.wait("votes", lambda: self._voted(self.record(), before))

    @staticmethod
    def _voted(now: SafetyRecord, before: SafetyRecord) -> bool:
        if now.epoch == before.epoch:
            return now.last_voted > before.last_voted + 1
        return now.epoch > before.epoch and now.last_voted > 0

    def wait(self, what: str, done: Any) -> None:
        def told() -> bool:
            try:
                return bool(done())
            except (ClientError, SignerUnavailable, OSError):
                return False

        Client(self.urls["validator-2"]).wait_until(what, told, WAIT_S)

    def wait_for_blocks(self, name: str, count: int) -> None:
        self.wait(f"{name} to answer", lambda: self.height(name) >= 0)
        height = self.height(name) + count
        self.wait(f"height {height} at {name}", lambda: self.height(name) >= height)


def signer_command(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [*ENTRY, "signer", *arguments, "--json"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def rewrite(home: Home, change: Any) -> None:
    config: Config = change(load_config(home.config_path, environment={}))
    home.config_path.write_text(render_toml(config))


@contextmanager
def running_desk(root: Path, params: Params, *, standby: bool) -> Iterator[Desk]:
    """Four validators, the first with a signer, and with `standby` a home for a second daemon of it, not started."""
    with claim_home(root / "devnet") as layout:
        network = create_network(layout, 4, ["alice"], params=params)
        homes = {node.name: node.home for node in network.nodes if node.validator}
        first = homes["validator-1"]
        made = signer_command("init", "--home", str(root / "desk"), "--take-over", str(first.root))
        section = {"socket": made["socket"], "public_key": made["public_key"]}
        rewrite(first, lambda config: replace(config, signer=replace(config.signer, **section)))
        running = Desk(network, root / "desk", made["public_key"], homes)
        running.urls = {node.name: node.rpc_url for node in network.nodes if node.validator}
        if standby:
            _make_standby(running, layout.nodes / "standby")
        try:
            for name in ("signer", *NAMES[:4]):
                running.start(name)
            running.wait("the first blocks", lambda: all(running.height(name) >= 2 for name in NAMES[:4]))
            yield running
        finally:
            for child in running.children.values():
                child.popen.kill()
                child.popen.wait()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with running_desk(tmp_path_factory.mktemp("signer"), PARAMS, standby=True) as running:
        yield running


def _make_standby(desk: Desk, root: Path) -> None:
    """A second home of the first validator, with a peer id of its own that the others let in."""
    first = desk.homes["validator-1"]
    subprocess.run(["cp", "-r", str(first.root), str(root)], check=True)
    home = desk.homes["standby"] = Home(root)
    home.node_key_path.write_text(f"{os.urandom(32).hex()}\n")
    rpc_port, p2p_port = free_ports(2)
    desk.urls["standby"] = f"http://{HOST}:{rpc_port}"
    address = PeerAddress.of(HOST, p2p_port, peer_id_of_seed(load_seed(home.node_key_path)))
    rewrite(
        home,
        lambda config: replace(
            config,
            node=replace(config.node, moniker="standby"),
            rpc=replace(config.rpc, port=rpc_port),
            network=replace(config.network, listen_port=p2p_port),
        ),
    )
    for name in ("validator-2", "validator-3", "validator-4"):
        rewrite(
            desk.homes[name],
            lambda config: replace(
                config,
                network=replace(config.network, mesh_peers=(*config.network.mesh_peers, str(address))),
            ),
        )


def test_a_validator_votes_and_proposes_through_its_signer(desk: Desk) -> None:
    before = signer_command("status", "--home", str(desk.signer))
    assert before["public_key"] == desk.key
    desk.wait("its proposals", lambda: desk.record().last_proposed > before["last_proposed"])
    desk.wait_for_votes()
    desk.wait("it to be ready", lambda: desk.ready("validator-1")[0])
    # It is one of the four: without it and one more nothing would be final, with it everything is.
    desk.kill("validator-2")
    desk.wait_for_blocks("validator-3", 3)
    desk.start("validator-2")
    desk.wait_for_blocks("validator-2", 1)


def test_a_second_daemon_with_the_same_signer_contradicts_nothing(desk: Desk) -> None:
    desk.start("standby")
    desk.wait_for_blocks("standby", 12)
    for name in NAMES:
        log = desk.log_of(name)
        assert "misbehaved" not in log, last_lines(desk.children[name].log)
        assert desk.children[name].popen.poll() is None, log[-2000:]
    height = min(desk.height(name) for name in NAMES)
    clients = [Client(desk.urls[name]) for name in NAMES]
    assert len({client.block(height)["block_hash"] for client in clients}) == 1


def test_when_the_first_daemon_dies_the_second_goes_on_with_the_key(desk: Desk) -> None:
    desk.kill("validator-1")
    desk.wait_for_votes()
    desk.start("validator-1")
    desk.wait_for_blocks("validator-1", 2)
    assert "misbehaved" not in desk.log_of("validator-3")


def test_without_its_signer_a_daemon_follows_unready_and_comes_back(desk: Desk) -> None:
    desk.kill("signer")
    desk.wait("the reason", lambda: "signer does not answer" in desk.ready("validator-1")[1])
    desk.wait_for_blocks("validator-1", 3)
    assert not desk.ready("validator-1")[0]
    # Nor does a daemon that starts meanwhile need it.
    desk.kill("validator-1")
    desk.start("validator-1")
    desk.wait_for_blocks("validator-1", 2)
    desk.start("signer")
    desk.wait("both to be ready", lambda: desk.ready("validator-1")[0] and desk.ready("standby")[0])
    desk.wait_for_votes()


def test_a_signer_that_is_stopped_stalls_nobody(desk: Desk) -> None:
    os.kill(desk.children["signer"].pid, signal.SIGSTOP)
    try:
        desk.wait("the reason", lambda: "signer does not answer" in desk.ready("validator-1")[1])
        desk.wait_for_blocks("validator-1", 3)
    finally:
        os.kill(desk.children["signer"].pid, signal.SIGCONT)
    desk.wait("both to be ready", lambda: desk.ready("validator-1")[0] and desk.ready("standby")[0])


def test_a_signer_of_an_old_copy_is_refused_and_a_second_one_on_its_home_too(desk: Desk) -> None:
    second = subprocess.run(
        [*ENTRY, "signer", "--home", str(desk.signer)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 1
    assert "is in use by process" in second.stderr
    desk.kill("signer")
    old = (desk.signer / "signer.book").read_bytes()
    desk.start("signer")
    desk.wait_for_votes()
    desk.kill("signer")
    own = (desk.signer / "signer.book").read_bytes()
    (desk.signer / "signer.book").write_bytes(old)
    desk.start("signer")
    assert desk.children["signer"].popen.wait(60) == 1
    assert "older than what this key signed last" in desk.log_of("signer")
    (desk.signer / "signer.book").write_bytes(own)
    desk.start("signer")
    desk.wait("both to be ready", lambda: desk.ready("validator-1")[0] and desk.ready("standby")[0])
    assert desk.children["signer"].popen.poll() is None


def test_a_signer_whose_disk_is_full_ends_and_loses_nothing(desk: Desk) -> None:
    """Here no file of its can be written at all; the disk that fills up later is `test_remote_signer`'s."""
    desk.kill("signer")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # The log is a pipe: the limit is on files.
    shell = f"ulimit -f 0; exec {' '.join(ENTRY)} signer --home {desk.signer} 2>&1"
    full = subprocess.run(
        ["/bin/sh", "-c", shell], timeout=60, check=False, capture_output=True, text=True, env=environment
    )
    assert full.returncode != 0
    desk.start("signer")
    desk.wait("both to be ready", lambda: desk.ready("validator-1")[0] and desk.ready("standby")[0])
    desk.wait_for_votes()
    for name in NAMES:
        assert "misbehaved" not in desk.log_of(name)


EPOCHS = replace(
    PARAMS,
    epoch_heights=4,
    epoch_ms=500,
    stake_min=1_000 * OPEN,
    unbonding_heights=40,
    unbonding_ms=4_000,
    evidence_heights=40,
    evidence_ms=4_000,
)


def test_a_signer_follows_the_epochs_and_a_receipt_is_proven_through_them(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    with running_desk(tmp_path_factory.mktemp("epochs"), EPOCHS, standby=False) as desk:
        desk.wait("the second epoch", lambda: desk.record().epoch >= 1)
        # Now nothing is final without it, the change of epochs neither.
        desk.kill("validator-2")
        epoch = desk.record().epoch
        desk.wait("another epoch", lambda: desk.record().epoch > epoch)
        desk.start("validator-2")
        desk.wait_for_blocks("validator-2", 2)
        # What ended while it was away it is told when it comes back.
        desk.kill("signer")
        epoch = int(Client(desk.urls["validator-3"]).status()["epoch"])
        desk.wait(
            "two epochs without it",
            lambda: Client(desk.urls["validator-1"]).status()["epoch"] > epoch + 1,
        )
        desk.start("signer")
        desk.wait("its return", lambda: desk.record().epoch > epoch + 1)
        desk.wait("it to be ready", lambda: desk.ready("validator-1")[0])
        desk.wait_for_votes()
        _prove_a_receipt(desk, tmp_path)


def _prove_a_receipt(desk: Desk, folder: Path) -> None:
    """One program writes the file from a stopped home, another checks it with nothing but the genesis."""
    alice, receiver = desk.network.account("alice"), desk.network.account("provider")
    sent = Client(desk.urls["validator-2"]).send_and_wait(alice.seed, Transfer(receiver.address, 1), WAIT_S)
    desk.wait_for_blocks("validator-2", 3)
    desk.kill("validator-2")
    file, home = folder / "proof", desk.homes["validator-2"]
    tx_hash = str(sent["tx_hash"])
    for arguments in (
        ["make-proof", tx_hash, "--home", str(home.root), "--file", str(file)],
        ["proof", str(file), "--genesis", str(home.genesis_path)],
    ):
        done = subprocess.run(
            [*ENTRY, "verify", *arguments, "--json"], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    shown = json.loads(done.stdout)
    assert (shown["subject"], shown["status"], shown["receipt_height"]) == (tx_hash, "ok", sent["height"])
    assert shown["epoch"] >= 3
