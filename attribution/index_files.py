"""Indices larger than memory, built into files; and rows erased from them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attribution.adapter import Adapter
from attribution.index import FILES, Index, IndexHeader, batched, blank_rows, build_rows
from attribution.index_standing import STANDING_FILE, Standing
from attribution.merkle import leaf_hash
from attribution.model import Base
from attribution.whitening import RECORDS_MAX

PART_BYTES = 1 << 24
"""Gradients in memory at once, unless one record's alone are more; the work on them takes up to ten times that."""
RECORDS_AT_ONCE = 16
SCRATCH_FILE = "gradients.part"


class _Scratch:
    """Gradients in a file: 4 bytes per coordinate and record, every part at its place, read and written whole."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self._device = device
        self._places = dict[int, tuple[int, list[torch.Size]]]()
        self._end = 0

    def put(self, part: int, gradients: Sequence[Tensor]) -> None:
        if part not in self._places:
            self._places[part] = (self._end, [g.shape for g in gradients])
            self._end += sum(4 * g.numel() for g in gradients)
        at = self._places[part][0]
        for gradient in gradients:
            data = gradient.contiguous().cpu().numpy().reshape(-1).view(np.uint8).data
            while data:
                written = os.pwrite(self._file, data, at)
                data, at = data[written:], at + written

    def get(self, part: int) -> list[Tensor]:
        at, shapes = self._places[part]
        found = []
        for shape in shapes:
            flat = np.empty(shape.numel(), np.float32)
            left = flat.view(np.uint8).data
            while left:
                read = os.preadv(self._file, [left], at)
                if read == 0:
                    raise OSError(f"{SCRATCH_FILE} lost its end")
                left, at = left[read:], at + read
            found.append(torch.from_numpy(flat).view(shape).to(self._device))
        return found

    def close(self) -> None:
        os.close(self._file)


def build_index_files(
    base: Base,
    adapter: Adapter,
    records: Sequence[Sequence[int]],
    directory: Path,
    between: Callable[[], None] = lambda: None,
    clusters: Sequence[int] | None = None,
) -> Index:
    """`attribution.index.build_index` into ``directory``, whose files it replaces: the same bytes, in bounded memory.

    Gradients wait in a scratch file in ``directory`` (4 bytes per coordinate and record, removed at the end),
    rows are written as they come, and the result is mapped. In memory: the model and its activations for one
    batch, bases and weights with their sums (about 24 bytes a coordinate), and about ten times `PART_BYTES`. As
    with `Index.save`, a folder that must be whole or absent is a new one, renamed at the end. Raises as
    `build_index` does, and ``OSError``.
    """
    if not 1 <= len(records) <= RECORDS_MAX:
        raise ValueError(f"{len(records)} records; 1 to {RECORDS_MAX} are possible")
    directory.mkdir(parents=True, exist_ok=True)
    coordinates = sum(m.a.numel() + m.b.numel() for m in adapter.modules)
    at_once = max(1, min(RECORDS_AT_ONCE, PART_BYTES // (4 * coordinates)))
    parts = batched(range(len(records)), at_once)
    scratch = _Scratch(directory / SCRATCH_FILE, base.device)
    try:
        shapes, bases, weights, rows = build_rows(base, adapter, records, parts, scratch, between, clusters)
        header = IndexHeader(base.hash, adapter.hash, len(records), shapes)
        with (directory / f"{FILES[3]}.part").open("wb") as file:
            for part in rows:
                file.write(np.ascontiguousarray(part).data)
    finally:
        scratch.close()
        (directory / SCRATCH_FILE).unlink()
    for name, content in zip(FILES, (header.encode(), bases.tobytes(), weights.tobytes()), strict=False):
        (directory / f"{name}.part").write_bytes(content)
    (directory / STANDING_FILE).unlink(missing_ok=True)  # what it says of other rows must not reach these
    for name in FILES:
        os.replace(directory / f"{name}.part", directory / name)
    Standing(None if clusters is None else tuple(clusters)).save(directory, len(records))
    return Index.open(directory)


def erase_rows(directory: Path, records: Collection[int], clusters: Sequence[int] | None = None) -> Index:
    """Erase rows of a saved index and keep their leaves' hashes: the root stays, scores are as if the rows were not there.

    An index with clusters needs the leaders anew, from the records that remain
    (`attribution.duplicates.leaders`, with None for an erased one): whom an erased leader led has another
    leader now, or leads. First the hashes are on disk, then the rows are zeros; `Index.open` ends what a crash
    between the two left undone. Bases and weights keep what the records added to them, a sum over all. Raises
    ``ValueError`` on a record that is not there, on clusters where there were none or the reverse, and
    `IndexFileError`.
    """
    index = Index.open(directory)
    if any(not 0 <= record < index.record_count for record in records):
        raise ValueError(f"no such record; the index has {index.record_count}")
    if (clusters is None) != (index.standing.clusters is None):
        raise ValueError("leaders are given where, and only where, an index has them")
    hashes = {i: leaf_hash(index.rows[i].tobytes()) for i in records if i not in index.standing.erased}
    standing = Standing(None if clusters is None else tuple(clusters), {**index.standing.erased, **hashes})
    standing.check(index.record_count)
    standing.save(directory, index.record_count)
    blank_rows(directory, index.rows, standing.erased)
    return Index.open(directory)
