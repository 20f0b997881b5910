"""A second reader of the formats, from docs/formats.md alone: nothing here imports the code that is checked."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3
from nacl.signing import SigningKey

DOCS = Path(__file__).resolve().parents[2] / "docs"


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the table of preimages."""

    chained: bool
    raw: bool
    fields: tuple[str, ...]
    signed: bool


def pack(value: Any) -> bytes:
    """Shortest msgpack of integers, bytes, texts, booleans, nil and arrays."""
    match value:
        case None:
            return b"\xc0"
        case bool():
            return b"\xc3" if value else b"\xc2"
        case int():
            return _integer(value)
        case bytes():
            return _header(len(value), (0xC4, 0xC5, 0xC6)) + value
        case str():
            text = value.encode()
            short = bytes([0xA0 + len(text)]) if len(text) < 32 else b""
            return (short or _header(len(text), (0xD9, 0xDA, 0xDB))) + text
        case list():
            short = bytes([0x90 + len(value)]) if len(value) < 16 else b""
            return (short or _header(len(value), (None, 0xDC, 0xDD))) + b"".join(map(pack, value))
    raise ValueError(f"nothing to write {value!r} with")


def _integer(value: int) -> bytes:
    if -32 <= value < 128:
        return struct.pack("b", value) if value < 0 else bytes([value])
    codes = ((0xCC, "B"), (0xCD, ">H"), (0xCE, ">I"), (0xCF, ">Q"))
    if value < 0:
        codes = ((0xD0, "b"), (0xD1, ">h"), (0xD2, ">i"), (0xD3, ">q"))
    for first, form in codes:
        try:
            return bytes([first]) + struct.pack(form, value)
        except struct.error:
            continue
    raise ValueError(f"{value} is out of range")


def _header(size: int, firsts: tuple[int | None, int, int]) -> bytes:
    for first, form, limit in zip(firsts, ("B", ">H", ">I"), (1 << 8, 1 << 16, 1 << 32), strict=True):
        if first is not None and size < limit:
            return bytes([first]) + struct.pack(form, size)
    raise ValueError(f"{size} is too long")


def tables(name: str) -> list[list[list[str]]]:
    """Cells of every table of a document, without its head."""
    found: list[list[list[str]]] = []
    inside = False
    for line in (DOCS / name).read_text().splitlines():
        if line.startswith("|"):
            cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
            if not inside:
                found.append([])
            elif not set(cells[0]) <= {"-"} or not cells[0]:
                found[-1].append(cells)
            inside = True
        else:
            inside = False
    return found


def split(cell: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in cell.split(",") if name.strip())


LOCAL = frozenset(
    name
    for line in (DOCS / "formats.md").read_text().splitlines()
    if line.startswith("- Checksums that stay on one machine")
    for name in re.findall(r"`([a-z-]+)`", line)
)
_PREIMAGES, _NESTED, _BODIES, *_ = tables("formats.md")
KINDS = {
    row[0]: Kind(row[1] == "yes", row[2] == "raw", split(row[3]), bool(row[4].strip())) for row in _PREIMAGES
}
NESTED = {row[0]: split(row[1]) for row in _NESTED if row[0] != "params"}
NESTED["params"] = tuple(
    row[0] for table in tables("economics.md") for row in table if len(row) == 4 and ".." in row[2]
)
NESTED["voucher"] = KINDS["voucher"].fields
BODIES = {int(row[0]): split(row[2]) for row in _BODIES}


def array(fields: Mapping[str, Any], order: Sequence[str]) -> list[Any]:
    """Named fields in the documented order; nothing may be missing or left over."""
    made, left = [], set(fields)
    for entry in order:
        name, nested, many = re.fullmatch(r"(\w+)(?:\{(\w+)\}|\[(\w+)\])?", entry).groups()  # type: ignore[union-attr]
        left.remove(name)
        value = fields[name]
        if nested == "body":
            value = array(value, BODIES[fields["kind"]])
        elif nested:
            value = array(value, NESTED[nested])
        elif many:
            value = [array(row, NESTED[many]) for row in value]
        made.append(value)
    if left:
        raise ValueError(f"fields that the document does not name: {left}")
    return made


