"""Canonical bytes: msgpack arrays with one encoding per value.

A value is an int (-2^63 .. 2^64-1), bytes, str, bool, None, or a tuple or list of values. Maps, floats and
extension types have no canonical form here and are refused both ways. Integers take their shortest form.
`decode` accepts exactly the bytes `encode` makes: it decodes, re-encodes and compares, so two different byte strings
can never be read as one value (a second encoding would give a second hash).

Nothing is built before the bytes were walked once: what they declare must be there and within the limits. A header
costs five bytes and may claim thousands of values for which the unpacker would make room in advance.
"""

from typing import Any

import msgpack

from consensus.errors import CodecError

DEPTH_MAX = 32
"""Nesting allowed, counting the outermost array as 1."""

ELEMENTS_MAX = 1 << 16
"""Values allowed in one decoded object, arrays included, unless the caller says otherwise."""

ARRAYS_MAX = 1 << 15
"""Arrays allowed in one decoded object: an empty one is one byte on the wire and about 90 in memory."""

SHORT_BYTES_MAX = 256
"""Up to here the unpacker itself cannot be made to take more than some 200 kB, and what it built is looked at instead."""

_pack = msgpack.Packer(use_bin_type=True).pack
"""One packer for all threads: it runs no code of Python's on what `_check` admits, so no other thread runs meanwhile."""

_LEAVES = frozenset({int, bytes, str, bool, type(None)})
_ARRAYS = frozenset({list, tuple})
_VALUES = _LEAVES | _ARRAYS

_ARRAY, _REFUSED = -1, -2
_ARRAY_HEADERS = {0xDC: 2, 0xDD: 4}
_BYTES_HEADERS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_NUMBERS = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}


def _size(first: int) -> int:
    """Bytes of the value that begins with `first` if that says so; 0: a length follows; else `_ARRAY`, `_REFUSED`."""
    if first < 0x80 or first >= 0xE0 or first in (0xC0, 0xC2, 0xC3):
        return 1
    if first in _NUMBERS:
        return 1 + _NUMBERS[first]
    if 0xA0 <= first <= 0xBF:
        return 1 + (first & 0x1F)
    if first in _BYTES_HEADERS:
        return 0
    return _ARRAY if 0x90 <= first <= 0x9F or first in _ARRAY_HEADERS else _REFUSED


_SIZES = tuple(map(_size, range(256)))
"""By first byte; maps, floats, extension types and the byte that msgpack never uses are refused."""


def encode(obj: Any) -> bytes:
    """Return the canonical bytes of nested tuples/lists of int, bytes, str, bool and None.

    Raises:
        CodecError: a float, a map, a subclass of an allowed type, an integer out of range, a string
            with lone surrogates, or nesting deeper than `DEPTH_MAX`.
    """
    _check(obj)
    try:
        packed: bytes = _pack(obj)
    except (OverflowError, ValueError, TypeError) as error:
        raise CodecError(f"no canonical form: {error}") from error
    return packed


def encode_known(obj: Any) -> bytes:
    """`encode` of what the caller itself put together, of allowed types alone: nobody looks at them again.

    Never of what came from elsewhere. Raises :class:`CodecError` for an integer out of range or lone surrogates.
    """
    try:
        packed: bytes = _pack(obj)
    except (OverflowError, ValueError, TypeError) as error:
        raise CodecError(f"no canonical form: {error}") from error
    return packed


def unpack_short(data: bytes) -> Any:
    """What at most `SHORT_BYTES_MAX` bytes say, canonical or not; `decode` is what else there is.

    The caller looks at the type of each value before anything else, since floats, maps and extension types come back as
    well, and then compares `encode_known` of the whole with `data`. Raises :class:`CodecError`.
    """
    if len(data) > SHORT_BYTES_MAX:
        raise CodecError(f"{len(data)} bytes where at most {SHORT_BYTES_MAX} are allowed")
    try:
        return msgpack.unpackb(data, raw=False)
    except Exception as error:  # the unpacker has no common error class; all of them mean "not ours"
        raise CodecError(f"not decodable: {type(error).__name__}") from error


def decode(data: bytes, bytes_max: int, elements_max: int = ELEMENTS_MAX) -> Any:
    """Return the value (arrays as lists) whose canonical bytes are exactly `data`.

    Args:
        data: bytes from a peer or from disk.
        bytes_max: longest input accepted, in bytes.
        elements_max: most values accepted, arrays included.

    Raises:
        CodecError: longer than `bytes_max`, over a limit, truncated, trailing bytes, or not canonical.
    """
    if len(data) > bytes_max:
        raise CodecError(f"{len(data)} bytes where at most {bytes_max} are allowed")
    short = len(data) <= min(SHORT_BYTES_MAX, elements_max)  # a value takes a byte at least
    if not short:
        _walk(data, elements_max)
    try:
        obj = msgpack.unpackb(data, raw=False, use_list=True)
    except Exception as error:  # the unpacker has no common error class; all of them mean "not ours"
        raise CodecError(f"not decodable: {type(error).__name__}") from error
    if short:
        _check(obj)
    if _pack(obj) != data:
        raise CodecError("not canonical: the value has a shorter or different encoding")
    return obj


def _walk(data: bytes, elements_max: int) -> None:
    """Refuse forms, depths and counts that are not allowed, and lengths that `data` does not hold; builds nothing."""
    at, end, count, arrays, due = 0, len(data), 0, 0, 1
    outer: list[int] = []  # values still due at each level when a deeper one began
    while True:
        while not due:
            if not outer:
                if at != end:
                    raise CodecError("bytes after the end")
                return
            due = outer.pop()
        if at >= end:
            raise CodecError("truncated")
        count += 1
        due -= 1
        if count > elements_max:
            raise CodecError(f"more than {elements_max} values")
        first = data[at]
        size = _SIZES[first]
        if size > 0:
            at += size
        elif size == _ARRAY:
            width = _ARRAY_HEADERS.get(first, 0)
            outer.append(due)
            due = int.from_bytes(data[at + 1 : at + 1 + width], "big") if width else first & 0x0F
            at += 1 + width
            arrays += 1
            if arrays > ARRAYS_MAX:
                raise CodecError(f"more than {ARRAYS_MAX} arrays")
            if len(outer) > DEPTH_MAX:
                raise CodecError(f"nested deeper than {DEPTH_MAX}")
        elif size == 0:
            width = _BYTES_HEADERS[first]
            if width == 1 and at + 1 < end:  # what there is most of: keys, hashes, signatures
                at += 2 + data[at + 1]
            else:
                at += 1 + width + int.from_bytes(data[at + 1 : at + 1 + width], "big")
        else:
            raise CodecError(f"a value that begins with {first:#04x} has no canonical form")
        if at > end:
            raise CodecError("truncated")


def _check(obj: Any) -> None:
    """Refuse foreign types and too much depth, level by level without recursion."""
    if type(obj) is list and _LEAVES.issuperset(map(type, obj)):
        return  # one row of leaves, as most records are
    level: Any = (obj,)
    for _ in range(DEPTH_MAX + 1):
        # The types of a level at once: what is encoded most has a hundred leaves for each kind of them.
        kinds = set(map(type, level))
        if kinds <= _LEAVES:
            return
        if not kinds <= _VALUES:
            foreign = min(kind.__name__ for kind in kinds - _VALUES)
            raise CodecError(f"{foreign} has no canonical form")
        level = [value for array in level if type(array) in _ARRAYS for value in array]
    raise CodecError(f"nested deeper than {DEPTH_MAX}")
