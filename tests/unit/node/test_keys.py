"""Key files and homes: what is created, what is refused, what is never overwritten, what encrypting a key keeps."""

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
    KeyExposed,
    KeyFolderExposed,
    KeyMissing,
    KeyNotRegular,
    KeyOwnerForeign,
    PlainKey,
    account_path,
    check_folder,
    ensure_seed,
    generate_seed,
    list_accounts,
    load_seed,
    make_folder,
    public_key,
    public_key_of,
    read_key,
    reseal,
    store_sealed,
    store_seed,
)
from node.keystore import KdfCost, KeyLocked, KeyMalformed, Passphrase, PassphraseWrong, SealedKey
from node.startup import load_identity

SEED = bytes(range(32))
PASSPHRASE = Passphrase("correct horse")
VALIDATOR = Config(node=NodeSection(validator=True))


@pytest.fixture(autouse=True)
def cheap_sealing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What sealing costs is a parameter of the file; half a second for each would only slow the tests."""
    monkeypatch.setattr("node.keystore.SEALING_COST", KdfCost(1, 8192))


def unlock(path: Path) -> Passphrase:
    return PASSPHRASE


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
    ensure_seed(path)
    assert load_seed(path) == SEED
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o660])
def test_a_key_that_others_may_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a.key"
    store_seed(path, SEED)
    path.chmod(mode)
    with pytest.raises(KeyExposed, match="chmod 600"):
        load_seed(path)


@pytest.mark.parametrize(
    "text",
    ["", "00", SEED.hex().upper(), SEED.hex() + "00", SEED.hex() + "\n\n", " " + SEED.hex(), "zz" * 32],
)
def test_a_malformed_key_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.key"
    write_new(path, text.encode())
    with pytest.raises(KeyMalformed, match="64 lowercase hex digits"):
        load_seed(path)


def test_absent_keys_folders_and_pipes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyMissing, match="No such file"):
        load_seed(tmp_path / "absent.key")
    os.mkfifo(tmp_path / "pipe.key", 0o600)
    for path in (tmp_path, tmp_path / "pipe.key"):
        with pytest.raises(KeyNotRegular):
            load_seed(path)


@pytest.mark.parametrize("sealed", [False, True])
def test_a_symbolic_link_to_a_key_is_refused(tmp_path: Path, sealed: bool) -> None:
    path, link = tmp_path / "a.key", tmp_path / "link.key"
    store_sealed(path, SEED, PASSPHRASE) if sealed else store_seed(path, SEED)
    link.symlink_to(path)
    with pytest.raises(KeyNotRegular, match="symbolic link"):
        load_seed(link, unlock)


def test_another_users_key_is_refused(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        path = tmp_path / "a.key"
        store_seed(path, SEED)
        os.chown(path, 65534, 65534)
    else:
        path = Path("/etc/passwd")  # the owner is looked at before the rest
    with pytest.raises(KeyOwnerForeign, match="run as that user"):
        load_seed(path)


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o720, 0o701, 0o777, 0o1777])
def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "accounts"
    make_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(mode)
    for refusing in (check_folder, make_folder, list_accounts):
        with pytest.raises(KeyFolderExposed, match="chmod 700"):
            refusing(folder)


def test_an_absent_folder_is_a_typed_error_and_has_no_accounts(tmp_path: Path) -> None:
    with pytest.raises(KeyFolderExposed, match="No such file"):
        check_folder(tmp_path / "absent")
    assert list_accounts(tmp_path / "absent") == []


def test_an_encrypted_key_comes_back_under_the_same_rules(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    store_sealed(path, SEED, PASSPHRASE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_seed(path, unlock) == SEED
    assert SEED.hex() not in path.read_text()
    key = read_key(path)
    assert isinstance(key, SealedKey)
    assert public_key_of(key) == public_key(SEED)
    with pytest.raises(HomeExists):
        store_sealed(path, generate_seed(), PASSPHRASE)
    path.chmod(0o640)
    with pytest.raises(KeyExposed):
        load_seed(path, unlock)


def test_an_encrypted_key_without_or_with_a_wrong_passphrase_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    store_sealed(path, SEED, PASSPHRASE)
    with pytest.raises(KeyLocked, match=r"a\.key.*passphrase"):
        load_seed(path)
    with pytest.raises(PassphraseWrong, match=r"a\.key"):
        load_seed(path, lambda path: Passphrase("battery staple"))


def test_nobody_is_asked_for_the_passphrase_of_a_plain_key(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    store_seed(path, SEED)
    assert load_seed(path, lambda path: pytest.fail("asked")) == SEED
    assert SEED.hex() not in repr(PlainKey(SEED))


def test_a_key_that_exists_is_kept_whether_encrypted_or_plain(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    store_sealed(path, SEED, PASSPHRASE)
    before = path.read_bytes()
    ensure_seed(path)
    assert path.read_bytes() == before
    path.write_text("no key")
    with pytest.raises(KeyMalformed):
        ensure_seed(path)


@pytest.mark.parametrize("sealed", [False, True])
def test_encrypting_in_place_keeps_the_key_and_changes_the_passphrase(tmp_path: Path, sealed: bool) -> None:
    path = tmp_path / "a.key"
    store_sealed(path, SEED, PASSPHRASE) if sealed else store_seed(path, SEED)
    fresh = Passphrase("battery staple")
    assert reseal(path, fresh, unlock) == public_key(SEED)
    assert load_seed(path, lambda path: fresh) == SEED
    assert (stat.S_IMODE(path.stat().st_mode), list(tmp_path.iterdir())) == (0o600, [path])
    with pytest.raises(PassphraseWrong):
        load_seed(path, unlock)


def test_a_key_that_does_not_open_again_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.key"
    store_seed(path, SEED)
    # A machine that encrypts wrongly: here another seed than the one it was given.
    wrong = bytes(32)
    honest = __import__("node.keystore", fromlist=["seal_seed"]).seal_seed
    monkeypatch.setattr("node.keys.seal_seed", lambda seed, passphrase: honest(wrong, passphrase))
    with pytest.raises(KeyFileInvalid, match="memory may be faulty"):
        reseal(path, PASSPHRASE)
    assert load_seed(path) == SEED


@pytest.mark.parametrize("name", ["", "../x", "a/b", "A", ".x", "x" * 64, "a b", "-x"])
def test_names_that_could_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeyFileInvalid):
        account_path(tmp_path, name)


def test_accounts_are_listed_by_name(tmp_path: Path) -> None:
    for name in ("bob", "alice"):
        store_seed(account_path(tmp_path, name), generate_seed())
    store_sealed(account_path(tmp_path, "carol"), SEED, PASSPHRASE)
    (tmp_path / "README").write_text("not a key")
    listed = list_accounts(tmp_path)
    assert [(key.name, key.encrypted) for key in listed] == [
        ("alice", False),
        ("bob", False),
        ("carol", True),
    ]
    assert listed[0].address == public_key(load_seed(tmp_path / "alice.key"))
    assert listed[2].address == public_key(SEED)


def test_a_key_that_cannot_be_used_does_not_hide_the_others(tmp_path: Path) -> None:
    for name in ("bob", "alice"):
        store_seed(account_path(tmp_path, name), generate_seed())
    (tmp_path / "alice.key").write_text("damaged")
    alice, bob = list_accounts(tmp_path)
    assert isinstance(alice.problem, KeyMalformed)
    assert alice.address == b""
    assert bob.problem is None


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


def test_a_node_refuses_keys_in_a_folder_that_others_may_enter(tmp_path: Path) -> None:
    home = create_home(tmp_path / "home", VALIDATOR, b"{}")
    load_identity(home, VALIDATOR)
    home.node_key_path.parent.chmod(0o750)
    with pytest.raises(KeyFolderExposed, match="chmod 700"):
        load_identity(home, VALIDATOR)
