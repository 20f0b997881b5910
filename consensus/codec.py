"""Canonical bytes: msgpack arrays with one encoding per value.

A value is an int (-2^63 .. 2^64-1), bytes, str, bool, None, or a tuple or list of values. Maps, floats and
extension types have no canonical form here and are refused both ways. Integers take their shortest form.
`decode` accepts exactly the bytes `encode` makes: it decodes, walks, re-encodes and compares, so two
different byte strings can never be read as one value (a second encoding would give a second hash).
"""

from typing import Any

import msgpack

from consensus.errors import CodecError

DEPTH_MAX = 32
"""Nesting allowed, counting the outermost array as 1."""

ELEMENTS_MAX = 1 << 16
"""Values allowed in one decoded object, arrays included, unless the caller says otherwise."""

_LEAVES = frozenset({int, bytes, str, bool, type(None)})


def encode(obj: Any) -> bytes:
    """Return the canonical bytes of nested tuples/lists of int, bytes, str, bool and None.

    Raises:
        CodecError: a float, a map, a subclass of an allowed type, an integer out of range, a string
            with lone surrogates, or nesting deeper than `DEPTH_MAX`.
    """
    _check(obj, None)
    try:
        packed: bytes = msgpack.packb(obj, use_bin_type=True)
    except (OverflowError, ValueError, TypeError) as error:
        raise CodecError(f"no canonical form: {error}") from error
    return packed


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
    try:
        # The array limit also bounds what the unpacker allocates ahead for a header that lies.
        obj = msgpack.unpackb(
            data,
            raw=False,
            use_list=True,
            max_array_len=elements_max,
            max_map_len=0,
            max_ext_len=0,
            max_str_len=len(data),
            max_bin_len=len(data),
        )
    except Exception as error:  # the unpacker has no common error class; all of them mean "not ours"
        raise CodecError(f"not decodable: {type(error).__name__}") from error
    _check(obj, elements_max)
    if msgpack.packb(obj, use_bin_type=True) != data:
        raise CodecError("not canonical: the value has a shorter or different encoding")
    return obj


def _check(obj: Any, elements_max: int | None) -> None:
    """Refuse foreign types, too much depth and too many values, level by level without recursion."""
    level, count = [obj], 0
    for _ in range(DEPTH_MAX + 1):
        count += len(level)
        if elements_max is not None and count > elements_max:
            raise CodecError(f"more than {elements_max} values")
        below: list[Any] = []
        for value in level:
            kind = type(value)
            if kind is list or kind is tuple:
                below.extend(value)
            elif kind not in _LEAVES:
                raise CodecError(f"{kind.__name__} has no canonical form")
        if not below and not any(type(value) in (list, tuple) for value in level):
            return
        level = below
    raise CodecError(f"nested deeper than {DEPTH_MAX}")
