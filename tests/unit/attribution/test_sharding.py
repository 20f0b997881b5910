"""A sharded build: the bytes of a whole one for any shards and orders, whatever dies, hangs or is damaged on the way."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution.checkpoint import save_base
from attribution.duplicates import leaders
from attribution.errors import BadAdapter
from attribution.index import FILES, INDEX_VERSION_SKETCHED, Index, build_index
from attribution.index_standing import STANDING_FILE, StandingInvalid
from attribution.sharding import Processes, ShardFailed, ShardFileWrong, ShardRefused, build_index_sharded
from attribution.sharding.build import WORK_FOLDER
from attribution.sharding.child import answer
from attribution.sharding.files import copy_checked, digest_of, read_file, write_file
from attribution.sharding.processes import ProcessRunner
from attribution.sharding.steps import Call, perform
from tests.profiles import examples
from tests.unit.attribution.index_cases import RECORDS, adapter, tiny_base, tiny_index

ROOT = Path(__file__).resolve().parents[3]


class InAnyOrder:
    """Performs calls in this process, in an order drawn from a seed, some of them twice; ``after`` sees each step's end."""

    def __init__(self, seed: int, after: Callable[[Path, str], None] = lambda folder, step: None) -> None:
        self._random = random.Random(seed)
        self._after = after
        self._folder = Path()

    @contextmanager
    def started(self, folder: Path) -> Iterator[InAnyOrder]:
        self._folder = folder
        yield self

    def run(self, calls: Sequence[Call], between: Callable[[], None]) -> list[str]:
        order = [*range(len(calls)), *self._random.choices(range(len(calls)), k=len(calls) // 2)]
        self._random.shuffle(order)
        found = dict[int, str]()
        for k in order:
            between()
            found[k] = perform(self._folder, Call.decode(calls[k].encode()))
        self._after(self._folder, calls[0].step)
        return [found[k] for k in range(len(calls))]


def built(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@cache
def whole(clusters: tuple[int, ...] | None) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        build_index(tiny_base(), adapter(), RECORDS, clusters=clusters).save(Path(folder))
        return built(Path(folder))


@settings(max_examples=examples(4))
@given(st.sets(st.integers(1, len(RECORDS) - 1)), st.integers(0, 2**16), st.booleans())
def test_any_shards_in_any_order_leave_the_files_of_a_whole_build(
    cuts: set[int], seed: int, clustered: bool
) -> None:
    clusters = leaders(RECORDS) if clustered else None
    with tempfile.TemporaryDirectory() as name:
        engine, folder = InAnyOrder(seed), Path(name)
        starts = [0, *sorted(cuts)]
        build_index_sharded(tiny_base(), adapter(), RECORDS, folder, engine, starts, clusters=clusters)
        assert built(folder) == whole(clusters)


def test_a_shard_of_copies_alone_adds_nothing_and_the_next_build_forgets_its_leaders(tmp_path: Path) -> None:
    records = (*RECORDS, *RECORDS[:2])
    index = build_index(tiny_base(), adapter(), records, clusters=leaders(records))
    shards = [0, len(RECORDS)]
    found = build_index_sharded(
        tiny_base(), adapter(), records, tmp_path, InAnyOrder(1), shards, clusters=leaders(records)
    )
    assert (found.root, found.leaders) == (index.root, index.leaders)
    assert (tmp_path / STANDING_FILE).exists()
    build_index_sharded(tiny_base(), adapter(), RECORDS, tmp_path, InAnyOrder(2), 2)
    assert built(tmp_path) == whole(None)


def test_sketched_rows_are_those_of_a_whole_build(tmp_path: Path) -> None:
    wide = adapter(rank=256)
    build_index(tiny_base(), wide, RECORDS).save(tmp_path / "whole")
    found = build_index_sharded(tiny_base(), wide, RECORDS, tmp_path / "sharded", InAnyOrder(5), 3)
    assert found.header.version == INDEX_VERSION_SKETCHED
    assert built(tmp_path / "sharded") == built(tmp_path / "whole")


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, 100)


@pytest.mark.parametrize(
    ("file", "step", "harm"),
    [
        ("gradients-1.bin", "gradients", damage),
        ("gradients-0.bin", "squares", cut),
        ("moments-0.bin", "gradients", damage),
        ("squares-1.bin", "squares", damage),
        ("rows-1.bin", "rows", damage),
        ("rows-0.bin", "rows", Path.unlink),
    ],
)
def test_a_damaged_or_missing_file_between_two_steps_ends_the_build_and_leaves_the_old_index(
    tmp_path: Path, file: str, step: str, harm: Callable[[Path], None]
) -> None:
    tiny_index().save(tmp_path)

    def after(folder: Path, now: str) -> None:
        if now == step:
            harm(folder / file)

    with pytest.raises(ShardFileWrong):
        build_index_sharded(tiny_base(), adapter(), RECORDS, tmp_path, InAnyOrder(3, after), 2)
    assert built(tmp_path) == whole(None)


def test_what_a_killed_build_left_is_not_trusted(tmp_path: Path) -> None:
    work = tmp_path / WORK_FOLDER
    work.mkdir()
    (work / "rows-0.bin").write_bytes(b"rows of another build")
    (work / FILES[3]).write_bytes(b"the beginning of other rows")
    build_index_sharded(tiny_base(), adapter(), RECORDS, tmp_path, InAnyOrder(4), 3)
    assert built(tmp_path) == whole(None)


@pytest.mark.parametrize(
    ("shards", "records"),
    [(0, 7), (8, 7), ([0, 3, 3], 7), ([1, 3], 7), ([0, 7], 7), ([], 7), (1, 0), (1025, 7)],
)
def test_shards_that_are_no_runs_of_records_are_refused(
    tmp_path: Path, shards: int | list[int], records: int
) -> None:
    with pytest.raises(ValueError, match="shards"):
        build_index_sharded(tiny_base(), adapter(), RECORDS[:records], tmp_path, InAnyOrder(0), shards)
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_the_base_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    class Nobody:
        def started(self, folder: Path) -> InAnyOrder:
            raise AssertionError("started")

    cases: list[tuple[dict[str, object], type[Exception]]] = [
        ({"clusters": (0,)}, StandingInvalid),
        ({"records": [(2**32,)]}, ValueError),
        ({"records": [(-1,)]}, ValueError),
    ]
    for change, error in cases:
        work = {"records": RECORDS, "clusters": None, **change}
        with pytest.raises(error):
            build_index_sharded(tiny_base(), adapter(), directory=tmp_path, engine=Nobody(), shards=1, **work)  # type: ignore[arg-type]
    wide = adapter(rank=3)
    twisted = type(wide)(3, 6, tuple(reversed(wide.modules)))
    with pytest.raises(BadAdapter):
        build_index_sharded(tiny_base(), twisted, RECORDS, tmp_path, Nobody(), 1)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    [
        *("", "gradients", "gradients 0", "gradients x " + "0" * 64, "rows 0 " + "0" * 64),
        *("gradients 0 " + "0" * 63, "gradients -1 " + "0" * 64, "squares 0 " + " ".join(["0" * 64] * 4)),
        "steps 0 " + "0" * 64,
    ],
)
def test_a_line_that_is_no_call_is_refused(tmp_path: Path, line: str) -> None:
    assert answer(tmp_path, line, "cpu").startswith("refused ")


def test_files_are_whole_or_absent_and_known_by_their_digests(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def parts() -> Iterator[bytes]:
        yield b"half"
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        write_file(path, parts())
    assert list(tmp_path.iterdir()) == []
    digest = write_file(path, [b"con", b"tent"])
    assert digest == digest_of(b"content")
    assert read_file(path, digest, 7) == b"content"
    for bad, size in ((digest, 6), (digest_of(b"contens"), 7)):
        with pytest.raises(ShardFileWrong):
            read_file(path, bad, size)
    with pytest.raises(ShardFileWrong):
        copy_checked(path, digest_of(b"contens"), tmp_path / "target")
    with pytest.raises(ShardFileWrong):
        copy_checked(tmp_path / "none", digest, tmp_path / "target")


@pytest.mark.parametrize(
    "bad", [{"workers": 0}, {"workers": 65}, {"patience_s": 0.0}, {"memory_bytes_max": 0}]
)
def test_unusable_engines_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"workers|positive"):
        Processes(**bad)  # type: ignore[arg-type]


class Watched:
    """`Processes` whose runner the test sees; ``harm`` gets the ids of busy children while they work."""

    def __init__(self, engine: Processes, harm: Callable[[ProcessRunner], None]) -> None:
        self._engine = engine
        self._harm = harm
        self.restarts = 0
        self._runner: ProcessRunner | None = None

    @contextmanager
    def started(self, folder: Path) -> Iterator[ProcessRunner]:
        with self._engine.started(folder) as runner:
            self._runner = runner
            yield runner
            self.restarts = runner.restarts

    def between(self) -> None:
        if self._runner is not None:
            self._harm(self._runner)


def harm_once(how: signal.Signals) -> Callable[[ProcessRunner], None]:
    done = list[int]()

    def harm(runner: ProcessRunner) -> None:
        if runner.pids and not done:
            done.append(runner.pids[0])
            os.kill(done[0], how)

    return harm


def children(folder: Path) -> list[int]:
    """Processes that have ``folder`` on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_a_process_that_is_killed_in_the_middle_of_its_shard_changes_nothing(tmp_path: Path) -> None:
    for times in (3, 12, 48):  # a fast machine may be done before the signal: then more records
        engine, records = Watched(Processes(workers=1), harm_once(signal.SIGKILL)), RECORDS * times
        index = build_index_sharded(tiny_base(), adapter(), records, tmp_path, engine, 2, engine.between)
        if engine.restarts:
            break
    assert engine.restarts == 1
    assert index.root == build_index(tiny_base(), adapter(), records).root
    assert children(tmp_path) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(FILES)


@pytest.mark.slow
def test_processes_share_the_shards_and_a_process_that_hangs_is_given_up(tmp_path: Path) -> None:
    save_base(tiny_base(), tmp_path / "base.safetensors")
    engine = Watched(Processes(workers=2, patience_s=20.0), harm_once(signal.SIGSTOP))
    clusters, folder = leaders(RECORDS), tmp_path / "index"
    build_index_sharded(
        tiny_base(),
        adapter(),
        RECORDS,
        folder,
        engine,
        5,
        engine.between,
        clusters,
        tmp_path / "base.safetensors",
    )
    assert engine.restarts == 1
    assert built(folder) == whole(clusters)
    assert children(tmp_path) == []


@pytest.mark.slow
def test_a_shard_whose_process_dies_again_and_again_fails_with_its_name(tmp_path: Path) -> None:
    def harm(runner: ProcessRunner) -> None:
        for pid in runner.pids:
            os.kill(pid, signal.SIGKILL)

    engine = Watched(Processes(workers=1, tries_max=2), harm)
    with pytest.raises(ShardFailed, match="shard 0, gradients failed 2 times; the last time: it died"):
        build_index_sharded(tiny_base(), adapter(), RECORDS * 9, tmp_path, engine, 1, engine.between)
    assert list(tmp_path.iterdir()) == []
    assert children(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "record", "error", "text"),
    [
        (Processes(1), (256,), ShardRefused, "shard 0, gradients: BadTokens"),
        (Processes(1), (1,) * 128, ShardRefused, "ContextTooLong"),
        (Processes(1, memory_bytes_max=1 << 20), (1,) * 100, ShardRefused, "MemoryError"),
        (Processes(1, backend="none", tries_max=2), (1,), ShardFailed, "starting a child failed 2 times"),
        (Processes(1, patience_s=0.2, tries_max=2), (1,), ShardFailed, "no answer within"),
    ],
    ids=["ids", "long", "memory", "start", "silent"],
)
def test_what_no_process_can_do_ends_the_build(
    tmp_path: Path, engine: Processes, record: tuple[int, ...], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        build_index_sharded(tiny_base(), adapter(), [record], tmp_path, engine, 1)
    assert list(tmp_path.iterdir()) == []
    assert children(tmp_path) == []


PARENT = """
import sys
from pathlib import Path
from attribution.sharding import Processes, build_index_sharded
from tests.unit.attribution.index_cases import RECORDS, adapter, tiny_base
build_index_sharded(tiny_base(), adapter(), RECORDS * 400, Path(sys.argv[1]), Processes(2), 2)
"""


@pytest.mark.slow
def test_children_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], cwd=ROOT)
    try:
        patience = time.monotonic() + 120
        while not list(tmp_path.glob(f"{WORK_FOLDER}/gradients-*")) and time.monotonic() < patience:
            with suppress(subprocess.TimeoutExpired):
                parent.wait(0.1)
        handles = [os.pidfd_open(pid) for pid in children(tmp_path) if pid != parent.pid]
    finally:
        parent.kill()
        parent.wait()
    assert len(handles) == 2
    for handle in handles:  # readable when the process has ended
        assert select.select([handle], [], [], 60)[0] == [handle]
        os.close(handle)


RAY = """
import json, os, signal, sys
from pathlib import Path
import ray
from attribution.duplicates import leaders
from attribution.sharding import ShardFailed, ShardRefused, build_index_sharded
from attribution.sharding.cluster import RayCluster
from tests.unit.attribution.index_cases import RECORDS, adapter, tiny_base
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20)
folder = Path(sys.argv[1])
clusters = leaders(RECORDS)
killed = []

