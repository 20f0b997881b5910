"""One value, one encoding; and everything else is refused."""

import random
import tracemalloc
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.codec import ARRAYS_MAX, DEPTH_MAX, ELEMENTS_MAX, SHORT_BYTES_MAX, decode, encode
from consensus.digest import digest
from consensus.errors import CodecError
from tests.fuzz.mutation import pack

leaves = (
    st.integers(-(1 << 63), (1 << 64) - 1)
    | st.binary(max_size=40)
    | st.text(max_size=20)
    | st.booleans()
    | st.none()
)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=5), max_leaves=20)


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


@given(values)
def test_round_trip(value: Any) -> None:
    data = encode(value)
    assert decode(data, len(data)) == value
    assert encode(decode(data, len(data))) == data


@given(values)
def test_truncated_and_extended_bytes_are_refused(value: Any) -> None:
    data = encode(value)
    with pytest.raises(CodecError):
        decode(data + b"\xc0", len(data) + 1)
    with pytest.raises(CodecError):
        decode(data[:-1], len(data))


@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_refused_or_canonical(data: bytes) -> None:
    try:
        value = decode(data, 60)
    except CodecError:
        return
    assert encode(value) == data


@given(values, st.integers(0, 2**32), st.sampled_from([0.0, 0.1, 0.5]))
def test_of_all_encodings_of_a_value_one_is_read(value: Any, seed: int, loose: float) -> None:
    """Any header may be written longer than it needs to be; the value is the same, and only `encode`'s bytes pass."""
    data = pack(random.Random(seed), value, loose)
    if data == encode(value):
        assert decode(data, len(data)) == value
    else:
        with pytest.raises(CodecError):
            decode(data, len(data))


REFUSED = object()
BYTES_MAX = 1 << 20


def u(width: int, value: int) -> bytes:
    return value.to_bytes(width, "big")


def forms() -> Iterator[tuple[bytes, Any]]:
    """Well-formed msgpack for every first byte and every width of header, with what it means here, or `REFUSED`.

    Written from the msgpack specification; lengths and integers stand at both sides of each narrower form's limit.
    """
    for first in range(0x80):
        yield bytes([first]), first
    for first in range(0xE0, 0x100):
        yield bytes([first]), first - 0x100
    for count in range(16):
        yield bytes([0x80 | count]) + b"\x00\x00" * count, REFUSED
        yield bytes([0x90 | count]) + b"\x07" * count, [7] * count
    for count in range(32):
        yield bytes([0xA0 | count]) + b"a" * count, "a" * count
    yield from ((b"\xc0", None), (b"\xc1", REFUSED), (b"\xc2", False), (b"\xc3", True))
    for first, width in ((0xC4, 1), (0xC5, 2), (0xC6, 4)):
        for size in sizes(width):
            shortest = size >= (0, 0, 1 << 8, 0, 1 << 16)[width]
            yield bytes([first]) + u(width, size) + b"b" * size, b"b" * size if shortest else REFUSED
    for first, width in ((0xC7, 1), (0xC8, 2), (0xC9, 4)):
        for size in (0, 1, 4, 8, 12, 255):
            for kind in (b"\x00", b"\x05", b"\x7f", b"\xff"):
                yield bytes([first]) + u(width, size) + kind + bytes(size), REFUSED
    for first, width in ((0xCA, 4), (0xCB, 8)):
        for number in (b"\x00", b"\x3f\x80", b"\x7f\xc0", b"\x80"):
            yield bytes([first]) + number.ljust(width, b"\0"), REFUSED
    for first, width, least in ((0xCC, 1, 1 << 7), (0xCD, 2, 1 << 8), (0xCE, 4, 1 << 16), (0xCF, 8, 1 << 32)):
        for value in (0, 1, least - 1, least, (1 << 8 * width) - 1):
            yield bytes([first]) + u(width, value), value if value >= least else REFUSED
    narrower = {1: -0x20, 2: -0x80, 4: -0x8000, 8: -0x8000_0000}
    for first, width in ((0xD0, 1), (0xD1, 2), (0xD2, 4), (0xD3, 8)):
        for value in (
            0,
            1,
            (1 << 8 * width - 1) - 1,
            -1,
            narrower[width],
            narrower[width] - 1,
            -(1 << 8 * width - 1),
        ):
            data = bytes([first]) + value.to_bytes(width, "big", signed=True)
            yield data, value if value < narrower[width] else REFUSED
    for first, size in ((0xD4, 1), (0xD5, 2), (0xD6, 4), (0xD7, 8), (0xD8, 16)):
        for kind in (b"\x00", b"\x05", b"\xff"):
            yield bytes([first]) + kind + bytes(size), REFUSED
    for first, width in ((0xD9, 1), (0xDA, 2), (0xDB, 4)):
        for size in sizes(width):
            shortest = size >= (0, 32, 1 << 8, 0, 1 << 16)[width]
            yield bytes([first]) + u(width, size) + b"s" * size, "s" * size if shortest else REFUSED
    for first, width in ((0xDC, 2), (0xDD, 4)):
        for size in (0, 1, 15, 16, 255, 60_000, *((65_536,) if width == 4 else ())):
            shortest = size >= {2: 16, 4: 1 << 16}[width]
            yield bytes([first]) + u(width, size) + b"\x00" * size, [0] * size if shortest else REFUSED
    for first, width in ((0xDE, 2), (0xDF, 4)):
        for size in (0, 1, 16):
            pairs = b"".join(bytes([key, 0]) for key in range(size))
            yield bytes([first]) + u(width, size) + pairs, REFUSED


