"""Quotas of blobs that no ledger state refers to."""

from pathlib import Path

import pytest

from consensus.codec import encode
from node.storage.blobs import LOOSE_BYTES_MIN, BlobStore, LooseLimits, Note
from node.storage.errors import BlobQuotaExceeded, LooseQuotaExceeded

ANN, BEN = b"a" * 32, b"b" * 32


def store(folder: Path, **limits: int) -> BlobStore:
    return BlobStore(folder, 1 << 30, LooseLimits(**limits))


def fill(blobs: BlobStore, owner: bytes, first: int, size: int = 1) -> int:
    """Put blobs until one is refused; returns how many were taken."""
    for number in range(first, first + 10_000):
        try:
            blobs.put(number.to_bytes(4, "big").ljust(size, b"\0"), note=Note(owner, 1, 1))
        except LooseQuotaExceeded:
            return number - first
    raise AssertionError("never refused")


def test_one_sender_is_refused_past_its_quota_and_others_are_not(tmp_path: Path) -> None:
    blobs = store(tmp_path, owner_bytes_max=10 * LOOSE_BYTES_MIN)
    assert fill(blobs, ANN, 0) == 10
    with pytest.raises(BlobQuotaExceeded):
        blobs.put(b"one more", note=Note(ANN, 1, 1))
    blobs.put(b"another's", note=Note(BEN, 1, 1))
    assert blobs.has_room(BEN, 1)
    assert not blobs.has_room(ANN, 1)


def test_tiny_blobs_count_what_they_take_of_the_disk(tmp_path: Path) -> None:
    blobs = store(tmp_path, owner_bytes_max=10 * LOOSE_BYTES_MIN)
    assert fill(blobs, ANN, 0, size=4) == 10


def test_nobody_takes_more_than_is_left_for_all_the_others_together(tmp_path: Path) -> None:
    """So whoever comes next finds half of what was left, however early others came."""
    blobs = store(tmp_path, bytes_max=128 * LOOSE_BYTES_MIN)
    taken = [fill(blobs, bytes([owner]) * 32, owner * 1000) for owner in range(1, 7)]
    assert taken == [64, 32, 16, 8, 4, 2]
    assert blobs.has_room(BEN, 1)


def test_blobs_that_nobody_named_have_a_quota_of_their_own_and_naming_one_moves_it(tmp_path: Path) -> None:
    blobs = store(tmp_path, unnamed_bytes_max=2 * LOOSE_BYTES_MIN, owner_bytes_max=LOOSE_BYTES_MIN)
    first, second = (blobs.put(data, note=Note(b"", 1, 1)) for data in (b"first", b"second"))
    with pytest.raises(LooseQuotaExceeded):
        blobs.put(b"third", note=Note(b"", 1, 1))
    blobs.claim(first, Note(ANN, 2, 2, until_height=50))
    assert (blobs.loose_bytes(b""), blobs.loose_bytes(ANN)) == (LOOSE_BYTES_MIN, LOOSE_BYTES_MIN)
    with pytest.raises(LooseQuotaExceeded):
        blobs.claim(second, Note(ANN, 2, 2))
    with pytest.raises(LooseQuotaExceeded):
        blobs.put(b"second", note=Note(ANN, 2, 2))  # nor by bringing the bytes once more
    blobs.claim(first, Note(BEN, 3, 3))  # the first to name it pays for it
    assert blobs.note(first) == Note(ANN, 3, 3, 50)
    blobs.put(b"third", note=Note(b"", 1, 1))


def test_a_restart_forgets_no_quota_and_no_time(tmp_path: Path) -> None:
    blobs = store(tmp_path, owner_bytes_max=2 * LOOSE_BYTES_MIN)
    name = blobs.put(b"mine", note=Note(ANN, 7, 70, 99))
    blobs.put(b"mine too", note=Note(ANN, 8, 80))
    again = store(tmp_path, owner_bytes_max=2 * LOOSE_BYTES_MIN)
    assert again.note(name) == Note(ANN, 7, 70, 99)
    assert not again.has_room(ANN, 1)


def test_what_the_ledger_refers_to_leaves_the_quotas_and_is_not_collected(tmp_path: Path) -> None:
    blobs = store(tmp_path)
    note = Note(ANN, 1, 1)
    name = blobs.put(b"referred to", note=note)
    blobs.keep(name)
    assert blobs.loose_bytes() == 0
    assert not blobs.collect(name, note)
    assert blobs.put(b"referred to", note=note) == name  # put once more, it stays referred to
    assert blobs.note(name) is None
    assert blobs.get(name) == b"referred to"


def test_a_blob_that_was_named_since_it_was_judged_is_not_collected(tmp_path: Path) -> None:
    blobs = store(tmp_path)
    judged = Note(b"", 1, 1)
    name = blobs.put(b"old", note=judged)
    blobs.claim(name, Note(ANN, 900, 900, 1000))
    assert not blobs.collect(name, judged)
    assert blobs.has(name)


def test_a_failed_write_leaves_no_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = store(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            blobs.put(b"x" * 100, note=Note(ANN, 1, 1))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert blobs.loose_bytes() == 0


def test_damaged_and_orphaned_notes_are_swept(tmp_path: Path) -> None:
    blobs = store(tmp_path)
    name = blobs.put(b"noted", note=Note(ANN, 1, 1))
    blobs.path(name).with_suffix(".note").write_bytes(b"\xc1")
    (tmp_path / "ab").mkdir(exist_ok=True)
    orphan = tmp_path / "ab" / f"ab{'0' * 62}.note"
    orphan.write_bytes(encode([ANN, 1, 1, 0]))
    again = store(tmp_path)
    assert again.note(name) is None
    assert again.get(name) == b"noted"
    assert not orphan.exists()
