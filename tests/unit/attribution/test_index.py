"""The index: same bytes for any shards, files that open only if they are whole, rows that prove themselves."""

from __future__ import annotations

import dataclasses
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from attribution.checkpoint import load_base
from attribution.errors import BadTokens, ContextTooLong
from attribution.index import (
    CHUNK_BYTES,
    FILES,
    Index,
    IndexFileError,
    IndexHeader,
    build_index,
    record_digest,
)
from attribution.merkle import merkle_root, verify_merkle_proof
from attribution.models import BASE_HASH, BASE_PATH
from attribution.whitening import FactorShape
from tests.unit.attribution.index_cases import RECORDS, adapter, tiny_base, tiny_index


def test_the_shipped_base_is_small_and_has_the_pinned_hash() -> None:
    assert BASE_PATH.stat().st_size < 2**20
    base = load_base(BASE_PATH)
    assert base.hash == BASE_HASH
    assert (base.config.vocab_size, base.config.bos_token_id, base.config.eos_token_id) == (256, 0, 0)


@pytest.mark.parametrize("shards", [2, 3, len(RECORDS)])
def test_any_number_of_shards_gives_the_same_root_and_bytes(shards: int) -> None:
    sharded = build_index(tiny_base(), adapter(), RECORDS, shards=shards)
    assert sharded.root == tiny_index().root
    assert sharded.rows.tobytes() == tiny_index().rows.tobytes()


def test_threads_change_no_bit() -> None:
    expected, threads = build_index(tiny_base(), adapter(), RECORDS[:2]).root, torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        assert build_index(tiny_base(), adapter(), RECORDS[:2]).root == expected
    finally:
        torch.set_num_threads(threads)


def test_root_commits_to_order_content_and_adapter() -> None:
    roots = {tiny_index().root}
    for records in (RECORDS[::-1], RECORDS[:-1], (*RECORDS[:-1], (*RECORDS[-1], 33))):
        roots.add(build_index(tiny_base(), adapter(), records).root)
    roots.add(build_index(tiny_base(), adapter(seed=10), RECORDS).root)
    assert len(roots) == 5


def test_the_rows_hold_digests_scales_of_unit_norm_and_the_first_of_copies_leads() -> None:
    index = tiny_index()
    assert [bytes(row[:32]) for row in index.rows] == [record_digest(r) for r in RECORDS]
    assert index.leaders == (0, 1, 2, 1, 4, 5, 6)
    counts = np.array([s.coordinates for s in index.header.shapes])
    norms = (index.scales.astype(np.float64) ** 2 * counts).sum(1)
    np.testing.assert_allclose(norms, 2.0**48, rtol=1e-4)
    assert index.rows[1].tobytes() == index.rows[3].tobytes()


@pytest.mark.parametrize(
    ("records", "error"), [([], ValueError), ([(1, 2), (256,)], BadTokens), ([(1,) * 128], ContextTooLong)]
)
def test_unusable_records_are_refused(records: list[tuple[int, ...]], error: type[Exception]) -> None:
    with pytest.raises(error):
        build_index(tiny_base(), adapter(), records)


def test_an_empty_record_is_its_end_token_and_has_a_row() -> None:
    assert build_index(tiny_base(), adapter(), [()]).record_count == 1


@pytest.mark.parametrize("shards", [0, -1, len(RECORDS) + 1])
def test_shards_without_records_are_refused(shards: int) -> None:
    with pytest.raises(ValueError, match="shards"):
        build_index(tiny_base(), adapter(), RECORDS, shards=shards)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny_index().save(tmp_path / "index")
    return tmp_path / "index"


def test_a_saved_index_opens_the_same_and_at_once(saved: Path) -> None:
    start = time.perf_counter()
    index = Index.open(saved)
    assert time.perf_counter() - start < 0.5
    assert index.header == tiny_index().header
    assert index.root == tiny_index().root
    assert index.size_bytes == sum((saved / name).stat().st_size for name in FILES)
    assert isinstance(index.rows.base, np.memmap) or isinstance(index.rows, np.memmap)
    assert sorted(p.name for p in saved.iterdir()) == sorted(FILES)
    Index.open(saved, root=tiny_index().root)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_truncated_or_longer_file_is_refused(saved: Path, name: str) -> None:
    whole = (saved / name).read_bytes()
    for content in (whole[:-1], whole + b"\0", b""):
        (saved / name).write_bytes(content)
        with pytest.raises(IndexFileError):
            Index.open(saved)
    (saved / name).unlink()
    with pytest.raises(IndexFileError):
        Index.open(saved)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_found_where_the_root_is_known(saved: Path, name: str) -> None:
    content = bytearray((saved / name).read_bytes())
    # In the header, a bit of the adapter's hash: any other may already contradict the sizes.
    content[60 if name == "header.bin" else len(content) // 2] ^= 1
    (saved / name).write_bytes(content)
    with pytest.raises(IndexFileError, match="root"):
        Index.open(saved, root=tiny_index().root)


def test_hostile_headers_are_refused() -> None:
    good = tiny_index().header
    data = good.encode()
    assert IndexHeader.decode(data) == good
    bad = [
        b"OLINDEX1" + data[8:],
        data[:8] + struct.pack("<I", 0) + data[12:],
        data[:8] + struct.pack("<I", 2**32 - 1) + data[12:],
        data[:12] + struct.pack("<I", 2**32 - 1) + data[16:],
        data[:12] + struct.pack("<I", len(good.shapes) + 1) + data[16:],
        data[:16] + struct.pack("<I", good.row_bytes + 1) + data[20:],
        data + b"\0",
        data[:50],
        b"",
    ]
    for shapes in (
        (FactorShape("x", 0, 4),),
        (FactorShape("x", 2**15 + 1, 4),),
        (FactorShape("x", 4, 2**8 + 1),),
        (FactorShape("", 4, 4),),
        (FactorShape("x" * 300, 4, 4),),
        tuple(FactorShape(f"x{i}", 2**15, 2**8) for i in range(3)),
        tuple(FactorShape(f"x{i}", 512, 1) for i in range(257)),
    ):
        bad.append(dataclasses.replace(good, shapes=shapes).encode())
    for content in bad:
        with pytest.raises(IndexFileError):
            IndexHeader.decode(content)


def test_every_row_proves_itself_against_the_root() -> None:
    index = tiny_index()
    data = index.header.encode(), index.bases.tobytes(), index.weights.tobytes()
    chunks = [part[at : at + CHUNK_BYTES] for part in data for at in range(0, len(part), CHUNK_BYTES)]
    assert merkle_root([*chunks, *(row.tobytes() for row in index.rows)]) == index.root
    for record in range(index.record_count):
        row, leaf, count, proof = index.row_proof(record)
        assert row == index.rows[record].tobytes()
        assert verify_merkle_proof(index.root, row, leaf, count, proof)
        assert not verify_merkle_proof(index.root, row[:-1] + bytes([row[-1] ^ 1]), leaf, count, proof)
