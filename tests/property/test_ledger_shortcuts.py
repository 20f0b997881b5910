"""The short ways of reading transfers and batches say what the plain ways say, of good bytes and of bad ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.codec import SHORT_BYTES_MAX, decode, encode, encode_known, unpack_short
from consensus.digest import digest
from consensus.errors import CodecError
from node.ledger import batch as batches
from node.ledger import reading, transaction
from node.ledger.batch import Batch, batch_digest, decode_batch, encode_batch, make_batch, sign_batch
from node.ledger.errors import MalformedError
from node.ledger.fields import U63_MAX, from_bytes, pack
from node.ledger.reading import read_transaction
from node.ledger.transaction import decode_transaction
from tests.profiles import examples

CHAIN, SENDER, TO = bytes(range(32)), b"s" * 32, b"t" * 32
SEED = bytes(range(1, 33))

EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 0x10000, 2**32 - 1, 2**32, U63_MAX, U63_MAX + 1, 2**64 - 1)


def longer(value: int) -> list[bytes]:
    """Every header and width that could hold the integer; one of them is canonical."""
    widths = ((0xCC, 1), (0xCD, 2), (0xCE, 4), (0xCF, 8), (0xD0, 1), (0xD1, 2), (0xD2, 4), (0xD3, 8))
    return [
        bytes([first]) + value.to_bytes(width, "big")
        for first, width in widths
        if value < 1 << (8 * width - (first >= 0xD0))
    ]


INTEGERS = [encode(edge) for edge in EDGES] + [row for edge in EDGES for row in longer(edge)]
ODD = [
    *map(encode, (-1, -(2**63), True, False, None, "", "x", b"", b"\0", b"z" * 31, b"z" * 33, b"z" * 64)),
    *map(encode, ([], [1], [TO, 1], [TO, 0], [TO, True], [TO, 1, 1], [1, TO], [TO[1:], 1], ["t" * 32, 1])),
    encode([TO, U63_MAX]),
    encode([TO, U63_MAX + 1]),
    b"\x92" + encode(TO) + b"\xcc\x01",  # an amount longer than it need be
    b"\x92\xc5\x00\x20" + TO + b"\x01",  # a length longer than it need be
    b"\xdc\x00\x02" + encode(TO) + b"\x01",
    b"\x92\xd9\x20" + TO + b"\x01",  # text
    b"\xc5\x00\x20" + SENDER,
    b"\xc5\x00\x40" + b"g" * 64,
    b"\xca\x3f\x80\x00\x00",  # 1.0
    b"\xcb\x3f\xf0" + bytes(6),
    b"\x80",
    b"\x81\x01\x01",
    b"\x82\x01\x01\x01\x01",  # a key twice
    b"\xd4\x01\x01",
    b"\xd6\xff" + bytes(4),  # a time
    b"\xc1",
    b"",
]
ANY = st.sampled_from(INTEGERS + ODD)
INTEGER = st.sampled_from([*EDGES, 1]) | st.integers(0, U63_MAX)
GOOD = (encode(1), encode(CHAIN), encode(SENDER), encode(5), encode(7), encode(9), encode(1))
FIELDS = [*GOOD, encode([TO, 3]), encode(b"g" * 64)]


def outcome(read: Callable[[bytes], Any], data: bytes) -> object:
    """What came of reading: the value, or everything that the error says."""
    try:
        return read(data)
    except MalformedError as error:
        return (str(error), error.fields)


def alike(data: bytes) -> bool:
    """Whether the short way took it; asserts that it makes no difference."""
    short = reading._decode_transfer(data, CHAIN)
    plain = outcome(decode_transaction, data)
    assert short is None or short == plain
    read = outcome(lambda raw: read_transaction(raw, CHAIN), data)
    assert getattr(read, "transaction", read) == plain
    return short is not None


@settings(max_examples=examples(60))
@given(st.tuples(INTEGER, INTEGER, INTEGER, INTEGER), st.binary(min_size=32, max_size=32))
def test_every_well_formed_transfer_is_read_the_short_way(numbers: tuple[int, ...], to: bytes) -> None:
    nonce, fee, valid_until, amount = numbers
    fields = [1, CHAIN, SENDER, nonce, fee, valid_until, 1, [to, amount], b"g" * 64]
    assert alike(encode(fields)) == (max(numbers) <= U63_MAX and amount >= 1)


def test_each_field_of_a_transfer_may_be_anything_at_all() -> None:
    assert alike(b"\x99" + b"".join(FIELDS))
    for at in range(9):
        for odd in INTEGERS + ODD:
            alike(b"\x99" + b"".join((*FIELDS[:at], odd, *FIELDS[at + 1 :])))


@settings(max_examples=examples(80))
@given(st.lists(st.tuples(st.integers(0, 8), ANY), max_size=4), st.binary(max_size=3), st.integers(0, 15))
def test_several_odd_fields_a_longer_end_and_another_count_make_no_difference(
    odd: list[tuple[int, bytes]], after: bytes, count: int
) -> None:
    fields = list(FIELDS)
    for at, value in odd:
        fields[at] = value
    alike(bytes([0x90 | count]) + b"".join(fields) + after)
    alike(b"\x99" + b"".join(fields) + after)


def test_no_byte_of_a_transfer_can_be_changed_or_lost_unnoticed() -> None:
    good = b"\x99" + b"".join(FIELDS)
    for at in range(len(good)):
        alike(good[:at])
        alike(good[:at] + good[at + 1 :])
        for value in (0, 1, 0x7F, 0x80, 0x90, 0xC0, 0xC4, 0xCC, 0xFF, good[at] ^ 1):
            alike(good[:at] + bytes([value]) + good[at + 1 :])


def test_of_another_chain_of_the_treasury_and_of_other_kinds_the_plain_way_decides() -> None:
    for at, value in ((1, bytes(32)), (2, bytes(32)), (6, 2), (6, 10)):
        data = b"\x99" + b"".join((*FIELDS[:at], encode(value), *FIELDS[at + 1 :]))
        if (at, value) == (2, bytes(32)):
            with pytest.raises(MalformedError, match="treasury"):
                read_transaction(data, CHAIN)
            with pytest.raises(MalformedError, match="treasury"):
                decode_transaction(data)
        else:
            assert not alike(data)
    assert reading._decode_transfer(b"\x99" + b"".join(FIELDS), CHAIN[1:]) is None


# --- batches ---


def plain_batch(data: bytes) -> Batch:
    return from_bytes(Batch, data, batches.BATCH_BYTES_MAX)


def alike_batch(data: bytes) -> bool:
    """Whether the short way took it; asserts that it makes no difference."""
    short, plain = batches._decode_bare(data), outcome(plain_batch, data)
    assert short is None or short == plain
    assert outcome(decode_batch, data) == plain
    return short is not None


def test_what_is_read_the_short_way_is_within_the_limits_of_the_plain_one() -> None:
    assert SHORT_BYTES_MAX <= transaction.TRANSACTION_BYTES_MAX
    assert transaction.TRANSACTION_BYTES_MAX >= 0xFFFF  # the most that two bytes of length can say
    assert len(encode([0] * batches.BATCH_ITEMS_MAX)) == 3 + batches.BATCH_ITEMS_MAX  # two bytes of count


SIZES = st.sampled_from((0, 1, 0x7F, 0xFF, 0x100, 300, 0xFFFF))
ITEM = st.builds(lambda size, first: (bytes([first]) * size, ()), SIZES, st.integers(0, 255))
STORED = st.just((b"stored", ((TO, b"g" * 64),)))


@settings(max_examples=examples(60))
@given(INTEGER.filter(lambda n: 1 <= n <= U63_MAX), st.lists(ITEM | ITEM | STORED, min_size=1, max_size=20))
def test_every_batch_is_read_as_the_plain_way_reads_it(sequence: int, items: list[batches.Item]) -> None:
    batch = Batch(SENDER, sequence, tuple(items), b"g" * 64)
    if sum(len(raw) for raw, _ in items) > batches.BATCH_BYTES_MAX - 4096:
        batch = Batch(SENDER, sequence, tuple(items[:1]), b"g" * 64)
    data = encode_batch(batch)
    assert data == encode(pack(batch))
    assert alike_batch(data) == all(not stored for _, stored in batch.items)
    assert decode_batch(data) == batch
    assert batch_digest(batch, CHAIN) == digest(
        "batch", encode([batch.author, batch.sequence, pack(batch.items)]), CHAIN
    )
    made = make_batch(SEED, CHAIN, sequence, batch.items)
    assert made[1] == sign_batch(SEED, CHAIN, sequence, batch.items) == plain_batch(made[2])
    assert made[0] == batch_digest(made[1], CHAIN)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 255, 1024, 1025])
def test_a_batch_of_any_count_is_read_alike(count: int) -> None:
    rows = b"".join(b"\x92\xc4\x01z\x90" for _ in range(count))
    for header in (encode([0] * count)[: 1 if count < 16 else 3], b"\xdc" + count.to_bytes(2, "big")):
        data = b"\x94" + encode(SENDER) + b"\x05" + header + rows + encode(b"g" * 64)
        alike_batch(data)
        alike_batch(data[:-67] + data[-66:])
        alike_batch(data + b"\x90")
        alike_batch(data[:-66] + b"\x92\xc4\x01z\x90" + data[-66:])
    data = b"\x94" + encode(SENDER) + b"\x05" + encode([0] * count)[: 1 if count < 16 else 3] + rows
    assert alike_batch(data + encode(b"g" * 64)) == (1 <= count <= 1024)


def test_no_header_of_a_batch_can_be_changed_or_lost_unnoticed() -> None:
    items = ((b"a" * 3, ()), (b"b" * 300, ()))
    good = encode_batch(Batch(SENDER, 2**40, items, b"g" * 64))
    marked = [at for at in range(len(good)) if good[at : at + 1] not in (b"s", b"a", b"b", b"g")]
    for at in marked:
        alike_batch(good[:at])
        alike_batch(good[:at] + good[at + 1 :])
        for value in (
            0,
            1,
            2,
            0x7F,
            0x80,
            0x90,
            0x91,
            0x92,
            0xC4,
            0xC5,
            0xC6,
            0xCC,
            0xDC,
            0xFF,
            good[at] ^ 1,
        ):
            alike_batch(good[:at] + bytes([value]) + good[at + 1 :])


def test_integers_lengths_and_counts_of_a_batch_stand_in_their_shortest_form() -> None:
    tail = b"\x91\x92\xc4\x01z\x90" + encode(b"g" * 64)
    for sequence in INTEGERS + ODD:
        alike_batch(b"\x94" + encode(SENDER) + sequence + tail)
    for item in (
        b"\xc5\x00\x01z",
        b"\xc6\x00\x00\x00\x01z",
        b"\xd9\x01z",
        b"\xa1z",
        b"\x01",
        b"\xc4",
        b"\xc5\x01",
    ):
        assert not alike_batch(
            b"\x94" + encode(SENDER) + b"\x05\x91\x92" + item + b"\x90" + encode(b"g" * 64)
        )


def test_a_batch_over_its_bytes_is_refused_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode_batch(Batch(SENDER, 1, ((b"z" * 100, ()),), b"g" * 64))
    monkeypatch.setattr(batches, "BATCH_BYTES_MAX", len(data))
    assert alike_batch(data)
    monkeypatch.setattr(batches, "BATCH_BYTES_MAX", len(data) - 1)
    assert not alike_batch(data)
    for build in (sign_batch, make_batch):
        with pytest.raises(MalformedError, match="a batch of"):
            build(SEED, CHAIN, 1, ((b"z" * 100, ()),))


# --- what both are made of ---

LEAVES = st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=9) | st.text(max_size=5)
VALUES = LEAVES | st.lists(LEAVES | st.lists(LEAVES, max_size=3), max_size=5)


@settings(max_examples=examples(30))
@given(VALUES)
def test_what_is_known_is_encoded_like_anything_else(value: Any) -> None:
    data = encode_known(value)
    assert data == encode(value)
    if len(data) <= 256:
        assert unpack_short(data) == decode(data, len(data))


def test_what_is_no_value_is_neither_packed_nor_unpacked() -> None:
    for bad in (2**64, -(2**63) - 1, "\ud800"):
        with pytest.raises(CodecError):
            encode_known([bad])
    for data in (b"", b"\x92\x01", b"\x01\x01", b"\xc1", b"\xa1\xff", b"\xdd\xff\xff\xff\xff", b"\x01" * 257):
        with pytest.raises(CodecError):
            unpack_short(data)
    with pytest.raises(CodecError, match="257 bytes"):
        unpack_short(encode(b"z" * 255)[:257])
