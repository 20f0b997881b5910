"""The few things that plain loops cannot say: bit patterns, rounding, and a tile of a 16-bit integer product.

The tile is written in LLVM's portable vectors. On x86 it becomes vpmaddwd (two products and one sum in 32 bits, without saturation but for the one case
of four times -2^15, which 14 bits exclude); elsewhere the compiler finds other instructions for the same integers.
"""

from __future__ import annotations

import importlib
from typing import Any

from attribution.exact.fused.compiling import numba

_extending: Any = importlib.import_module("numba.extending")
_ir: Any = importlib.import_module("llvmlite.ir")
_types: Any = numba.types

ROWS = 6
"""Rows of a tile: 12 sums of 8 numbers fill the registers of AVX2 beside operands and a product."""
COLUMNS = 16
"""Columns of a panel: two vectors of eight 32-bit sums."""
WIDE_PANELS = 4
"""Panels that one row alone takes at once, so that its sums do not wait for each other."""

_I16, _I32, _I64 = (_ir.IntType(bits) for bits in (16, 32, 64))
_F32 = _ir.FloatType()
_V16, _W16, _V8 = _ir.VectorType(_I16, 16), _ir.VectorType(_I32, 16), _ir.VectorType(_I32, 8)


def _unary(argument: Any, result: Any, emit: Any) -> Any:
    @_extending.intrinsic  # type: ignore[untyped-decorator]
    def function(typing: Any, x: Any) -> Any:
        if x != argument:
            return None
        return result(argument), lambda context, builder, signature, arguments: emit(builder, *arguments)

    return function


def _i32(n: int) -> Any:
    return _ir.Constant(_I32, n)


def _order(builder: Any, x: Any) -> Any:
    bits = builder.bitcast(x, _I32)
    return builder.xor(bits, builder.and_(builder.ashr(bits, _i32(31)), _i32(0x7FFFFFFF)))


def _disorder(builder: Any, bits: Any) -> Any:
    flipped = builder.xor(bits, builder.and_(builder.ashr(bits, _i32(31)), _i32(0x7FFFFFFF)))
    return builder.bitcast(flipped, _F32)


def _rint(builder: Any, x: Any) -> Any:
    return builder.call(builder.module.declare_intrinsic("llvm.rint", [x.type]), [x])


bits_of = _unary(_types.float32, _types.int32, lambda builder, x: builder.bitcast(x, _I32))
"""Bits of a binary32 number."""
float_of = _unary(_types.int32, _types.float32, lambda builder, x: builder.bitcast(x, _F32))
"""The binary32 number of these bits."""
magnitude = _unary(
    _types.float32, _types.int32, lambda builder, x: builder.and_(builder.bitcast(x, _I32), _i32(0x7FFFFFFF))
)
"""Bits of |x|: they grow with |x|, and NaN is above infinity."""
order = _unary(_types.float32, _types.int32, _order)
"""An integer that grows with x, which is not NaN."""
disorder = _unary(_types.int32, _types.float32, _disorder)
"""The number that `order` made this integer of."""
nearest32 = _unary(_types.float32, _types.float32, _rint)
"""To the nearest integer, ties to even."""
nearest64 = _unary(_types.float64, _types.float64, _rint)
"""To the nearest integer, ties to even."""


@_extending.intrinsic  # type: ignore[untyped-decorator]
def times_power(typing: Any, p: Any, k: Any) -> Any:
    """P * 2^k by p's exponent field, for a binary32 p and an integer k held by a binary32 number."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        exponent = builder.shl(builder.fptosi(arguments[1], _I32), _i32(23))
        return builder.bitcast(builder.add(builder.bitcast(arguments[0], _I32), exponent), _F32)

    return _types.float32(_types.float32, _types.float32), emit


@_extending.intrinsic  # type: ignore[untyped-decorator]
def pair_of(typing: Any, low: Any, high: Any) -> Any:
    """Two integers held by binary32 numbers, |n| < 2^15, as the halves of one int32."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        low, high = (builder.fptosi(x, _I32) for x in arguments)
        return builder.or_(builder.and_(low, _i32(0xFFFF)), builder.shl(high, _i32(16)))

    return _types.int32(_types.float32, _types.float32), emit


