"""The guard's file: what it remembers, what tears cannot take from it, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import pytest

from consensus.effects import Persist
from consensus.safety import SafetyRecord
from consensus.types import CommitVote, Vote
from node.storage.chain import ChainStore
from node.storage.database import Database
from node.storage.errors import DatabaseNotWritable, SafetyRecordUnusable
from node.storage.guard import SLOT_BYTES, SafetyGuard, first_mark

CHAIN = b"c" * 32
RECORD = SafetyRecord(
    epoch=0,
    last_voted=20,
    lock=18,
    highest_timeout=15,
    last_proposed=17,
    last_vote=Vote(0, 20, b"b" * 32, b"p" * 32, 19, b"k" * 32, b"s" * 64),
    last_commit_vote=CommitVote(0, 18, b"b" * 32, 9, b"k" * 32, b"s" * 64),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "safety.guard"
    path.write_bytes(first_mark(CHAIN, 0))
    return path


def test_it_remembers_what_was_noted_last(path: Path) -> None:
    guard = SafetyGuard(path)
    guard.check(None, "the database")
    for round_ in range(20, 27):
        record = replace(RECORD, last_voted=round_).to_bytes()
        guard.note(record)
        again = SafetyGuard(path)
        assert again.mark == guard.mark
        again.check(record, "the database")
    assert path.stat().st_size == 2 * SLOT_BYTES


@pytest.mark.parametrize(
    "older",
    [
        replace(RECORD, last_voted=19),
        replace(RECORD, lock=17),
        replace(RECORD, highest_timeout=14),
        replace(RECORD, last_proposed=16),
        replace(RECORD, last_commit_vote=None),
        replace(RECORD, last_vote=None),
        None,
    ],
)
def test_a_record_that_is_older_in_any_respect_or_another_is_refused(
    path: Path, older: SafetyRecord | None
) -> None:
    SafetyGuard(path).note(RECORD.to_bytes())
    with pytest.raises(SafetyRecordUnusable, match="join with a new key"):
        SafetyGuard(path).check(None if older is None else older.to_bytes(), "the database")


def test_a_record_that_is_ahead_was_written_before_a_crash_and_passes(path: Path) -> None:
    SafetyGuard(path).note(RECORD.to_bytes())
    for later in (replace(RECORD, last_voted=21), replace(RECORD, highest_timeout=20, last_proposed=21)):
        SafetyGuard(path).check(later.to_bytes(), "the database")


def test_a_write_that_is_torn_anywhere_leaves_the_one_before(path: Path) -> None:
    guard = SafetyGuard(path)
    guard.note(RECORD.to_bytes())
    before = path.read_bytes()
    guard.note(replace(RECORD, last_voted=21).to_bytes())
    after = path.read_bytes()
    (changed,) = {at // SLOT_BYTES for at in range(len(after)) if before[at] != after[at]}
    start = changed * SLOT_BYTES
    for length in range(1, 300, 7):
        path.write_bytes(before[:start] + after[start : start + length] + before[start + length :])
        mark = SafetyGuard(path).mark
        assert mark.rounds[0] in (20, 21)
        assert (mark.rounds[0] == 21) == (path.read_bytes() == after)


def test_a_file_without_a_whole_copy_is_refused(path: Path) -> None:
    SafetyGuard(path).note(RECORD.to_bytes())
    for data in (b"", bytes(2 * SLOT_BYTES), b"\xff" * 2 * SLOT_BYTES):
        path.write_bytes(data)
        with pytest.raises(SafetyRecordUnusable, match="damaged in both"):
            SafetyGuard(path)


def test_a_record_reaches_the_database_first_the_guard_second_and_only_then_does_persist_return(
    path: Path, tmp_path: Path
) -> None:
    database = Database(tmp_path / "chain")
    store, seen = ChainStore(database), []

    class Watched(SafetyGuard):
        def note(self, data: bytes) -> None:
            seen.append(store.safety_record() == data)
            super().note(data)

    store.guard = Watched(path)
    effect = Persist(
        sync=True,
        record=RECORD.to_bytes(),
        certificates=None,
        blocks=(),
        committed=(),
        proof=None,
        reveals=(),
        forgotten=(),
    )
    store.persist(effect)
    assert seen == [True]
    assert SafetyGuard(path).mark.rounds == (20, 18, 15, 17, 18)
    store.persist(replace(effect, record=None, sync=False))
    assert seen == [True]
    database.close()


def test_a_guard_that_cannot_be_written_ends_the_persist_with_what_to_do(path: Path) -> None:
    guard = SafetyGuard(path)
    path.unlink()
    with pytest.raises(DatabaseNotWritable, match="disk full"):
        guard.note(RECORD.to_bytes())
