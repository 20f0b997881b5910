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

_I8, _I16, _I32, _I64 = (_ir.IntType(bits) for bits in (8, 16, 32, 64))
_F32, _F64 = _ir.FloatType(), _ir.DoubleType()
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


@_extending.intrinsic  # type: ignore[untyped-decorator]
def row_bytes(typing: Any, a: Any, b: Any, b_step: Any, fours: Any, out: Any) -> Any:
    """One row of 16-bit integers by 16 * `WIDE_PANELS` columns of 8-bit ones: int32 sums at `out` (panels, 16).

    `a` is the address of int16 (4 * fours); `b` that of the first panel, int8 (fours, 16, 4), panels `b_step` bytes apart.
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _emit_row_bytes(builder, *arguments)
        return context.get_dummy_value()

    return _types.void(*[_types.int64] * 5), emit


def _emit_row_bytes(builder: Any, a: Any, b: Any, b_step: Any, fours: Any, out: Any) -> None:
    def i64(n: int) -> Any:
        return _ir.Constant(_I64, n)

    quarters = [(p, j) for p in range(WIDE_PANELS) for j in range(4)]
    zero = _ir.Constant(_V8, None)
    panels = [b]
    for _ in range(1, WIDE_PANELS):
        panels.append(builder.add(panels[-1], b_step))
    before = builder.basic_block
    loop, end = builder.append_basic_block("fours"), builder.append_basic_block("fours.end")
    builder.cbranch(builder.icmp_signed(">", fours, i64(0)), loop, end)
    builder.position_at_end(loop)
    k = builder.phi(_I64)
    sums = [builder.phi(_V8) for _ in quarters]
    four = builder.load(builder.inttoptr(builder.add(a, builder.mul(k, i64(8))), _I64.as_pointer()), align=2)
    x = builder.bitcast(_spread(builder, four, 4), _V16)
    added = []
    for total, (p, j) in zip(sums, quarters, strict=True):
        where = builder.add(panels[p], builder.add(builder.mul(k, i64(64)), i64(16 * j)))
        y = builder.sext(builder.load(_vector_at(builder, where, _I8, 16), align=1), _V16)
        added.append(builder.add(total, _pair_products(builder, x, y)))
    after = builder.add(k, i64(1))
    k.add_incoming(i64(0), before)
    k.add_incoming(after, loop)
    builder.cbranch(builder.icmp_signed("<", after, fours), loop, end)
    builder.position_at_end(end)
    totals = [builder.phi(_V8) for _ in quarters]
    for i, plus in enumerate(added):
        for total in (sums[i], totals[i]):
            total.add_incoming(zero, before)
            total.add_incoming(plus, loop)
    none = _ir.Constant(_V8, _ir.Undefined)
    pairs = [_ir.Constant(_ir.VectorType(_I32, 4), [_i32(2 * i + odd) for i in range(4)]) for odd in (0, 1)]
    for total, (p, j) in zip(totals, quarters, strict=True):
        even, odd = (builder.shuffle_vector(total, none, half) for half in pairs)
        where = builder.add(out, i64(64 * p + 16 * j))
        builder.store(builder.add(even, odd), _vector_at(builder, where, _I32, 4), align=4)


@_extending.intrinsic  # type: ignore[untyped-decorator]
def add_row_pairs(typing: Any, a: Any, b: Any, pairs: Any, unit: Any, units: Any, out: Any) -> Any:
    """Add fl32(sums * unit * units) to sixteen binary32 numbers at address `out`, of one row by one panel of pairs.

    `a` is the address of int16 (2 * pairs), `b` that of the panel, int32 (pairs, 16) with two int16 each, whose sums must fit int32; unit and
    units (16), at an address, are binary64 powers of two.
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _emit_add_row_pairs(builder, *arguments)
        return context.get_dummy_value()

    i64, f64 = _types.int64, _types.float64
    return _types.void(i64, i64, i64, f64, i64, i64), emit


def _emit_add_row_pairs(builder: Any, a: Any, b: Any, pairs: Any, unit: Any, units: Any, out: Any) -> None:
    def i64(n: int) -> Any:
        return _ir.Constant(_I64, n)

    def at(address: Any, bytes_on: Any) -> Any:
        return builder.add(address, bytes_on)

    zero = _ir.Constant(_V8, None)
    before = builder.basic_block
    loop, end = builder.append_basic_block("row"), builder.append_basic_block("row.end")
    builder.cbranch(builder.icmp_signed(">", pairs, i64(0)), loop, end)
    builder.position_at_end(loop)
    k = builder.phi(_I64)
    sums = [builder.phi(_V8) for _ in range(2)]
    two = builder.load(builder.inttoptr(at(a, builder.mul(k, i64(4))), _I32.as_pointer()), align=2)
    x = builder.bitcast(_spread(builder, two, 8), _V16)
    added = []
    for j, total in enumerate(sums):
        where = at(b, builder.add(builder.mul(k, i64(64)), i64(32 * j)))
        y = builder.load(_vector_at(builder, where, _I16, 16), align=4)
        added.append(builder.add(total, _pair_products(builder, x, y)))
    after = builder.add(k, i64(1))
    k.add_incoming(i64(0), before)
    k.add_incoming(after, loop)
    builder.cbranch(builder.icmp_signed("<", after, pairs), loop, end)
    builder.position_at_end(end)
    totals = [builder.phi(_V8) for _ in sums]
    for i, plus in enumerate(added):
        for total in (sums[i], totals[i]):
            total.add_incoming(zero, before)
            total.add_incoming(plus, loop)
    double, single = _ir.VectorType(_F64, 8), _ir.VectorType(_F32, 8)
    for j, total in enumerate(totals):
        scales = builder.load(_vector_at(builder, at(units, i64(64 * j)), _F64, 8), align=8)
        scaled = builder.fmul(builder.fmul(builder.sitofp(total, double), _spread(builder, unit, 8)), scales)
        where = _vector_at(builder, at(out, i64(32 * j)), _F32, 8)
        builder.store(
            builder.fadd(builder.load(where, align=4), builder.fptrunc(scaled, single)), where, align=4
        )


