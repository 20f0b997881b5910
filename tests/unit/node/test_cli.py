"""The command line: exit codes, JSON, tables, and that it starts quickly."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.cli.main import COMMANDS, main
from node.cli.output import Exit
from node.config import load_config
from node.home import open_home
from node.keys import account_path, load_seed, public_key, store_seed
from node.ledger.bodies import BODIES
from node.ledger.genesis import genesis_from_dict
from node.ledger.params import OPEN, params_from_dict
from node.ledger.records import decode_records
from node.ledger.transaction import decode_transaction
from node.rpc.methods import METHODS
from tests.unit.node.ledger_backend import LedgerBackend, RunningServer, running_server
from tests.unit.node_ledger.world import VALIDATORS, address, seed

CONFIGS = Path(__file__).parents[3] / "configs"
GENESIS = CONFIGS / "genesis.json"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the command line with the accounts of the test chain's people."""
    root = tmp_path / "cli"
    root.mkdir()
    (root / "accounts").mkdir(mode=0o700)
    for name in ("ann", "ben"):
        store_seed(account_path(root / "accounts", name), seed(name))
    monkeypatch.setenv("OPENLEDGER_HOME", str(root))
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("OPENLEDGER_URL", "OPENLEDGER_PASSPHRASE", "OPENLEDGER_PASSPHRASE_FILE"):
        monkeypatch.delenv(name, raising=False)
    return root


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningServer]:
    """A node that executes at once, named by the environment."""
    with running_server(LedgerBackend(execute_at_once=True)) as running:
        monkeypatch.setenv("OPENLEDGER_URL", running.url)
        yield running


def run(*arguments: object) -> int:
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as ended:  # argparse's own way out
        return ended.code if isinstance(ended.code, int) else -1


def run_json(
    capsys: pytest.CaptureFixture[str], *arguments: object, exit_code: int = Exit.OK
) -> dict[str, object]:
    capsys.readouterr()
    assert run(*arguments, "--json") == exit_code
    document = json.loads(capsys.readouterr().out)
    assert isinstance(document, dict)
    return document


def subprocess_seconds(*arguments: str) -> tuple[float, subprocess.CompletedProcess[str]]:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    return time.monotonic() - began, done


def test_help_is_quick_and_imports_neither_torch_nor_trio_nor_the_ledger() -> None:
    script = (
        "import sys; from node.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted({'torch', 'numpy', 'trio', 'libp2p', 'nacl'} & set(sys.modules)), file=sys.stderr)"
    )
    bare = min(subprocess_seconds("-c", "pass")[0] for _ in range(3))
    runs = [subprocess_seconds("-c", script) for _ in range(3)]
    assert {done.stderr.strip() for _, done in runs} == {"[]"}
    assert min(seconds for seconds, _ in runs) - bare < 0.3
    for name in COMMANDS:
        assert re.search(rf"^    {name}\b", runs[0][1].stdout, re.MULTILINE)


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_no_commands_help_imports_torch_and_each_has_an_example(command: str) -> None:
    script = (
        "import sys; from node.cli.main import main\n"
        f"try: main(['{command}', '--help'])\n"
        "except SystemExit: print('torch' in sys.modules, file=sys.stderr)"
    )
    _, done = subprocess_seconds("-c", script)
    assert done.stderr.strip() == "False"
    assert f"usage: openledger {command}" in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        *(f"tx {body.NAME.replace('_', '-')}" for body in BODIES.values()),
        *(
            f"query {name.replace('_', '-')}"
            for name in METHODS
            if name not in ("tx_submit", "blob_put", "blob_get")
        ),
        "query blob",
        *(
            f"keys {action}"
            for action in ("new", "list", "show", "import", "export", "encrypt", "passphrase")
        ),
        "verify adapter",
        *("keys", "tx", "query", "verify"),
        *("init", "start", "status", "devnet", "demo", "selfcheck"),
    ],
)
def test_every_subcommand_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*command.split(), "--help") == 0
    shown = capsys.readouterr().out
    assert f"\n  openledger {command}" in shown.partition("example")[2]


