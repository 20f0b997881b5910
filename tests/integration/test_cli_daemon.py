"""``openledger start`` and prompts as a person meets them: real processes, real key files, a real terminal."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from node.client import Client
from node.devnet.layout import Layout
from node.devnet.network import Network, create_network
from node.home import Home
from node.keys import load_seed, read_key, reseal
from node.keystore import KdfCost, Passphrase, PassphraseWrong, SealedKey

ROOT = Path(__file__).parents[2]
WORDS = "correct horse"
COMMAND = [sys.executable, "-m", "node.cli.main"]
# Gives the child a terminal of its own: standard input becomes the terminal that prompts are read from.
IN_A_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
READY_S = 60.0


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    """Homes of a network, one of whose validators has encrypted keys; cheaply sealed, as their files say."""
    layout = Layout(tmp_path_factory.mktemp("network"))
    layout.accounts.mkdir(mode=0o700)
    made = create_network(layout, 4, ("ann",))
    passphrase = Passphrase(WORDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("node.keystore.SEALING_COST", KdfCost(1, 8192))
        for path in made.validators[0].home.node_key_path.parent.glob("*.key"):
            reseal(path, passphrase)
    return made


@pytest.fixture
def sealed(network: Network, tmp_path: Path) -> Home:
    """A copy of the home with the encrypted keys."""
    return Home(Path(shutil.copytree(network.validators[0].home.root, tmp_path / "sealed")))


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OPENLEDGER_")}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200", **more}


def start(home: Home, *flags: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a daemon that is expected to refuse."""
    return subprocess.run(
        [*COMMAND, "start", "--home", str(home.root), *flags],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=READY_S,
        check=False,
        env=environment(**more),
    )


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_S
    while not path.is_file():
        assert process.poll() is None, "the daemon ended"
        assert time.monotonic() < deadline, "the daemon does not listen"
        time.sleep(0.05)


def stop(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(30)


def test_a_validator_starts_from_encrypted_keys_and_its_worker_does_not_learn_the_passphrase(
    sealed: Home,
) -> None:
    with (
        (sealed.root / "log").open("wb") as errors,
        subprocess.Popen(
            [*COMMAND, "start", "--home", str(sealed.root)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=environment(OPENLEDGER_PASSPHRASE=WORDS),
        ) as process,
    ):
        try:
            wait_for(sealed.rpc_url_path, process)
            status = Client(sealed.rpc_url_path.read_text().strip()).status()
            assert status["validator"] is True
            assert all(WORDS.encode() not in environ for environ in environments_of_children(process.pid))
        finally:
            code = stop(process)
    assert code == 0
    log = (sealed.root / "log").read_text()
    assert WORDS not in log
    assert "keys_in_the_clear" not in log


def environments_of_children(pid: int) -> list[bytes]:
    children = Path(f"/proc/{pid}/task").glob("*/children")
    pids = {child for listing in children for child in listing.read_text().split()}
    return [Path(f"/proc/{child}/environ").read_bytes() for child in pids]


def test_a_daemon_that_cannot_open_its_keys_says_which_and_what_to_set(sealed: Home) -> None:
    locked = start(sealed)
    assert locked.returncode == 2
    assert "node.key" in locked.stderr
    assert "OPENLEDGER_PASSPHRASE_FILE" in locked.stderr
    wrong = start(sealed, OPENLEDGER_PASSPHRASE="battery staple")
    assert wrong.returncode == 2
    assert "node.key" in wrong.stderr
    assert "battery" not in wrong.stderr
    for done in (locked, wrong):
        assert "Traceback" not in done.stderr
        assert not sealed.data_path.joinpath("chain").exists()


def test_a_port_in_use_is_named_with_what_to_set(network: Network) -> None:
    home = network.full_node.home
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = start(home, "--set", f"rpc.port={port}", "--json")
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "[rpc] host and port" in done.stderr
    assert "Traceback" not in done.stderr


class Terminal:
    """A command in a terminal of its own: what it shows, and what a person types."""

    def __init__(self, *arguments: str, home: Path) -> None:
        self.master, slave = os.openpty()
        command = [sys.executable, "-c", IN_A_TERMINAL, *COMMAND, *arguments]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment(OPENLEDGER_HOME=str(home))
        )
        os.close(slave)
        self.shown = b""

    def wait_for(self, text: bytes) -> None:
        """Read until ``text`` was shown after what was waited for before."""
        seen = len(self.shown)
        deadline = time.monotonic() + READY_S
        while text not in self.shown[seen:]:
            assert select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))[0], self.shown
            part = self._read()
            assert part, self.shown
            self.shown += part

    def _read(self) -> bytes:
        try:
            return os.read(self.master, 4096)
        except OSError:  # Linux's way to say that nobody holds the other end any more
            return b""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode() + b"\n")

    def end(self) -> int:
        deadline = time.monotonic() + READY_S
        while select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))[0]:
            part = self._read()
            if not part:
                break
            self.shown += part
        code = self.process.wait(READY_S)
        os.close(self.master)
        return code


