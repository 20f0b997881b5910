"""Sixteen sums looked up by the four bits of a half byte, for 32 rows at once: bytes turned so that rows lie beside each other, and the lookups.

A vector of 32 bytes holds one byte of 32 rows. Where the processor has AVX2 one instruction (vpshufb) looks up 32 half bytes in a table of sixteen bytes;
anywhere else the compiler finds other instructions for the same bytes. This is how product quantisation is scanned (Andre, Kermarrec and Le
Scouarnec 2015), with tables that hold whole numbers in two digits instead of rounded distances.
"""

from __future__ import annotations

import importlib
from typing import Any

from attribution.exact.fused.compiling import features, numba

_extending: Any = importlib.import_module("numba.extending")
_ir: Any = importlib.import_module("llvmlite.ir")
_types: Any = numba.types

LANES = 32
"""Rows beside each other."""
CHUNK = 16
"""Bytes of a row that are turned at once."""
DIGIT_BITS = 7
"""Of the low digit: two of them fit a byte."""
LOOKED_POSITIONS_MAX = 256
"""Bytes of a row that 16-bit sums hold where a byte adds at most 8 * 31: 256 * 248 < 2^16."""
POSITIONS_MAX = 128
"""Bytes of a row whose digits 16-bit sums hold: 128 * 2 * 255 < 2^16."""

_FETCHED_AHEAD = 1 << 14
"""Bytes before they are read that those of a look are asked for: measured, 8.1 ms for 51 MB that no cache has without, 5.6 with."""

_I8, _I16, _I32, _I64 = (_ir.IntType(bits) for bits in (8, 16, 32, 64))
_HALF, _BYTES, _WORDS = _ir.VectorType(_I8, CHUNK), _ir.VectorType(_I8, LANES), _ir.VectorType(_I16, CHUNK)
_LOW = [x for lane in (0, 16) for j in range(8) for x in (lane + j, lane + j + LANES)]
_HIGH = [x + 8 for x in _LOW]


_AVX2 = "avx2" in features()


def _i64(n: int) -> Any:
    return _ir.Constant(_I64, n)


def _all(kind: Any, n: int) -> Any:
    return _ir.Constant(kind, [_ir.Constant(kind.element, n)] * kind.count)


def _places(numbers: Any) -> Any:
    return _ir.Constant(_ir.VectorType(_I32, len(numbers)), [_ir.Constant(_I32, n) for n in numbers])


def _load(builder: Any, address: Any, kind: Any) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=1)


def _emit_turn(builder: Any, rows: Any, step: Any, out: Any) -> None:
    """Row i and row i + 16 are the halves of vector i; four times, vectors i and i + 8 take turns byte by byte."""
    addresses = [rows]
    for _ in range(1, LANES):
        addresses.append(builder.add(addresses[-1], step))
    halves = [_load(builder, address, _HALF) for address in addresses]
    vectors = [
        builder.shuffle_vector(halves[i], halves[i + CHUNK], _places(range(LANES))) for i in range(CHUNK)
    ]
    for _ in range(4):
        pairs = list(zip(vectors[:8], vectors[8:], strict=True))
        vectors = [builder.shuffle_vector(x, y, _places(half)) for x, y in pairs for half in (_LOW, _HIGH)]
    for place, vector in enumerate(vectors):
        _store(builder, vector, builder.add(out, _i64(LANES * place)))


@_extending.intrinsic  # type: ignore[untyped-decorator]
def turn_bytes(typing: Any, rows: Any, step: Any, out: Any) -> Any:
    """From address `rows` sixteen bytes of each of 32 rows `step` bytes apart: at `out`, (16, 32), for each byte those of all rows."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _emit_turn(builder, *arguments)
        return context.get_dummy_value()

    return _types.void(*[_types.int64] * 3), emit


@_extending.intrinsic  # type: ignore[untyped-decorator]
def byte_at(typing: Any, address: Any) -> Any:
    """The byte at an address."""
    return _types.uint8(_types.int64), lambda context, builder, signature, arguments: _load(
        builder, arguments[0], _I8
    )


@_extending.intrinsic  # type: ignore[untyped-decorator]
def fetch(typing: Any, address: Any) -> Any:
    """Ask for the cache line of an address, which need not exist."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _emit_fetch(builder, arguments[0])
        return context.get_dummy_value()

    return _types.void(_types.int64), emit


