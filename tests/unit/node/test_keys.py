"""Key files and homes: what is created, what is refused, what is never overwritten."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from node.config import Config, NodeSection, load_config
from node.errors import HomeExists, HomeLocked, HomeMissing, KeyFileInvalid
from node.home import create_home, lock_home, open_home, write_atomic, write_new
from node.keys import (
    account_path,
    ensure_seed,
    generate_seed,
    list_accounts,
    load_seed,
    public_key,
    store_seed,
)

SEED = bytes(range(32))
VALIDATOR = Config(node=NodeSection(validator=True))


def test_a_stored_seed_comes_back_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    store_seed(path, SEED)
    assert load_seed(path) == SEED
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == SEED.hex() + "\n"


def test_the_public_key_is_ed25519s() -> None:
    # RFC 8032, section 7.1, test 1.
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    assert public_key(seed).hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    store_seed(path, SEED)
    with pytest.raises(HomeExists):
        store_seed(path, generate_seed())
    assert ensure_seed(path) == load_seed(path) == SEED
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o660])
def test_a_key_that_others_may_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a.key"
    store_seed(path, SEED)
    path.chmod(mode)
    with pytest.raises(KeyFileInvalid, match="chmod 600"):
        load_seed(path)


@pytest.mark.parametrize(
    "text",
    ["", "00", SEED.hex().upper(), SEED.hex() + "00", SEED.hex() + "\n\n", " " + SEED.hex(), "zz" * 32],
)
def test_a_malformed_key_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.key"
    write_new(path, text.encode())
    with pytest.raises(KeyFileInvalid, match="64 lowercase hex digits"):
        load_seed(path)


def test_absent_keys_and_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.key", tmp_path):
        with pytest.raises(KeyFileInvalid):
            load_seed(path)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "A", ".x", "x" * 64, "a b", "-x"])
def test_names_that_could_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeyFileInvalid):
        account_path(tmp_path, name)


def test_accounts_are_listed_by_name(tmp_path: Path) -> None:
    for name in ("bob", "alice"):
        store_seed(account_path(tmp_path, name), generate_seed())
    (tmp_path / "README").write_text("not a key")
    listed = list_accounts(tmp_path)
    assert [key.name for key in listed] == ["alice", "bob"]
    assert listed[0].address == public_key(load_seed(tmp_path / "alice.key"))


@pytest.mark.parametrize("validator", [True, False])
def test_a_home_has_the_keys_of_its_role_all_different(tmp_path: Path, validator: bool) -> None:
    config = Config(node=NodeSection(validator=validator))
    home = create_home(tmp_path / "home", config, b"{}")
    assert load_config(home.config_path, {}) == config
    keys = {path.stem: load_seed(path) for path in (home.root / "keys").iterdir()}
    expected = {"node", "account"} | ({"consensus", "beacon"} if validator else set())
    assert set(keys) == expected
    assert len(set(keys.values())) == len(expected)
    assert stat.S_IMODE(home.node_key_path.parent.stat().st_mode) == 0o700
    assert open_home(home.root) == home


def test_a_home_is_never_overwritten_but_an_interrupted_creation_goes_on(tmp_path: Path) -> None:
    home = create_home(tmp_path / "home", VALIDATOR, b"{}")
    with pytest.raises(HomeExists):
        create_home(home.root, VALIDATOR, None)
    before = load_seed(home.consensus_key_path)
    home.config_path.unlink()
    home.genesis_path.unlink()
    home.beacon_key_path.unlink()
    create_home(home.root, VALIDATOR, b"{}")
    assert load_seed(home.consensus_key_path) == before
    load_seed(home.beacon_key_path)


def test_what_is_not_a_home_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(HomeMissing, match=r"config\.toml is missing.*openledger init"):
        open_home(tmp_path)
    home = create_home(tmp_path / "home", Config(), None)
    with pytest.raises(HomeMissing, match=r"genesis\.json"):
        open_home(home.root)


HOLDER = """
import sys
from pathlib import Path
from node.home import Home, lock_home
with lock_home(Home(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_home_serves_one_process_until_that_ends_however_it_ends(tmp_path: Path) -> None:
    home = create_home(tmp_path / "home", Config(), b"{}")
    command = [sys.executable, "-c", HOLDER, str(home.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(HomeLocked) as caught, lock_home(home):
            pytest.fail("the lock was given twice")
        assert caught.value.pid == holder.pid
        holder.kill()
        holder.wait()
    with lock_home(home):
        assert home.lock_path.read_text() == f"{os.getpid()}\n"


def test_an_atomic_write_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old", mode=0o644)
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomic(folder, b"data")
    assert list(tmp_path.iterdir()) == [folder]
