"""A blob whose bytes rotted counts as missing: it is never served, never vouched for, and can be stored again."""

from pathlib import Path

from node.storage.blobs import BlobStore

DATA = bytes(range(256)) * 40


def damaged(folder: Path) -> tuple[BlobStore, bytes]:
    """A store that holds `DATA` with one flipped bit, and its name."""
    store = BlobStore(folder, 1 << 20)
    name = store.put(DATA)
    rotten = bytearray(DATA)
    rotten[5000] ^= 1
    store.path(name).write_bytes(rotten)
    return store, name


def test_it_is_removed_when_read(tmp_path: Path) -> None:
    store, name = damaged(tmp_path)
    assert store.has(name)
    assert store.get(name) is None
    assert not store.has(name)


def test_it_is_not_served(tmp_path: Path) -> None:
    store, name = damaged(tmp_path)
    assert store.read_part(name, 0, 100) is None
    assert not store.has(name)


def test_putting_the_blob_again_mends_it(tmp_path: Path) -> None:
    store, name = damaged(tmp_path)
    assert store.put(DATA) == name
    assert store.get(name) == DATA


def test_one_cut_short_frees_its_place_in_the_quota(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, len(DATA) + 10)
    name = store.put(DATA)
    store.path(name).write_bytes(DATA[:-1])
    for _ in range(20):
        assert store.put(DATA) == name
        store.path(name).write_bytes(DATA[:-1])
    assert store.put(DATA) == name
