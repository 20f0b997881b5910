"""Records that were erased from a contribution: nothing of them is left, and the rest still proves itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attribution.merkle import leaf_hash
from consensus.codec import encode
from node.ledger.erased import erase_records, read_remaining
from node.ledger.errors import MalformedError
from node.ledger.records import encode_records, records_root

record_lists = st.lists(
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=9).map(tuple), min_size=1, max_size=9
)


@given(record_lists, st.data())
def test_what_remains_is_read_and_what_was_erased_is_its_hash(
    records: list[tuple[int, ...]], data: st.DataObject
) -> None:
    numbers = st.sets(st.integers(0, len(records) - 1))
    first, second = data.draw(numbers), data.draw(numbers)
    root = records_root(records)
    blob = erase_records(erase_records(encode_records(records), root, first), root, second)
    expected = [
        leaf_hash(encode(list(record))) if n in first | second else record for n, record in enumerate(records)
    ]
    assert list(read_remaining(blob, root)) == expected
    assert blob == erase_records(encode_records(records), root, first | second)
    assert erase_records(encode_records(records), root, []) == encode_records(records)


def test_no_token_of_an_erased_record_is_left() -> None:
    records = [tuple(b"kept words"), tuple(b"a secret to be erased"), tuple(b"more")]
    blob = erase_records(encode_records(records), records_root(records), [1])
    assert b"secret" not in blob
    assert b"kept words" in blob


@given(record_lists, st.data())
def test_any_other_byte_is_refused(records: list[tuple[int, ...]], data: st.DataObject) -> None:
    root = records_root(records)
    erased = data.draw(st.sets(st.integers(0, len(records) - 1)))
    blob = erase_records(encode_records(records), root, erased)
    at = data.draw(st.integers(0, len(blob) - 1))
    damaged = blob[:at] + bytes([blob[at] ^ data.draw(st.integers(1, 255))]) + blob[at + 1 :]
    for bad in (damaged, blob[:at], blob + b"\0"):
        with pytest.raises(MalformedError):
            read_remaining(bad, root)


@pytest.mark.parametrize("value", [[], [b"short"], [[]], [[-1]], [["a"]], [None], [[2**32]], 7])
def test_what_is_no_list_of_records_and_hashes_is_refused(value: object) -> None:
    with pytest.raises(MalformedError):
        read_remaining(encode(value), bytes(32))


def test_records_that_are_not_there_and_another_root_are_refused() -> None:
    records = [(1, 2), (3,)]
    for number in (-1, 2):
        with pytest.raises(MalformedError, match="there are 2"):
            erase_records(encode_records(records), records_root(records), [number])
    with pytest.raises(MalformedError, match="not the contribution's"):
        erase_records(encode_records(records), bytes(32), [0])


def test_hashes_that_do_not_fit_where_short_records_did_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [(1,)] * 20
    monkeypatch.setattr("node.ledger.erased.RECORDS_BYTES_MAX", 100)
    with pytest.raises(MalformedError, match="bytes of records"):
        erase_records(encode_records(records), records_root(records), range(20))
