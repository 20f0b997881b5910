"""A signer's home: drawn anew or taken over from a validator, opened once at a time, and refused when it is not whole."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from consensus.effects import Persist
from consensus.safety import SafetyRecord
from node.cli.main import main
from node.config import load_config, render_toml
from node.devnet.layout import claim_home
from node.devnet.network import create_network
from node.errors import ConfigInvalid, HomeExists, HomeLocked
from node.home import Home, lock_home
from node.keys import load_seed, public_key, read_key
from node.keystore import SealedKey
from node.node import Node
from node.observe import not_ready_reason, standing_of
from node.signer.errors import SignerUnavailable
from node.signer.home import SignerHome, open_signer, take_over
from node.signer.protocol import AskStatus, AskVote, Status
from node.storage.chain import ChainStore
from node.storage.database import Database
from node.storage.errors import SafetyRecordUnusable
from node.storage.guard import SafetyGuard

RECORD = SafetyRecord(0, last_voted=10, lock=9)
NOTHING = Persist(
    sync=True, record=None, certificates=None, blocks=(), committed=(), proof=None, reveals=(), forgotten=()
)


@pytest.fixture(scope="module")
def used_home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A validator's home whose key has signed up to round 10."""
    with claim_home(tmp_path_factory.mktemp("signer-home") / "devnet") as layout:
        home = create_network(layout, 4, ["alice"]).validators[0].home
    Node(home, load_config(home.config_path, environment={})).close()
    sign(home, RECORD)
    return home


@pytest.fixture
def home(used_home: Home, tmp_path: Path) -> Home:
    return Home(Path(shutil.copytree(used_home.root, tmp_path / "node")))


@pytest.fixture
def place(tmp_path: Path) -> SignerHome:
    return SignerHome(tmp_path / "signer")


def sign(home: Home, record: SafetyRecord) -> None:
    database = Database(home.data_path / "chain")
    store = ChainStore(database)
    store.guard = SafetyGuard(home.safety_guard_path)
    store.persist(replace(NOTHING, record=record.to_bytes()))
    database.close()


def use_signer(home: Home, socket: Path, key: bytes) -> None:
    """Have the daemon of this home ask a signer."""
    config = load_config(home.config_path, environment={})
    section = replace(config.signer, socket=str(socket), public_key=key.hex())
    home.config_path.write_text(render_toml(replace(config, signer=section)))


def open_node(home: Home) -> Node:
    return Node(home, load_config(home.config_path, environment={}))


def test_a_key_that_is_taken_over_comes_with_what_it_signed_and_leaves_its_home(
    home: Home, place: SignerHome
) -> None:
    seed = load_seed(home.consensus_key_path)
    assert take_over(place, home) == public_key(seed)
    assert load_seed(place.home.consensus_key_path) == seed
    assert [path.name for path in home.consensus_key_path.parent.glob("consensus*")] == ["consensus.used"]
    with open_signer(place, None) as custodian:
        status = custodian.answer(AskStatus())
        assert isinstance(status, Status)
        assert (status.public, status.record) == (public_key(seed), RECORD)


def test_a_key_that_is_copied_back_is_refused_by_the_home_it_came_from(home: Home, place: SignerHome) -> None:
    """The signer may have signed since, and the daemon's copy of the record is advisory."""
    take_over(place, home)
    shutil.copy(place.home.consensus_key_path, home.consensus_key_path)
    with pytest.raises(SafetyRecordUnusable, match="is missing"):
        open_node(home)


def test_nothing_is_taken_from_a_running_daemon(home: Home, place: SignerHome) -> None:
    with lock_home(home), pytest.raises(HomeLocked):
        take_over(place, home)
    assert home.consensus_key_path.is_file()


def test_nothing_is_taken_from_a_home_that_was_rolled_back(home: Home, place: SignerHome) -> None:
    old = home.root / "old"
    shutil.copytree(home.data_path, old)
    sign(home, replace(RECORD, last_voted=12))
    shutil.rmtree(home.data_path)
    shutil.copytree(old, home.data_path)
    with pytest.raises(SafetyRecordUnusable, match="last voted 10 after 12"):
        take_over(place, home)
    home.safety_guard_path.unlink()
    with pytest.raises(SafetyRecordUnusable, match="is missing"):
        take_over(place, home)
    assert home.consensus_key_path.is_file()
    assert not place.home.consensus_key_path.exists()