@pytest.mark.parametrize(
    "arguments", [(), ("nothing",), ("tx", "transfer"), ("query", "block", "x"), ("query", "adapter", "AB")]
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == Exit.USAGE
    shown = capsys.readouterr().err
    assert "see `openledger" in shown or "usage: openledger" in shown


def test_init_creates_a_home_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "validator"
    arguments = (
        "init",
        "--home",
        root,
        "--validator",
        "--moniker",
        "val",
        "--genesis",
        GENESIS,
        "--set",
        "rpc.port=0",
    )
    document = run_json(capsys, *arguments)
    home = open_home(root)
    config = load_config(home.config_path, {})
    assert (config.node.validator, config.node.moniker, config.rpc.port) == (True, "val", 0)
    assert document["consensus_key"] == public_key(load_seed(home.consensus_key_path)).hex()
    assert document["account"] == public_key(load_seed(home.account_key_path)).hex()
    assert len(str(document["beacon_anchor"])) == 64
    again = run_json(capsys, *arguments, exit_code=Exit.USAGE)
    assert again["kind"] == "HomeExists"


def test_the_example_genesis_and_devnet_parameters_are_what_the_ledger_accepts() -> None:
    from node.devnet.network import PARAMS

    assert len(genesis_from_dict(json.loads(GENESIS.read_text())).validators) == 4
    assert params_from_dict(json.loads((CONFIGS / "devnet-params.json").read_text())) == PARAMS


def test_init_refuses_a_genesis_that_the_ledger_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "genesis.json"
    for text in ("{", "[]", '{"chain": "x", "surprise": 1}'):
        bad.write_text(text)
        document = run_json(capsys, "init", "--home", tmp_path / "h", "--genesis", bad, exit_code=Exit.USAGE)
        assert document["exit_code"] == Exit.USAGE
        assert not (tmp_path / "h").exists()


def test_bad_overrides_are_usage_errors_that_name_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("init", "--home", tmp_path / "h", "--set", "rpc.prot=1") == Exit.USAGE
    assert "rpc.prot" in capsys.readouterr().err
    assert run("init", "--home", tmp_path / "h", "--set", "rpc.port") == Exit.USAGE


def test_status_is_a_table_for_people_and_json_for_programs(
    server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    document = run_json(capsys, "status")
    assert document["chain_id"] == server.backend.world.chain.hex()
    assert run("status") == Exit.OK
    shown = capsys.readouterr().out
    assert "state_digest" in shown
    assert server.backend.world.chain.hex() in shown


def test_the_node_is_found_by_flag_then_home(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENLEDGER_URL")
    assert run("status", "--rpc", server.url) == Exit.OK
    assert run("init", "--home", tmp_path / "node", "--set", f"rpc.port={server.port}") == Exit.OK
    assert run("status", "--home", tmp_path / "node") == Exit.OK
    assert run("init", "--home", tmp_path / "other", "--set", "rpc.port=1") == Exit.OK
    (tmp_path / "other" / "rpc.url").write_text(server.url + "\n")
    assert run("status", "--home", tmp_path / "other") == Exit.OK


def test_no_node_exits_with_3(capsys: pytest.CaptureFixture[str]) -> None:
    document = run_json(capsys, "status", "--rpc", "http://127.0.0.1:1", exit_code=Exit.UNREACHABLE)
    assert document["kind"] == "NodeUnreachable"


def test_a_transfer_is_signed_submitted_and_waited_for(
    server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("tx", "transfer", "--to", address("ben").hex(), "--amount", "5", "--key", "ann", "--wait")
    document = run_json(capsys, *arguments)
    assert (document["status"], document["nonce"], document["submitted"]) == ("ok", 0, True)
    assert server.backend.world.balance("ben") == 10_000 * OPEN + 5
    shown = run_json(capsys, "query", "tx", document["tx_hash"])
    assert (shown["status"], shown["sender"]) == ("ok", address("ann").hex())


def test_a_dry_run_signs_and_submits_nothing(
    server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("tx", "transfer", "--to", address("ben").hex(), "--amount", "5", "--key", "ann", "--dry-run")
    document = run_json(capsys, *arguments)
    transaction = decode_transaction(bytes.fromhex(str(document["tx"])))
    assert (transaction.sender, transaction.body.NAME) == (address("ann"), "transfer")
    assert (document["submitted"], server.backend.world.height, server.backend.pending) == (False, 0, {})


def test_refusals_exit_with_4_and_carry_the_ledgers_code(
    server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    transfer = ("tx", "transfer", "--to", address("ben").hex(), "--amount", "5", "--key", "ann")
    refused = run_json(capsys, *transfer, "--fee", "1", exit_code=Exit.REFUSED)
    assert refused["data"]["code"] == "fee-too-low"  # type: ignore[index]
    arguments = ("tx", "transfer", "--to", address("ben").hex(), "--amount", 2**60, "--key", "ann", "--wait")
    failed = run_json(capsys, *arguments, exit_code=Exit.REFUSED)
    assert failed["transaction"]["code"] == "insufficient-balance"  # type: ignore[index]
    assert run("tx", "transfer", "--to", address("ben").hex(), "--amount", "0", "--key", "ann") == Exit.USAGE
    assert run("query", "adapter", "ab" * 32) == Exit.NOT_FOUND


def test_waiting_past_the_timeout_exits_with_6(server: RunningServer) -> None:
    server.backend.execute_at_once = False
    arguments = ("tx", "transfer", "--to", address("ben").hex(), "--amount", "5", "--key", "ann", "--wait")
    assert run(*arguments, "--timeout", "0.3") == Exit.TIMEOUT


def test_records_become_a_stored_blob_and_a_contribution(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    create = (
        "tx",
        "datanet-create",
        "--name",
        "docs",
        "--licences",
        "MIT",
        "CC-BY-4.0",
        "--description",
        "",
        "--key",
        "ann",
    )
    datanet = run_json(capsys, *create, "--wait")["tx_hash"]
    records = tmp_path / "records.jsonl"
    records.write_text('{"text": "one"}\n{"text": "zwölf"}\n')
    arguments = (
        "tx",
        "contribution",
        "--datanet",
        datanet,
        "--licence",
        "MIT",
        "--key",
        "ben",
        "--records",
        records,
    )
    document = run_json(capsys, *arguments, "--wait")
    assert document["status"] == "ok"
    stored = run_json(capsys, "query", "contribution", document["tx_hash"])
    assert (stored["record_count"], stored["token_count"]) == (2, 9)
    out = tmp_path / "out.blob"
    assert run("query", "blob", stored["blob_digest"], "--out", out) == Exit.OK
    assert [bytes(record).decode() for record in decode_records(out.read_bytes())] == ["one", "zwölf"]
    assert run("query", "blob", stored["blob_digest"], "--out", out) == Exit.USAGE
    shown = run_json(capsys, "query", "datanet", datanet)
    assert (shown["licences"], shown["contribution_count"]) == (["CC-BY-4.0", "MIT"], 1)
    records.write_text('{"text": ""}\n')
    assert run(*arguments) == Exit.USAGE
    assert run(*arguments[:-2]) == Exit.USAGE


def test_every_query_prints_a_table(server: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    def play() -> dict[str, str]:
        world = server.backend.world
        adapter = world.active_adapter()
        inference = world.revealed(adapter)
        world.attest(inference, {name: world.answer(inference) for name in VALIDATORS})
        return {"adapter": adapter.hex(), "receipt": inference.hex()}

    for what, identity in server.do(play).items():
        assert run("query", what, identity) == Exit.OK
        assert identity in capsys.readouterr().out
    for what in ("params", "supply", "validators", "status"):
        assert run("query", what) == Exit.OK
    assert run("query", "block", server.backend.world.height) == Exit.OK
    assert "transactions" in capsys.readouterr().out


def test_starting_without_a_home_fails_with_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "node.cli.main", "start", "--home", str(tmp_path / "nothing")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "openledger init" in done.stderr
