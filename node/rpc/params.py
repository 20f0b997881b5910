"""Parameters of RPC methods: named, typed, bounded; each parser says what it expects."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from node.rpc.errors import invalid_param

_HEX = re.compile(r"(?:[0-9a-f]{2})*")


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter: its name, what it takes (shown in errors and documentation), its JSON Schema, and its parser.

    The parser returns the value or None where the input is not acceptable. All parameters are required.
    """

    name: str
    expected: str
    schema: Mapping[str, Any]
    parse: Callable[[object], bytes | int | None]


def hex_param(name: str, size_bytes: int = 32) -> Param:
    """Bytes of one exact size, as lowercase hex."""

    def parse(value: object) -> bytes | None:
        if not isinstance(value, str) or len(value) != 2 * size_bytes or not _HEX.fullmatch(value):
            return None
        return bytes.fromhex(value)

    schema = {"type": "string", "pattern": f"^[0-9a-f]{{{2 * size_bytes}}}$"}
    return Param(name, f"{2 * size_bytes} lowercase hex digits", schema, parse)


def blob_param(name: str, bytes_max: int) -> Param:
    """Bytes of any size from 1 to ``bytes_max``, as lowercase hex."""

    def parse(value: object) -> bytes | None:
        if not isinstance(value, str) or not 2 <= len(value) <= 2 * bytes_max:
            return None
        try:
            data = bytes.fromhex(value)
        except ValueError:
            return None
        # It takes capitals and spaces as well; a pattern would say so at ten times the cost.
        return data if data.hex() == value else None

    schema = {"type": "string", "pattern": "^(?:[0-9a-f]{2})+$", "maxLength": 2 * bytes_max}
    return Param(name, f"lowercase hex of 1 to {bytes_max} bytes", schema, parse)


def integer_param(name: str, low: int, high: int) -> Param:
    """A JSON integer from ``low`` to ``high``."""

    def parse(value: object) -> int | None:
        return value if type(value) is int and low <= value <= high else None

    schema = {"type": "integer", "minimum": low, "maximum": high}
    return Param(name, f"an integer from {low} to {high}", schema, parse)


def parse_params(params: tuple[Param, ...], given: Mapping[str, object]) -> dict[str, bytes | int]:
    """Return the parsed values by name; raises `Fault` naming the first that is unknown, missing or malformed."""
    known = [param.name for param in params]
    for name in given:
        if name not in known:
            takes = f"only {', '.join(known)}" if known else "no parameters"
            raise invalid_param(name[:64], takes)
    parsed: dict[str, bytes | int] = {}
    for param in params:
        value = param.parse(given[param.name]) if param.name in given else None
        if value is None:
            raise invalid_param(param.name, param.expected)
        parsed[param.name] = value
    return parsed
