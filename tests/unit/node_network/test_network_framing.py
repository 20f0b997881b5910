from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.network.errors import RemoteProtocolError
from node.network.framing import FrameDecoder, encode_header

frames_strategy = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=200)), max_size=12)


@given(frames=frames_strategy, cuts=st.lists(st.integers(1, 64), min_size=1, max_size=40))
def test_frames_survive_any_cutting_of_the_stream(frames: list[tuple[int, bytes]], cuts: list[int]) -> None:
    wire = b"".join(encode_header(kind, len(payload)) + payload for kind, payload in frames)
    decoder = FrameDecoder(200)
    received: list[tuple[int, bytes]] = []
    offset = turn = 0
    while offset < len(wire):
        step = cuts[turn % len(cuts)]
        received += decoder.feed(wire[offset : offset + step])
        offset, turn = offset + step, turn + 1
    assert received == frames
    assert decoder.buffered_bytes == 0


def test_an_oversized_frame_is_refused_by_its_header_alone() -> None:
    with pytest.raises(RemoteProtocolError):
        FrameDecoder(100).feed(encode_header(0, 101))


def test_a_frame_without_a_kind_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        FrameDecoder(100).feed(b"\0\0\0\0\0")


def test_a_frame_of_exactly_the_limit_is_accepted() -> None:
    assert FrameDecoder(100).feed(encode_header(9, 100) + bytes(100)) == [(9, bytes(100))]
