"""What keeps a daemon from running is said in one typed line, before anything is signed."""

import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from consensus.safety import SafetyRecord
from node import daemon, signature_rule
from node.config import load_config
from node.devnet.layout import claim_home
from node.devnet.network import create_network
from node.errors import ConfigInvalid, KeyFileInvalid
from node.home import Home
from node.keystore import Passphrase
from node.node import Node
from node.signer import process
from node.signer.home import SignerHome
from node.startup import check_retention, consensus_config, load_genesis
from node.storage.chain import ChainStore
from node.storage.database import Database
from node.storage.errors import DatabaseCorrupt, SafetyRecordUnusable, StorageError
from tests.unit.node import ed25519_reference


@pytest.fixture(scope="module")
def used_home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """The home of a validator whose daemon ran before."""
    with claim_home(tmp_path_factory.mktemp("startup") / "devnet") as layout:
        home = create_network(layout, 4, ["alice"]).validators[0].home
    open_node(home)
    return home


@pytest.fixture
def logging_restored() -> Iterator[None]:
    """The daemon sets up logging to the error stream of the moment, which pytest closes after the test."""
    handlers = list(logging.getLogger().handlers)
    yield
    structlog.reset_defaults()
    logging.captureWarnings(False)
    logging.getLogger().handlers[:] = handlers


@pytest.fixture
def home(used_home: Home, tmp_path: Path) -> Home:
    """A copy of it, to be damaged."""
    return Home(Path(shutil.copytree(used_home.root, tmp_path / "home")))


def open_node(home: Home) -> None:
    Node(home, load_config(home.config_path, environment={})).close()


def database_folder(home: Home) -> Path:
    return home.data_path / "chain"


def put_record(home: Home, data: bytes) -> None:
    database = Database(database_folder(home))
    database.write({b"msafety": data}, sync=True)
    assert ChainStore(database).safety_record() == data
    database.close()


def test_a_validator_whose_database_is_gone_does_not_begin_anew_on_the_same_chain(home: Home) -> None:
    shutil.rmtree(home.data_path)
    for _ in range(2):
        with pytest.raises(SafetyRecordUnusable, match="has been used on this chain"):
            open_node(home)


def test_the_key_may_begin_on_another_chain(home: Home) -> None:
    shutil.rmtree(home.data_path)
    text = home.genesis_path.read_text()
    home.genesis_path.write_text(text.replace("openledger-devnet", "another-chain"))
    open_node(home)


def test_a_node_that_forgets_blocks_on_a_chain_without_snapshots_is_refused(home: Home) -> None:
    """Were all nodes to do so, nobody could ever join from the genesis."""
    config = load_config(home.config_path, environment={}, overrides={"storage.retain_heights": 1000})
    with pytest.raises(ConfigInvalid, match="snapshot_heights = 0") as refused:
        Node(home, config)
    assert refused.value.key == "storage.retain_heights"
    genesis = load_genesis(home)
    check_retention(genesis, 0)
    check_retention(replace(genesis, params=replace(genesis.params, snapshot_heights=100)), 1000)


def test_another_chains_genesis_is_refused(home: Home) -> None:
    text = home.genesis_path.read_text()
    home.genesis_path.write_text(text.replace("openledger-devnet", "another-chain"))
    with pytest.raises(StorageError, match="one home, one chain"):
        open_node(home)


def test_a_safety_record_of_another_epoch_is_refused(home: Home) -> None:
    put_record(home, SafetyRecord(epoch=7, last_voted=3).to_bytes())
    with pytest.raises(SafetyRecordUnusable, match="is of epoch 7"):
        open_node(home)


def test_a_damaged_safety_record_is_refused(home: Home) -> None:
    put_record(home, SafetyRecord(epoch=0).to_bytes()[:-1])
    with pytest.raises(SafetyRecordUnusable, match="is damaged"):
        open_node(home)


@pytest.mark.parametrize("name", ["consensus.key", "account.key", "node.key", "beacon.key"])
def test_a_missing_key_is_named(home: Home, name: str) -> None:
    (home.root / "keys" / name).unlink()
    with pytest.raises(KeyFileInvalid, match=name):
        open_node(home)


