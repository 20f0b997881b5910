"""Erased records: scores as if the row were not there, the root as it was, and no byte of the row left."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attribution import index_files
from attribution.duplicates import leaders
from attribution.index import Index, IndexFileError, build_index, record_digest
from attribution.index_files import erase_rows
from attribution.index_standing import STANDING_FILE, Standing, StandingInvalid
from attribution.merkle import leaf_hash, merkle_root, root_of_hashes, verify_merkle_proof
from attribution.scores import score
from attribution.shares import attribute
from tests.unit.attribution.index_cases import RECORDS, adapter, tiny_base, tiny_index

OWNERS = [bytes([65 + i]) for i in range(len(RECORDS))]
LEADER, COPY = 1, 3  # RECORDS[3] is RECORDS[1]
NEAR = (*RECORDS, (*RECORDS[5][:-1], 33), (*RECORDS[5][:-1], 34))


@cache
def near_index() -> Index:
    return build_index(tiny_base(), adapter(), NEAR, clusters=leaders(NEAR))


def without(index: Index, erased: set[int], clusters: tuple[int, ...] | None) -> Index:
    """The index with rows left out, and nothing else: same bases, same weights."""
    kept = [i for i in range(index.record_count) if i not in erased]
    header = replace(index.header, record_count=len(kept))
    standing = Standing(clusters)
    return Index(header, index.bases, index.weights, np.array(index.rows)[kept], standing)


def erased_clusters(records: tuple[tuple[int, ...], ...], erased: set[int]) -> tuple[int, ...]:
    return leaders([None if i in erased else record for i, record in enumerate(records)])


@pytest.mark.parametrize("erased", [{LEADER}, {0, COPY}, set(range(1, len(RECORDS)))])
@pytest.mark.parametrize("clustered", [False, True])
def test_scores_and_shares_equal_those_without_the_row(
    tmp_path: Path, erased: set[int], clustered: bool
) -> None:
    records = NEAR if clustered else RECORDS
    index = near_index() if clustered else tiny_index()
    index.save(tmp_path)
    left = erased_clusters(records, erased) if clustered else None
    tombstoned = erase_rows(tmp_path, erased, left)
    kept = [i for i in range(len(records)) if i not in erased]
    omitted = without(index, erased, leaders([records[i] for i in kept]) if clustered else None)
    owners = [b"owner %d" % i for i in range(len(records))]
    for i in (LEADER, 5):
        query = records[i][:10], records[i][10:]
        found = score(tiny_base(), adapter(), tombstoned, *query)
        alone = score(tiny_base(), adapter(), omitted, *query)
        assert [found.values[i] for i in kept] == list(alone.values)
        assert tuple(found.rows.norms[i] for i in kept) == alone.rows.norms
        assert tuple(kept.index(found.rows.leaders[i]) for i in kept) == alone.rows.leaders
        assert all((found.values[i], found.rows.norms[i]) == (0, 0) for i in erased)
        for floor in (0, 20_000):
            expected = attribute(alone, [owners[i] for i in kept], floor)
            assert attribute(found, owners, floor) == expected
    reopened = score(tiny_base(), adapter(), Index.open(tmp_path, index.root), *query)
    assert reopened == found


def test_the_leader_of_copies_is_succeeded_by_the_earliest_that_remains(tmp_path: Path) -> None:
    tiny_index().save(tmp_path)
    assert tiny_index().leaders[COPY] == LEADER
    assert erase_rows(tmp_path, [LEADER]).leaders[COPY] == COPY
    near = near_index()
    near.save(tmp_path / "near")
    assert near.leaders[5:] == (5, 6, 5, 5)
    left = erased_clusters(NEAR, {5})
    assert erase_rows(tmp_path / "near", [5], left).leaders[5:] == (5, 6, 7, 7)


def test_the_root_stays_and_nothing_of_the_row_is_in_any_file(tmp_path: Path) -> None:
    index = tiny_index()
    index.save(tmp_path)
    row, digest = index.rows[4].tobytes(), record_digest(RECORDS[4])
    assert sum(digest in path.read_bytes() for path in tmp_path.iterdir()) == 1
    erased = erase_rows(tmp_path, [4])
    assert erased.root == index.root
    Index.open(tmp_path, index.root)
    for path in tmp_path.iterdir():
        data = path.read_bytes()
        assert digest not in data
        assert not any(row[at : at + 12] in data for at in range(0, len(row) - 12, 12))
    assert erased.standing.erased == {4: leaf_hash(row)}
    with pytest.raises(KeyError):
        erased.row_proof(4)
    for record in (0, 5, 6):
        data, leaf, count, proof = erased.row_proof(record)
        assert verify_merkle_proof(index.root, data, leaf, count, proof)


def test_a_false_leaf_hash_is_found_by_the_root(tmp_path: Path) -> None:
    tiny_index().save(tmp_path)
    erase_rows(tmp_path, [4])
    Standing(None, {4: bytes(32)}).save(tmp_path, len(RECORDS))
    with pytest.raises(IndexFileError, match="root"):
        Index.open(tmp_path, tiny_index().root)


def test_an_erasure_that_was_interrupted_is_ended_by_the_next_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_index().save(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(index_files, "blank_rows", _crash)
        with pytest.raises(RuntimeError):
            erase_rows(tmp_path, [2])
    assert record_digest(RECORDS[2]) in (tmp_path / "rows.bin").read_bytes()
    index = Index.open(tmp_path, tiny_index().root)
    assert not index.rows[2].any()
    assert record_digest(RECORDS[2]) not in (tmp_path / "rows.bin").read_bytes()


def _crash(*_: object) -> None:
    raise RuntimeError("the power went")


def test_erasing_twice_or_more_keeps_the_first_hashes(tmp_path: Path) -> None:
    index = tiny_index()
    index.save(tmp_path)
    once = erase_rows(tmp_path, [2])
    assert erase_rows(tmp_path, [2]).standing == once.standing
    twice = erase_rows(tmp_path, [0, 2])
    assert twice.standing.erased == {i: leaf_hash(index.rows[i].tobytes()) for i in (0, 2)}
    assert twice.root == index.root
    twice.save(tmp_path / "copy")
    assert Index.open(tmp_path / "copy", index.root).standing == twice.standing


def test_records_that_are_not_there_and_missing_leaders_are_refused(tmp_path: Path) -> None:
    tiny_index().save(tmp_path)
    for record in (-1, len(RECORDS)):
        with pytest.raises(ValueError, match="no such record"):
            erase_rows(tmp_path, [record])
    with pytest.raises(ValueError, match="leaders"):
        erase_rows(tmp_path, [0], leaders(RECORDS))
    near_index().save(tmp_path / "near")
    with pytest.raises(ValueError, match="leaders"):
        erase_rows(tmp_path / "near", [0])
    with pytest.raises(StandingInvalid, match="erased"):
        erase_rows(tmp_path / "near", [5], leaders(NEAR))  # the old leaders: an erased one leads
    assert Index.open(tmp_path / "near", near_index().root).standing.erased == {}


@st.composite
def standings(draw: st.DrawFn) -> tuple[Standing, int]:
    records = draw(st.integers(1, 12))
    numbers = st.integers(0, records - 1)
    erased = {n: draw(st.binary(min_size=32, max_size=32)) for n in draw(st.sets(numbers))}
    led = [n for n in range(records) if n not in erased]
    heads = draw(st.lists(st.sampled_from(led), min_size=1)) if led else []
    clusters = tuple(n if n in erased or n in heads else draw(st.sampled_from(heads)) for n in range(records))
    return Standing(clusters if draw(st.booleans()) else None, erased), records


@given(standings(), st.data())
def test_the_file_says_what_was_written_or_is_refused(
    case: tuple[Standing, int], data: st.DataObject
) -> None:
    standing, records = case
    whole = standing.encode(records)
    assert Standing.decode(whole, records) == standing
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    for bad in (damaged, cut, whole + b"\0"):
        with pytest.raises(StandingInvalid):
            Standing.decode(bad, records)
    with pytest.raises(StandingInvalid):
        Standing.decode(whole, records + 1)


def test_a_damaged_file_beside_the_index_is_refused_before_it_blanks_a_row(tmp_path: Path) -> None:
    tiny_index().save(tmp_path)
    erase_rows(tmp_path, [2])
    rows, damaged = (tmp_path / "rows.bin").read_bytes(), bytearray((tmp_path / STANDING_FILE).read_bytes())
    damaged[20] ^= 1  # the number of the erased row
    (tmp_path / STANDING_FILE).write_bytes(damaged)
    with pytest.raises(IndexFileError, match="was damaged"):
        Index.open(tmp_path)
    assert (tmp_path / "rows.bin").read_bytes() == rows
    for content in (b"", b"OLSTAND1", bytes(1 << 20)):
        (tmp_path / STANDING_FILE).write_bytes(content)
        with pytest.raises(IndexFileError):
            Index.open(tmp_path)
    tiny_index().save(tmp_path)
    assert Index.open(tmp_path).standing == Standing()


def test_roots_of_hashes_are_those_of_leaves() -> None:
    leaves = [bytes([n]) * n for n in range(9)]
    for count in range(10):
        assert root_of_hashes([leaf_hash(leaf) for leaf in leaves[:count]]) == merkle_root(leaves[:count])
