"""Another implementation's results beside ``attribution.json``: for each step, equal or where they first differ.

Needs neither torch nor the packages that are checked.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.vectors.stranger.arrays import FORMATS, flat

Json = Any

EXPECTED = Path(__file__).parent / "attribution.json"
FILE_BYTES_MAX = 4 << 20
"""Of a file of results; ours has a fifteenth of that."""
SHOWN_MAX = 80
"""Characters of a foreign value or name in a message."""
ARRAY = {"dtype", "shape", "data"}


class ResultsInvalid(ValueError):
    """A file that holds no results in the form of ``attribution.json``."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One step: not given, or with its first difference, or (neither) equal."""

    step: str
    given: bool = True
    difference: str | None = None

    def __str__(self) -> str:
        if not self.given:
            return f"{self.step}: not given"
        return f"{self.step}: equal" if self.difference is None else f"{self.step}: DIFFERS {self.difference}"


def read(path: Path) -> Mapping[str, Json]:
    """Values of the steps of a file ``{"format": 1, "steps": [{"step": name, "value": ...}, ...]}``. Raises `ResultsInvalid`."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise ResultsInvalid(f"more than {FILE_BYTES_MAX} bytes")
        document = json.loads(data, object_pairs_hook=_object, parse_constant=_no_number)
    except RecursionError:
        raise ResultsInvalid("lists or objects are nested too deeply") from None
    except (OSError, ValueError) as error:
        raise ResultsInvalid(f"no JSON could be read: {error}") from error
    if not isinstance(document, dict) or document.get("format") != 1:
        raise ResultsInvalid('not an object with "format": 1')
    if not isinstance(document.get("steps"), list):
        raise ResultsInvalid('"steps" is not a list')
    found = dict[str, Json]()
    for number, entry in enumerate(document["steps"]):
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), str) or "value" not in entry:
            raise ResultsInvalid(f'entry {number} of "steps" has no text "step", or no "value"')
        if entry["step"] in found:
            raise ResultsInvalid(f"the step {shown(entry['step'])} is there twice")
        found[entry["step"]] = entry["value"]
    return found


def compare(found: Mapping[str, Json], expected: Mapping[str, Json]) -> list[Verdict]:
    """A verdict on every step that is expected, in its order. Raises `ResultsInvalid` on a step that is not, or on none at all."""
    for name in found:
        if name not in expected:
            raise ResultsInvalid(f"there is no step {shown(name)}; there are: {', '.join(expected)}")
    if not found:
        raise ResultsInvalid("no step is given")
    return [
        Verdict(name, True, difference(value, found[name])) if name in found else Verdict(name, False)
        for name, value in expected.items()
    ]


def check(path: Path) -> tuple[list[str], bool]:
    """Lines to print, and whether all that is given is equal. Raises `ResultsInvalid`."""
    verdicts = compare(read(path), read(EXPECTED))
    given = [verdict for verdict in verdicts if verdict.given]
    differing = [verdict for verdict in given if verdict.difference is not None]
    last = f"{len(given) - len(differing)} of {len(verdicts)} steps equal"
    if differing:
        last += f", {len(differing)} differ; begin with {differing[0].step}: what follows is computed from it"
    if len(given) < len(verdicts):
        last += f"; {len(verdicts) - len(given)} not given"
    return [*map(str, verdicts), last], not differing


def difference(expected: Json, found: Json, place: str = "") -> str | None:
    """Where two values first differ, and how; None where they are equal."""
    match expected:
        case dict() if set(expected) == ARRAY:
            return _array(expected, found, place)
        case dict():
            return _members(expected, found, place)
        case list():
            return _entries(expected, found, place)
        case str():
            return _bytes(expected, found, place)
    if type(found) is type(expected) and found == expected:
        return None
    return f"at {place or 'the value'}: expected {expected}, found {shown(found)}"


def shown(value: Json) -> str:
    """A foreign value in plain characters, and not too many."""
    text = ascii(value)
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}..."


def _members(expected: Mapping[str, Json], found: Json, place: str) -> str | None:
    if not isinstance(found, dict):
        return f"at {place or 'the value'}: expected an object, found {shown(found)}"
    for name, value in expected.items():
        if name not in found:
            return f"at {place or 'the value'}: {name!r} is missing"
        if (differs := difference(value, found[name], f"{place}[{name}]")) is not None:
            return differs
    left = [name for name in found if name not in expected]
    return f"at {place or 'the value'}: {shown(left[0])} should not be there" if left else None


def _entries(expected: Sequence[Json], found: Json, place: str) -> str | None:
    if not isinstance(found, list):
        return f"at {place or 'the value'}: expected a list, found {shown(found)}"
    for number, (value, other) in enumerate(zip(expected, found, strict=False)):
        if (differs := difference(value, other, f"{place}[{number}]")) is not None:
            return differs
    if len(expected) != len(found):
        return f"at {place or 'the value'}: expected {len(expected)} entries, found {len(found)}"
    return None


def _bytes(expected: str, found: Json, place: str) -> str | None:
    where, ours, theirs = place or "the value", bytes.fromhex(expected), _unhex(found)
    if theirs is None:
        return f"at {where}: expected bytes in hexadecimal, found {shown(found)}"
    for at, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            return f"at {where}, byte {at}: expected {one:02x}, found {other:02x}"
    if len(ours) != len(theirs):
        return f"at {where}: expected {len(ours)} bytes, found {len(theirs)}"
    return None


def _array(expected: Mapping[str, Json], found: Json, place: str) -> str | None:
    where = place or "the value"
    if not isinstance(found, dict) or set(found) != ARRAY:
        return f"at {where}: expected an object of dtype, shape and data, found {shown(found)}"
    for name in ("dtype", "shape"):
        if found[name] != expected[name]:
            return f"at {where}: expected the {name} {expected[name]}, found {shown(found[name])}"
    data = _unhex(found["data"])
    size = math.prod(expected["shape"]) * struct.calcsize(FORMATS[expected["dtype"]])
    if data is None or len(data) != size:
        return f"at {where}: expected {size} bytes of data in hexadecimal, found {shown(found['data'])}"
    ours, item = bytes.fromhex(expected["data"]), size // math.prod(expected["shape"])
    for number, at in enumerate(range(0, size, item)):
        if ours[at : at + item] != data[at : at + item]:
            pair = (ours[at : at + item], data[at : at + item])
            index = _index(number, expected["shape"])
            return f"at {place}{index}: {_number(expected['dtype'], *pair)}"
    return None


def _number(dtype: str, expected: bytes, found: bytes) -> str:
    """Both numbers; of binary32 numbers the bits, too, and how far they are apart."""
    ours, theirs = (flat({"dtype": dtype, "shape": [1], "data": data.hex()})[0] for data in (expected, found))
    if dtype != "float32":
        return f"expected {ours}, found {theirs}"
    bits = [int.from_bytes(data, "little") for data in (expected, found)]
    text = f"expected {ours!r} (0x{bits[0]:08x}), found {theirs!r} (0x{bits[1]:08x})"
    if ours == theirs == 0.0:
        return f"{text}: a negative zero; add a positive one to it"
    apart = abs(bits[0] - bits[1])
    near = apart < 1 << 8 and math.isfinite(theirs)
    return f"{text}: {apart} units in the last place apart, so a rounding differs" if near else text


def _index(number: int, shape: Sequence[int]) -> list[int]:
    found = []
    for size in reversed(shape):
        number, at = divmod(number, size)
        found.append(at)
    return found[::-1]


def _unhex(value: Json) -> bytes | None:
    try:
        return bytes.fromhex(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _object(pairs: Sequence[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ResultsInvalid("an object has a name twice")
    return found


def _no_number(text: str) -> Json:
    raise ResultsInvalid(f"{text} is not a number")
