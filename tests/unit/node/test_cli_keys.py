"""``openledger keys``: what is encrypted, what is refused, what is never shown."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from node.cli.main import main
from node.cli.output import Exit
from node.config import Config, load_config
from node.home import Home, create_home
from node.keys import PlainKey, load_seed, public_key, read_key, store_sealed, store_seed
from node.keystore import KdfCost, Passphrase, SealedKey

WORDS = "correct horse"
OTHER = "battery staple"
SEED = bytes(range(32))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home of the command line, nobody at a terminal, and a cost of sealing for tests."""
    root = tmp_path / "home"
    monkeypatch.setenv("OPENLEDGER_HOME", str(root))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("node.keystore.SEALING_COST", KdfCost(1, 8192))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    for name in ("OPENLEDGER_URL", "OPENLEDGER_PASSPHRASE", "OPENLEDGER_PASSPHRASE_FILE"):
        monkeypatch.delenv(name, raising=False)
    return Home(root)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    return secret_file(tmp_path / "words", WORDS)


def secret_file(path: Path, text: str) -> Path:
    path.write_text(text + "\n")
    path.chmod(0o600)
    return path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def run_json(
    capsys: pytest.CaptureFixture[str], *arguments: object, exit_code: int = Exit.OK
) -> dict[str, object]:
    capsys.readouterr()
    assert run(*arguments, "--json") == exit_code
    document = json.loads(capsys.readouterr().out)
    assert isinstance(document, dict)
    return document


def account(home: Home, name: str) -> Path:
    return home.accounts_path / f"{name}.key"


def opened(path: Path, words: str = WORDS) -> bytes:
    assert isinstance(read_key(path), SealedKey)
    return load_seed(path, lambda path: Passphrase(words))


