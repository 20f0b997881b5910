"""Verbatim spans: what a plain search finds, whatever was added, joined, erased, reopened or damaged on the way."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution.spans import Place, Span, SpanFileError, SpanIndex, SpanLimit
from attribution.spans.matching import OCCURRENCES_READ_MAX, OUTPUT_TOKENS_MAX, PLACES_MAX, log2_floor
from attribution.spans.segment import Segment
from attribution.spans.store import RECORD_TOKENS_MAX
from attribution.spans.suffixes import suffix_order
from tests.profiles import examples

Record = tuple[int, ...]
TEXT = b"the quick brown fox jumps over the lazy dog"


def stands(text: Record, record: Record) -> list[int]:
    return [at for at in range(len(record) - len(text) + 1) if record[at : at + len(text)] == text]


def plain_spans(live: dict[int, Record], output: Record, length_min: int) -> list[Span]:
    """The definition, by looking everywhere for everything."""
    tokens = [token for record in live.values() for token in record]
    lengths = []
    for start in range(len(output)):
        ends = range(start + 1, len(output) + 1)
        found = [end - start for end in ends if any(stands(output[start:end], r) for r in live.values())]
        lengths.append(max(found, default=0))
    spans = []
    for start, length in enumerate(lengths):
        inside = any(
            s <= start and start + length <= s + other and (s, other) != (start, length)
            for s, other in enumerate(lengths)
        )
        if length < length_min or inside:
            continue
        text = output[start : start + length]
        where = {number: stands(text, record) for number, record in live.items() if stands(text, record)}
        surprise = sum(log2_floor(len(tokens)) - log2_floor(tokens.count(token)) for token in text)
        places = tuple(Place(number, where[number][0]) for number in sorted(where)[:PLACES_MAX])
        occurrences = sum(map(len, where.values()))
        spans.append(Span(start, length, occurrences, len(where), surprise, places))
    return sorted(spans, key=lambda s: (-s.surprise, s.occurrences, s.start))


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, list[list[Record] | set[int] | None], list[Record]]:
    """Bytes per token, steps (records to add, numbers to erase, None to reopen), outputs to ask for."""
    width, rare = draw(st.sampled_from([(1, 255), (2, 65_535), (4, 2**32 - 1)]))
    token = st.sampled_from([0, 1, rare])
    records = st.lists(st.lists(token, max_size=12).map(tuple), max_size=5)
    erased = st.sets(st.integers(0, 12), max_size=4)
    steps = draw(st.lists(st.one_of(records, records, erased, st.none()), min_size=1, max_size=6))
    outputs = draw(st.lists(st.lists(token, max_size=14).map(tuple), min_size=1, max_size=3))
    return width, steps, outputs


@settings(max_examples=examples(40))
@given(histories(), st.integers(1, 3))
def test_spans_are_those_of_a_plain_search_after_any_history(
    history: tuple[int, list[list[Record] | set[int] | None], list[Record]], length_min: int
) -> None:
    width, steps, outputs = history
    live = dict[int, Record]()
    with TemporaryDirectory() as folder:
        index = SpanIndex.create(Path(folder), width)
        for step in steps:
            match step:
                case None:
                    index = SpanIndex.open(Path(folder))
                case set():
                    there = step & live.keys()
                    assert index.erase(step) == len(there)
                    live = {number: record for number, record in live.items() if number not in there}
                case list():
                    live.update(zip(index.add(step), step, strict=True))
        assert (index.record_count, index.token_count) == (len(live), sum(map(len, live.values())))
        for output in outputs:
            assert list(index.spans(output, length_min)) == plain_spans(live, output, length_min)


@settings(max_examples=examples(50))
@given(st.lists(st.lists(st.sampled_from([0, 1, 2**32 - 1]), max_size=30), max_size=6))
def test_places_are_sorted_by_what_follows_in_their_own_record(records: list[list[int]]) -> None:
    starts = np.cumsum([0, *map(len, records)], dtype=np.int64)
    tokens = np.array([token for record in records for token in record], np.uint32)
    follows = [(record[at:], n, at) for n, record in enumerate(records) for at in range(len(record))]
    expected = [int(starts[n]) + at for _, n, at in sorted(follows)]
    assert suffix_order(tokens, starts).tolist() == expected


def test_long_repetitions_are_sorted_in_few_rounds() -> None:
    tokens = np.zeros(100_000, np.uint32)
    assert suffix_order(tokens, np.array([0, 100_000])).tolist() == list(range(99_999, -1, -1))


def test_the_rare_sentence_comes_before_the_longer_line_of_dashes(tmp_path: Path) -> None:
    index = SpanIndex.create(tmp_path)
    index.add([b"-" * 40 + b" zyx wvu tsr", *[b"-" * 60] * 30])
    first, second, *_ = index.spans(b"-" * 30 + b"|" + b" zyx wvu tsr", 8)
    assert (first.start, first.length, first.occurrences) == (31, 12, 1)
    assert (second.start, second.length, second.records) == (0, 30, 31)
    assert second.occurrences == 11 + 30 * 31


def test_adding_sorts_little_and_leaves_large_segments_alone(tmp_path: Path) -> None:
    index = SpanIndex.create(tmp_path)
    rng = random.Random(4)
    index.add([rng.randbytes(100) for _ in range(64)])
    large = next(tmp_path.glob("*.span"))
    written = large.stat().st_ino, large.stat().st_mtime_ns
    for _ in range(20):
        index.add([rng.randbytes(100)])
    assert (large.stat().st_ino, large.stat().st_mtime_ns) == written
    assert index.segment_count <= 7
    assert index.size_bytes < 5 * index.token_count


def test_the_index_takes_a_few_bytes_a_byte(tmp_path: Path) -> None:
    index = SpanIndex.create(tmp_path)
    index.add([random.Random(n).randbytes(1000) for n in range(100)])
    assert index.size_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert index.size_bytes < 4.1 * index.token_count


def test_what_was_erased_is_in_no_file_and_its_number_is_not_used_again(tmp_path: Path) -> None:
    index = SpanIndex.create(tmp_path)
    secret = b"a word that nobody else would write"
    index.add([TEXT, secret + TEXT, TEXT[::-1]])
    index.add([TEXT])
    assert index.count(secret) == 1
    assert index.erase([1]) == 1
    assert index.count(secret) == 0
    assert index.spans(TEXT, 30)[0].places == (Place(0, 0), Place(3, 0))
    assert not any(secret in path.read_bytes() for path in tmp_path.iterdir())
    assert index.erase([1, 99, -1]) == 0
    assert index.erase([0, 2, 3]) == 3
    assert index.add([TEXT]) == range(4, 5)
    assert SpanIndex.open(tmp_path).spans(TEXT)[0].places == (Place(4, 0),)


@pytest.mark.parametrize("change", ["add", "erase"])
def test_a_crash_before_the_list_is_replaced_changes_nothing_and_leaves_nothing(
    tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = SpanIndex.create(tmp_path)
    index.add([TEXT, TEXT[::-1]])
    with monkeypatch.context() as patch:
        patch.setattr(index, "_commit", _crash)
        with pytest.raises(RuntimeError):
            index.add([b"unheard of"]) if change == "add" else index.erase([0])
    again = SpanIndex.open(tmp_path)
    assert len(list(tmp_path.glob("*.span"))) == 1
    assert (again.record_count, again.count(TEXT)) == (2, 1)
    assert again.add([b"more"]) == range(2, 3)


def _crash(*_: object) -> None:
    raise RuntimeError("the power went")


def test_a_crash_after_the_list_is_replaced_leaves_no_erased_byte_behind(tmp_path: Path) -> None:
    index = SpanIndex.create(tmp_path)
    index.add([TEXT, b"a secret to be erased"])
    old = next(tmp_path.glob("*.span"))
    kept = old.read_bytes()
    index.erase([1])
    old.write_bytes(kept)  # as if the process had died before it removed the file
    SpanIndex.open(tmp_path, writable=False)
    assert old.exists()
    SpanIndex.open(tmp_path)
    assert not any(b"secret" in path.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("records", "word"),
    [([TEXT, [256]], "token id"), ([[-1]], "token id"), ([[0] * (RECORD_TOKENS_MAX + 1)], "tokens")],
)
def test_records_beyond_a_limit_are_refused_and_nothing_is_added(
    tmp_path: Path, records: list[Sequence[int]], word: str
) -> None:
    index = SpanIndex.create(tmp_path)
    with pytest.raises(SpanLimit, match=word):
        index.add(records)
    assert (index.record_count, len(list(tmp_path.iterdir()))) == (0, 1)


@pytest.mark.parametrize(("name", "limit"), [("RECORDS_MAX", 2), ("SEGMENTS_MAX", 2)])
def test_too_many_records_or_segments_are_refused(
    tmp_path: Path, name: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"attribution.spans.store.{name}", limit)
    monkeypatch.setattr("attribution.spans.store.SEGMENT_TOKENS_MAX", 10)
    index = SpanIndex.create(tmp_path)
    index.add([b"123456789"])
    with pytest.raises(SpanLimit, match=str(limit)):
        index.add([b"12345678"] * 3)
    assert (index.record_count, len(list(tmp_path.glob("*.span")))) == (1, 1)
    assert index.add([b"1"]) == range(1, 2)


def test_records_fill_segments_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attribution.spans.store.SEGMENT_TOKENS_MAX", 100)
    index = SpanIndex.create(tmp_path)
    index.add([TEXT] * 9)
    index.add([TEXT] * 2)
    assert index.segment_count == 6
    span = index.spans(TEXT)[0]
    assert (span.occurrences, span.records, span.places[-1]) == (11, 11, Place(7, 0))


@pytest.mark.parametrize(("output", "length_min"), [([0] * (OUTPUT_TOKENS_MAX + 1), 1), ([256], 1), ([1], 0)])
def test_outputs_beyond_a_limit_are_refused(tmp_path: Path, output: list[int], length_min: int) -> None:
    index = SpanIndex.create(tmp_path)
    index.add([TEXT])
    with pytest.raises(SpanLimit):
        index.spans(output, length_min)
    with pytest.raises(SpanLimit):
        index.count([])


def test_a_span_that_is_everywhere_is_counted_and_names_nobody(tmp_path: Path) -> None:
    index = SpanIndex.create(tmp_path)
    index.add([bytes(RECORD_TOKENS_MAX)] * 2)
    (span,) = index.spans(bytes(5))
    assert span == Span(0, 5, 2 * (RECORD_TOKENS_MAX - 4), None, 0, ())
    assert span.occurrences > OCCURRENCES_READ_MAX


def test_logarithms_are_floors_of_exact_ones() -> None:
    assert [log2_floor(n) for n in (1, 2, 3, 2**32)] == [0, 1024, 1623, 32 * 1024]
    for n in range(1, 300):
        assert 2 ** log2_floor(n) <= n**1024 < 2 ** (log2_floor(n) + 1)


def test_damaged_and_foreign_files_are_refused_or_stay_within_bounds(tmp_path: Path) -> None:
    index = SpanIndex.create(tmp_path)
    index.add([TEXT, TEXT[::-1], b"", bytes(range(200))])
    path = next(tmp_path.glob("*.span"))
    whole, listed = path.read_bytes(), (tmp_path / "segments").read_bytes()
    rng = random.Random(3)
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 4))):
            damaged[rng.randrange(len(whole))] = rng.choice((0, 1, 255, rng.randrange(256)))
        path.write_bytes(damaged)
        try:
            opened = SpanIndex.open(tmp_path)
            opened.spans(TEXT)
            opened.count(TEXT[5:])
        except SpanFileError:
            continue
    for cut in (whole[:-1], whole + b"\0", whole[:10], b""):
        path.write_bytes(cut)
        with pytest.raises(SpanFileError):
            Segment(path)
    path.write_bytes(whole)
    for bad in (
        listed[:-1],
        listed + bytes(8),
        b"",
        b"OLSPANL2" + listed[8:],
        listed[:8] + b"\2" + listed[9:],
    ):
        (tmp_path / "segments").write_bytes(bad)
        with pytest.raises(SpanFileError):
            SpanIndex.open(tmp_path)
    (tmp_path / "segments").write_bytes(listed)
    path.unlink()
    with pytest.raises(SpanFileError):
        SpanIndex.open(tmp_path)


def test_an_index_is_made_once_and_with_a_known_width(tmp_path: Path) -> None:
    SpanIndex.create(tmp_path)
    with pytest.raises(SpanFileError, match="already"):
        SpanIndex.create(tmp_path)
    with pytest.raises(SpanLimit):
        SpanIndex.create(tmp_path / "other", 3)
