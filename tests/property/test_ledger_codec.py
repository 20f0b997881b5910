"""Bytes from outside are read in exactly one way or refused with the one error that says so."""

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.codec import encode
from node.ledger.accumulator import decode_accumulator, encode_accumulator
from node.ledger.batch import decode_batch, encode_batch
from node.ledger.block import decode_receipt, encode_receipt
from node.ledger.errors import MalformedError
from node.ledger.openings import Opening, decode_opening, decode_voucher, encode_opening, encode_voucher
from node.ledger.records import decode_records, encode_records
from node.ledger.transaction import decode_transaction, encode_transaction
from tests.profiles import examples
from tests.unit.node_ledger.test_ledger_transactions import SAMPLES, WORLD, signed
from tests.unit.node_ledger.world import SALT

Codec = tuple[Callable[[bytes], Any], Callable[[Any], bytes]]

CODECS: dict[str, Codec] = {
    "transaction": (decode_transaction, encode_transaction),
    "batch": (decode_batch, encode_batch),
    "records": (decode_records, encode_records),
    "opening": (decode_opening, encode_opening),
    "voucher": (decode_voucher, encode_voucher),
    "receipt": (decode_receipt, encode_receipt),
    "accumulator": (decode_accumulator, encode_accumulator),
}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.binary(max_size=40)
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=9),
    max_leaves=30,
)
GOOD = [
    *[encode_transaction(signed(body)) for body in SAMPLES],
    encode_batch(WORLD.batch(b"one", b"two")),
    encode_records([[1, 2], [300]]),
    encode_opening(Opening((1,), SALT, (2, 3), SALT)),
    encode_voucher(WORLD.voucher(bytes(32))),
]


def read_once(data: bytes) -> None:
    for decoder, encoder in CODECS.values():
        try:
            value = decoder(data)
        except MalformedError:
            continue
        assert encoder(value) == data


@settings(max_examples=examples(150))
@given(st.binary(max_size=300) | VALUES.map(encode))
def test_arbitrary_bytes_are_refused_or_are_the_canonical_bytes_of_what_they_mean(data: bytes) -> None:
    read_once(data)


@settings(max_examples=examples(200))
@given(
    st.sampled_from(GOOD),
    st.integers(0, 10**6),
    st.integers(1, 255),
    st.sampled_from(["flip", "cut", "insert"]),
)
def test_damaged_bytes_are_refused_or_are_the_canonical_bytes_of_something_else(
    data: bytes, at: int, value: int, damage: str
) -> None:
    at %= len(data)
    if damage == "flip":
        read_once(data[:at] + bytes([data[at] ^ value]) + data[at + 1 :])
    elif damage == "cut":
        read_once(data[:at])
    else:
        read_once(data[:at] + bytes([value]) + data[at:])


@settings(max_examples=examples(50))
@given(st.lists(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20), min_size=1, max_size=20))
def test_records_survive_their_blob(records: list[list[int]]) -> None:
    assert decode_records(encode_records(records)) == tuple(map(tuple, records))
