"""CPU time an example of per-example features: the exact engine's index beside bergson's store and kronfluence, one thread.

Same base, adapter and records. Each side is timed at two sizes, the least of several runs at each; the difference is what one more
record costs, with loading and other fixed costs left out. Ours is `build_index`: exact gradients, moments, whitening, signs, hashes.
bergson's second moments are another pass over the records, which ours contains; kronfluence stores no features: its factors (fitted
over the records) and its scores (one query, a gradient of every record) stand for them.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from attribution.adapter import Adapter
from attribution.index import build_index
from attribution.model import Base
from benchmarks.lds.network import Network, as_state
from benchmarks.lds.peers import PeerFailed, PeerUnavailable, processes
from benchmarks.lds.peers.exchange import read_answer, write_work
from benchmarks.lds.peers.methods import Peer, child
from benchmarks.lds.peers.speed_of_peers import KINDS
from benchmarks.lds.work import Checkpoint, Settings, Work

SIZES = (16, 64)
RUNS = 3
TARGET = 2.0
"""bergson's and kronfluence's time over ours, at least."""


def bare_work(base: Base, adapter: Adapter, records: tuple[tuple[int, ...], ...]) -> Work:
    """A work with one checkpoint and one query, for timing."""
    network = Network(base, adapter.rank, adapter.alpha)
    state = as_state(adapter)
    network.load(state)
    moments = {name: (torch.ones_like(a), torch.ones_like(b)) for name, (a, b) in state.items()}
    settings = Settings(records_each=len(records), rank=adapter.rank, alpha=adapter.alpha)
    checkpoint = Checkpoint(1, 1e-3, state, moments)
    return Work(
        0, settings, base, network, (checkpoint,), records, (0,) * len(records), records[:1], (0,), ()
    )


def exact_seconds(
    base: Base, adapter: Adapter, records: tuple[tuple[int, ...], ...], sizes: tuple[int, int], runs: int
) -> float:
    """CPU seconds that `build_index` takes for one more record."""
    rows = [list(record) for record in records]
    build_index(base, adapter, rows[: sizes[0]])
    least = [float("inf")] * 2
    for _ in range(runs):
        for i, size in enumerate(sizes):
            started = time.process_time()
            build_index(base, adapter, rows[:size])
            least[i] = min(least[i], time.process_time() - started)
    return (least[1] - least[0]) / (sizes[1] - sizes[0])


def peer_seconds(
    peer: str, work: Work, sizes: tuple[int, int], runs: int, bounds: processes.Bounds
) -> dict[str, float]:
    """CPU seconds that each kind of the peer takes for one more record. Raises PeerUnavailable, PeerFailed."""
    python = processes.interpreter()
    processes.found(python, peer)
    options: dict[str, object] = {"peer": peer, "sizes": sizes, "runs": runs}
    with tempfile.TemporaryDirectory(prefix="peer-") as name:
        folder = Path(name).resolve()
        write_work(work, folder)
        processes.run(
            child(Path(str(python)), Peer(peer, peer, "speed_of_peers", options), folder), folder, bounds
        )
        seconds = read_answer(folder / "answer.npz", (len(KINDS[peer]), 2 * runs)).scores
    return {
        f"{peer}: {kind}": float(row[runs:].min() - row[:runs].min()) / (sizes[1] - sizes[0])
        for kind, row in zip(KINDS[peer], seconds, strict=True)
    }


def measure(
    base: Base,
    adapter: Adapter,
    records: tuple[tuple[int, ...], ...],
    sizes: tuple[int, int] = SIZES,
    runs: int = RUNS,
    bounds: processes.Bounds | None = None,
) -> list[dict[str, Any]]:
    """One row a kind: milliseconds of CPU an example, and how many times ours that is; a peer that cannot run says why."""
    work = bare_work(base, adapter, records)
    ours = exact_seconds(base, adapter, records, sizes, runs)
    rows: list[dict[str, Any]] = [{"what": "exact index", "ms": round(1000 * ours, 2), "times_ours": 1.0}]
    for peer in KINDS:
        try:
            found = peer_seconds(peer, work, sizes, runs, bounds or processes.Bounds())
        except (PeerUnavailable, PeerFailed) as error:
            rows.append({"what": peer, "skipped": str(error)})
            continue
        for kind, seconds in found.items():
            times = seconds / ours
            rows.append(
                {
                    "what": kind,
                    "ms": round(1000 * seconds, 2),
                    "times_ours": round(times, 2),
                    "reached": times >= TARGET,
                }
            )
    return rows


def show(rows: list[dict[str, Any]]) -> str:
    """The rows as text."""
    return "\n".join(
        f"{row['what']:36} {row['skipped']}"
        if "skipped" in row
        else f"{row['what']:36} {row['ms']:>9} ms  {row['times_ours']:>6} of ours"
        for row in rows
    )