def in_a_task():
    # Processes below this one that are in a task.
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            names[int(folder.name)] = (folder / "cmdline").read_bytes()
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
    def below(pid):
        return pid == os.getpid() or (pid in parents and below(parents[pid]))
    return [pid for pid, name in names.items() if name.startswith(b"ray::perform_line") and below(pid)]

def between():
    # The first worker process that is in a task dies in the middle of it.
    if not killed and (found := in_a_task()):
        os.kill(found[0], signal.SIGKILL)
        killed.append(found[0])

index = build_index_sharded(tiny_base(), adapter(), RECORDS, folder / "index", RayCluster(2), 3, between, clusters)
refused = failed = ""
try:
    build_index_sharded(tiny_base(), adapter(), [(256,)], folder / "other", RayCluster(1), 1)
except ShardRefused as error:
    refused = str(error)
try:
    build_index_sharded(tiny_base(), adapter(), RECORDS, folder / "other", RayCluster(1, patience_s=0.01, tries_max=2), 1)
except ShardFailed as error:
    failed = str(error)
print(json.dumps({"root": index.root.hex(), "killed": len(killed), "refused": refused, "failed": failed}))
ray.shutdown()
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'openledger[ray]'")
def test_a_local_ray_cluster_leaves_the_same_files_though_a_worker_is_killed(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [sys.executable, "-c", RAY, str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert built(tmp_path / "index") == whole(leaders(RECORDS))
    assert found["root"] == Index.open(tmp_path / "index").root.hex()
    assert found["killed"] == 1
    assert "BadTokens" in found["refused"]
    assert "no answer within" in found["failed"]


def test_ray_that_is_not_there_is_said_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from attribution.sharding.cluster import RayCluster, RayMissing

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RayMissing, match=r"openledger\[ray\]"):
        build_index_sharded(tiny_base(), adapter(), RECORDS, tmp_path, RayCluster(), 1)
    assert list(tmp_path.iterdir()) == []
