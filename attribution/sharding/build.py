"""The build: three steps over all shards, and integer sums in between."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from attribution.adapter import Adapter, check_fits
from attribution.index import FILES, Floats, Index, IndexHeader
from attribution.index_standing import STANDING_FILE, Standing
from attribution.model import Base
from attribution.sharding.errors import ShardFileWrong
from attribution.sharding.files import copy_checked, read_file, write_file
from attribution.sharding.steps import SQUARES_BYTES_MAX, Call, Integers, Moments
from attribution.sharding.task import write_task
from attribution.whitening import RECORDS_MAX, FactorShape, bases_count, bases_of, flat_bases, weights

SHARDS_MAX = 1 << 10
WORK_FOLDER = "shards.part"


class Runner(Protocol):
    """Somewhere that calls are performed (`attribution.sharding.steps.perform`)."""

    def run(self, calls: Sequence[Call], between: Callable[[], None]) -> list[str]:
        """What each call returned, in the order of ``calls``; ``between`` is called again and again while they are done.

        Raises `ShardRefused` and `ShardFailed`.
        """


class Engine(Protocol):
    """Starts what performs calls on the files of one folder, and ends it."""

    def started(self, folder: Path) -> AbstractContextManager[Runner]:
        """A runner for calls on the files of ``folder``, for the time of a ``with`` block."""


def build_index_sharded(
    base: Base,
    adapter: Adapter,
    records: Sequence[Sequence[int]],
    directory: Path,
    engine: Engine,
    shards: int | Sequence[int],
    between: Callable[[], None] = lambda: None,
    clusters: Sequence[int] | None = None,
    base_path: Path | None = None,
) -> Index:
    """`attribution.index_files.build_index_files` by ``engine``: the same files in ``directory``, whatever the shards are.

    ``shards`` is their number, or the first record of each (ascending, from 0). ``base_path`` is the base's file where
    there is one (`attribution.checkpoint.save_base`), else it is written. What the shards leave for each other stands in a
    folder in ``directory`` (4 bytes per coordinate and record, 8 per coordinate and shard), which is removed at the end
    and emptied at the start: what a killed build left is not trusted. In memory here: 8 bytes a token and 40 a coordinate.

    Raises ``ValueError`` on too many records, shards or tokens and on shards without records; BadAdapter; `ShardRefused`
    where a shard cannot be built, `ShardFailed` where it was tried too often, `ShardFileWrong`, ``OSError``.
    """
    starts = [len(records) * k // shards for k in range(shards)] if isinstance(shards, int) else list(shards)
    bounds = [*starts, len(records)]
    ascending = all(low < high for low, high in pairwise(bounds))
    if not 1 <= len(records) <= RECORDS_MAX or not 1 <= len(starts) <= SHARDS_MAX:
        raise ValueError(
            f"{len(records)} records in {len(starts)} shards; 1 to {RECORDS_MAX} in 1 to {SHARDS_MAX}"
        )
    if starts[0] != 0 or not ascending:
        raise ValueError("shards are runs of records, the first from 0, none empty")
    check_fits(adapter, base)
    standing = Standing(None if clusters is None else tuple(clusters))
    standing.check(len(records))
    work = directory / WORK_FOLDER
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        task = write_task(work, base, adapter, records, bounds, clusters, base_path)
        with engine.started(work) as runner:
            header, rows = _run_steps(work, task, len(starts), runner, between, base.device)
        header = IndexHeader(base.hash, adapter.hash, len(records), header.shapes)
        (work / FILES[0]).write_bytes(header.encode())
        for shard, digest in enumerate(rows):
            copy_checked(work / f"rows-{shard}.bin", digest, work / FILES[3])
        (directory / STANDING_FILE).unlink(missing_ok=True)  # what it says of other rows must not reach these
        for name in FILES:
            os.replace(work / name, directory / name)
    finally:
        shutil.rmtree(work)
    standing.save(directory, len(records))
    return Index.open(directory)


def _run_steps(
    work: Path, task: str, shards: int, runner: Runner, between: Callable[[], None], device: torch.device
) -> tuple[IndexHeader, list[str]]:
    """All steps; leaves ``bases.bin`` and ``weights.bin``; returns a shard's header and the digests of all rows' files."""

    def step(name: str, *inputs: Sequence[str]) -> list[str]:
        calls = [Call(name, k, (task, *(digests[k] for digests in inputs))) for k in range(shards)]
        return runner.run(calls, between)

    found = step("gradients")
    header, sums = _summed_moments(work, found)
    parts = torch.split(torch.from_numpy(sums).to(device), [bases_count(s) for s in header.shapes])
    flat = flat_bases(bases_of(parts, header.shapes))
    bases = write_file(work / FILES[1], [flat.data.cast("B")])
    between()
    squared = step("squares", found, [bases] * shards)
    flat = _weights(_summed_squares(work, squared, header), header.shapes, device)
    weights_ = write_file(work / FILES[2], [flat.data.cast("B")])
    return header, step("rows", found, [bases] * shards, [weights_] * shards)


def _summed_moments(work: Path, digests: Sequence[str]) -> tuple[IndexHeader, Integers]:
    """A shard's header, whose shapes are every shard's, and the sum of all shards' moments, exact (docs: "Whitening")."""
    first = Moments.read(work, 0, digests[0])
    sums = first.sums.copy()
    for shard, digest in list(enumerate(digests))[1:]:
        moments = Moments.read(work, shard, digest)
        if moments.header.shapes != first.header.shapes:
            raise ShardFileWrong(f"shard {shard} has factors of other names or shapes")
        sums += moments.sums
    return first.header, sums


def _summed_squares(work: Path, digests: Sequence[str], header: IndexHeader) -> Integers:
    sums = np.zeros(header.coordinates, np.int64)
    for shard, digest in enumerate(digests):
        path = work / f"squares-{shard}.bin"
        sums += np.frombuffer(read_file(path, digest, SQUARES_BYTES_MAX), "<i8")
        path.unlink()
    return sums


def _weights(sums: Integers, shapes: Sequence[FactorShape], device: torch.device) -> Floats:
    parts = torch.split(torch.from_numpy(sums), [s.coordinates for s in shapes])
    found = [weights(p.view(s.wide, s.rank).to(device)) for p, s in zip(parts, shapes, strict=True)]
    return torch.cat([w.flatten() for w in found]).cpu().numpy()