def sizes(width: int) -> tuple[int, ...]:
    known = (0, 1, 15, 16, 31, 32, 255, 256, 65_535, 65_536)
    return tuple(size for size in known if size < 1 << 8 * width)


FORMS = tuple(forms())


def test_every_first_byte_and_every_width_of_header_is_read_in_its_shortest_form_alone() -> None:
    assert {data[0] for data, _ in FORMS} == set(range(256))
    accepted = set()
    for data, meaning in FORMS:
        if meaning is REFUSED:
            with pytest.raises(CodecError):
                decode(data, BYTES_MAX, BYTES_MAX)
            continue
        value = decode(data, BYTES_MAX, BYTES_MAX)
        assert value == meaning
        assert type(value) is type(meaning)
        assert encode(value) == data
        accepted.add(data[0])
    never = {0xC1, 0xC7, 0xC8, 0xC9, 0xCA, 0xCB, *range(0xD4, 0xD9), 0xDE, 0xDF, *range(0x80, 0x90)}
    assert accepted == set(range(256)) - never


@pytest.mark.parametrize("beside", [b"z", bytes(SHORT_BYTES_MAX)], ids=["short", "long"])
def test_no_form_is_read_inside_an_array_that_is_not_read_alone(beside: bytes) -> None:
    """Short ones are decoded and then looked at, long ones walked before."""
    for data, meaning in FORMS:
        inside = b"\x93\x01" + data + encode(beside)
        if meaning is REFUSED:
            with pytest.raises(CodecError):
                decode(inside, BYTES_MAX, BYTES_MAX)
        else:
            assert decode(inside, BYTES_MAX, BYTES_MAX) == [1, meaning, beside]


