"""Validators by the command line and over RPC: a registration from a home, evidence, and what the queries show."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.cli.main import main
from node.cli.output import Exit
from node.client import Client
from node.home import Home
from node.keys import account_path, load_seed, public_key, store_seed
from node.ledger.epochs import consensus_set
from node.ledger.genesis import genesis_to_dict
from node.ledger.params import OPEN
from node.ledger.state import get_validators
from tests.unit.node.ledger_backend import LedgerBackend, RunningServer, running_server
from tests.unit.node_ledger.seats import EPOCHS, boundary, freeze, two_votes
from tests.unit.node_ledger.world import STAKE, VALIDATORS, World, address, consensus_key, genesis, seed


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningServer]:
    """A node on a chain with epochs that executes at once, named by the environment."""
    with running_server(LedgerBackend(World(EPOCHS), execute_at_once=True)) as running:
        monkeypatch.setenv("OPENLEDGER_URL", running.url)
        yield running


@pytest.fixture
def accounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of the command line with the accounts of a person and a validator."""
    folder = tmp_path / "cli" / "accounts"
    folder.mkdir(parents=True, mode=0o700)
    for name in ("ann", "ben", "val0"):
        store_seed(account_path(folder, name), seed(name))
    monkeypatch.setenv("OPENLEDGER_HOME", str(tmp_path / "cli"))
    for name in ("OPENLEDGER_PASSPHRASE", "OPENLEDGER_PASSPHRASE_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def validator_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A validator's home on this chain, whose account is Ann's, with a short beacon chain."""
    monkeypatch.setattr("node.startup.BEACON_REVEALS", 64)
    genesis_file = tmp_path / "genesis.json"
    genesis_file.write_text(json.dumps(genesis_to_dict(genesis(EPOCHS))))
    root = tmp_path / "validator"
    arguments = ("init", "--home", root, "--validator", "--no-passphrase", "--genesis", genesis_file)
    assert run(*arguments) == Exit.OK
    home = Home(root)
    home.account_key_path.unlink()
    store_seed(home.account_key_path, seed("ann"))
    return home


def run(*arguments: object) -> int:
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as ended:  # argparse's own way out
        return ended.code if isinstance(ended.code, int) else -1


def send(capsys: pytest.CaptureFixture[str], kind: str, *arguments: object) -> dict[str, object]:
    capsys.readouterr()
    assert run("tx", kind, *arguments, "--wait", "--json") == Exit.OK
    document = json.loads(capsys.readouterr().out)
    assert isinstance(document, dict)
    return document


@pytest.mark.usefixtures("accounts")
def test_a_validator_registers_from_its_home_and_is_in_the_next_set(
    server: RunningServer, validator_home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    register = ("--from-home", validator_home.root, "--stake", "500open")
    key = public_key(load_seed(validator_home.consensus_key_path, None))
    assert send(capsys, "validator-register", *register, "--key", "ann")["status"] == "ok"
    client = Client(server.url)
    shown = client.call("stake", address=address("ann").hex())["registration"]
    assert (shown["consensus_key"], shown["bonded"]) == (key.hex(), str(500 * OPEN))
    assert address("ann").hex() in client.call("epoch")["candidates"]
    assert run("tx", "validator-anchor", "--key", "ann") == Exit.USAGE
    again = ("tx", "validator-anchor", "--from-home", validator_home.root, "--key", "ann", "--wait")
    capsys.readouterr()
    assert run(*again) == Exit.REFUSED
    assert "anchor-unchanged" in capsys.readouterr().err, "the same chain as the registration's"
    validator_home.beacon_key_path.unlink()
    store_seed(validator_home.beacon_key_path, seed("another chain"))
    assert run(*again) == Exit.OK
    assert (
        client.call("stake", address=address("ann").hex())["registration"]["beacon_anchor"]
        != (shown["beacon_anchor"])
    )
    server.do(lambda: boundary(server.backend.world))
    seated = client.call("validators")
    assert seated["epoch"] == 1
    assert key.hex() in {row["consensus_key"] for row in seated["validators"]}
    expected = consensus_set(get_validators(server.backend.world.state), 1).hash
    assert seated["set_hash"] == expected.hex()


@pytest.mark.usefixtures("accounts")
def test_a_registration_that_another_account_signs_is_refused_by_the_ledger(
    server: RunningServer, validator_home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--from-home", validator_home.root, "--stake", "500open", "--key", "ben", "--wait")
    assert run("tx", "validator-register", *arguments) != Exit.OK
    assert "bad-possession" in capsys.readouterr().err
    assert Client(server.url).call("stake", address=address("ben").hex())["registration"] is None


@pytest.mark.usefixtures("accounts")
def test_a_registration_names_what_is_missing(
    server: RunningServer, validator_home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    signer = ("--stake", "500open", "--key", "ann")
    assert run("tx", "validator-register", *signer) == Exit.USAGE
    assert "--from-home" in capsys.readouterr().err
    both = ("--from-home", validator_home.root, "--peer-id", "peer", *signer)
    assert run("tx", "validator-register", *both) == Exit.USAGE
    assert "exclude each other" in capsys.readouterr().err
    validator_home.genesis_path.unlink()
    assert run("tx", "validator-register", "--from-home", validator_home.root, *signer) == Exit.USAGE
    assert "genesis.json" in capsys.readouterr().err


@pytest.mark.usefixtures("accounts")
def test_a_validators_other_transactions_and_evidence_go_by_the_command_line(
    server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    signer, client = ("--key", "val0"), Client(server.url)
    send(capsys, "validator-bond", "--amount", "2open", *signer)
    send(capsys, "validator-unbond", "--amount", "1open", *signer)
    send(capsys, "validator-anchor", "--beacon-anchor", "ab" * 32, *signer)
    shown = client.call("stake", address=address("val0").hex())["registration"]
    assert shown["bonded"] == str(STAKE + OPEN)
    assert shown["unbonding"] == [{"epoch": 0, "amount": str(OPEN)}]
    assert shown["beacon_anchor"] == "ab" * 32
    proof = two_votes(server.backend.world, "val0", 0).evidence.hex()
    send(capsys, "evidence", "--evidence", proof, "--key", "ann")
    shown = client.call("stake", address=address("val0").hex())["registration"]
    assert shown["jailed_height"] == server.backend.world.height
    assert shown["slashed"] == str((STAKE + OPEN) // 20 + OPEN // 20)
    assert client.call("epoch")["slashed"] == [consensus_key("val0").hex()]
    server.do(lambda: server.backend.world.blocks(4))
    send(capsys, "validator-unjail", *signer)
    send(capsys, "validator-leave", *signer)
    assert client.call("stake", address=address("val0").hex())["registration"]["leaving"] is True


def test_the_epoch_query_names_the_frozen_set(
    server: RunningServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(server.url)
    before = client.call("epoch")
    assert (before["number"], before["frozen_height"], before["next_set_hash"]) == (0, None, None)
    named = server.do(lambda: freeze(server.backend.world)).next_validators_hash
    after = client.call("epoch")
    assert after["next_set_hash"] == named.hex()
    assert set(after["next_validators"]) == {address(name).hex() for name in VALIDATORS}
    monkeypatch.setenv("COLUMNS", "200")
    for what in ("epoch", "validators"):
        assert run("query", what) == Exit.OK
    assert named.hex() in capsys.readouterr().out
