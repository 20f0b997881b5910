"""What a mistake costs: one line that says what to do, an exit code that means something, never a traceback."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import node.client
import node.errors
from node.cli.connection import default_home
from node.cli.main import COMMANDS, main
from node.cli.output import EXIT_MEANINGS, EXIT_OF, Exit, UsageError, print_result, print_rows, printable
from node.config import Config
from node.home import create_home
from node.keys import make_folder, store_seed
from node.ledger.bodies import BODIES
from node.rpc.methods import METHODS
from tests.unit.node.ledger_backend import LedgerBackend, running_server
from tests.unit.node_ledger.world import seed

ROOT = Path(__file__).parents[3]
ID = "ab" * 32
TRANSFER = ("tx", "transfer", "--to", ID, "--key", "ann", "--amount")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with one account, no node, and a terminal of 80 columns."""
    root = tmp_path / "home"
    make_folder(root / "accounts")
    store_seed(root / "accounts" / "ann.key", seed("ann"))
    monkeypatch.setenv("OPENLEDGER_HOME", str(root))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdin", None)
    for name in (
        "OPENLEDGER_URL",
        "OPENLEDGER_PASSPHRASE",
        "OPENLEDGER_PASSPHRASE_FILE",
        "OPENLEDGER_TRACEBACK",
    ):
        monkeypatch.delenv(name, raising=False)
    return root


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def table(heading: str, columns: int) -> list[list[str]]:
    """The rows of the first table with ``columns`` columns after ``heading`` in docs/cli.md, without code marks."""
    text = (ROOT / "docs" / "cli.md").read_text().partition(heading)[2]
    rows = []
    for line in text.splitlines():
        cells = [cell.strip().replace("`", "") for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and len(cells) == columns:
            rows.append(cells)
        elif rows:
            break
    return rows[2:]


def test_the_documented_exit_codes_are_the_codes() -> None:
    documented = {(int(code), name): means for code, name, means in table("## Exit codes", 3)}
    assert documented == {(int(code), code.name): means for code, means in EXIT_MEANINGS.items()}
    assert set(EXIT_MEANINGS) == set(Exit)


def test_the_documented_kinds_of_errors_are_those_that_are_mapped() -> None:
    documented = {kind: int(code) for kind, code, _ in table("Which error exits", 3)}
    assert documented == {kind: int(code) for kind, code in EXIT_OF.items()}


def test_help_lists_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run("--help")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for code, meaning in EXIT_MEANINGS.items():
        assert re.search(rf"^  {int(code)} +{re.escape(meaning)}$", shown, re.MULTILINE)


@pytest.mark.parametrize("module", [node.client, node.errors])
def test_every_error_of_the_node_and_its_client_has_an_exit_code(module: Any) -> None:
    kinds = [
        value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Exception)
    ]
    assert len(kinds) > 5
    for kind in kinds:
        if kind.__name__ != "ClientError":  # never raised itself
            assert {base.__name__ for base in kind.__mro__} & set(EXIT_OF), kind


def test_the_documented_commands_are_the_commands() -> None:
    documented = [name for row in table("## Commands", 2) for name in row[0].split(" · ")]
    assert documented == list(COMMANDS)


