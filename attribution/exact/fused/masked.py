"""Sums of int8 numbers where rows of bits have ones, 64 bits at a time: AVX-512's masks and the dot products of its VNNI.

Eight bytes of a row are a mask; it becomes 64 bytes of 0 and 1, and one instruction (VPDPBUSD: four products of an unsigned and a signed byte added to an
int32, without saturation; Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2) adds what has a 1. Two limbs of int8 give a number of 14 bits.
"""

from __future__ import annotations

import importlib
from typing import Any

from attribution.exact.fused.compiling import features, numba

_extending: Any = importlib.import_module("numba.extending")
_ir: Any = importlib.import_module("llvmlite.ir")
_types: Any = numba.types

ROWS = 8
"""Rows of one call: sixteen sums in registers."""
BLOCK_BYTES = 8
"""Bytes of a row that are one mask."""
BLOCK_BITS = 8 * BLOCK_BYTES
LIMB_BITS = 7
LIMBS = 2
USABLE = {"avx512bw", "avx512vnni"} <= features()
"""Whether code compiled here may use the instructions."""

_I1, _I8, _I32, _I64 = (_ir.IntType(bits) for bits in (1, 8, 32, 64))
_MASK, _BYTES = _ir.VectorType(_I1, BLOCK_BITS), _ir.VectorType(_I8, BLOCK_BITS)
_SUMS = _ir.VectorType(_I32, BLOCK_BITS // 4)


def _i64(n: int) -> Any:
    return _ir.Constant(_I64, n)


def _load(builder: Any, address: Any, kind: Any) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


def _dot(builder: Any, sums: Any, ones: Any, limbs: Any) -> Any:
    name = "llvm.x86.avx512.vpdpbusd.512"
    function = builder.module.globals.get(name)
    if function is None:
        function = _ir.Function(builder.module, _ir.FunctionType(_SUMS, [_SUMS] * 3), name)
    return builder.call(function, [sums, builder.bitcast(ones, _SUMS), builder.bitcast(limbs, _SUMS)])


def _whole(builder: Any, sums: Any) -> Any:
    """The lanes' sum."""
    name = f"llvm.vector.reduce.add.v{_SUMS.count}i32"
    function = builder.module.globals.get(name)
    if function is None:
        function = _ir.Function(builder.module, _ir.FunctionType(_I32, [_SUMS]), name)
    return builder.call(function, [sums])


def _emit_add(builder: Any, rows: int, first: Any, step: Any, size: Any, limbs: Any, out: Any) -> None:
    """Whole blocks in a loop; then the rest of the bytes, which are the upper ones of the row's last eight."""
    starts = [first]
    for _ in range(1, rows):
        starts.append(builder.add(starts[-1], step))
    none = _ir.Constant(_SUMS, None)
    blocks, rest = builder.udiv(size, _i64(BLOCK_BYTES)), builder.urem(size, _i64(BLOCK_BYTES))

    def added(place: Any, k: Any, down: Any, sums: Any) -> list[Any]:
        at = builder.add(limbs, builder.mul(k, _i64(LIMBS * BLOCK_BITS)))
        numbers = [_load(builder, builder.add(at, _i64(n * BLOCK_BITS)), _BYTES) for n in range(LIMBS)]
        found = []
        for r, start in enumerate(starts):
            mask = _load(builder, builder.add(start, place), _I64)
            mask = mask if down is None else builder.lshr(mask, down)
            ones = builder.zext(builder.bitcast(mask, _MASK), _BYTES)
            found += [_dot(builder, sums[LIMBS * r + n], ones, limb) for n, limb in enumerate(numbers)]
        return found

    before = builder.basic_block
    loop, end = builder.append_basic_block("blocks"), builder.append_basic_block("blocks.end")
    last, done = builder.append_basic_block("rest"), builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed(">", blocks, _i64(0)), loop, end)
    builder.position_at_end(loop)
    k, sums = builder.phi(_I64), [builder.phi(_SUMS) for _ in range(LIMBS * rows)]
    more = added(builder.mul(k, _i64(BLOCK_BYTES)), k, None, sums)
    after = builder.add(k, _i64(1))
    k.add_incoming(_i64(0), before)
    k.add_incoming(after, loop)
    for x, y in zip(sums, more, strict=True):
        x.add_incoming(none, before)
        x.add_incoming(y, loop)
    builder.cbranch(builder.icmp_signed("<", after, blocks), loop, end)
    builder.position_at_end(end)
    ended = [builder.phi(_SUMS) for _ in range(LIMBS * rows)]
    for x, y in zip(ended, more, strict=True):
        x.add_incoming(none, before)
        x.add_incoming(y, loop)
    builder.cbranch(builder.icmp_signed(">", rest, _i64(0)), last, done)
    builder.position_at_end(last)
    down = builder.sub(_i64(BLOCK_BITS), builder.mul(rest, _i64(8)))
    closed = added(builder.sub(size, _i64(BLOCK_BYTES)), blocks, down, ended)
    builder.branch(done)
    builder.position_at_end(done)
    results = [builder.phi(_SUMS) for _ in range(LIMBS * rows)]
    for x, y, z in zip(results, ended, closed, strict=True):
        x.add_incoming(y, end)
        x.add_incoming(z, last)
    for r in range(rows):
        total = _i64(0)
        for x in results[LIMBS * r : LIMBS * (r + 1)]:
            limb = builder.sext(_whole(builder, x), _I64)
            total = builder.add(builder.shl(total, _i64(LIMB_BITS)), limb)
        where = builder.add(out, _i64(8 * r))
        builder.store(total, builder.inttoptr(where, _I64.as_pointer()), align=1)


def _adder(rows: int) -> Any:
    """Intrinsic (first, step, size, limbs, out): for each of `rows` rows the sum of the numbers where it has ones, int64 at `out`.

    `first` is the address of the first row's bytes, `step` bytes from row to row, `size` bytes of each, at least `BLOCK_BYTES`; `limbs` that of int8 (blocks, 2, 64),
    the upper limb first, zeros beyond `size`. No byte outside of the rows is read. A limb is at most 127 in magnitude, so of 2^24 bits its sum stays below 2^31.
    """

    @_extending.intrinsic  # type: ignore[untyped-decorator]
    def add(typing: Any, first: Any, step: Any, size: Any, limbs: Any, out: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _emit_add(builder, rows, *arguments)
            return context.get_dummy_value()

        return _types.void(*[_types.int64] * 5), emit

    return add


add_rows, add_row = _adder(ROWS), _adder(1)


@_extending.intrinsic  # type: ignore[untyped-decorator]
def copy_bytes(typing: Any, source: Any, target: Any, size: Any) -> Any:
    """Copy `size` bytes from one address to another."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _I8.as_pointer()
        source, target = (builder.inttoptr(address, pointer) for address in arguments[:2])
        kind = _ir.FunctionType(_ir.VoidType(), [pointer, pointer, _I64, _I1])
        function = builder.module.declare_intrinsic("llvm.memcpy", [pointer, pointer, _I64], kind)
        builder.call(function, [target, source, arguments[2], _ir.Constant(_I1, 0)])
        return context.get_dummy_value()

    return _types.void(*[_types.int64] * 3), emit
