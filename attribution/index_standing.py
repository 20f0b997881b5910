"""Which rows of an index count: near-duplicates behind their leaders, and rows that were erased.

**File** ``standing.bin`` beside an index's four, little-endian; an index without it has neither::

    OLSTAND1; u32 records; u32 0 or 1 (whether leaders follow); u32 erased rows
    u32 per record: its leader, its own number if it leads           (only where leaders follow)
    per erased row, by ascending number: u32 number, 32 bytes hash of the leaf that it was
    u32 CRC-32 of all that: rows that a damaged file calls erased must not be blanked

It is not under the index root. Leaders follow from the records alone (`attribution.duplicates`), and a leaf's
hash takes the leaf's place when the root is recomputed: a wrong one gives another root.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from attribution.errors import ExactError
from attribution.merkle import DIGEST_BYTES
from attribution.shares import ScoredRows, Scores

STANDING_FILE = "standing.bin"

_MAGIC = b"OLSTAND1"
_HEADER = struct.Struct("<8sIII")
_CHECK = struct.Struct("<I")
_ERASED = struct.Struct(f"<I{DIGEST_BYTES}s")


class StandingInvalid(ExactError):
    """Leaders or erased rows that contradict themselves or the index they are for."""


@dataclass(frozen=True, slots=True)
class Standing:
    """``clusters`` names every record's leader (None: only exact copies are led); ``erased`` maps to leaf hashes."""

    clusters: tuple[int, ...] | None = None
    erased: Mapping[int, bytes] = field(default_factory=dict)

    def check(self, records: int) -> None:
        """Raise `StandingInvalid` unless this fits an index of so many records; an erased row leads itself alone."""
        if any(not 0 <= n < records or len(leaf) != DIGEST_BYTES for n, leaf in self.erased.items()):
            raise StandingInvalid("an erased row is not one of the index, or its leaf has no hash")
        if self.clusters is None:
            return
        if len(self.clusters) != records or any(not 0 <= leader < records for leader in self.clusters):
            raise StandingInvalid(f"{len(self.clusters)} leaders for {records} records, or one out of range")
        led = [i for i, leader in enumerate(self.clusters) if leader != i]
        if any(self.clusters[self.clusters[i]] != self.clusters[i] for i in led):
            raise StandingInvalid("a leader that is led by another")
        if any(i in self.erased or self.clusters[i] in self.erased for i in led):
            raise StandingInvalid("an erased row leads or is led")

    def encode(self, records: int) -> bytes:
        """Bytes of the file."""
        head = _HEADER.pack(_MAGIC, records, self.clusters is not None, len(self.erased))
        leaders = np.array(self.clusters or (), "<u4").tobytes()
        data = head + leaders + b"".join(_ERASED.pack(n, self.erased[n]) for n in sorted(self.erased))
        return data + _CHECK.pack(zlib.crc32(data))

    @classmethod
    def decode(cls, data: bytes, records: int) -> Standing:
        """Inverse of `encode`; raises `StandingInvalid` on anything that it would not have written."""
        try:
            magic, count, clustered, erased = _HEADER.unpack_from(data)
        except struct.error as error:
            raise StandingInvalid(f"{STANDING_FILE}: {error}") from error
        leaders_bytes = 4 * records if clustered else 0
        size = _HEADER.size + leaders_bytes + erased * _ERASED.size + _CHECK.size
        if (magic, count) != (_MAGIC, records) or clustered > 1 or erased > records or len(data) != size:
            raise StandingInvalid(f"{STANDING_FILE} is of another version, for another index, or not whole")
        at = _HEADER.size
        leaders = np.frombuffer(data, "<u4", records, at).tolist() if clustered else None
        rows = dict(_ERASED.iter_unpack(data[at + leaders_bytes : -_CHECK.size]))
        found = cls(None if leaders is None else tuple(leaders), rows)
        found.check(records)
        if found.encode(records) != data:
            raise StandingInvalid(f"{STANDING_FILE} was damaged, or names a row twice or out of order")
        return found

    def save(self, directory: Path, records: int) -> None:
        """Replace the file atomically and durably, or remove it where there is nothing to say."""
        path = directory / STANDING_FILE
        if self.clusters is None and not self.erased:
            path.unlink(missing_ok=True)
            return
        part = directory / f"{STANDING_FILE}.part"
        with part.open("wb") as file:
            file.write(self.encode(records))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        folder = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def without_rows(scores: Scores, erased: Collection[int], leaders: Sequence[int]) -> Scores:
    """Scores as they would be had the erased rows been blanked: no score, no norm, and the leaders that remain.

    ``leaders`` are those of the records without the erased ones (`attribution.duplicates`).
    """
    gone = frozenset(erased)
    norms = tuple(0 if row in gone else norm for row, norm in enumerate(scores.rows.norms))
    return Scores(
        [0 if row in gone else value for row, value in enumerate(scores.values)],
        ScoredRows(norms, tuple(leaders)),
        scores.query_norm,
    )