# Arguments, exit code, and what the line says.
BAD: list[tuple[tuple[object, ...], Exit, str]] = [
    (("nothing",), Exit.USAGE, "see `openledger --help`"),
    (("statsu",), Exit.USAGE, "did you mean status?"),
    (("--nothing",), Exit.USAGE, "COMMAND"),
    (("init", "--nothing"), Exit.USAGE, "unrecognized arguments: --nothing"),
    (("init", "--genesis", "/absent"), Exit.USAGE, "/absent: No such file"),
    (("init", "--genesis", "/"), Exit.USAGE, "directory"),
    (("init", "--set", "rpc.prot=1"), Exit.USAGE, "did you mean rpc.port?"),
    (("init", "--set", "rpc.level=info"), Exit.USAGE, "did you mean log.level?"),
    (("init", "--set", "rpc.port"), Exit.USAGE, "SECTION.KEY=VALUE"),
    (("init", "--set", "rpc.port=seven"), Exit.USAGE, "a whole number"),
    (("init", "--set", "rpc.port=" + "9" * 5000), Exit.USAGE, "a whole number"),
    (("init", "--set", "rpc.port=-1"), Exit.USAGE, "a whole number"),
    (("init", "--moniker", "two\nlines"), Exit.USAGE, "node.moniker"),
    (("init", "--home", "/dev/null/x"), Exit.FAILED, "Not a directory"),
    (("init", "--passphrase-file", "/absent"), Exit.USAGE, "/absent"),
    (("init", "--no-passphrase", "--passphrase-file", "x"), Exit.USAGE, "not allowed with"),
    (("start", "--home", "/absent"), Exit.USAGE, "openledger init"),
    (("start", "--set", "x"), Exit.USAGE, "SECTION.KEY=VALUE"),
    (("start", "extra"), Exit.USAGE, "unrecognized"),
    (("status", "--rpc", "localhost:1"), Exit.USAGE, "http://HOST:PORT"),
    (("status", "--rpc", "http://[::1"), Exit.USAGE, "http://HOST:PORT"),
    (("status", "--rpc", "http://localhost:99999"), Exit.USAGE, "http://HOST:PORT"),
    (("status", "--rpc", "ftp://localhost"), Exit.USAGE, "http://HOST:PORT"),
    (("status", "--rpc", "http://h\u00f6st:1"), Exit.USAGE, "http://HOST:PORT"),
    (("status", "--rpc", "http://127.0.0.1:1"), Exit.UNREACHABLE, "is it running?"),
    (("status", "--timeout", "nan"), Exit.USAGE, "expected seconds"),
    (("status", "--timeout", "inf"), Exit.USAGE, "expected seconds"),
    (("status", "--timeout", "-1"), Exit.USAGE, "expected seconds"),
    (("status", "--timeout", "soon"), Exit.USAGE, "expected seconds"),
    (("devnet", "--validators", "3"), Exit.USAGE, "4 to 16"),
    (("devnet", "--validators", "\u00b2"), Exit.USAGE, "4 to 16"),
    (("devnet", "--home", "/etc"), Exit.FAILED, "empty or new directory"),
    (("demo", "--data", "/absent"), Exit.FAILED, "/absent"),
    (("demo", "--validators", "9" * 5000), Exit.USAGE, "4 to 16"),
    (("keys",), Exit.USAGE, "ACTION"),
    (("keys", "nwe", "x"), Exit.USAGE, "did you mean new?"),
    (("keys", "new"), Exit.USAGE, "NAME"),
    (("keys", "new", "../x"), Exit.USAGE, "a name of a-z"),
    (("keys", "new", "x" * 5000), Exit.USAGE, "at most 63"),
    (("keys", "new", "zoe"), Exit.USAGE, "--passphrase-file"),
    (("keys", "new", "ann"), Exit.USAGE, "never overwritten"),
    (("keys", "show", "nobody"), Exit.USAGE, "No such file"),
    (("keys", "import", "zoe", "--file", "/absent"), Exit.USAGE, "No such file"),
    (("keys", "import", "zoe", "--file", "-"), Exit.USAGE, "standard input"),
    (("keys", "export", "ann", "--plain", "--file", "/absent/x"), Exit.FAILED, "/absent"),
    (("keys", "encrypt"), Exit.USAGE, "NAME"),
    (("keys", "encrypt", "ann", "--node"), Exit.USAGE, "not allowed with"),
    (("keys", "encrypt", "--node"), Exit.USAGE, "No such file"),
    (("keys", "passphrase", "ann"), Exit.USAGE, "keys encrypt"),
    (("keys", "list", "--home", "/dev/null"), Exit.OK, "no accounts"),
    (("tx",), Exit.USAGE, "KIND"),
    (("tx", "trasnfer"), Exit.USAGE, "did you mean transfer?"),
    (("tx", "transfer"), Exit.USAGE, "--to"),
    (("tx", "transfer", "--to", "xy", "--amount", "1", "--key", "ann"), Exit.USAGE, "lowercase hex"),
    (("tx", "transfer", "--to", "ab", "--amount", "1", "--key", "ann"), Exit.USAGE, "to:"),
    (("tx", "transfer", "--to", ID.upper(), "--amount", "1", "--key", "ann"), Exit.USAGE, "lowercase hex"),
    (("tx", "transfer", "--to", ID, "--amount", "1"), Exit.USAGE, "--key"),
    (("tx", "transfer", "--to", ID, "--amount", "1", "--key", "nobody"), Exit.USAGE, "nobody.key"),
    (("tx", "transfer", "--to", ID, "--amount", "1", "--key-file", "/absent"), Exit.USAGE, "No such file"),
    ((*TRANSFER, "0"), Exit.USAGE, "amount"),
    ((*TRANSFER, "-5"), Exit.USAGE, "--amount"),
    ((*TRANSFER, "--", "-5"), Exit.USAGE, "--amount"),
    ((*TRANSFER, "1.5"), Exit.USAGE, "1.5open"),
    ((*TRANSFER, "1.0000000001open"), Exit.USAGE, "at most 9 decimals"),
    ((*TRANSFER, "1.open"), Exit.USAGE, "1.5open"),
    ((*TRANSFER, ".5open"), Exit.USAGE, "1.5open"),
    ((*TRANSFER, "nan"), Exit.USAGE, "1.5open"),
    ((*TRANSFER, "1e9"), Exit.USAGE, "1.5open"),
    ((*TRANSFER, "1_000"), Exit.USAGE, "1.5open"),
    ((*TRANSFER, "\u0665"), Exit.USAGE, "1.5open"),
    ((*TRANSFER, str(2**63)), Exit.USAGE, "at most 9223372036854775807 units"),
    ((*TRANSFER, "9999999999999999999open"), Exit.USAGE, "at most 9223372036854775807 units"),
    ((*TRANSFER, "9" * 5000), Exit.USAGE, "1.5open"),
    ((*TRANSFER, "1", "--fee", "-1"), Exit.USAGE, "--fee"),
    ((*TRANSFER, "1", "--fee", "1.5"), Exit.USAGE, "--fee"),
    ((*TRANSFER, "1", "--nonce", str(2**64)), Exit.USAGE, "--nonce"),
    ((*TRANSFER, "1", "--nonce", "-1"), Exit.USAGE, "--nonce"),
    ((*TRANSFER, "1", "--valid-heights", "0"), Exit.USAGE, "1 to 1000000"),
    ((*TRANSFER, "1", "--passphrase", "secret"), Exit.USAGE, "unrecognized arguments"),
    ((*TRANSFER, "1", "--rpc", "http://127.0.0.1:1"), Exit.UNREACHABLE, "--rpc names another"),
    (("query",), Exit.USAGE, "WHAT"),
    (("query", "blcok", "1"), Exit.USAGE, "did you mean block?"),
    (("query", "block", "-1"), Exit.USAGE, "HEIGHT"),
    (("query", "block", "1.5"), Exit.USAGE, "an integer"),
    (("query", "block", "9" * 5000), Exit.USAGE, "an integer"),
    (("query", "tx", "zz"), Exit.USAGE, "64 lowercase hex digits"),
    (("query", "blob", ID), Exit.USAGE, "--out"),
    (("query", "blob", ID, "--out", "/absent/x", "--rpc", "http://127.0.0.1:1"), Exit.UNREACHABLE, "reach"),
    (("verify",), Exit.USAGE, "WHAT"),
    (("verify", "adapter", "zz"), Exit.USAGE, "64 lowercase hex digits"),
    (("verify", "adapter", ID, "--threads", "0"), Exit.USAGE, "1 to 256"),
    (("verify", "adapter", ID, "--threads", "100000"), Exit.USAGE, "1 to 256"),
    (("verify", "adapter", ID, "--rpc", "http://127.0.0.1:1"), Exit.UNREACHABLE, "is it running?"),
    (("model",), Exit.USAGE, "WHAT"),
    (("model", "imprt"), Exit.USAGE, "did you mean import?"),
    (("model", "import"), Exit.USAGE, "DIR"),
    (("model", "import", "/absent", "--bits", "8"), Exit.USAGE, "--bits"),
    (("model", "import", "/absent", "--bytes"), Exit.USAGE, "give a text"),
    (("model", "import", "/absent", "--out", "x", "--home", "y"), Exit.USAGE, "give one"),
    (("model", "import", "/absent", "--tokens", "0"), Exit.USAGE, "1 to 131072"),
    (("model", "import", "/absent"), Exit.FAILED, "config.json cannot be read"),
    (("adapter",), Exit.USAGE, "WHAT"),
    (("adapter", "import", "/absent"), Exit.USAGE, "--out"),
    (("adapter", "import", "/absent", "--out", "/absent/x"), Exit.FAILED, "/absent"),
    (("adapter", "export", "/absent", "--out", "/absent/x"), Exit.FAILED, "absent cannot be read"),
    (("rollback", "--to", "-1"), Exit.USAGE, "--to"),
    (("rollback", "--to", "9" * 5000), Exit.USAGE, "expected a height"),
    (("rollback", "--home", "/absent"), Exit.USAGE, "openledger init"),
    (("inspect", "extra"), Exit.USAGE, "unrecognized"),
    (("inspect", "--home", "/absent"), Exit.USAGE, "openledger init"),
    (("debug",), Exit.USAGE, "WHAT"),
    (("debug", "dmup"), Exit.USAGE, "did you mean dump?"),
    (("debug", "dump", "--home", "/absent"), Exit.USAGE, "openledger init"),
    (("signer", "stauts"), Exit.USAGE, "did you mean status?"),
    (("selfcheck", "--nothing"), Exit.USAGE, "unrecognized"),
    (("spans", "not-an-id"), Exit.USAGE, "hex"),
]


