"""The attribution index (interface published first; bodies follow).

    build_index(base, adapter, records, shards=1) -> Index        records: token ids per record, without BOS/EOS
    Index.root: bytes (32), Index.record_count: int, Index.size_bytes: int
    Index.save(directory: Path) -> None                           writes flat files, atomically replaced
    Index.open(directory: Path, root: bytes | None = None) -> Index     mmapped; IndexFileError if corrupt or not `root`
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attribution.adapter import Adapter
    from attribution.model import Base


class IndexFileError(ValueError):
    """An index directory is missing, truncated, corrupt, of another version, or has another root than expected."""


class Index:
    """Packed sign rows of every record, with the bases and weights that made them."""

    root: bytes
    record_count: int

    def save(self, directory: Path) -> None:
        """Write the index's files into ``directory`` (created if missing)."""
        raise NotImplementedError

    @classmethod
    def open(cls, directory: Path, root: bytes | None = None) -> Index:
        """Map the files of ``directory``; with ``root``, also recompute and compare the Merkle root."""
        raise NotImplementedError


def build_index(base: Base, adapter: Adapter, records: Sequence[Sequence[int]], shards: int = 1) -> Index:
    """Index of ``records`` (token ids 1..255, no BOS/EOS), the same bytes for any number of ``shards``."""
    raise NotImplementedError