def _pair_products(builder: Any, x: Any, y: Any) -> Any:
    """Eight sums of two products of 16-bit numbers: the form in which LLVM sees vpmaddwd."""
    products = builder.mul(builder.sext(x, _W16), builder.sext(y, _W16))
    none = _ir.Constant(_W16, _ir.Undefined)
    halves = [_ir.Constant(_V8, [_i32(2 * i + odd) for i in range(8)]) for odd in (0, 1)]
    return builder.add(*(builder.shuffle_vector(products, none, half) for half in halves))


def _tile(rows: int, panels: int) -> Any:
    """Intrinsic (a, a step, b, b step, pairs, out): `rows` by 16 * `panels` sums of products, in int32.

    `a` is the address of int16 rows, `a step` bytes apart, read two at a time from any even address; `b` that of the first panel (pairs, 16) of int32
    with two int16 each, panels `b step` bytes apart; `out` that of int32 (panels, rows, 16).
    """

    @_extending.intrinsic  # type: ignore[untyped-decorator]
    def tile(typing: Any, a: Any, a_step: Any, b: Any, b_step: Any, pairs: Any, out: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _emit_tile(builder, rows, panels, *arguments)
            return context.get_dummy_value()

        return _types.void(*[_types.int64] * 6), emit

    return tile


def _emit_tile(
    builder: Any, rows: int, panels: int, a: Any, a_step: Any, b: Any, b_step: Any, pairs: Any, out: Any
) -> None:
    def i64(n: int) -> Any:
        return _ir.Constant(_I64, n)

    def at(address: Any, offset: Any, kind: Any) -> Any:
        return builder.inttoptr(builder.add(address, offset), kind.as_pointer())

    zero, halves = _ir.Constant(_V8, None), [(p, j) for p in range(panels) for j in range(2)]
    a_rows, b_panels = [a], [b]
    for _ in range(1, rows):
        a_rows.append(builder.add(a_rows[-1], a_step))
    for _ in range(1, panels):
        b_panels.append(builder.add(b_panels[-1], b_step))
    before = builder.basic_block
    loop, end = builder.append_basic_block("pairs"), builder.append_basic_block("pairs.end")
    builder.cbranch(builder.icmp_signed(">", pairs, i64(0)), loop, end)
    builder.position_at_end(loop)
    k = builder.phi(_I64)
    sums = [[builder.phi(_V8) for _ in halves] for _ in range(rows)]
    vectors = [
        builder.load(at(b_panels[p], builder.add(builder.mul(k, i64(64)), i64(32 * j)), _V16), align=4)
        for p, j in halves
    ]
    added = []
    for i in range(rows):
        two = builder.load(at(a_rows[i], builder.mul(k, i64(4)), _I32), align=2)
        none = _ir.Constant(_V8, _ir.Undefined)
        spread = builder.shuffle_vector(builder.insert_element(none, two, _i32(0)), none, zero)
        x = builder.bitcast(spread, _V16)
        added.append([builder.add(sums[i][v], _pair_products(builder, x, y)) for v, y in enumerate(vectors)])
    after = builder.add(k, i64(1))
    k.add_incoming(i64(0), before)
    k.add_incoming(after, loop)
    builder.cbranch(builder.icmp_signed("<", after, pairs), loop, end)
    builder.position_at_end(end)
    totals = [[builder.phi(_V8) for _ in halves] for _ in range(rows)]
    for i in range(rows):
        for v in range(len(halves)):
            sums[i][v].add_incoming(zero, before)
            sums[i][v].add_incoming(added[i][v], loop)
            totals[i][v].add_incoming(zero, before)
            totals[i][v].add_incoming(added[i][v], loop)
    for i in range(rows):
        for v, (p, j) in enumerate(halves):
            builder.store(totals[i][v], at(out, i64(64 * (p * rows + i) + 32 * j), _V8), align=4)


tile1, tile2, tile4, tile6 = (_tile(rows, 1) for rows in (1, 2, 4, ROWS))
row_tile = _tile(1, WIDE_PANELS)
