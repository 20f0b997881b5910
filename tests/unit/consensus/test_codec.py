"""One value, one encoding; and everything else is refused."""

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.codec import DEPTH_MAX, decode, encode
from consensus.digest import digest
from consensus.errors import CodecError

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


@pytest.mark.parametrize(
    "data",
    [
        b"\xcc\x01",
        b"\xcd\x00\x01",
        b"\xd3\x00\x00\x00\x00\x00\x00\x00\x01",
        b"\xd9\x01a",
        b"\xc5\x00\x01a",
        b"\xdc\x00\x01\xc0",
        b"\xca\x00\x00\x00\x00",
        b"\x80",
        b"\x81\x01\x02",
        b"\xd4\x01\x01",
        b"\xd6\xff\x00\x00\x00\x00",
        b"\xa1\xff",
        b"\xc1",
        b"",
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 5000,
    ],
    ids=lambda data: data[:6].hex() or "empty",
)
def test_what_is_not_canonical_is_refused(data: bytes) -> None:
    with pytest.raises(CodecError):
        decode(data, 10_000)


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
    with pytest.raises(CodecError):
        decode(msgpack.packb(nested(DEPTH_MAX + 1)), 100)
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