def test_a_new_key_is_encrypted_in_a_folder_of_its_own(
    home: Home, words: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = run_json(capsys, "keys", "new", "zoe", "--passphrase-file", words)
    seed = opened(account(home, "zoe"))
    assert document == {
        "name": "zoe",
        "address": public_key(seed).hex(),
        "file": str(account(home, "zoe")),
        "encrypted": True,
    }
    assert home.accounts_path.stat().st_mode & 0o777 == 0o700


def test_without_a_passphrase_no_key_is_written(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    document = run_json(capsys, "keys", "new", "zoe", exit_code=Exit.USAGE)
    assert document["kind"] == "PassphraseInvalid"
    assert "--passphrase-file" in str(document["error"])
    assert not account(home, "zoe").exists()


def test_plain_keys_take_a_flag_and_come_with_a_warning(
    home: Home, words: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("keys", "new", "zoe", "--no-passphrase") == Exit.OK
    assert "stored in the clear" in capsys.readouterr().err
    assert isinstance(read_key(account(home, "zoe")), PlainKey)
    assert run("keys", "new", "zoe2", "--no-passphrase", "--passphrase-file", words) == Exit.USAGE


@pytest.mark.parametrize("variable", ["OPENLEDGER_PASSPHRASE", "OPENLEDGER_PASSPHRASE_FILE"])
def test_the_environment_gives_a_passphrase(
    home: Home, words: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, WORDS if variable == "OPENLEDGER_PASSPHRASE" else str(words))
    assert run("keys", "new", "zoe") == Exit.OK
    opened(account(home, "zoe"))


def test_a_short_passphrase_encrypts_nothing(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = secret_file(tmp_path / "short", "1234567")
    assert run("keys", "new", "zoe", "--passphrase-file", short) == Exit.USAGE
    captured = capsys.readouterr()
    assert "at least 8 characters" in captured.err
    assert "1234567" not in captured.err
    assert not account(home, "zoe").exists()


def test_no_command_overwrites_a_key(home: Home, words: Path, tmp_path: Path) -> None:
    assert run("keys", "new", "zoe", "--passphrase-file", words) == Exit.OK
    before = account(home, "zoe").read_bytes()
    out = secret_file(tmp_path / "out", "")
    key = tmp_path / "other.key"
    store_seed(key, SEED)
    for arguments in (
        ("new", "zoe", "--passphrase-file", words),
        ("new", "zoe", "--no-passphrase"),
        ("import", "zoe", "--file", key, "--no-passphrase"),
        ("export", "zoe", "--file", out),
        ("export", "zoe", "--plain", "--file", out, "--passphrase-file", words),
    ):
        assert run("keys", *arguments) == Exit.USAGE
    assert account(home, "zoe").read_bytes() == before
    assert out.read_text() == "\n"


def test_keys_are_listed_and_shown_without_a_passphrase(
    home: Home, words: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("keys", "new", "ann", "--no-passphrase")
    made = run_json(capsys, "keys", "new", "zoe", "--passphrase-file", words)
    assert run_json(capsys, "keys", "show", "zoe") == made
    assert run("keys", "list", "--json") == Exit.OK
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["encrypted"]) for row in rows] == [("ann", False), ("zoe", True)]
    assert run("keys", "list") == Exit.OK
    captured = capsys.readouterr()
    assert str(made["address"]) in captured.out
    assert "stored in the clear: ann;" in captured.err


def test_a_damaged_key_is_listed_with_its_problem_and_the_others_too(
    home: Home, words: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("keys", "new", "ann", "--passphrase-file", words)
    run("keys", "new", "zoe", "--passphrase-file", words)
    account(home, "ann").write_bytes(account(home, "ann").read_bytes()[:100])
    capsys.readouterr()
    assert run("keys", "list", "--json") == Exit.FAILED
    ann, zoe = json.loads(capsys.readouterr().out)
    assert (ann["address"], "problem" in ann, "problem" in zoe) == (None, True, False)


def test_check_opens_the_key(
    home: Home, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("keys", "new", "zoe", "--passphrase-file", words)
    assert run_json(capsys, "keys", "show", "zoe", "--check", "--passphrase-file", words)["opens"] is True
    wrong = secret_file(tmp_path / "wrong", OTHER)
    document = run_json(
        capsys, "keys", "show", "zoe", "--check", "--passphrase-file", wrong, exit_code=Exit.USAGE
    )
    assert (document["kind"], document["file"]) == ("PassphraseWrong", str(account(home, "zoe")))
    document = run_json(capsys, "keys", "show", "zoe", "--check", exit_code=Exit.USAGE)
    assert document["kind"] == "KeyLocked"


def test_an_exported_key_stays_encrypted_and_comes_back(
    home: Home, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run_json(capsys, "keys", "new", "zoe", "--passphrase-file", words)
    out = tmp_path / "out.key"
    assert run_json(capsys, "keys", "export", "zoe", "--file", out)["encrypted"] is True
    assert out.stat().st_mode & 0o777 == 0o600
    assert out.read_bytes() == account(home, "zoe").read_bytes()
    back = run_json(capsys, "keys", "import", "zoe2", "--file", out, "--passphrase-file", words)
    assert (back["address"], back["encrypted"]) == (made["address"], True)
    assert opened(account(home, "zoe2")) == opened(account(home, "zoe"))
    out.chmod(0o644)
    assert run("keys", "import", "zoe3", "--file", out, "--passphrase-file", words) == Exit.USAGE


def test_a_plain_export_takes_the_passphrase_and_warns(
    home: Home, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("keys", "new", "zoe", "--passphrase-file", words)
    out = tmp_path / "out.key"
    assert run("keys", "export", "zoe", "--plain", "--file", out) == Exit.USAGE
    assert not out.exists()
    capsys.readouterr()
    assert run("keys", "export", "zoe", "--plain", "--file", out, "--passphrase-file", words) == Exit.OK
    assert "stored in the clear" in capsys.readouterr().err
    assert load_seed(out) == opened(account(home, "zoe"))


def test_a_plain_key_is_exported_encrypted_unless_told_otherwise(
    home: Home, words: Path, tmp_path: Path
) -> None:
    run("keys", "new", "ann", "--no-passphrase")
    out = tmp_path / "out.key"
    assert run("keys", "export", "ann", "--file", out) == Exit.USAGE
    assert not out.exists()
    assert run("keys", "export", "ann", "--file", out, "--passphrase-file", words) == Exit.OK
    assert opened(out) == load_seed(account(home, "ann"))


def test_plain_keys_are_imported_encrypted(
    home: Home, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tmp_path / "plain.key"
    store_seed(plain, SEED)
    assert run("keys", "import", "ann", "--file", plain, "--passphrase-file", words) == Exit.OK
    assert opened(account(home, "ann")) == SEED
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(SEED.hex().encode() + b"\n")))
    assert run("keys", "import", "ben", "--file", "-", "--no-passphrase") == Exit.OK
    assert load_seed(account(home, "ben")) == SEED


@pytest.mark.parametrize(
    "data", [b"", b"00", b"zz" * 32, b"\xff" * 64, SEED.hex().upper().encode(), b"00" * 40]
)
def test_what_is_no_seed_on_standard_input_is_refused(
    data: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert run("keys", "import", "ben", "--file", "-", "--no-passphrase") == Exit.USAGE
    assert "64 lowercase hex digits" in capsys.readouterr().err


def test_a_plain_key_is_encrypted_in_place_once(
    home: Home, words: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("keys", "new", "ann", "--no-passphrase")
    seed = load_seed(account(home, "ann"))
    assert run("keys", "encrypt", "ann") == Exit.USAGE
    assert load_seed(account(home, "ann")) == seed
    assert run("keys", "encrypt", "ann", "--passphrase-file", words) == Exit.OK
    assert opened(account(home, "ann")) == seed
    capsys.readouterr()
    assert run("keys", "encrypt", "ann", "--passphrase-file", words) == Exit.USAGE
    assert "keys passphrase" in capsys.readouterr().err


def test_a_nodes_keys_are_encrypted_in_place_all_with_one_salt(home: Home, words: Path) -> None:
    create_home(home.root, load_config(None, {}, {"node.validator": True}), None)
    paths = sorted(home.node_key_path.parent.glob("*.key"))
    before = [load_seed(path) for path in paths]
    assert run("keys", "encrypt", "--node", "--passphrase-file", words) == Exit.OK
    assert [opened(path) for path in paths] == before
    keys = [read_key(path) for path in paths]
    assert len(keys) == 4
    assert len({key.salt for key in keys if isinstance(key, SealedKey)}) == 1


def test_a_passphrase_is_changed_for_all_of_a_nodes_keys_or_for_none(
    home: Home, words: Path, tmp_path: Path
) -> None:
    create_home(home.root, Config(), None)
    run("keys", "encrypt", "--node", "--passphrase-file", words)
    fresh = secret_file(tmp_path / "fresh", OTHER)
    change = ("keys", "passphrase", "--node", "--passphrase-file", words, "--new-passphrase-file", fresh)
    # The last in the order in which they are changed: those before it must not have been.
    odd = home.node_key_path
    seed = opened(odd)
    odd.unlink()
    store_sealed(odd, seed, Passphrase("yet another"))
    assert run(*change) == Exit.USAGE
    opened(home.account_key_path)
    odd.unlink()
    store_sealed(odd, seed, Passphrase(WORDS))
    assert run(*change) == Exit.OK
    assert opened(odd, OTHER) == seed
    opened(home.account_key_path, OTHER)


def test_changing_the_passphrase_of_a_plain_key_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    run("keys", "new", "ann", "--no-passphrase")
    assert run("keys", "passphrase", "ann") == Exit.USAGE
    assert "keys encrypt" in capsys.readouterr().err


def test_init_encrypts_a_validators_keys_and_names_the_file(
    home: Home, words: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = run_json(capsys, "init", "--validator", "--passphrase-file", words)
    assert document["encrypted"] is True
    assert document["account"] == public_key(opened(home.account_key_path)).hex()
    for path in (home.node_key_path, home.consensus_key_path, home.beacon_key_path):
        opened(path)
    assert load_config(home.config_path, {}).keys.passphrase_file == str(words)
    assert run("init", "--validator", "--passphrase-file", words) == Exit.USAGE


def test_init_goes_on_with_encrypted_keys_only_if_the_passphrase_opens_them(
    home: Home, words: Path, tmp_path: Path
) -> None:
    assert run("init", "--passphrase-file", words) == Exit.OK
    seed = opened(home.account_key_path)
    home.config_path.unlink()
    assert run("init", "--passphrase-file", secret_file(tmp_path / "wrong", OTHER)) == Exit.USAGE
    assert run("init", "--passphrase-file", words) == Exit.OK
    assert opened(home.account_key_path) == seed


def test_init_without_a_passphrase_says_that_keys_are_plain(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("init") == Exit.OK
    assert "stored in the clear" in capsys.readouterr().err
    assert isinstance(read_key(home.node_key_path), PlainKey)


def test_neither_seeds_nor_passphrases_are_shown(
    home: Home, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--passphrase-file", words)
    run("keys", "new", "zoe", *given)
    run("keys", "new", "ann", "--no-passphrase")
    run("keys", "show", "zoe", "--check", *given)
    run("keys", "list", "--json")
    run("keys", "export", "zoe", "--plain", "--file", tmp_path / "zoe.key", *given)
    run("keys", "encrypt", "ann", *given)
    run("init", "--validator", *given)
    run("keys", "show", "zoe", "--check", "--passphrase-file", secret_file(tmp_path / "wrong", OTHER))
    captured = capsys.readouterr()
    shown = captured.out + captured.err
    for path in (account(home, "zoe"), account(home, "ann"), home.beacon_key_path, home.account_key_path):
        assert opened(path).hex() not in shown
    assert WORDS not in shown
    assert OTHER not in shown


def test_every_command_refuses_a_folder_of_keys_that_others_may_enter(
    home: Home, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("keys", "new", "ann", "--no-passphrase")
    home.accounts_path.chmod(0o755)
    capsys.readouterr()
    for arguments in (
        ("keys", "new", "zoe", "--passphrase-file", words),
        ("keys", "list"),
        ("keys", "show", "ann"),
        ("keys", "export", "ann", "--file", tmp_path / "out"),
        ("keys", "encrypt", "ann", "--passphrase-file", words),
        ("tx", "transfer", "--to", "ab" * 32, "--amount", "1", "--key", "ann", "--rpc", "http://127.0.0.1:1"),
    ):
        assert run(*arguments) == Exit.USAGE
        assert "chmod 700" in capsys.readouterr().err
