"""Reading files that strangers wrote: regular files only, bounded before they are read, JSON in one meaning only."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attribution.importing.errors import ImportRefused

JSON_BYTES_MAX = 1 << 20
NAMES_MAX = 4096
SHOWN_CHARACTERS_MAX = 80


def shown(value: object) -> str:
    """`value` as text for a message: escaped, and not longer than a line."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS_MAX else f"{text[:SHOWN_CHARACTERS_MAX]}..."


def names_in(folder: Path) -> list[str]:
    """Sorted names of a directory, at most NAMES_MAX. Raises ImportRefused."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for _, entry in zip(range(NAMES_MAX + 1), entries, strict=False)]
    except OSError as error:
        raise ImportRefused(f"{folder} cannot be read as a directory: {error.strerror}") from None
    if len(names) > NAMES_MAX:
        raise ImportRefused(f"{folder} holds more than {NAMES_MAX} names")
    return sorted(names)


@contextmanager
def opened(path: Path) -> Iterator[tuple[int, int]]:
    """(descriptor, size in bytes) of a regular file; a pipe or device is refused and cannot block. Raises ImportRefused."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ImportRefused(f"{path.name} cannot be read: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ImportRefused(f"{path.name} is not a regular file")
        yield descriptor, status.st_size
    finally:
        os.close(descriptor)


def read_at(descriptor: int, name: str, start: int, stop: int) -> bytearray:
    """Bytes start..stop of an open file. Raises ImportRefused if there are fewer."""
    data = bytearray(stop - start)
    view, done = memoryview(data), 0
    while done < len(data):
        try:
            count = os.preadv(descriptor, [view[done:]], start + done)
        except OSError as error:
            raise ImportRefused(f"{name} cannot be read: {error.strerror}") from None
        if count == 0:
            raise ImportRefused(f"{name} ends before byte {stop}")
        done += count
    return data


def read_bytes(path: Path, bytes_max: int) -> bytes:
    """A whole file of at most `bytes_max` bytes. Raises ImportRefused."""
    with opened(path) as (descriptor, size):
        if size > bytes_max:
            raise ImportRefused(f"{path.name} has {size} bytes; the limit is {bytes_max}")
        return bytes(read_at(descriptor, path.name, 0, size))


def read_json(path: Path, bytes_max: int = JSON_BYTES_MAX) -> dict[str, object]:
    """The object in a JSON file. Raises ImportRefused."""
    return parse_json(read_bytes(path, bytes_max), path.name)


def parse_json(data: bytes, name: str) -> dict[str, object]:
    """One JSON object: a key given twice, NaN, infinities and endless nesting are refused. Raises ImportRefused."""

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ImportRefused(f"{name} gives a key twice")
        return found

    def constant(text: str) -> object:
        raise ImportRefused(f"{name} holds {text}, which is no JSON number")

    try:
        value = json.loads(data, object_pairs_hook=once, parse_constant=constant)
    except (ValueError, RecursionError):
        raise ImportRefused(f"{name} is not JSON") from None
    if not isinstance(value, dict):
        raise ImportRefused(f"{name} is not a JSON object")
    return value