def value_of(json: Any) -> Any:
    """The value that the JSON of a vector stands for."""
    if isinstance(json, str) and json.startswith("0x"):
        return bytes.fromhex(json[2:])
    if isinstance(json, dict):
        return {name: value_of(entry) for name, entry in json.items()}
    return [value_of(entry) for entry in json] if isinstance(json, list) else json


def preimage(vector: Mapping[str, Any]) -> bytes:
    """The documented preimage of a vector's fields."""
    kind = KINDS[vector["kind"]]
    chain = bytes.fromhex(vector["chain_id"])
    if len(chain) != (32 if kind.chained else 0):
        raise ValueError("the document says otherwise about the chain id")
    made = array(value_of(vector["fields"]), kind.fields)
    return domain(vector["kind"]) + chain + (b"".join(made) if kind.raw else pack(made))


def domain(kind: str) -> bytes:
    return b"openledger/" + kind.encode() + b"/v1\x00"


def digest(kind: str, data: bytes, length: int = 32) -> bytes:
    return hashed(domain(kind) + data, length)


def hashed(preimage_: bytes, length: int) -> bytes:
    made: bytes = blake3(preimage_).digest(length=length)
    return made


def signature(seed: bytes, message: bytes) -> tuple[bytes, bytes]:
    """(public key, signature)"""
    key = SigningKey(seed)
    return bytes(key.verify_key), key.sign(message).signature


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    if not leaves:
        return digest("merkle-empty", b"")
    if len(leaves) == 1:
        return digest("merkle-leaf", leaves[0])
    at = 1
    while at * 2 < len(leaves):
        at *= 2
    return digest("merkle-node", merkle_root(leaves[:at]) + merkle_root(leaves[at:]))


def accumulator_root(leaves: Sequence[bytes]) -> bytes:
    def tree(part: Sequence[bytes]) -> bytes:
        if len(part) == 1:
            return digest("accumulator-leaf", part[0])
        half = len(part) // 2
        return digest("accumulator-node", tree(part[:half]) + tree(part[half:]))

    peaks, at = [], 0
    for bit in reversed(range(len(leaves).bit_length())):
        if len(leaves) >> bit & 1:
            peaks.append(tree(leaves[at : at + (1 << bit)]))
            at += 1 << bit
    return digest("accumulator-root", pack([len(leaves), peaks]))


def state_digest(entries: Sequence[tuple[bytes, bytes]], chain: bytes) -> bytes:
    lanes = [0] * 1024
    for key, value in entries:
        added = struct.unpack("<1024H", digest("state-entry", pack([key, value]), 2048))
        lanes = [(lane + more) % 65_536 for lane, more in zip(lanes, added, strict=True)]
    return digest("state", chain + struct.pack("<1024H", *lanes))


def leaders(stakes: Sequence[int], rounds: int) -> list[int]:
    divisor = math.gcd(*stakes)
    weights = [stake // divisor for stake in stakes]
    if sum(weights) > 2048:
        weights = [max(1, stake * 2048 // sum(stakes)) for stake in stakes]
    credit, slots = [0] * len(stakes), []
    for _ in range(sum(weights)):
        credit = [have + weight for have, weight in zip(credit, weights, strict=True)]
        slots.append(credit.index(max(credit)))
        credit[slots[-1]] -= sum(weights)
    return [slots[round_ % len(slots)] for round_ in range(rounds)]


def drawn_leaders(seed: bytes, weights: Sequence[int], rounds: Sequence[int]) -> list[int]:
    found = []
    for round_ in rounds:
        left = int.from_bytes(digest("leader", pack([seed, round_])), "big") % sum(weights)
        index = 0
        while left >= weights[index]:
            left -= weights[index]
            index += 1
        found.append(index)
    return found
