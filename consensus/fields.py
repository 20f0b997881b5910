"""Checked reading of decoded arrays: each function returns its argument typed, or raises `CodecError`."""

from typing import Any, Never

from consensus.crypto import SIGNATURE_BYTES
from consensus.digest import DIGEST_BYTES
from consensus.errors import CodecError

U64_MAX = (1 << 64) - 1


def fail(what: str) -> Never:
    """Raise `CodecError(what)`."""
    raise CodecError(what)


def array(obj: Any, length: int, what: str) -> list[Any]:
    """Return `obj` if it is an array of exactly `length` items."""
    if type(obj) is not list or len(obj) != length:
        fail(f"{what}: not an array of {length}")
    return obj


def array_upto(obj: Any, length_max: int, what: str) -> list[Any]:
    """Return `obj` if it is an array of at most `length_max` items."""
    if type(obj) is not list or len(obj) > length_max:
        fail(f"{what}: not an array of at most {length_max}")
    return obj


def uint(obj: Any, what: str) -> int:
    """Return `obj` if it is an integer from 0 to 2^64-1 (and not a bool)."""
    if type(obj) is not int or not 0 <= obj <= U64_MAX:
        fail(f"{what}: not an unsigned integer")
    return obj


def sized(obj: Any, length: int, what: str) -> bytes:
    """Return `obj` if it is a byte string of exactly `length` bytes."""
    if type(obj) is not bytes or len(obj) != length:
        fail(f"{what}: not {length} bytes")
    return obj


def hash32(obj: Any, what: str) -> bytes:
    """Return `obj` if it is 32 bytes."""
    return sized(obj, DIGEST_BYTES, what)


def signature64(obj: Any, what: str = "signature") -> bytes:
    """Return `obj` if it is 64 bytes."""
    return sized(obj, SIGNATURE_BYTES, what)