@pytest.mark.parametrize("name", ["consensus.key", "account.key"])
def test_a_key_that_the_genesis_does_not_name_is_refused(home: Home, name: str) -> None:
    (home.root / "keys" / name).write_text("07" * 32 + "\n")
    with pytest.raises(ConfigInvalid, match=r"genesis\.json names"):
        open_node(home)


def nest_genesis(home: Home) -> None:
    home.genesis_path.write_bytes(b"[" * 100_000)


def cut_genesis(home: Home) -> None:
    home.genesis_path.write_bytes(home.genesis_path.read_bytes()[:100])


def cut_manifest(home: Home) -> None:
    for path in database_folder(home).glob("MANIFEST*"):
        path.write_bytes(path.read_bytes()[:10])


def flip_middle(home: Home, pattern: str) -> None:
    path = max(database_folder(home).glob(pattern), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def flip_log(home: Home) -> None:
    flip_middle(home, "*.log")


def flip_table(home: Home) -> None:
    Database(database_folder(home)).close()  # moves the log into a table
    flip_middle(home, "*.ldb")


def flip_manifest(home: Home) -> None:
    flip_middle(home, "MANIFEST*")


def lose_current(home: Home) -> None:
    Database(database_folder(home)).close()
    (database_folder(home) / "CURRENT").unlink()


def lose_database(home: Home) -> None:
    shutil.rmtree(home.data_path)


def damage_record(home: Home) -> None:
    put_record(home, b"\x00")


@pytest.mark.usefixtures("logging_restored")
@pytest.mark.parametrize(
    ("damage", "code", "advice"),
    [
        (cut_genesis, 2, "genesis.json"),
        (nest_genesis, 2, "genesis.json"),
        (cut_manifest, 1, "move it away and restart"),
        (flip_manifest, 1, "move it away and restart"),
        (flip_log, 1, "move it away and restart"),
        (flip_table, 1, "move it away and restart"),
        (lose_current, 1, "move it away and restart"),
        (lose_database, 1, "join with a new key"),
        (damage_record, 1, "join with a new key"),
    ],
)
def test_the_daemon_ends_with_a_code_and_a_line_that_says_why_and_what_to_do(
    home: Home, damage: Callable[[Home], None], code: int, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(home)
    assert daemon.main(home.root) == code
    said = capsys.readouterr().err
    assert "cannot_start" in said
    assert advice in said
    assert "Traceback" not in said


@pytest.mark.usefixtures("logging_restored")
def test_neither_daemon_nor_signer_runs_where_other_signatures_count(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signature_rule, "verify", ed25519_reference.counts_with_cofactor)
    cut_genesis(home)  # what comes later would end the daemon, too, and for another reason
    assert daemon.main(home.root) == daemon.EXIT_FAILED
    assert "requirements.lock" in capsys.readouterr().err
    place = SignerHome(tmp_path / "signer")
    assert process.main(place, load_nothing, tmp_path / "socket", (), "console") == process.EXIT_FAILED
    assert "requirements.lock" in capsys.readouterr().err


def load_nothing(path: Path) -> Passphrase:
    raise AssertionError(f"{path} is not to be opened")


def test_a_database_with_a_flipped_bit_is_never_read_as_if_it_were_whole(home: Home) -> None:
    (log,) = database_folder(home).glob("*.log")
    tables = [*database_folder(home).glob("*.ldb")]
    damaged = max([log, *tables], key=lambda path: path.stat().st_size)
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(DatabaseCorrupt):
        open_node(home)


def test_payload_that_would_wait_longer_than_its_round_is_refused_by_name() -> None:
    def settings(interval_ms: int, timeout_ms: int) -> object:
        overrides = {
            "consensus.block_interval_ms": interval_ms,
            "consensus.timeout_ms_base": timeout_ms,
        }
        return consensus_config(load_config(None, environment={}, overrides=overrides))

    assert settings(500, 1000)
    assert settings(0, 50)
    with pytest.raises(ConfigInvalid, match=r"block_interval_ms: expected at most half .*\(100\), got 51"):
        settings(51, 100)
