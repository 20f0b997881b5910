"""The tile unit of Intel's AMX, where the processor has one and the kernel grants it: products of int8 tiles, summed in int32.

Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18 (tiles, palette 1) and volume 2, TDPBSSD: 16 rows of 64 signed
bytes times 64 by 16 give 16 by 16 sums, each of products of two int8 numbers added up in int32 without saturation.
"""

from __future__ import annotations

import ctypes
import importlib
import platform
from typing import Any

from attribution.exact.fused.compiling import features, numba

_extending: Any = importlib.import_module("numba.extending")
_ir: Any = importlib.import_module("llvmlite.ir")
_types: Any = numba.types

TILE_ROWS = 16
"""Rows of a tile, and columns of a tile of sums."""
TILE_BYTES = 64
"""Bytes of a tile's row: numbers contracted at once."""
CONFIGURATION_BYTES = 64
SUMS_AT_ONCE = 4
"""Tiles of sums that one call of `multiply` gives: high and low limbs of the same rows, by two panels."""
_NEEDED = {"amx-tile", "amx-int8"}
# arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA): Linux gives no process the unit's 8 KiB of state unasked (x86/xstate.rst).
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _TILE_DATA = 158, 0x1023, 18

_I8, _I32, _I64 = (_ir.IntType(bits) for bits in (8, 32, 64))
_POINTER, _NOTHING = _I8.as_pointer(), _ir.VoidType()
_SUMS = tuple(range(4))
_HIGH, _LOW, _FIRST, _SECOND = range(4, 8)


def usable() -> bool:
    """Whether code compiled here may use the unit: the compiler's target has it, and the operating system lets this process."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return False
    if not features() >= _NEEDED:
        return False
    refused: int = ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _TILE_DATA)
    return refused == 0


def _call(builder: Any, name: str, *arguments: Any) -> None:
    full = f"llvm.x86.{name}"
    found = builder.module.globals.get(full)
    if found is None:
        found = _ir.Function(
            builder.module, _ir.FunctionType(_NOTHING, [value.type for value in arguments]), full
        )
    builder.call(found, arguments)


def _tile(n: int) -> Any:
    return _ir.Constant(_I8, n)


def _i64(n: int) -> Any:
    return _ir.Constant(_I64, n)


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _POINTER)


@_extending.intrinsic  # type: ignore[untyped-decorator]
def configure(typing: Any, where: Any) -> Any:
    """Take the shapes of the tiles from `CONFIGURATION_BYTES` at an address (see `shapes` of `limbs`)."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _call(builder, "ldtilecfg", _pointer(builder, arguments[0]))
        return context.get_dummy_value()

    return _types.void(_types.int64), emit


@_extending.intrinsic  # type: ignore[untyped-decorator]
def release(typing: Any) -> Any:
    """Give the tiles back, so that a switch of processes does not save them."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _call(builder, "tilerelease")
        return context.get_dummy_value()

    return _types.void(), emit


@_extending.intrinsic  # type: ignore[untyped-decorator]
def multiply(typing: Any, rows: Any, first: Any, second: Any, blocks: Any, sums: Any) -> Any:
    """Four tiles of int32 sums at address `sums` (4, 16, 16): high limbs by two panels, then low limbs by the same.

    `rows` is the address of int8 (blocks, 2, 16, 64), high limbs and low limbs of up to sixteen rows; `first` and `second` those of the panels,
    int8 (blocks, 16, 16, 4): for each four contracted numbers sixteen columns. Tiles must be configured.
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _emit_multiply(builder, *arguments)
        return context.get_dummy_value()

    return _types.void(*[_types.int64] * 5), emit


def _emit_multiply(builder: Any, rows: Any, first: Any, second: Any, blocks: Any, sums: Any) -> None:
    tile_bytes, row_bytes = TILE_ROWS * TILE_BYTES, _i64(TILE_BYTES)

    def load(tile: int, start: Any, offset: Any) -> None:
        _call(builder, "tileloadd64", _tile(tile), _pointer(builder, builder.add(start, offset)), row_bytes)

    def dot(total: int, left: int, right: int) -> None:
        _call(builder, "tdpbssd", _tile(total), _tile(left), _tile(right))

    for tile in _SUMS:
        _call(builder, "tilezero", _tile(tile))
    before = builder.basic_block
    loop, end = builder.append_basic_block("blocks"), builder.append_basic_block("blocks.end")
    builder.cbranch(builder.icmp_signed(">", blocks, _i64(0)), loop, end)
    builder.position_at_end(loop)
    k = builder.phi(_I64)
    of_rows, of_panels = builder.mul(k, _i64(2 * tile_bytes)), builder.mul(k, _i64(tile_bytes))
    load(_HIGH, rows, of_rows)
    load(_FIRST, first, of_panels)
    dot(0, _HIGH, _FIRST)
    load(_LOW, rows, builder.add(of_rows, _i64(tile_bytes)))
    dot(2, _LOW, _FIRST)
    load(_SECOND, second, of_panels)
    dot(1, _HIGH, _SECOND)
    dot(3, _LOW, _SECOND)
    after = builder.add(k, _i64(1))
    k.add_incoming(_i64(0), before)
    k.add_incoming(after, loop)
    builder.cbranch(builder.icmp_signed("<", after, blocks), loop, end)
    builder.position_at_end(end)
    for tile in _SUMS:
        where = _pointer(builder, builder.add(sums, _i64(tile * tile_bytes)))
        _call(builder, "tilestored64", _tile(tile), where, row_bytes)
