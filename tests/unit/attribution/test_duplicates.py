"""Near-duplicates: exact similarity with leaders alone, decided by what came before, the same integers everywhere."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution import duplicates
from attribution.duplicates import leaders
from tests.profiles import examples

TEXT = b"copying a record must not pay the copier"


def shingles(record: Sequence[int]) -> set[tuple[int, ...]]:
    width = duplicates.SHINGLE_TOKENS
    return {tuple(record[at : at + width]) for at in range(max(1, len(record) - width + 1))}


def similarity(one: Sequence[int], other: Sequence[int]) -> Fraction:
    a, b = shingles(one), shingles(other)
    return Fraction(len(a & b), len(a | b))


THRESHOLD = Fraction(7, 10)


def plain_leaders(records: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The rule without MinHash: every earlier leader is compared."""
    found = list[int]()
    for own, record in enumerate(records):
        leading = [other for other in range(own) if found[other] == other]
        alike = [other for other in leading if similarity(record, records[other]) >= THRESHOLD]
        found.append(alike[0] if alike else own)
    return tuple(found)


token = st.sampled_from([0, 1, 2, 2**32 - 1])
record_lists = st.lists(st.lists(token, max_size=14).map(tuple), max_size=12)


@settings(max_examples=examples(40))
@given(record_lists)
def test_who_is_led_is_similar_to_an_earlier_leader_and_equals_have_one(
    records: list[tuple[int, ...]],
) -> None:
    found = leaders(records)
    for own, leader in enumerate(found):
        assert leader <= own
        assert found[leader] == leader
        assert leader == own or similarity(records[own], records[leader]) >= THRESHOLD
    for own, record in enumerate(records):
        assert all(found[other] == found[own] for other in range(own) if records[other] == record)


@settings(max_examples=examples(25))
@given(record_lists, record_lists)
def test_later_records_change_no_earlier_leader(
    records: list[tuple[int, ...]], later: list[tuple[int, ...]]
) -> None:
    assert leaders([*records, *later])[: len(records)] == leaders(records)


@settings(max_examples=examples(25))
@given(record_lists, st.randoms(use_true_random=False))
def test_the_order_of_commitment_decides_and_not_the_place_in_the_index(
    records: list[tuple[int, ...]], rng: random.Random
) -> None:
    places = list(range(len(records)))
    rng.shuffle(places)
    # The record committed k-th stands at places[k].
    shuffled, commits = list(records), [0] * len(records)
    for k, place in enumerate(places):
        shuffled[place], commits[place] = records[k], 10 * k
    expected = leaders(records)
    found = leaders(shuffled, commits)
    assert [found[places[k]] for k in range(len(records))] == [places[leader] for leader in expected]


@settings(max_examples=examples(25))
@given(record_lists, st.sets(st.integers(0, 11)))
def test_an_erased_record_is_as_if_it_had_never_been(
    records: list[tuple[int, ...]], erased: set[int]
) -> None:
    kept = [i for i in range(len(records)) if i not in erased]
    alone = leaders([records[i] for i in kept])
    expected = list(range(len(records)))
    for own, leader in zip(kept, alone, strict=True):
        expected[own] = kept[leader]
    assert leaders([None if i in erased else r for i, r in enumerate(records)]) == tuple(expected)


def edited(text: bytes, rng: random.Random, edits: int) -> bytes:
    out = bytearray(text)
    for _ in range(edits):
        out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def test_edited_copies_are_found_as_by_comparing_everything() -> None:
    rng = random.Random(8)
    originals = [rng.randbytes(rng.randrange(40, 110)) for _ in range(30)]
    copies = [edited(rng.choice(originals), rng, rng.randrange(6)) for _ in range(90)]
    records = originals + copies
    found = leaders(records)
    assert found == plain_leaders(records)
    assert 30 < sum(leader != own for own, leader in enumerate(found)) < 90