def test_every_form_is_refused_when_cut_anywhere_near_its_ends_or_followed_by_anything() -> None:
    for data, _ in FORMS:
        for cut in {0, 1, 2, 3, 5, len(data) // 2, len(data) - 1}:
            if cut < len(data):
                with pytest.raises(CodecError):
                    decode(data[:cut], BYTES_MAX, BYTES_MAX)
        for more in (b"\x00", b"\xc0", b"\xc1", data):
            with pytest.raises(CodecError):
                decode(data + more, BYTES_MAX, BYTES_MAX)


@pytest.mark.parametrize(
    "text",
    [
        b"\xff",
        b"\x80",
        b"\xc0\x80",
        b"\xc3",
        b"\xe0\x80\xaf",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xf8\x88\x80\x80\x80",
    ],
    ids=lambda text: text.hex(),
)
def test_text_that_is_not_utf8_is_refused(text: bytes) -> None:
    for data in (bytes([0xA0 | len(text)]) + text, b"\xd9\x40" + text.rjust(0x40, b"a")):
        with pytest.raises(CodecError):
            decode(data, 100)


def peak_bytes(data: bytes, elements_max: int = ELEMENTS_MAX) -> int:
    """Most memory that refusing `data` takes."""
    tracemalloc.start()
    try:
        with pytest.raises(CodecError):
            decode(data, len(data), elements_max)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("header", ["c4", "c5", "c6", "d9", "da", "db", "dc", "dd", "9f", "bf"])
def test_a_length_beyond_the_data_is_refused_before_room_is_made_for_it(header: str) -> None:
    first = bytes.fromhex(header)
    width = {"c4": 1, "d9": 1, "c5": 2, "da": 2, "dc": 2, "c6": 4, "db": 4, "dd": 4}.get(header, 0)
    for claimed in {(1 << 8 * width) - 1, (1 << 8 * width) // 2, 60_000 % (1 << 8 * width) or 1}:
        lie = first + u(width, claimed) if width else first
        assert peak_bytes(lie) < 32 << 10
        assert peak_bytes(lie + b"\x01" * 3) < 32 << 10


def test_headers_that_lie_inside_one_another_take_no_memory() -> None:
    for claimed in (1_000, 50_000, 4_000_000):
        assert peak_bytes((b"\xdd" + u(4, claimed)) * 1000, elements_max=8 << 20) < 64 << 10
    # Each claims no more than there are bytes; all together they do.
    assert peak_bytes((b"\xdd" + u(4, 4_000)) * 1000, elements_max=8 << 20) < 64 << 10


def test_arrays_are_counted_before_they_are_built() -> None:
    most = b"\xdc" + u(2, ARRAYS_MAX - 1) + b"\x90" * (ARRAYS_MAX - 1)
    assert len(decode(most, len(most))) == ARRAYS_MAX - 1
    over = b"\xdc" + u(2, ARRAYS_MAX) + b"\x90" * ARRAYS_MAX
    assert peak_bytes(over) < 64 << 10
    assert peak_bytes(b"\xdd" + u(4, 4 << 20) + b"\x90" * (4 << 20), elements_max=8 << 20) < 64 << 10


def test_values_are_counted_before_they_are_built() -> None:
    row = b"\xdc" + u(2, 1_000) + b"\xcd\xff\xff" * 1_000
    data = b"\xdc" + u(2, 100) + row * 100
    assert len(decode(data, len(data), elements_max=100_101)) == 100
    assert peak_bytes(data, elements_max=100_100) < 64 << 10


def test_depth_is_refused_before_anything_is_built() -> None:
    deepest = b"\x91" * DEPTH_MAX + b"\x01"
    assert decode(deepest, 100) == decode(encode(decode(deepest, 100)), 100)
    for depth in (DEPTH_MAX + 1, 100, 5_000, 500_000):
        assert peak_bytes(b"\x91" * depth + b"\x01") < 64 << 10


def test_a_byte_more_than_allowed_is_refused_unread() -> None:
    data = encode([b"x" * 500_000] * 2)
    assert decode(data, len(data)) == [b"x" * 500_000] * 2
    tracemalloc.start()
    try:
        with pytest.raises(CodecError, match="at most"):
            decode(data, len(data) - 1)
        assert tracemalloc.get_traced_memory()[1] < 32 << 10
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "value", [1.0, {}, {1: 2}, {1}, 1 << 64, -(1 << 63) - 1, "\ud800", bytearray(b"x"), object()]
)
def test_what_has_no_canonical_form_is_not_encoded(value: Any) -> None:
    with pytest.raises(CodecError):
        encode((1, value))


def test_limits() -> None:
    assert decode(encode(nested(DEPTH_MAX)), 100) == nested(DEPTH_MAX)
    with pytest.raises(CodecError):
        encode(nested(DEPTH_MAX + 1))
    for beside in (b"", bytes(SHORT_BYTES_MAX)):
        assert decode(encode([beside, nested(DEPTH_MAX - 1)]), 1000) == [beside, nested(DEPTH_MAX - 1)]
        with pytest.raises(CodecError):
            decode(msgpack.packb([beside, nested(DEPTH_MAX)]), 1000)
    data = encode([0] * 100)
    assert decode(data, len(data), elements_max=101) == [0] * 100
    with pytest.raises(CodecError):
        decode(data, len(data), elements_max=100)
    with pytest.raises(CodecError):
        decode(data, len(data) - 1)


def test_digests_are_separated_by_kind_and_chain() -> None:
    chain = bytes(32)
    seen = {digest("vote", b"x"), digest("vote", b"x", chain), digest("votes", b"x"), digest("vote", b"y")}
    assert len(seen) == 4
    assert digest("vote", b"x").hex() == "a6601e0871f64a9f2782763e21164f2dd85d8864824109c373fcf7bd7625678b"
    for kind, chain_id in (("a\0b", b""), ("é", b""), ("a", b"short")):
        with pytest.raises(ValueError, match=r"digest kind|32 bytes"):
            digest(kind, b"", chain_id)