def _vector_at(builder: Any, address: Any, kind: Any, lanes: int) -> Any:
    return builder.inttoptr(address, _ir.VectorType(kind, lanes).as_pointer())


def _every(kind: Any, lanes: int, value: Any) -> Any:
    return _ir.Constant(_ir.VectorType(kind, lanes), [_ir.Constant(kind, value)] * lanes)


@_extending.intrinsic  # type: ignore[untyped-decorator]
def split_limbs(typing: Any, q: Any, high: Any, low: Any) -> Any:
    """Sixty-four integers of 14 bits, int16 at address q, as int8 limbs 128 h + l at two addresses, h in -64..64 and l in -64..63."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = 64
        narrow = _ir.VectorType(_I8, lanes)
        x = builder.load(_vector_at(builder, arguments[0], _I16, lanes), align=2)
        shift = _every(_I16, lanes, 7)
        h = builder.ashr(builder.add(x, _every(_I16, lanes, 64)), shift)
        rest = builder.sub(x, builder.shl(h, shift))
        for limb, address in ((h, arguments[1]), (rest, arguments[2])):
            builder.store(builder.trunc(limb, narrow), _vector_at(builder, address, _I8, lanes), align=1)
        return context.get_dummy_value()

    return _types.void(*[_types.int64] * 3), emit


def _spread(builder: Any, value: Any, lanes: int) -> Any:
    none = _ir.Constant(_ir.VectorType(value.type, lanes), _ir.Undefined)
    first = builder.insert_element(none, value, _i32(0))
    return builder.shuffle_vector(first, none, _ir.Constant(_ir.VectorType(_I32, lanes), None))


def _store(builder: Any, x: Any, address: Any) -> None:
    builder.store(x, _vector_at(builder, address, _F32, COLUMNS), align=4)


@_extending.intrinsic  # type: ignore[untyped-decorator]
def join_limbs(typing: Any, high: Any, low: Any, unit: Any, units: Any, out: Any) -> Any:
    """fl32((128 h + l) * unit * units) of sixteen int32 sums h and l at two addresses; units are binary64 powers of two, results binary32.

    Exact but for the last conversion while 128 h + l has at most 53 bits.
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        high, low, unit, units, out = arguments
        double = _ir.VectorType(_F64, COLUMNS)
        h, rest = (
            builder.sitofp(builder.load(_vector_at(builder, address, _I32, COLUMNS), align=4), double)
            for address in (high, low)
        )
        total = builder.fadd(builder.fmul(h, _every(_F64, COLUMNS, 128.0)), rest)
        scales = builder.load(_vector_at(builder, units, _F64, COLUMNS), align=8)
        scaled = builder.fmul(builder.fmul(total, _spread(builder, unit, COLUMNS)), scales)
        _store(builder, builder.fptrunc(scaled, _ir.VectorType(_F32, COLUMNS)), out)
        return context.get_dummy_value()

    return _types.void(_types.int64, _types.int64, _types.float64, _types.int64, _types.int64), emit


@_extending.intrinsic  # type: ignore[untyped-decorator]
def join_limbs_short(typing: Any, high: Any, low: Any, unit: Any, units: Any, out: Any) -> Any:
    """`join_limbs` where 128 h + l fits int32 and no product with the units, binary32 here, is subnormal or infinite.

    So the one rounding is that of the integer to binary32.
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        high, low, unit, units, out = arguments
        h, rest = (
            builder.load(_vector_at(builder, address, _I32, COLUMNS), align=4) for address in (high, low)
        )
        total = builder.add(builder.shl(h, _every(_I32, COLUMNS, 7)), rest)
        rounded = builder.sitofp(total, _ir.VectorType(_F32, COLUMNS))
        scales = builder.load(_vector_at(builder, units, _F32, COLUMNS), align=4)
        _store(builder, builder.fmul(builder.fmul(rounded, _spread(builder, unit, COLUMNS)), scales), out)
        return context.get_dummy_value()

    return _types.void(_types.int64, _types.int64, _types.float32, _types.int64, _types.int64), emit
