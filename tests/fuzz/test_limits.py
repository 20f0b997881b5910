"""Sizes are looked at before anything is decoded, and the documents name each."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from attribution.checkpoint import FILE_BYTES_MAX, load_base
from attribution.errors import BadModel
from node.network.config import Limits
from node.network.errors import RemoteProtocolError
from node.network.framing import FrameDecoder, encode_header
from tests.fuzz.limits import render
from tests.fuzz.target import judge_memory
from tests.fuzz.targets import targets

ROOT = Path(__file__).resolve().parents[2]
REFUSAL_BYTES = 64 << 10
FROM_FILES = {"config-toml", "genesis-json", "index"}
"""Read from a file: the bytes up to the limit are in memory before it shows that there are more."""

LIMITED = {name: target for name, target in targets().items() if target.bytes_max is not None}


def test_the_documents_state_the_limits_of_the_code() -> None:
    assert (ROOT / "docs/limits.md").read_text() == render()


@pytest.mark.parametrize("name", LIMITED)
def test_a_byte_over_the_limit_is_refused_for_its_size_without_being_decoded(name: str) -> None:
    target = LIMITED[name]
    limit = target.bytes_max or 0
    # In time and memory the worst that could be decoded; of a plan's size only zeros, whose pages are never touched.
    data = b"\x91" * (limit + 1) if limit <= 1 << 28 else bytes(limit + 1)
    tracemalloc.start()
    try:
        with pytest.raises(target.refusals, match=rf"(at most|limit of|larger than) {limit}\b"):
            target.decode(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < (2 * limit if name in FROM_FILES else 0) + REFUSAL_BYTES


DENSE = (b"\x90", b"\x91", b"\xcd\xff\xff", b"\xc4\x02ab", b"\xa2ab", b"\xdd\x00\x00\xff\xff", b"\x80")
"""What is smallest on the wire and largest in memory, and headers that promise more than follows."""

FROM_OTHERS = [
    name
    for name, target in LIMITED.items()
    if target.sender != "disk" and not target.text and (target.bytes_max or 0) > 1 << 10 and name != "adapter"
]


@pytest.mark.parametrize("name", [*FROM_OTHERS, "state-Inference"])
def test_a_large_input_takes_a_bounded_multiple_of_its_size(name: str) -> None:
    target = LIMITED[name]
    size = min(target.bytes_max or 0, 20 << 10)
    for unit in DENSE:
        count = (size - 5) // len(unit)
        judge_memory(target, b"\xdd" + count.to_bytes(4, "big") + unit * count)
        row = b"\xdc\x08\x00" + unit * 0x800
        judge_memory(target, b"\xdc" + (size // len(row)).to_bytes(2, "big") + row * (size // len(row)))


def test_a_base_over_the_limit_is_refused_by_its_size_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    path.write_bytes(bytes(9))
    with path.open("r+b") as file:
        file.truncate(1 << 30)  # no bytes behind it
    with pytest.raises(BadModel, match="out of bounds"):
        load_base(path, bytes_max=(1 << 30) - 1)
    assert FILE_BYTES_MAX == 1 << 36


@pytest.mark.parametrize("limit", [Limits().frame_bytes_max, Limits().request_bytes_max])
def test_a_frame_over_the_limit_is_refused_by_its_header(limit: int) -> None:
    decoder = FrameDecoder(limit)
    assert decoder.feed(encode_header(1, limit)) == []
    with pytest.raises(RemoteProtocolError, match="announced"):
        FrameDecoder(limit).feed(encode_header(1, limit + 1))
    with pytest.raises(RemoteProtocolError, match="announced"):
        FrameDecoder(limit).feed(b"\0\0\0\0\x01")
