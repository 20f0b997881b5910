"""A validator whose disk was rolled back does not go on as if it had signed less than it has."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from consensus.effects import Persist
from consensus.safety import SafetyRecord
from node.clock import now_ms
from node.config import load_config
from node.devnet.layout import claim_home
from node.devnet.network import create_network
from node.home import Home
from node.node import Node
from node.storage.chain import ChainStore
from node.storage.database import Database
from node.storage.errors import SafetyRecordUnusable
from node.storage.guard import SafetyGuard

NOTHING = Persist(
    sync=True,
    record=None,
    certificates=None,
    blocks=(),
    committed=(),
    proof=None,
    reveals=(),
    forgotten=(),
)


@pytest.fixture(scope="module")
def used_home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    with claim_home(tmp_path_factory.mktemp("guard") / "devnet") as layout:
        home = create_network(layout, 4, ["alice"]).validators[0].home
    open_node(home)
    sign(home, 10)
    return home


@pytest.fixture
def home(used_home: Home, tmp_path: Path) -> Home:
    """A copy of a validator's home that has signed up to round 10."""
    return Home(Path(shutil.copytree(used_home.root, tmp_path / "home")))


def open_node(home: Home) -> None:
    Node(home, load_config(home.config_path, environment={})).close()


def sign(home: Home, *rounds: int) -> None:
    """Persist what a validator persists before it releases votes in these rounds."""
    database = Database(home.data_path / "chain")
    store = ChainStore(database)
    store.guard = SafetyGuard(home.safety_guard_path)
    for round_ in rounds:
        store.persist(replace(NOTHING, record=SafetyRecord(0, last_voted=round_, lock=round_ - 1).to_bytes()))
    database.close()


def backed_up(path: Path, home: Home, act: Callable[[Home], None]) -> None:
    """Copy a file or folder, let the validator go on, and bring the copy back."""
    copy = path.with_name(path.name + ".backup")
    if path.is_dir():
        shutil.copytree(path, copy)
    else:
        shutil.copy(path, copy)
    act(home)
    if path.is_dir():
        shutil.rmtree(path)
        shutil.copytree(copy, path)
    else:
        shutil.copy(copy, path)


def test_after_a_clean_stop_it_starts_again(home: Home) -> None:
    sign(home, 11, 12)
    open_node(home)
    open_node(home)


def test_a_database_restored_from_a_backup_is_refused_and_says_what_to_do(home: Home) -> None:
    backed_up(home.data_path, home, lambda home: sign(home, 11, 12))
    for _ in range(2):
        with pytest.raises(SafetyRecordUnusable, match="last voted 10 after 12, lock 9 after 11") as caught:
            open_node(home)
    assert "never a backup" in str(caught.value)


def test_a_guard_restored_from_a_backup_does_no_harm(home: Home) -> None:
    backed_up(home.safety_guard_path, home, lambda home: sign(home, 11, 12))
    open_node(home)


def test_a_crash_between_the_two_writes_is_no_rollback(home: Home) -> None:
    guard = home.safety_guard_path.read_bytes()
    sign(home, 11)
    home.safety_guard_path.write_bytes(guard)
    open_node(home)
    sign(home, 12)
    open_node(home)


@pytest.mark.parametrize("damage", [b"", b"\xff" * 8192])
def test_a_damaged_guard_is_refused(home: Home, damage: bytes) -> None:
    home.safety_guard_path.write_bytes(damage)
    with pytest.raises(SafetyRecordUnusable, match="damaged"):
        open_node(home)


def test_a_missing_guard_is_refused_also_where_the_note_of_use_is_missing(home: Home) -> None:
    home.safety_guard_path.unlink()
    with pytest.raises(SafetyRecordUnusable, match="is missing"):
        open_node(home)
    home.consensus_used_path.unlink()
    with pytest.raises(SafetyRecordUnusable, match="is missing"):
        open_node(home)


def test_a_log_that_loses_its_end_unnoticed_is_noticed_by_the_guard(home: Home) -> None:
    """A flipped bit in a record's length looks to LevelDB like a write that a crash cut short: it reports nothing."""
    sign(home, 11, 12)
    (log,) = (home.data_path / "chain").glob("*.log")
    data = bytearray(log.read_bytes())
    # A log record is checksum (4), length (2), type (1), then the batch: sequence (8), count (4), type (1), key length (1), key.
    high_byte_of_length = data.rindex(b"msafety") - 16
    data[high_byte_of_length] ^= 0x40
    log.write_bytes(data)
    database = Database(home.data_path / "chain")
    assert ChainStore(database).safety_record() == SafetyRecord(0, last_voted=11, lock=10).to_bytes()
    database.close()
    with pytest.raises(SafetyRecordUnusable, match="last voted 11 after 12"):
        open_node(home)


def test_a_whole_home_restored_from_a_backup_looks_whole(home: Home) -> None:
    """No file can tell; that a validator then stops once it meets its own later signatures is tested with the driver."""

    def sign_and_restore_nothing_else(home: Home) -> None:
        backed_up(home.safety_guard_path, home, lambda home: sign(home, 11, 12))

    backed_up(home.data_path, home, sign_and_restore_nothing_else)
    open_node(home)


def test_only_a_key_that_cannot_have_signed_yet_starts_without_listening(home: Home) -> None:
    def listens_ms(home: Home, chain_age_ms: int) -> int:
        node = Node(home, load_config(home.config_path, environment={}))
        try:
            genesis = node.store.block_at(0)
            assert genesis is not None
            header = replace(genesis.header, timestamp_ms=now_ms() - chain_age_ms)
            return node.replicas.listen_ms(replace(genesis, header=header))
        finally:
            node.close()

    assert listens_ms(home, 0) > 0
    shutil.rmtree(home.data_path)
    home.safety_guard_path.unlink()
    home.consensus_used_path.unlink()
    assert listens_ms(home, 0) == 0
    assert listens_ms(home, 3_600_000) > 0