def _emit_fetch(builder: Any, address: Any) -> None:
    pointer = _I8.as_pointer()
    kind = _ir.FunctionType(_ir.VoidType(), [pointer, _I32, _I32, _I32])
    function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
    read, near, data = (_ir.Constant(_I32, n) for n in (0, 3, 1))
    builder.call(function, [builder.inttoptr(address, pointer), read, near, data])


def _found(builder: Any, address: Any, halves: Any) -> Any:
    """Of 32 numbers below 16, what the sixteen bytes at an address have in their places."""
    table = _load(builder, address, _HALF)
    if _AVX2:
        function = builder.module.declare_intrinsic(
            "llvm.x86.avx2.pshuf.b", (), _ir.FunctionType(_BYTES, [_BYTES, _BYTES])
        )
        twice = builder.shuffle_vector(
            table, _ir.Constant(_HALF, _ir.Undefined), _places(list(range(CHUNK)) * 2)
        )
        return builder.call(function, [twice, halves])
    found = _ir.Constant(_BYTES, None)
    for lane in range(LANES):
        place = builder.zext(builder.extract_element(halves, _ir.Constant(_I32, lane)), _I32)
        found = builder.insert_element(found, builder.extract_element(table, place), _ir.Constant(_I32, lane))
    return found


def _emit_add(
    builder: Any, digits: int, paired: bool, turned: Any, count: Any, tables: Any, sums: Any
) -> None:
    begin = [_load(builder, builder.add(sums, _i64(LANES * i)), _WORDS) for i in range(2 * digits)]
    before = builder.basic_block
    loop, end = builder.append_basic_block("bytes"), builder.append_basic_block("bytes.end")
    builder.cbranch(builder.icmp_signed(">", count, _i64(0)), loop, end)
    builder.position_at_end(loop)
    k, totals = builder.phi(_I64), [builder.phi(_WORDS) for _ in begin]
    place = builder.add(turned, builder.mul(k, _i64(LANES)))
    if digits == 1:
        _emit_fetch(builder, builder.add(place, _i64(_FETCHED_AHEAD)))
    value = _load(builder, place, _BYTES)
    lower, upper = builder.and_(value, _all(_BYTES, 15)), builder.lshr(value, _all(_BYTES, 4))
    at = builder.add(tables, builder.mul(k, _i64(2 * digits * CHUNK)))
    found = [
        _found(builder, builder.add(at, _i64(CHUNK * i)), lower if i % 2 == 0 else upper)
        for i in range(2 * digits)
    ]

    def even(x: Any) -> Any:
        return builder.and_(builder.bitcast(x, _WORDS), _all(_WORDS, 255))

    def odd(x: Any) -> Any:
        return builder.lshr(builder.bitcast(x, _WORDS), _all(_WORDS, 8))

    lows = builder.add(*found[:2])
    parts = [even(lows), odd(lows)]
    if digits == 2 and paired:
        highs = builder.add(*found[2:])
        parts += [even(highs), odd(highs)]
    elif digits == 2:
        parts += [builder.add(*map(part, found[2:])) for part in (even, odd)]
    added = [builder.add(total, part) for total, part in zip(totals, parts, strict=True)]
    after = builder.add(k, _i64(1))
    k.add_incoming(_i64(0), before)
    k.add_incoming(after, loop)
    for i in range(len(begin)):
        totals[i].add_incoming(begin[i], before)
        totals[i].add_incoming(added[i], loop)
    builder.cbranch(builder.icmp_signed("<", after, count), loop, end)
    builder.position_at_end(end)
    results = [builder.phi(_WORDS) for _ in begin]
    for i, result in enumerate(results):
        result.add_incoming(begin[i], before)
        result.add_incoming(added[i], loop)
    for i, result in enumerate(results):
        _store(builder, result, builder.add(sums, _i64(LANES * i)))


def _adder(digits: int, paired: bool) -> Any:
    """Intrinsic (turned, count, tables, sums): add the digits of `count` bytes of 32 rows to 16-bit sums (2 * digits, 16).

    `turned` is the address of what `turn_bytes` left, `tables` that of (count, 2 * digits, 16) bytes. The sums are low digits of even and of odd rows, then high ones. The two low
    digits of a byte are together below 2^8; with `paired` so are the two high ones, without it each is.
    """

    @_extending.intrinsic  # type: ignore[untyped-decorator]
    def add(typing: Any, turned: Any, count: Any, tables: Any, sums: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _emit_add(builder, digits, paired, *arguments)
            return context.get_dummy_value()

        return _types.void(*[_types.int64] * 4), emit

    return add


add_paired, add_apart, add_halves = _adder(2, True), _adder(2, False), _adder(1, True)
