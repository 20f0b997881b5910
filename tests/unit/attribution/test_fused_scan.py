"""The compiled scan gives the plain one's integers, wherever rows begin and end, at the largest query, and refuses what no shapes describe."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution import exact, first_look, signs
from attribution.signs import integer_query, scan, sign_bytes
from attribution.whitening import FactorShape
from tests.profiles import examples
from tests.unit.attribution.fused_cases import PLAIN, needs_kernels

LARGEST = 1 << 13
Query = npt.NDArray[np.int32]
Rows = npt.NDArray[np.uint8]
Scales = npt.NDArray[np.uint32]


def shapes_of(coordinates: list[int]) -> list[FactorShape]:
    return [FactorShape(f"f{k}", wide, 1) for k, wide in enumerate(coordinates)]


def both(query: Query, rows: Rows, scales: Scales, shapes: list[FactorShape]) -> tuple[list[int], list[int]]:
    """The scan by the torch path's backend and by the default, which is the kernels'; with and without masks the latter is one."""
    from attribution.exact.fused import masked

    exact.set_backend(PLAIN)
    try:
        plain = scan(query, rows, scales, shapes)
    finally:
        exact.set_backend(None)
    found = scan(query, rows, scales, shapes)
    with mock.patch.object(masked, "USABLE", False):
        assert scan(query, rows, scales, shapes) == found
    return plain, found


@st.composite
def queries(draw: st.DrawFn, shapes: list[FactorShape]) -> Query:
    """Padded as `integer_query` pads: of all sizes, of the largest magnitudes, of one sign, of nothing."""
    random = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    top = draw(st.sampled_from([1, 37, 127, 128, 900, 4000, LARGEST - 1, LARGEST]))
    parts = []
    for shape in shapes:
        kind = draw(st.sampled_from(["any", "ends", "positive", "negative", "zero"]))
        q = random.integers(-top, top + 1, shape.coordinates)
        if kind == "ends":
            q = np.where(random.random(q.shape) < 0.9, np.sign(q) * top, q)
        if kind in ("positive", "negative"):
            q = np.full(q.shape, top if kind == "positive" else -top)
        parts.append(np.pad(q * (kind != "zero"), (0, -q.size % 8)))
    return np.concatenate(parts).astype(np.int32)


SIZES = st.lists(
    st.one_of(st.integers(1, 300), st.sampled_from([8, 128, 1016, 1024, 1032, 2400])), min_size=1, max_size=6
)


@needs_kernels
@settings(max_examples=examples(80))
@given(st.data(), SIZES, st.integers(1, 131), st.integers(0, 3), st.booleans())
def test_the_compiled_scan_is_the_plain_one(
    data: st.DataObject, sizes: list[int], records: int, before: int, backwards: bool
) -> None:
    shapes = shapes_of(sizes)
    query = data.draw(queries(shapes))
    width = sum(map(sign_bytes, shapes))
    random = np.random.default_rng(data.draw(st.integers(0, 1 << 20)))
    # Rows lie in wider ones, as in a file; padding bits are whatever they are, for the query's zeros make them nothing.
    rows = random.integers(0, 256, (records, before + width + 5), np.uint8)[:, before : before + width]
    rows = rows[::-1] if backwards else rows
    scales = random.integers(0, 1 << 25, (records, len(shapes))).astype(np.uint32)
    plain, found = both(query, rows, scales, shapes)
    assert found == plain


@needs_kernels
@pytest.mark.parametrize("value", [LARGEST, LARGEST - 1, -LARGEST, 1 - LARGEST])
@pytest.mark.parametrize(("bits", "size"), [(255, 2048), (255, 129), (0, 128), (0x55, 256)])
def test_sums_of_one_sign_fit_their_digits_and_words(value: int, bits: int, size: int) -> None:
    shapes, rows = shapes_of([8 * size]), np.full((65, size), bits, np.uint8)
    query, scales = np.full(8 * size, value, np.int32), np.full((65, 1), 2**24 // 64, np.uint32)
    plain, found = both(query, rows, scales, shapes)
    set_bits = bits.bit_count()
    assert found == plain == [(2**24 // 64) * value * size * (2 * set_bits - 8)] * 65


@needs_kernels
def test_a_row_counts_whatever_lies_beside_it_and_the_scales_of_others_do_not() -> None:
    shapes = shapes_of([136, 24])
    query = np.arange(160, dtype=np.int32) * 50 - 4000
    random = np.random.default_rng(7)
    rows, scales = random.integers(0, 256, (70, 20), np.uint8), random.integers(0, 99, (70, 2)).astype("u4")
    whole = scan(query, rows, scales, shapes)
    for i in (0, 31, 32, 63, 64, 69):
        assert scan(query, rows[i : i + 1], scales[i : i + 1], shapes) == whole[i : i + 1]
    assert scan(query, rows[:0], scales[:0], shapes) == []


@needs_kernels
def test_files_that_only_may_be_read_are_scanned_where_they_are(tmp_path: Path) -> None:
    random = np.random.default_rng(8)
    (tmp_path / "rows.bin").write_bytes(random.bytes(64 * 256))
    mapped = np.memmap(tmp_path / "rows.bin", np.uint8, mode="r").reshape(-1, 64)
    rows, shapes = mapped[:, 14:], shapes_of([400])
    query = random.integers(-LARGEST, LARGEST + 1, 400).astype(np.int32)
    scales = np.ascontiguousarray(mapped[:, :4]).view("<u4") % np.uint32(1 << 25)
    plain, found = both(query, rows, scales, shapes)
    assert found == plain


@needs_kernels
@pytest.mark.parametrize(
    "value", [-8192, -8191, -8129, -8128, -128, -127, -65, -64, -1, 0, 63, 64, 127, 128, 8191, 8192]
)
def test_limbs_of_every_query_are_bytes_that_give_it_back(value: int) -> None:
    from attribution.exact.fused.scanning import limbs_of

    query = np.full(8 * 11, value, np.int32)
    limbs = limbs_of(query, [9, 2]).astype(np.int64)
    assert limbs.shape == (3, 2, 64)
    back = limbs[:, 0] * 128 + limbs[:, 1]
    assert back.reshape(-1)[[*range(72), *range(128, 144)]].tolist() == query.tolist()
    assert not back.reshape(-1)[72:128].any()
    assert not back.reshape(-1)[144:].any()


@needs_kernels
@pytest.mark.parametrize("records", [33, 64])
def test_nothing_beyond_the_last_row_is_read(records: int) -> None:
    """Behind the last row lies a page that must not be touched: the process would end here."""
    pages = mmap.mmap(-1, 3 * mmap.PAGESIZE)
    memory = np.frombuffer(pages, np.uint8)
    memory[: 2 * mmap.PAGESIZE] = 0x5A
    begin = 2 * mmap.PAGESIZE - records * 50
    last = ctypes.c_void_p(memory.ctypes.data + 2 * mmap.PAGESIZE)
    assert ctypes.CDLL(None).mprotect(last, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    rows = memory[begin : begin + records * 50].reshape(records, 50)
    scales, query = np.ones((records, 1), np.uint32), np.arange(400, dtype=np.int32)
    plain, found = both(query, rows, scales, shapes_of([400]))
    assert found == plain


@needs_kernels
@settings(max_examples=examples(40))
@given(
    st.integers(0, 1 << 20),
    st.integers(1, 600),
    st.integers(1, 100),
    st.sampled_from([0, 1, 7, 30, 31, 32]),
    st.sampled_from(["any", "ends", "positive", "negative"]),
    st.sampled_from([0, 255, None]),
)
def test_looks_by_the_kernel_are_those_that_are_counted(
    seed: int, width: int, records: int, top: int, kind: str, bits: int | None
) -> None:
    random = np.random.default_rng(seed)
    query = random.integers(-top, top + 1, 8 * width).astype(np.int32)
    if kind != "any":
        query = np.where(random.random(query.shape) < 0.5, top, -top).astype(np.int32)
    query = {"positive": np.abs(query), "negative": -np.abs(query)}.get(kind, query)
    rows = random.integers(0, 256, (records, width), np.uint8) if bits is None else None
    rows = np.full((records, width), bits, np.uint8) if rows is None else rows
    places, counted = np.arange(width), np.ones(records, np.bool_)
    plain = first_look._looks(query * 256, first_look.ShortRows(places, rows, counted))
    exact.set_backend("fused")
    with mock.patch.object(first_look, "looked_places", return_value=places):
        short = first_look.short_rows(rows, np.ones((records, 1), np.uint32))
    exact.set_backend(None)
    assert short.signs.shape == (-(-records // 32), width, 32)
    assert first_look._looks(query * 256, short).tolist() == plain.tolist()


@needs_kernels
@settings(max_examples=examples(30))
@given(st.data(), SIZES, st.lists(st.integers(0, 30), max_size=40))
def test_chosen_rows_have_the_scores_that_they_have_among_all(
    data: st.DataObject, sizes: list[int], numbers: list[int]
) -> None:
    shapes = shapes_of(sizes)
    query, width = data.draw(queries(shapes)), sum(map(sign_bytes, shapes))
    random = np.random.default_rng(data.draw(st.integers(0, 1 << 20)))
    rows = random.integers(0, 256, (31, width + 3), np.uint8)[:, 3:]
    scales, chosen = (
        random.integers(0, 1 << 25, (31, len(shapes))).astype(np.uint32),
        np.array(numbers, np.int64),
    )
    expected = np.array(scan(query, rows, scales, shapes), np.int64)[chosen].tolist()
    for backend in (PLAIN, None):
        exact.set_backend(backend)
        try:
            found = signs.integer_scores(query, rows, scales[chosen], shapes, chosen)
        finally:
            exact.set_backend(None)
        assert found.tolist() == expected


@pytest.mark.parametrize("backend", [PLAIN, None])
@pytest.mark.parametrize("numbers", [[0, 3], [-1]])
def test_chosen_rows_that_are_not_there_are_refused(backend: str | None, numbers: list[int]) -> None:
    rows, scales = np.zeros((3, 5), np.uint8), np.ones((len(numbers), 1), np.uint32)
    exact.set_backend(backend)
    try:
        with pytest.raises(ValueError, match="chosen"):
            signs.integer_scores(np.ones(40, np.int32), rows, scales, shapes_of([40]), np.array(numbers))
    finally:
        exact.set_backend(None)


@needs_kernels
@pytest.mark.parametrize("size", [1, 3, 7])
def test_nothing_before_the_first_row_is_read(size: int) -> None:
    """Rows shorter than a block begin a page, and the one before it must not be touched."""
    pages = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    memory = np.frombuffer(pages, np.uint8)
    memory[mmap.PAGESIZE :] = 0xA5
    assert (
        ctypes.CDLL(None).mprotect(ctypes.c_void_p(memory.ctypes.data), ctypes.c_size_t(mmap.PAGESIZE), 0)
        == 0
    )
    rows = memory[mmap.PAGESIZE : mmap.PAGESIZE + 11 * size].reshape(11, size)
    scales, query = np.ones((11, 1), np.uint32), np.arange(8 * size, dtype=np.int32)
    plain, found = both(query, rows, scales, shapes_of([8 * size]))
    assert found == plain


@needs_kernels
def test_a_query_of_a_text_is_scanned_alike_both_ways() -> None:
    x = torch.linspace(-1.0, 1.0, 24 * 8).view(1, 24, 8) ** 3
    query, norm = integer_query([x, x * 1e-3])
    assert norm > 0
    shapes = shapes_of([192, 192])
    rows = np.random.default_rng(9).integers(0, 256, (33, 48), np.uint8)
    plain, found = both(query, rows, np.ones((33, 2), np.uint32), shapes)
    assert len(set(found)) > 1
    assert found == plain


@pytest.mark.parametrize("backend", [PLAIN, None])
def test_sizes_that_are_not_those_of_the_shapes_are_refused(backend: str | None) -> None:
    """The kernel reads where it is told: nothing may be told it that is not there."""
    shapes, query = shapes_of([20, 9]), np.ones(40, np.int32)
    rows, scales = np.zeros((3, 5), np.uint8), np.ones((3, 2), np.uint32)
    exact.set_backend(backend)
    try:
        # Of the 20 coordinates a byte has 4 padding bits; of the 9, 7: the query's padding would be zero.
        assert scan(query, rows, scales, shapes) == [-40] * 3
        for q, r, k in (
            (query[:-1], rows, scales),
            (query[:-8], rows, scales),
            (query, rows[:, :-1], scales),
            (query, np.zeros((3, 6), np.uint8), scales),
            (query, rows, scales[:2]),
            (query, rows, scales[:, :1]),
            (query, rows[0], scales),
        ):
            with pytest.raises(ValueError, match=r"coordinates|factors"):
                scan(q, r, k, shapes)
    finally:
        exact.set_backend(None)


def test_without_kernels_bits_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signs, "family_for", lambda device: "fp32")
    monkeypatch.setattr(signs, "_scan_planes", lambda query, rows, scales, widths: np.full(len(rows), 41))
    ones = np.ones(8, np.int32), np.zeros((2, 1), np.uint8), np.ones((2, 1), np.uint32)
    assert scan(*ones, shapes_of([8])) == [41, 41]
