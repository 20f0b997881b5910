"""Rows of many coordinates are sketched: the definition's bytes, however they are built, and an index like any other."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from attribution import exact
from attribution.gradients import Example
from attribution.index import (
    INDEX_VERSION,
    INDEX_VERSION_SKETCHED,
    Index,
    IndexFileError,
    IndexHeader,
    build_index,
    record_digest,
)
from attribution.index_files import build_index_files, erase_rows
from attribution.merkle import verify_merkle_proof
from attribution.rows import COORDINATES_SIGNED_MAX, SUMS, is_sketched, row_parts
from attribution.scores import score, score_example
from attribution.shares import attribute
from attribution.sketch import GOLDEN
from attribution.whitening import FactorShape, example_gradients, normalised
from tests.unit.attribution.index_cases import RECORDS, adapter, tiny_base, tiny_index

RANK = 256
MASK = 2**64 - 1


@cache
def sketched_index() -> Index:
    return build_index(tiny_base(), adapter(rank=RANK), RECORDS)


def whitened(index: Index, record: tuple[int, ...]) -> list[torch.Tensor]:
    _, found = example_gradients(tiny_base(), adapter(rank=RANK), [Example((), record)])
    cpu = torch.device("cpu")
    turned = index.turning(cpu).turned(normalised(found))
    return [g * w for g, w in zip(turned, index.factor_weights(cpu), strict=True)]


def plain_sums(parts: list[torch.Tensor]) -> list[int]:
    """The definition, in plain integers."""
    q = exact.quantise(torch.cat([x.flatten() for x in parts]))[0].to(torch.int64).tolist()
    sums = [0] * SUMS
    for c, value in enumerate(q):
        z = (c + 1) * GOLDEN & MASK
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
        z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
        z ^= z >> 31
        sums[z >> 48] += value * (1 - 2 * (z & 1))
    return sums


def test_only_rows_of_more_coordinates_than_the_limit_are_sketched() -> None:
    at_limit = [FactorShape("a.B", 512, 128), FactorShape("a.A", 512, 128)]
    assert sum(s.coordinates for s in at_limit) == COORDINATES_SIGNED_MAX
    assert not is_sketched(at_limit)
    assert is_sketched([*at_limit, FactorShape("b.B", 1, 1)])
    assert tiny_index().header.version == INDEX_VERSION
    assert sketched_index().header.version == INDEX_VERSION_SKETCHED
    assert sketched_index().header.coordinates > COORDINATES_SIGNED_MAX


def test_a_row_is_digest_scale_and_signs_of_the_definitions_sums() -> None:
    index = sketched_index()
    assert index.header.row_bytes == 32 + 4 + SUMS // 8 == index.rows.shape[1]
    for record in (0, 5):
        sums = plain_sums(whitened(index, RECORDS[record]))
        bits = np.packbits(np.array(sums) >= 0, bitorder="little").tobytes()
        expected = record_digest(RECORDS[record]) + (1).to_bytes(4, "little") + bits
        assert index.rows[record].tobytes() == expected
    assert index.norms == (SUMS,) * len(RECORDS)


def test_scores_are_the_definitions_sums_over_signs() -> None:
    index = sketched_index()
    found = score_example(tiny_base(), adapter(rank=RANK), index, Example((), RECORDS[4]))
    sums = plain_sums(whitened(index, RECORDS[4]))
    shift = max(0, max(map(abs, sums)).bit_length() - 13)
    query = [round(y / 2**shift) for y in sums]
    signs = np.unpackbits(np.array(index.signs), axis=1, bitorder="little").astype(np.int64) * 2 - 1
    assert list(found.values) == (signs @ np.array(query)).tolist()
    assert found.query_norm == sum(p * p for p in query)
    assert found.best() == 4
    others = [found.cosine_ppm(i) for i in range(len(RECORDS)) if i != 4]
    assert found.cosine_ppm(4) > 2 * max(others)


def test_files_hold_the_bytes_that_were_built_in_memory(tmp_path: Path) -> None:
    built = build_index_files(tiny_base(), adapter(rank=RANK), RECORDS, tmp_path)
    assert built.rows.tobytes() == sketched_index().rows.tobytes()
    assert Index.open(tmp_path, sketched_index().root).header == sketched_index().header
    row, leaf, count, proof = built.row_proof(2)
    assert verify_merkle_proof(built.root, row, leaf, count, proof)


def test_an_erased_row_scores_nothing_and_changes_no_other(tmp_path: Path) -> None:
    sketched_index().save(tmp_path)
    erased = erase_rows(tmp_path, [4])
    before = score(tiny_base(), adapter(rank=RANK), sketched_index(), RECORDS[4][:8], RECORDS[4][8:])
    after = score(tiny_base(), adapter(rank=RANK), erased, RECORDS[4][:8], RECORDS[4][8:])
    assert before.values[4] > 0
    assert (after.values[4], after.rows.norms[4]) == (0, 0)
    assert [v for i, v in enumerate(after.values) if i != 4] == [
        v for i, v in enumerate(before.values) if i != 4
    ]
    owners = [b"owner %d" % i for i in range(len(RECORDS))]
    assert attribute(before, owners).of(owners[4]) > attribute(after, owners).of(owners[4]) == 0


def test_a_gradient_of_nothing_has_scale_and_score_zero() -> None:
    shapes = [FactorShape("a.B", 1 << 10, 129)]
    scales, signs = row_parts([torch.zeros(2, 1 << 10, 129)], shapes)
    assert (scales.tolist(), signs.shape) == ([[0], [0]], (2, SUMS // 8))


@pytest.mark.parametrize("sketched", [False, True])
def test_a_header_of_the_other_version_is_refused(sketched: bool) -> None:
    index = sketched_index() if sketched else tiny_index()
    data = index.header.encode()
    other = b"OLINDEX2" if sketched else b"OLINDEX3"
    assert IndexHeader.decode(data) == index.header
    with pytest.raises(IndexFileError, match="contradicts"):
        IndexHeader.decode(other + data[8:])