@pytest.fixture
def account_home(tmp_path: Path) -> Path:
    return tmp_path / "person"


def test_a_person_is_asked_twice_and_what_is_typed_is_not_shown(account_home: Path) -> None:
    terminal = Terminal("keys", "new", "zoe", home=account_home)
    terminal.wait_for(b"passphrase for zoe.key:")
    terminal.type(WORDS)
    terminal.wait_for(b"same again:")
    terminal.type(WORDS)
    assert terminal.end() == 0
    assert b"horse" not in terminal.shown
    path = account_home / "accounts" / "zoe.key"
    assert isinstance(read_key(path), SealedKey)
    load_seed(path, lambda path: Passphrase(WORDS))
    with pytest.raises(PassphraseWrong):
        load_seed(path, lambda path: Passphrase(WORDS + " "))

    terminal = Terminal("keys", "show", "zoe", "--check", home=account_home)
    terminal.wait_for(b"zoe.key:")
    terminal.type(WORDS)
    assert terminal.end() == 0
    assert b"horse" not in terminal.shown


def test_two_different_answers_write_no_key(account_home: Path) -> None:
    terminal = Terminal("keys", "new", "zoe", home=account_home)
    terminal.wait_for(b"passphrase for zoe.key:")
    terminal.type(WORDS)
    terminal.wait_for(b"same again:")
    terminal.type("correct house")
    assert terminal.end() == 2
    assert b"nothing was written" in terminal.shown
    assert not (account_home / "accounts").exists()


@pytest.mark.parametrize(("key", "code"), [(b"\x03", 130), (b"\x04", 2)])
def test_ctrl_c_and_ctrl_d_at_the_prompt_are_no_traceback(account_home: Path, key: bytes, code: int) -> None:
    terminal = Terminal("keys", "new", "zoe", home=account_home)
    terminal.wait_for(b"passphrase for zoe.key:")
    os.write(terminal.master, key)
    assert terminal.end() == code
    assert b"Traceback" not in terminal.shown


def test_init_asks_and_takes_an_empty_answer_for_plain_keys(account_home: Path) -> None:
    terminal = Terminal("init", home=account_home)
    terminal.wait_for(b"store them in the clear):")
    terminal.type("")
    assert terminal.end() == 0
    assert b"stored in the clear" in terminal.shown
    load_seed(account_home / "keys" / "node.key")


def test_a_daemon_in_a_terminal_asks_once_for_all_its_keys(sealed: Home) -> None:
    terminal = Terminal("start", "--home", str(sealed.root), home=sealed.root)
    terminal.wait_for(b"node.key:")
    terminal.type("battery staple")
    assert terminal.end() == 2
    assert b"does not open it" in terminal.shown
    assert b"battery" not in terminal.shown