def test_a_chain_of_small_changes_ends_where_its_leader_is_no_longer_similar() -> None:
    chain = [TEXT]
    for at in range(2, 40, 6):
        chain.append(chain[-1][:at] + b"#" + chain[-1][at + 1 :])
    assert all(similarity(a, b) >= THRESHOLD for a, b in pairwise(chain))
    found = leaders(chain)
    assert found[:2] == (0, 0)
    assert found[2] == 2
    assert len(set(found)) > 2


def test_a_similarity_of_exactly_the_threshold_counts_and_one_shingle_less_does_not() -> None:
    one, other = list(range(100, 112)), [99, *range(100, 111), 5]
    assert similarity(one, other) == Fraction(7, 10)
    assert leaders([one, other]) == (0, 0)
    further = [98, *other]
    assert similarity(one, further) == Fraction(7, 11)
    assert leaders([one, further]) == (0, 1)


MASK = 2**64 - 1


def plain_mix(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def plain_bands(record: Sequence[int]) -> list[int]:
    """The definition in the module's docstring, in plain integers."""
    hashes = []
    for shingle in shingles(record):
        h = 0
        padded = [*(t + 1 for t in shingle), *[0] * (duplicates.SHINGLE_TOKENS - len(shingle))]
        for column in padded:
            h = plain_mix(h + column + duplicates.GOLDEN & MASK)
        hashes.append(h)
    count = duplicates.BANDS * duplicates.BAND_ROWS
    factors = [(2 * plain_mix(2 * k + 1) + 1) & MASK for k in range(count)]
    signature = [min(f * h + plain_mix(2 * k + 2) & MASK for h in hashes) for k, f in enumerate(factors)]
    bands = []
    for band in range(duplicates.BANDS):
        h = band
        for entry in signature[band * duplicates.BAND_ROWS :][: duplicates.BAND_ROWS]:
            h = plain_mix(h + entry + duplicates.GOLDEN & MASK)
        bands.append(h)
    return bands


def test_signatures_are_those_of_plain_integers_for_any_split_of_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records = [TEXT, b"", b"abcd", [2**32 - 1] * 9, list(range(300)), TEXT[::-1]]
    expected = [plain_bands(record) for record in records]
    for at_once in (1, 50, 1 << 15):
        monkeypatch.setattr(duplicates, "_HASHED_AT_ONCE", at_once)
        signatures = duplicates._signatures(duplicates._Windows.of(records))
        assert duplicates._bands(signatures).tolist() == expected
    assert expected[0][0] == 2156640981697969353  # published in docs/attribution.md


def test_shingles_are_numbered_exactly_whatever_their_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes that all collide make everybody a candidate and nobody a copy."""
    rng = random.Random(5)
    records = [rng.randbytes(30) for _ in range(20)] + [TEXT, TEXT + b"!"]
    monkeypatch.setattr(duplicates, "_mix", np.zeros_like)
    assert leaders(records) == (*range(20), 20, 20)


def test_records_that_are_all_candidates_of_each_other_cost_bounded_time() -> None:
    rng = random.Random(6)
    head = rng.randbytes(40)
    records = [head + rng.randbytes(22) for _ in range(150)]  # similarity 36 / 80
    started = time.process_time()
    assert leaders(records) == tuple(range(150))
    assert time.process_time() - started < 10


def test_beyond_the_candidates_the_earliest_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(6)
    head = rng.randbytes(60)
    records = [head + rng.randbytes(30) for _ in range(12)]
    monkeypatch.setattr(duplicates, "CANDIDATES_MAX", 4)
    assert leaders([*records, records[0]])[-1] == 0
    assert leaders([*records, records[11]])[-1] == 12


@pytest.mark.parametrize(("name", "limit"), [("RECORDS_MAX", 1), ("TOKENS_MAX", 10)])
def test_more_than_the_limits_is_refused(name: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, name, limit)
    with pytest.raises(ValueError, match="more than"):
        leaders([TEXT, TEXT])


def test_every_record_has_one_time_of_commitment() -> None:
    with pytest.raises(ValueError, match="commitment"):
        leaders([TEXT], [1, 2])
    assert leaders([]) == ()
    assert leaders([None, None]) == (0, 1)
