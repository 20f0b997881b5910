"""Indices larger than memory: the same bytes as built in memory, within limits that the kernel keeps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from attribution import index_files
from attribution.duplicates import leaders
from attribution.errors import BadTokens
from attribution.index import FILES, Index, build_index
from attribution.index_files import build_index_files
from tests.unit.attribution.index_cases import RECORDS, adapter, tiny_base, tiny_index

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(("part_bytes", "clusters"), [(1, leaders(RECORDS)), (1 << 24, None)])
def test_files_are_those_of_an_index_that_was_built_in_memory(
    tmp_path: Path, part_bytes: int, clusters: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_files, "PART_BYTES", part_bytes)
    index = build_index(tiny_base(), adapter(), RECORDS, clusters=clusters)
    index.save(tmp_path / "memory")
    steps = list[None]()
    built = build_index_files(
        tiny_base(), adapter(), RECORDS, tmp_path / "files", lambda: steps.append(None), clusters
    )
    assert built.root == index.root
    assert len(steps) == 2 * (len(RECORDS) if part_bytes == 1 else 1)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "memory").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "files").iterdir()} == expected
    assert len(expected) == len(FILES) + (clusters is not None)


def test_a_building_that_fails_leaves_no_gradients_and_no_index(tmp_path: Path) -> None:
    with pytest.raises(BadTokens):
        build_index_files(tiny_base(), adapter(), [*RECORDS, (256,)], tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="records"):
        build_index_files(tiny_base(), adapter(), [], tmp_path)
    tiny_index().save(tmp_path)
    with pytest.raises(BadTokens):
        build_index_files(tiny_base(), adapter(), [(256,)], tmp_path)
    assert Index.open(tmp_path, tiny_index().root).record_count == len(RECORDS)


def limited(script: str, *arguments: str) -> dict[str, int | str]:
    """What a process of its own prints as JSON."""
    command = [sys.executable, "-c", f"{script}\nprint(json.dumps(found))", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=250
    )
    assert result.returncode == 0, result.stderr[-2000:]
    found: dict[str, int | str] = json.loads(result.stdout.splitlines()[-1])
    return found


LIMIT = """
import json, resource, sys
from pathlib import Path
import numpy as np
import torch
torch.set_grad_enabled(False)
torch.set_num_threads(1)
from attribution.index import Index, IndexHeader, build_index
from attribution.index_files import build_index_files
from attribution.scores import score
from attribution.signs import row_norms, scan
from attribution.whitening import FactorShape
from tests.unit.attribution.index_cases import adapter, tiny_base

def status(name):
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return int(lines[name].split()[0]) << 10

def limit(extra):
    # RLIMIT_DATA counts what is private and writable: heaps and anonymous maps, not files that are mapped to be read.
    soft = status("VmData") + extra
    resource.setrlimit(resource.RLIMIT_DATA, (soft, soft))
"""

BUILD = (
    LIMIT
    + """
base, lora, folder = tiny_base(), adapter(rank=72), Path(sys.argv[1])  # too wide for Jacobi, which costs time
records = [tuple(b"%04d" % n) for n in range(int(sys.argv[2]))]
build_index_files(base, lora, records[:33], folder / "first")  # what is allocated once is there
limit(int(sys.argv[3]))
refused = ""
if sys.argv[4] == "both":
    try:
        build_index(base, lora, records)
    except (MemoryError, RuntimeError) as error:
        refused = str(error)
index = build_index_files(base, lora, records, folder / "index")
scores = score(base, lora, index, (), records[-1])
found = {
    "root": index.root.hex(),
    "bytes": index.size_bytes,
    "gradients": 4 * index.header.coordinates * len(records),
    "refused": refused,
    "best": scores.best(),
}
"""
)

QUERY = (
    LIMIT
    + """
folder = Path(sys.argv[1])
shapes = tuple(FactorShape(f"m{k}.{side}", 512, 64) for k in range(2) for side in "AB")
header = IndexHeader(bytes(32), bytes(32), int(sys.argv[2]), shapes)
(folder / "header.bin").write_bytes(header.encode())
(folder / "bases.bin").write_bytes(bytes(header.bases_bytes))
(folder / "weights.bin").write_bytes(bytes(4 * header.coordinates))
random = np.random.default_rng(1)
with (folder / "rows.bin").open("wb") as file:
    for _ in range(header.record_count):
        row = random.integers(0, 256, header.row_bytes, np.uint8)
        row[32:48] = np.full(4, 1 << 16, "<u4").view(np.uint8)
        file.write(row)
limit(int(sys.argv[3]))
index = Index.open(folder)
query = np.ones(header.coordinates, np.int32)
query[::3] = -5
values = scan(query, index.signs, index.scales, shapes)
last = np.unpackbits(np.array(index.signs[-1]), bitorder="little").astype(np.int64) * 2 - 1
found = {
    "bytes": index.size_bytes,
    "root": index.root.hex(),
    "leaders": len(index.leaders),
    "right": int(values[-1] == (last * query).sum() << 16),
}
"""
)


def test_an_index_whose_gradients_exceed_memory_is_built_and_asked(tmp_path: Path) -> None:
    limit_bytes = 40 << 20
    found = limited(BUILD, str(tmp_path), "270", str(limit_bytes), "files")
    assert int(found["gradients"]) > 1.2 * limit_bytes
    assert found["root"] == Index.open(tmp_path / "index").root.hex()
    assert found["best"] == 269  # every record finds itself


@pytest.mark.slow
def test_where_building_in_memory_is_refused_building_in_files_is_not(tmp_path: Path) -> None:
    limit_bytes = 128 << 20
    found = limited(BUILD, str(tmp_path), "1200", str(limit_bytes), "both")
    assert int(found["gradients"]) > 1.5 * limit_bytes
    assert "allocate" in str(found["refused"])


@pytest.mark.slow
def test_an_index_that_exceeds_memory_is_asked_and_its_root_is_checked(tmp_path: Path) -> None:
    limit_bytes = 96 << 20
    found = limited(QUERY, str(tmp_path), "20000", str(limit_bytes))
    assert int(found["bytes"]) > 3 * limit_bytes
    assert (found["right"], found["leaders"]) == (1, 20_000)
