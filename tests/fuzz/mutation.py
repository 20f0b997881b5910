"""Seeded mutation: bytes that are nearly valid, and values that are valid but for one thing."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

from consensus.codec import decode
from consensus.errors import CodecError

INTERESTING_BYTES = bytes((0x00, 0x01, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xC0, 0xC1, 0xC2, 0xC4, 0xC7, 0xCA, 0xD4, 0xD9, 0xDC, 0xDD, 0xDE, 0xFF))  # fmt: skip
LIES = tuple(
    bytes([first]) + size for first in (0xDD, 0xDF, 0xC6, 0xDB, 0xC9) for size in (b"\xff" * 4, b"\0\1\0\0", b"\0\0\0\0")
)  # fmt: skip
TOKENS = (b"null", b"true", b"-1", b"1e999", b"NaN", b"0.5", b'""', b"[]", b"{}", b"[[", b"]]", b'"\\ud800"', b"9" * 40, b"\xff", b"\0", b",", b":", b"=", b"'", b'"', b"\\", b"#", b"\n")  # fmt: skip
LEAVES: tuple[object, ...] = (
    None, True, False, 0, 1, -1, 127, 128, 255, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), b"", b"\0" * 31,
    b"\0" * 32, b"\0" * 33, b"\xff" * 64, b"x" * 300, "", "text", "é" * 40, [], [[]], [0] * 20,
)  # fmt: skip
STEPS_MAX = 6
BYTES_MAX = 1 << 16


def mutated(rng: random.Random, seeds: Sequence[bytes], text: bool) -> bytes:
    """One input made from valid ones."""
    data = rng.choice(seeds)
    if not text and rng.random() < 0.5 and (changed := _restructured(rng, data)) is not None:
        data = changed
        if rng.random() < 0.6:
            return data
    for _ in range(rng.randint(1, STEPS_MAX)):
        data = _step(rng, data, seeds, text)
    return data[:BYTES_MAX]


def _step(rng: random.Random, data: bytes, seeds: Sequence[bytes], text: bool) -> bytes:
    at = rng.randrange(len(data) + 1)
    to = min(len(data), at + rng.choice((1, 1, 2, 4, 9, 33, 200)))
    match rng.randrange(8):
        case 0 if at < len(data):
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        case 1:
            return data[:at] + bytes([rng.choice(INTERESTING_BYTES)]) + data[at + 1 :]
        case 2:
            return data[:at] + data[to:]
        case 3:
            return data[:to] + data[at:to] * rng.choice((1, 2, 30)) + data[to:]
        case 4:
            return data[:at]
        case 5:
            other = rng.choice(seeds)
            return data[:at] + other[rng.randrange(len(other) + 1) :]
        case 6:
            return data[:at] + (rng.choice(TOKENS) if text else rng.choice(LIES)) + data[to:]
        case _:
            return data[:at] + rng.randbytes(rng.choice((1, 2, 8))) + data[at:]


def _restructured(rng: random.Random, data: bytes) -> bytes | None:
    """The value behind `data` with one part replaced, in a form that need not be the shortest; None if it has none."""
    try:
        value = decode(data, len(data), len(data) + 1)
    except CodecError:
        return None
    return pack(rng, _changed(rng, value), rng.choice((0.0, 0.0, 0.02)))


def _changed(rng: random.Random, value: object) -> object:
    if not isinstance(value, list) or not value or rng.random() < 0.1:
        if isinstance(value, int) and type(value) is not bool and rng.random() < 0.5:
            return max(-(2**63), min(2**64 - 1, value + rng.choice((-1, 1, 256, -256))))
        if isinstance(value, bytes) and rng.random() < 0.5:
            return rng.choice((value[:-1], value + b"\0", rng.randbytes(len(value))))
        return rng.choice(LEAVES)
    at = rng.randrange(len(value))
    match rng.randrange(8):
        case 0:
            return value[:at] + value[at + 1 :]
        case 1:
            return value[: at + 1] + value[at:]
        case 2:
            return [*value[:at], rng.choice(LEAVES), *value[at:]]
        case 3:
            return value[::-1]
        case _:
            return [*value[:at], _changed(rng, value[at]), *value[at + 1 :]]


def pack(rng: random.Random, value: object, loose: float) -> bytes:
    """Msgpack of a value, each header with chance `loose` in a longer form than it needs."""
    longer = rng.random() < loose
    match value:
        case None | True | False:
            return {None: b"\xc0", True: b"\xc3", False: b"\xc2"}[value]
        case int():
            return _integer(value, longer)
        case bytes():
            return _sized((None, 0xC4, 0xC5, 0xC6), 0, len(value), longer) + value
        case str():
            raw = value.encode()
            return _sized((0xA0, 0xD9, 0xDA, 0xDB), 31, len(raw), longer) + raw
        case list():
            body = b"".join(pack(rng, entry, loose) for entry in value)
            return _sized((0x90, None, 0xDC, 0xDD), 15, len(value), longer) + body
    raise TypeError(f"no msgpack for {value!r}")


def _sized(firsts: tuple[int | None, ...], short_max: int, size: int, longer: bool) -> bytes:
    short, one, two, four = firsts
    forms = [bytes([short + size])] if short is not None and size <= short_max else []
    forms += [struct.pack("BB", one, size)] if one is not None and size < 1 << 8 else []
    forms += [struct.pack(">BH", two, size)] if size < 1 << 16 else []
    forms.append(struct.pack(">BI", four, size))
    return forms[min(len(forms) - 1, 1)] if longer else forms[0]


def _integer(value: int, longer: bool) -> bytes:
    if longer:
        return struct.pack(">Bq", 0xD3, value) if value < 2**63 else struct.pack(">BQ", 0xCF, value)
    if -32 <= value < 128:
        return struct.pack("b", value) if value < 0 else bytes([value])
    forms = (
        (0xCC, "B"),
        (0xCD, "H"),
        (0xCE, "I"),
        (0xCF, "Q"),
        (0xD0, "b"),
        (0xD1, "h"),
        (0xD2, "i"),
        (0xD3, "q"),
    )
    for first, form in forms:
        try:
            return bytes([first]) + struct.pack(">" + form, value)
        except struct.error:
            continue
    raise ValueError(f"{value} has no form")