def test_a_signers_home_is_never_overwritten(home: Home, place: SignerHome, used_home: Home) -> None:
    take_over(place, home)
    book = place.book_path.read_bytes()
    with pytest.raises(HomeExists):
        take_over(place, used_home)
    assert place.book_path.read_bytes() == book
    assert used_home.consensus_key_path.is_file()


def test_a_copied_key_without_its_book_is_no_signer(home: Home, place: SignerHome) -> None:
    place.home.consensus_key_path.parent.mkdir(mode=0o700, parents=True)
    shutil.copy(home.consensus_key_path, place.home.consensus_key_path)
    shutil.copy(home.genesis_path, place.home.genesis_path)
    with pytest.raises(ConfigInvalid, match="openledger signer init"), open_signer(place, None):
        pass


def test_a_book_about_another_key_or_without_its_guard_is_refused(home: Home, place: SignerHome) -> None:
    take_over(place, home)
    guard = place.home.safety_guard_path.read_bytes()
    place.home.safety_guard_path.unlink()
    with pytest.raises(SafetyRecordUnusable, match="is missing"), open_signer(place, None):
        pass
    place.home.safety_guard_path.write_bytes(guard)
    place.home.consensus_key_path.write_text(f"{'07' * 32}\n")
    with pytest.raises(SafetyRecordUnusable, match="another key"), open_signer(place, None):
        pass


def test_two_signers_do_not_share_a_home(home: Home, place: SignerHome) -> None:
    take_over(place, home)
    with open_signer(place, None), pytest.raises(HomeLocked), open_signer(place, None):
        pass


# --- the daemon ---


def test_a_daemon_with_a_signer_keeps_no_key_beside_it(home: Home, place: SignerHome) -> None:
    key = public_key(load_seed(home.consensus_key_path))
    use_signer(home, place.socket_path, key)
    with pytest.raises(ConfigInvalid, match="take-over"):
        open_node(home)
    use_signer(home, place.socket_path, b"")
    with pytest.raises(ConfigInvalid, match=r"signer\.public_key"):
        open_node(home)


def test_a_daemon_starts_without_its_signer_cannot_sign_and_says_so(home: Home, place: SignerHome) -> None:
    key = take_over(place, home)
    use_signer(home, place.socket_path, key)
    node = open_node(home)
    try:
        assert node.identity.consensus_seed is None
        assert node.identity.consensus_key == key
        assert node.store.guard is None
        assert node.votes
        assert node.signer is not None
        with pytest.raises(SignerUnavailable):
            node.signer.ask(AskStatus())
        standing = standing_of(node, frozenset(node.directory.validator_of))
        assert "signer does not answer" in not_ready_reason(replace(standing, syncing=False, silence_ms=0))
    finally:
        node.close()


# --- the command ---


def test_the_command_makes_a_home_with_a_new_key_and_asks_a_running_signer(
    home: Home, place: SignerHome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tmp_path / "words"
    words.write_text("correct horse\n")
    words.chmod(0o600)
    arguments = ["signer", "init", "--home", str(place.root), "--genesis", str(home.genesis_path), "--json"]
    assert main([*arguments, "--passphrase-file", str(words)]) == 0
    made = json.loads(capsys.readouterr().out)
    key = read_key(place.home.consensus_key_path)
    assert isinstance(key, SealedKey)
    assert made["public_key"] == key.public_key.hex()
    assert made["encrypted"] is True
    assert main([*arguments, "--no-passphrase"]) == 2
    capsys.readouterr()
    assert main(["signer", "status", "--home", str(place.root), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["kind"] == "SignerUnavailable"


def test_a_new_key_that_is_no_validators_signs_nothing(home: Home, place: SignerHome) -> None:
    assert (
        main(
            [
                "signer",
                "init",
                "--home",
                str(place.root),
                "--genesis",
                str(home.genesis_path),
                "--no-passphrase",
            ]
        )
        == 0
    )
    from tests.unit.consensus.lab import GENESIS, Chain

    with open_signer(place, None) as custodian:
        answer = custodian.answer(AskVote(Chain().block(GENESIS, 1)))
        assert "not a validator" in getattr(answer, "reason", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["init"],
        ["run", "--take-over", "x"],
        ["status", "--allow-uid", "7"],
        ["--allow-uid", "me"],
        ["init", "--take-over", "x", "--no-passphrase"],
        ["sing"],
    ],
)
def test_a_mistake_is_told_and_changes_nothing(
    arguments: list[str], place: SignerHome, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["signer", *arguments, "--home", str(place.root)]) == 2
    assert not place.root.exists()
    assert len(capsys.readouterr().err.splitlines()) == 1
