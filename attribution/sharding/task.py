"""What a sharded build is about: models, records and shards, as files that every shard opens and checks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from attribution.adapter import BYTES_MAX as ADAPTER_BYTES_MAX
from attribution.adapter import Adapter, adapter_from_bytes, adapter_to_bytes
from attribution.checkpoint import load_base, save_base
from attribution.model import Base
from attribution.sharding.errors import ShardFileWrong
from attribution.sharding.files import read_file, write_file
from attribution.whitening import RECORDS_MAX

TASK_BYTES_MAX = 1 << 20
TOKENS_MAX = 1 << 28
"""Token ids of all records together: 1 GiB."""
TASK_FILE, BASE_FILE, ADAPTER_FILE, RECORDS_FILE, LEADERS_FILE = (
    "task.json",
    "base.safetensors",
    "adapter.safetensors",
    "records.bin",
    "leaders.bin",
)

Ids = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Task:
    """Hashes of the models, digests of the files, and the first record of every shard with, last, their number."""

    base_path: str
    base_hash: str
    adapter_hash: str
    adapter_digest: str
    records_digest: str
    leaders_digest: str
    bounds: tuple[int, ...]

    def records(self, shard: int) -> range:
        """Numbers of a shard's records."""
        return range(self.bounds[shard], self.bounds[shard + 1])

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return len(self.bounds) - 1


@dataclass(frozen=True, slots=True)
class Opened:
    """A task with its models and records; ``starts`` has the first id of every record and, last, their number.

    ``leaders`` is empty where an index has no clusters.
    """

    task: Task
    base: Base
    adapter: Adapter
    ids: Ids
    starts: npt.NDArray[np.int64]
    leaders: Ids

    def record(self, number: int) -> tuple[int, ...]:
        """Token ids of a record."""
        return tuple(self.ids[self.starts[number] : self.starts[number + 1]].tolist())

    def counted(self, part: range) -> list[int]:
        """Those of the part's records that count for moments and weights: all, or the leaders."""
        return [i for i in part if not len(self.leaders) or int(self.leaders[i]) == i]


def write_task(
    folder: Path,
    base: Base,
    adapter: Adapter,
    records: Sequence[Sequence[int]],
    bounds: Sequence[int],
    clusters: Sequence[int] | None,
    base_path: Path | None,
) -> str:
    """Write the task's files; returns the digest of the task, which names all of them.

    Without ``base_path``, a file of `attribution.checkpoint.save_base`, the base is written, too. Raises
    ``ValueError`` over `TOKENS_MAX` or on an id that is no u32.
    """
    lengths = [len(record) for record in records]
    if sum(lengths) > TOKENS_MAX:
        raise ValueError(f"more than {TOKENS_MAX} tokens")
    if any(not 0 <= i < 1 << 32 for i in chain.from_iterable(records)):
        raise ValueError("a token id is no u32")
    if base_path is None:
        save_base(base, folder / BASE_FILE)
    head = np.array([len(records), *lengths], "<u4").tobytes()
    tokens = np.fromiter(chain.from_iterable(records), "<u4", sum(lengths))
    leaders = np.array(clusters or (), "<u4").tobytes()
    task = Task(
        str(base_path.resolve()) if base_path else str((folder / BASE_FILE).resolve()),
        base.hash.hex(),
        adapter.hash.hex(),
        write_file(folder / ADAPTER_FILE, [adapter_to_bytes(adapter.to("cpu"))]),
        write_file(folder / RECORDS_FILE, [head, tokens.tobytes()]),
        write_file(folder / LEADERS_FILE, [leaders]),
        tuple(bounds),
    )
    return write_file(folder / TASK_FILE, [json.dumps(asdict(task), sort_keys=True).encode()])


@lru_cache(maxsize=1)
def open_task(folder: Path, digest: str, device: str) -> Opened:
    """The task of this digest, its models on ``device``. Raises `ShardFileWrong`, BadModel, BadAdapter."""
    fields = json.loads(read_file(folder / TASK_FILE, digest, TASK_BYTES_MAX))
    task = Task(**{**fields, "bounds": tuple(fields["bounds"])})
    base = load_base(task.base_path, device=device)
    adapter = adapter_from_bytes(
        read_file(folder / ADAPTER_FILE, task.adapter_digest, ADAPTER_BYTES_MAX), device
    )
    if (base.hash.hex(), adapter.hash.hex()) != (task.base_hash, task.adapter_hash):
        raise ShardFileWrong("base or adapter is not the task's")
    data = read_file(folder / RECORDS_FILE, task.records_digest, 4 * (1 + RECORDS_MAX + TOKENS_MAX))
    numbers = np.frombuffer(data, "<u4")
    count = int(numbers[0])
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(numbers[1 : 1 + count], dtype=np.int64)])
    leaders = read_file(folder / LEADERS_FILE, task.leaders_digest, 4 * RECORDS_MAX)
    return Opened(task, base, adapter, numbers[1 + count :], starts, np.frombuffer(leaders, "<u4"))
