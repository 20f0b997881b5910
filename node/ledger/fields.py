"""Frozen dataclasses to canonical lists and back, every field checked by a rule named beside it.

A field is declared as ``amount: int = field(metadata=uint())``: the metadata holds the check that both admits a decoded
value and turns lists into tuples. Anything else than the exact type, size and range is a :class:`MalformedError`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any, TypeVar, cast

from consensus.codec import decode, encode
from consensus.errors import CodecError
from node.ledger.errors import MalformedError

Check = Callable[[object, str], Any]
Rule = Mapping[str, Check]
T = TypeVar("T")

SHORT_BYTES_MAX = 64
SHORT_REMEMBERED_MAX = 16_384
_short: dict[tuple[type[Any], bytes], object] = {}
"""Short values as they are read, as accounts are, by their class and bytes, which say the same each time; some 5 MB."""

U32_MAX = 2**32 - 1
U63_MAX = 2**63 - 1
"""Amounts, heights and times stay below 2^63, so that any two of them still add up within 64 bits."""


def _rule(check: Check) -> Rule:
    return {"check": check}


def uint(maximum: int = U63_MAX, minimum: int = 0) -> Rule:
    """An integer in [minimum, maximum]; booleans are not integers here."""

    def check(value: object, where: str) -> int:
        if type(value) is int and minimum <= value <= maximum:
            return value
        # In this order: in machine code what was found to be an int is kept as a number, and a bool among them as 0 or 1.
        if type(value) is bool or not isinstance(value, int) or not minimum <= value <= maximum:
            raise MalformedError(f"{where}: not an integer in [{minimum}, {maximum}]", where)
        return int(value)

    return _rule(check)


def fixed(*sizes: int) -> Rule:
    """Bytes of exactly one of these sizes."""

    def check(value: object, where: str) -> bytes:
        if type(value) is not bytes or len(value) not in sizes:
            raise MalformedError(f"{where}: not bytes of size {' or '.join(map(str, sizes))}", where)
        return value

    return _rule(check)


def blob(bytes_max: int) -> Rule:
    """Bytes, at most ``bytes_max`` of them."""

    def check(value: object, where: str) -> bytes:
        if type(value) is not bytes or len(value) > bytes_max:
            raise MalformedError(f"{where}: not at most {bytes_max} bytes", where)
        return value

    return _rule(check)


def text(bytes_max: int, empty: bool = False) -> Rule:
    """Printable text of at most ``bytes_max`` UTF-8 bytes; not empty unless told so."""

    def check(value: object, where: str) -> str:
        if type(value) is not str or not value.isprintable() or (not value and not empty):
            raise MalformedError(f"{where}: not printable text", where)
        if len(value.encode("utf-8", "surrogatepass")) > bytes_max:
            raise MalformedError(f"{where}: text over {bytes_max} bytes", where)
        return value

    return _rule(check)


def many(rule: Rule, count_max: int, count_min: int = 0) -> Rule:
    """A tuple of values that each obey ``rule``."""
    item = rule["check"]

    def check(value: object, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or not count_min <= len(value) <= count_max:
            raise MalformedError(f"{where}: not a list of {count_min} to {count_max} entries", where)
        return tuple([item(entry, where) for entry in value])

    return _rule(check)


def row(*rules: Rule) -> Rule:
    """A tuple with one value for each rule."""
    checks = [rule["check"] for rule in rules]

    def check(value: object, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or len(value) != len(checks):
            raise MalformedError(f"{where}: not a list of {len(checks)} values", where)
        return tuple([item(entry, where) for item, entry in zip(checks, value, strict=True)])

    return _rule(check)


def nested(cls: type[Any]) -> Rule:
    """Another dataclass of this kind, as the list of its fields."""

    def check(value: object, where: str) -> Any:
        return validate(value) if type(value) is cls else unpack(cls, value, where)

    return _rule(check)


_PLAIN = frozenset({int, bytes, str, bool, type(None)})
_known: dict[type[Any], tuple[tuple[str, Check], ...]] = {}
# By class and where it stands: both are named by the code, so there are few.
_placed: dict[tuple[type[Any], str], tuple[tuple[str, Check], ...]] = {}


def _checks(cls: type[Any]) -> tuple[tuple[str, Check], ...]:
    known = _known.get(cls)
    if known is None:
        known = tuple((entry.name, entry.metadata["check"]) for entry in dataclasses.fields(cls))
        _known[cls] = known
    return known


def _checks_at(cls: type[Any], where: str) -> tuple[tuple[str, Check], ...]:
    """The checks of a class's fields, each with the name that an error gives the field there."""
    placed = _placed.get((cls, where))
    if placed is None:
        placed = tuple((f"{where}.{name}", check) for name, check in _checks(cls))
        _placed[cls, where] = placed
    return placed


def pack(value: object) -> object:
    """The canonical list form of a dataclass, with tuples as lists."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind in _known:
        return [
            entry if type(entry := getattr(value, name)) in _PLAIN else pack(entry)
            for name, _ in _known[kind]
        ]
    if isinstance(value, tuple):
        return [pack(entry) for entry in value]
    if isinstance(value, IntEnum):
        return int(value)
    if dataclasses.is_dataclass(value):
        return [pack(getattr(value, name)) for name, _ in _checks(kind)]
    return value


def unpack(cls: type[T], value: object, where: str = "") -> T:
    """Build ``cls`` from its list form; its own ``__post_init__`` may refuse further with :class:`MalformedError`."""
    where = where or cls.__name__
    checks = _checks_at(cls, where)
    if not isinstance(value, list | tuple) or len(value) != len(checks):
        raise MalformedError(f"{where}: not a list of {len(checks)} fields", where)
    return cls(*[check(entry, name) for (name, check), entry in zip(checks, value)])  # noqa: B905 - as many


def validate(value: T) -> T:
    """Check a dataclass built in memory by the same rules as a decoded one; raises :class:`MalformedError`."""
    cls = type(value)
    for (name, _), (where, check) in zip(_checks(cls), _checks_at(cls, cls.__name__), strict=True):
        check(getattr(value, name), where)
    return value


def to_bytes(value: object) -> bytes:
    """Canonical bytes of a dataclass."""
    return encode(pack(value))


def from_bytes(cls: type[T], data: bytes, bytes_max: int) -> T:
    """Decode canonical bytes into ``cls``, which is frozen; raises :class:`MalformedError` for anything else."""
    if len(data) > min(SHORT_BYTES_MAX, bytes_max):
        return unpack(cls, decode_list(data, bytes_max, cls.__name__))
    known = _short.get((cls, data))
    if known is None:
        known = unpack(cls, decode_list(data, bytes_max, cls.__name__))
        if len(_short) >= SHORT_REMEMBERED_MAX:
            _short.clear()  # at once: several threads read and write here
        _short[cls, data] = known
    return cast("T", known)


def decode_list(data: bytes, bytes_max: int, where: str) -> object:
    """Decode canonical bytes with the codec's refusals turned into :class:`MalformedError`."""
    try:
        # a value takes at least a byte, so the limit on bytes is the limit on values
        return decode(data, bytes_max, elements_max=bytes_max)
    except CodecError as error:
        raise MalformedError(f"{where}: {error}", where) from error
