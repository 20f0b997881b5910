import os
from pathlib import Path

import pytest

from node.storage import blobs
from node.storage.blobs import BlobStore, blob_digest
from node.storage.errors import BlobDigestMismatch, BlobQuotaExceeded, BlobTooLarge


def test_what_was_put_is_read_back_under_its_digest(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, 1000)
    name = store.put(b"records")
    assert name == blob_digest(b"records")
    assert store.has(name)
    assert store.get(name) == b"records"
    assert store.read_part(name, 3, 2) == b"or"


def test_a_blob_survives_opening_the_store_again_and_still_counts(tmp_path: Path) -> None:
    BlobStore(tmp_path, 1000).put(b"x" * 600)
    store = BlobStore(tmp_path, 1000)
    with pytest.raises(BlobQuotaExceeded):
        store.put(b"y" * 600)


def test_the_quota_is_given_back_by_removal_and_not_taken_twice(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, 1000)
    name = store.put(b"x" * 600)
    assert store.put(b"x" * 600) == name
    store.remove(name)
    store.remove(name)
    assert store.get(name) is None
    store.put(b"y" * 1000)


def test_bytes_under_a_wrong_name_are_refused(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, 1000)
    with pytest.raises(BlobDigestMismatch):
        store.put(b"these", expected=blob_digest(b"those"))
    assert list(tmp_path.rglob("*")) == []


def test_a_blob_over_the_limit_of_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "BLOB_BYTES_MAX", 10)
    with pytest.raises(BlobTooLarge):
        BlobStore(tmp_path, 1000).put(b"x" * 11)


def test_rotten_bytes_count_as_missing(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, 1000)
    name = store.put(b"records")
    store.path(name).write_bytes(b"recordz")
    assert store.get(name) is None


def test_half_written_files_of_a_killed_run_are_swept(tmp_path: Path) -> None:
    (tmp_path / "ab").mkdir()
    left_over = tmp_path / "ab" / "abcd.tmp"
    left_over.write_bytes(b"half")
    BlobStore(tmp_path, 1000)
    assert not left_over.exists()


def test_a_failed_write_leaves_nothing_and_takes_no_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BlobStore(tmp_path, 100)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            store.put(b"x" * 100)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    store.put(b"y" * 100)
