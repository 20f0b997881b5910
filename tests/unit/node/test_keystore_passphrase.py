"""Where passphrases come from, in which order, and what is refused without being shown."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from node.keystore import KeyLocked, Passphrase
from node.passphrase import (
    PASSPHRASE_BYTES_MAX,
    PASSPHRASE_FILE_VARIABLE,
    PASSPHRASE_VARIABLE,
    PassphraseInvalid,
    given_passphrase,
    node_unlock,
    read_passphrase_file,
    require_strong,
    take_variables,
    unlock_with,
)

WORDS = "correct horse"


def write(tmp_path: Path, data: bytes, name: str = "passphrase") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def same(one: Passphrase | None, text: str) -> bool:
    return one is not None and one.equals(Passphrase(text))


@pytest.fixture(autouse=True)
def nobody_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_file_holds_one_line(tmp_path: Path, end: bytes) -> None:
    assert same(read_passphrase_file(write(tmp_path, WORDS.encode() + end), "x"), WORDS)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"two\nlines",
        b"correct horse\n\n",
        b"\xff\xfe",
        b"tab\tbed",
        b"nul\0",
        b"x" * (PASSPHRASE_BYTES_MAX + 1),
    ],
)
def test_what_is_no_passphrase_is_refused_and_not_shown(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(PassphraseInvalid) as caught:
        read_passphrase_file(write(tmp_path, data), "--passphrase-file")
    assert "--passphrase-file" in str(caught.value)
    assert caught.value.got is None
    assert len(data) < 5 or data[:5].decode("latin-1") not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path, WORDS.encode())
    path.chmod(mode)
    with pytest.raises(PassphraseInvalid, match="chmod 600"):
        read_passphrase_file(path, "x")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(PassphraseInvalid, match=str(path)):
            read_passphrase_file(path, "x")


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o644)
    writer = threading.Thread(target=lambda: pipe.write_bytes(WORDS.encode() + b"\n"))
    writer.start()
    assert same(read_passphrase_file(pipe, "x"), WORDS)
    writer.join()


def test_a_flag_beats_the_environment_and_that_names_a_text_or_a_file(tmp_path: Path) -> None:
    flag, named = write(tmp_path, b"from the flag", "flag"), write(tmp_path, b"from the file", "named")
    assert same(given_passphrase(flag, {PASSPHRASE_VARIABLE: "from the variable"}), "from the flag")
    assert same(given_passphrase(None, {PASSPHRASE_VARIABLE: "from the variable"}), "from the variable")
    assert same(given_passphrase(None, {PASSPHRASE_FILE_VARIABLE: str(named)}), "from the file")
    assert given_passphrase(None, {}) is None
    with pytest.raises(PassphraseInvalid, match="not both"):
        given_passphrase(None, {PASSPHRASE_VARIABLE: "one", PASSPHRASE_FILE_VARIABLE: str(named)})


def test_short_passphrases_open_keys_but_encrypt_none() -> None:
    assert same(given_passphrase(None, {PASSPHRASE_VARIABLE: "short"}), "short")
    with pytest.raises(PassphraseInvalid, match="at least 8 characters"):
        require_strong(Passphrase("1234567"), "x")
    assert same(require_strong(Passphrase("12345678"), "x"), "12345678")


def test_nothing_is_read_before_a_key_turns_out_to_be_encrypted(tmp_path: Path) -> None:
    unlock = unlock_with(tmp_path / "absent", {})
    with pytest.raises(PassphraseInvalid, match="absent"):
        unlock(tmp_path / "a.key")


def test_without_passphrase_and_terminal_the_error_names_the_key_and_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(KeyLocked, match=rf"a\.key.*--passphrase-file or {PASSPHRASE_FILE_VARIABLE}"):
        unlock_with(None, {})(tmp_path / "a.key")


def test_a_passphrase_is_read_once_for_all_keys(tmp_path: Path) -> None:
    path = write(tmp_path, WORDS.encode())
    unlock = unlock_with(path, {})
    first = unlock(tmp_path / "a.key")
    path.unlink()
    assert unlock(tmp_path / "b.key") is first


def test_a_nodes_environment_beats_its_configuration_and_is_not_inherited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, b"from the configuration", "secret")
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "from the variable")
    unlock = node_unlock(tmp_path, "secret")
    assert PASSPHRASE_VARIABLE not in os.environ
    assert same(unlock(tmp_path / "node.key"), "from the variable")
    assert same(node_unlock(tmp_path, "secret")(tmp_path / "node.key"), "from the configuration")
    with pytest.raises(KeyLocked, match=r"node\.key.*keys\.passphrase_file"):
        node_unlock(tmp_path, "")(tmp_path / "node.key")


def test_both_variables_are_taken_and_no_others() -> None:
    environment = {PASSPHRASE_VARIABLE: "a", PASSPHRASE_FILE_VARIABLE: "b", "OPENLEDGER_HOME": "/x"}
    assert take_variables(environment) == {PASSPHRASE_VARIABLE: "a", PASSPHRASE_FILE_VARIABLE: "b"}
    assert environment == {"OPENLEDGER_HOME": "/x"}