@pytest.mark.parametrize(("arguments", "code", "says"), BAD)
def test_a_mistake_is_one_line_that_says_what_to_do(
    arguments: tuple[object, ...], code: Exit, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == code
    captured = capsys.readouterr()
    lines = [
        line
        for line in (captured.err + captured.out).splitlines()
        if not line.startswith(("note:", "warning:"))
    ]
    assert len(lines) == 1
    assert says in lines[0]
    assert len(lines[0]) < 1500
    if code != Exit.OK:
        assert lines[0].startswith("openledger: ")


@pytest.mark.parametrize(("arguments", "code", "says"), [row for row in BAD if row[1] != Exit.OK])
def test_a_mistake_is_one_json_document_for_programs(
    arguments: tuple[object, ...], code: Exit, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = list(arguments)
    flags.insert(flags.index("--") if "--" in flags else len(flags), "--json")
    assert run(*flags) == code
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == code
    assert {"error", "kind"} <= set(document)


def test_the_table_of_mistakes_covers_every_command() -> None:
    assert {str(row[0][0]) for row in BAD} >= set(COMMANDS)


@pytest.mark.parametrize(
    "command",
    [
        *(("tx", body.NAME.replace("_", "-")) for body in BODIES.values()),
        *(("query", method.name.replace("_", "-")) for method in METHODS.values() if method.params),
    ],
)
def test_every_kind_of_transaction_and_query_refuses_unknown_and_missing_arguments(
    command: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (command, (*command, "--nothing"), (*command, "x", "y", "z", "w", "v")):
        assert run(*arguments) == Exit.USAGE
        error = capsys.readouterr().err
        assert error.startswith("openledger: ")
        assert error.count("\n") == 1


def test_configuration_and_environment_mistakes_name_their_key(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node_home = create_home(home / "node", Config(), b"{}")
    for text, says in (
        ("[rpc]\nprot = 1", "did you mean rpc.port?"),
        ("[rcp]\nport = 1", "did you mean rpc?"),
        ("port = 1", "did you mean rpc.port?"),
        ("[rpc]\nport = true", "rpc.port"),
        ("[rpc]\nport = 0x" + "f" * 6000, "too long to show"),
        ("[rpc", "TOML"),
        ("a = " + "[" * 5000, "less deeply nested"),
        ("\x00", "TOML"),
    ):
        node_home.config_path.write_text(text)
        for command in ("start", "status"):
            assert run(command, "--home", node_home.root) == Exit.USAGE
            assert says in capsys.readouterr().err
    node_home.config_path.write_bytes(b"\xff")
    assert run("start", "--home", node_home.root) == Exit.USAGE
    node_home.config_path.write_text("")
    for name, value, says in (
        ("OPENLEDGER_RPC_PROT", "1", "did you mean rpc.port?"),
        ("OPENLEDGER_RCP_PORT", "1", "did you mean OPENLEDGER_RPC_PORT?"),
        ("OPENLEDGER_RPC_PORT", "1.5", "rpc.port"),
        ("OPENLEDGER_NODE_VALIDATOR", "1", "node.validator"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert run("start", "--home", node_home.root) == Exit.USAGE
            assert says in capsys.readouterr().err
    monkeypatch.setenv("OPENLEDGER_URL", "here")
    assert run("status") == Exit.USAGE
    assert "$OPENLEDGER_URL" in capsys.readouterr().err


def test_a_configuration_that_is_a_folder_is_no_configuration(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node_home = create_home(home / "node", Config(), b"{}")
    node_home.config_path.unlink()
    node_home.config_path.mkdir()
    assert run("start", "--home", node_home.root) == Exit.USAGE
    assert "config.toml is missing" in capsys.readouterr().err


def test_a_home_without_genesis_says_that_and_not_to_create_it_anew(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node_home = create_home(home / "node", Config(), None)
    assert run("start", "--home", node_home.root) == Exit.USAGE
    assert "put the chain's genesis.json there" in capsys.readouterr().err


def test_without_a_home_directory_one_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENLEDGER_HOME")
    monkeypatch.setattr("pathlib.Path.home", no_home)
    with pytest.raises(UsageError, match="--home"):
        default_home()


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize(
    "arguments", [("keys", "show"), ("init", "--no-passphrase", "--home"), ("query", "tx")]
)
def test_arguments_that_are_not_utf8_are_no_traceback(arguments: tuple[str, ...], home: Path) -> None:
    command = [os.fsencode(sys.executable), b"-m", b"node.cli.main", *map(os.fsencode, arguments)]
    command.append(os.fsencode(home) + b"/\xff\xfe" if arguments[0] == "init" else b"\xff\xfe")
    wide = {**os.environ, "COLUMNS": "400"}
    done = subprocess.run(command, capture_output=True, timeout=60, check=False, cwd=ROOT, env=wide)
    assert done.returncode in (Exit.OK, Exit.USAGE)
    assert b"Traceback" not in done.stderr
    assert rb"\udcff\udcfe" in done.stdout + done.stderr


class Liar:
    """A server that answers every call with ``result`` (or the bytes ``raw``), whatever was asked."""

    def __init__(self) -> None:
        self.result: object = None
        self.raw: bytes | None = None
        liar = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                answer = {"jsonrpc": "2.0", "id": request["id"], "result": liar.result}
                body = json.dumps(answer).encode() if liar.raw is None else liar.raw
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def liar() -> Iterator[Liar]:
    made = Liar()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.mark.parametrize(
    "result", [None, 7, "text", [], [1], {}, {"height": "x"}, {"height": 1, "chain_id": "zz"}]
)
def test_a_node_that_answers_another_shape_is_not_our_fault(
    liar: Liar, result: object, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    liar.result = result
    for arguments in (
        ("tx", "transfer", "--to", ID, "--amount", "1", "--key", "ann"),
        ("verify", "adapter", ID),
        ("query", "blob", ID, "--out", home / "out"),
    ):
        assert run(*arguments, "--rpc", liar.url) == Exit.UNREACHABLE
        assert "another shape" in capsys.readouterr().err
    assert run("status", "--rpc", liar.url) in (Exit.OK, Exit.UNREACHABLE)


@pytest.mark.parametrize(
    "raw", [b"", b"<html>", b"\xff", b"[" * 100_000, b'{"id": 1, "error": {"code": "x"}}']
)
def test_an_answer_that_is_no_response_is_not_our_fault(
    liar: Liar, raw: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    liar.raw = raw
    assert run("status", "--rpc", liar.url) == Exit.UNREACHABLE
    assert "Traceback" not in capsys.readouterr().err


def test_a_status_of_a_node_that_never_answers_is_asked_once(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert run("status", "--rpc", f"http://127.0.0.1:{silent.getsockname()[1]}", "--timeout", "0.2") == 3
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()


def test_text_from_strangers_cannot_move_the_cursor_or_reorder_the_line(
    liar: Liar, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "\x1b[2J\x1b]0;title\x07fine\u202egnp.exe\r\x9b1m[red]not red[/]"
    liar.result = {"moniker": hostile, hostile: 1, "peers": [{"address": hostile, hostile: 2}]}
    assert run("status", "--rpc", liar.url) == Exit.OK
    liar.raw = json.dumps(
        {"id": 1, "error": {"code": -32001, "message": hostile + "\nopenledger: done"}}
    ).encode()
    assert run("status", "--rpc", liar.url) == Exit.NOT_FOUND
    captured = capsys.readouterr()
    shown = captured.out + captured.err
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert "[red]" in shown
    assert captured.err.count("\n") == 1


def test_ordinary_text_is_shown_as_it_is() -> None:
    assert printable("zwölf 数据 — fine") == "zwölf 数据 — fine"


def test_every_line_fits_a_terminal_of_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    row: dict[str, object] = dict.fromkeys("abcde", ID)
    print_rows("many", [row, row])
    print_result({"raw": "ab" * 5000, "rows": [row], "empty": "", "none": None}, as_json=False)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count(f" {ID} ") == 15
    assert "10000 characters" in " ".join(shown.replace("│", " ").split())


def test_a_fault_of_ours_is_one_line_and_has_its_own_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(folder: Path) -> list[object]:
        raise ZeroDivisionError("so sorry")

    monkeypatch.setattr("node.cli.keys.list_accounts", broken)
    assert run("keys", "list") == Exit.FAULT
    error = capsys.readouterr().err
    assert "fault of openledger" in error
    assert error.count("\n") == 1
    monkeypatch.setenv("OPENLEDGER_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        run("keys", "list")


def shell(command: str, url: str) -> subprocess.CompletedProcess[str]:
    # Buffered, as it is for people: what is lost at the last flush must still change the exit code.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environment |= {"OPENLEDGER_URL": url, "PY": f"{sys.executable} -m node.cli.main"}
    return subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
        cwd=ROOT,
    )


def test_a_reader_that_leaves_and_a_full_disk_have_their_exit_codes() -> None:
    with running_server(LedgerBackend(execute_at_once=True)) as server:
        left = shell("$PY query params --json | true; echo ${PIPESTATUS[0]}", server.url)
        assert (left.stdout.strip(), left.stderr) == (str(int(Exit.PIPE_CLOSED)), "")
        for flag in ("", "--json"):
            full = shell(f"$PY query params {flag} > /dev/full", server.url)
            assert full.returncode == Exit.FAILED
            assert full.stderr == "openledger: No space left on device\n"
        closed = shell("$PY query params >&-", server.url)
        assert (closed.returncode, closed.stderr) == (Exit.OK, "")


def interrupted(url: str, ready: Callable[[], bool], *flags: str) -> tuple[int, str, str]:
    """Run a transfer that waits, and press Ctrl-C once the node has it."""
    command = [sys.executable, "-m", "node.cli.main", "tx", "transfer", "--to", ID, "--amount", "5"]
    arguments = [*command, "--key", "ann", "--rpc", url, "--wait", *flags]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        wait = threading.Event()
        for _ in range(600):
            if ready() or process.poll() is not None:
                break
            wait.wait(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err


def test_ctrl_c_names_the_transaction_that_was_submitted() -> None:
    with running_server(LedgerBackend(execute_at_once=False)) as server:
        code, _, err = interrupted(server.url, lambda: len(server.backend.pending) == 1)
        assert code == Exit.INTERRUPTED
        assert re.search(r"may have been submitted: `openledger query tx [0-9a-f]{64}`", err)
        assert "Traceback" not in err
