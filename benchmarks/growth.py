"""How cost grows with records, model and context, each beside its floor: bytes moved and products at this machine's pace.

python -m benchmarks.growth [--json] [--quick] [--only records|models|contexts|rows] [--folder DIR]

Seconds are of CPU, one thread; memory is the rise of the resident set over what was there before the work. Floors:
`products` are the multiplications of the definition (`multiplications`), each once, at the pace of a binary32 product of 768 x
768 measured in the same run; `bytes` are what must be read, at the pace of a sum over 256 MB.

models, contexts: an index of a few records is built twice, of `few` and of `more` records; their difference is what a record
costs, the rest what an adapter costs once. records: rows of random bits in a mapped file; everything that grows with
records is run at that size, but building, which is extrapolated from the cost of a record (`build_extrapolated_s`). The scan is
run by counting bits (`planes_ms`) and, where kernels are compiled, by them (`kernel_ms`), which must give the same;
`looked_ms` is `attribution.first_look`, which scans a few in full where there are more than 4,096, with what it holds. rows: the same
10^5 rows, narrower ones, and queries of fewer bits (`attribution.sketch`): what fits 25 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from benchmarks.measuring import forget_peak, machine, peak_bytes, set_up

if TYPE_CHECKING:
    from attribution.adapter import Adapter
    from attribution.config import ModelConfig
    from attribution.index import Index
    from attribution.model import Base

RANK = 8
QUERY_MS_MAX = 25.0
FACTORS = 40
"""Of the shipped base's rows: two of each of five projections in four layers."""
WAYS = {"planes_ms": "fp64", "kernel_ms": "fused"}
"""Ways to scan and the backend that takes each."""
PARTS = ("models", "contexts", "records", "rows")


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's shape; the largest is SmolLM2-135M's, the smallest that of the shipped base."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int


SMALL = Shape("0.8M", 128, 4, 4, 2, 32, 352, 256)
MODELS = (
    SMALL,
    Shape("8M", 256, 8, 4, 2, 64, 704, 4096),
    Shape("36M", 576, 8, 9, 3, 64, 1536, 12288),
    Shape("135M", 576, 30, 9, 3, 64, 1536, 49152),
)
TINY = Shape("tiny", 32, 1, 2, 1, 16, 48, 256)


@dataclass(frozen=True, slots=True)
class Work:
    """Which sizes, and how many records are built of each."""

    models: tuple[Shape, ...] = MODELS
    tokens: int = 128
    contexts: tuple[int, ...] = (128, 512, 2048)
    records: tuple[int, ...] = (1_000, 10_000, 100_000)
    row_bytes: tuple[int, ...] = (7_744, 2_048, 512)
    runs: int = 3


QUICK = Work((TINY,), 12, (8, 16), (40, 80), (768, 512), 1)


def drawn(shape: Shape, positions: int) -> tuple[Base, Adapter]:
    """A random base and an adapter on every module."""
    import torch

    from attribution.adapter import Adapter, LoraModule
    from attribution.model import (
        PROJECTIONS,
        ModelConfig,
        module_name,
        norm_names,
        projection_shape,
        quantise_checkpoint,
        weight_shapes,
    )

    config = {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.feed_forward,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": positions,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "rms_norm_eps": "1e-05",
        "rope_theta": "10000.0",
    }
    model = ModelConfig.from_mapping(config)
    generator = torch.Generator().manual_seed(1)
    state = {name: torch.ones(model.hidden_size) for name in norm_names(model)}
    for name, size in weight_shapes(model).items():
        state[f"{name}.weight"] = torch.randn(size, generator=generator) * size[1] ** -0.5
    base, modules = quantise_checkpoint(state, config), []
    for layer in range(shape.layers):
        for projection in PROJECTIONS:
            out, width = projection_shape(base.config, projection)
            a = torch.randn(RANK, width, generator=generator) * width**-0.5
            modules.append(
                LoraModule(
                    module_name(layer, projection), a, torch.randn(out, RANK, generator=generator) * 0.05
                )
            )
    return base, Adapter(RANK, 2 * RANK, tuple(modules))


def multiplications(config: ModelConfig, tokens: int) -> int:
    """Products of one example's gradient: frozen weights forward and back, head, causal attention, factors."""
    from attribution.model import PROJECTIONS, projection_shape

    sizes = [projection_shape(config, p) for p in PROJECTIONS]
    frozen = 2 * config.num_hidden_layers * sum(out * width for out, width in sizes)
    frozen += 2 * config.vocab_size * config.hidden_size
    # u, its output, dh, its input; then two gradients: wide * rank each.
    low_rank = 3 * RANK * config.num_hidden_layers * sum(out + width for out, width in sizes)
    # Two products forward and four back of (tokens x tokens x head), half of them masked.
    attention = 3 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * tokens**2
    return (frozen + low_rank) * tokens + attention


def paces(seconds_min: float = 0.3) -> dict[str, float]:
    """Multiplications and bytes a second, the best of several runs."""
    import torch

    a, b = torch.rand(768, 768), torch.rand(768, 768)
    data = np.ones(1 << 25, np.uint64)
    found = {"products_per_s": 0.0, "bytes_per_s": 0.0}
    began = time.perf_counter()
    while time.perf_counter() - began < seconds_min:
        started = time.process_time()
        torch.mm(a, b)
        found["products_per_s"] = max(found["products_per_s"], 768**3 / (time.process_time() - started))
        started = time.process_time()
        data.sum()
        found["bytes_per_s"] = max(found["bytes_per_s"], data.nbytes / (time.process_time() - started))
    return found


def cpu_s(run: Callable[[], object], runs: int = 1) -> tuple[float, int]:
    """Least CPU seconds of several runs, and how far the resident set rose in the first."""
    forget_peak("cpu")
    before, least = peak_bytes(), float("inf")
    rise = 0
    for number in range(runs):
        started = time.process_time()
        run()
        least = min(least, time.process_time() - started)
        rise = max(0, peak_bytes() - before) if number == 0 else rise
    return least, rise


def built(shape: Shape, tokens: int, runs: int, pace: dict[str, float]) -> dict[str, Any]:
    """What a record of `tokens` tokens costs for one model: gradient, whitening and row, and the query that it would be."""
    from attribution.gradients import Example
    from attribution.index import build_index
    from attribution.scores import score_example

    base, adapter = drawn(shape, tokens + 1)
    random = np.random.default_rng(2)
    records = [tuple(random.integers(1, shape.vocabulary, tokens).tolist()) for _ in range(3)]
    more, rise = cpu_s(lambda: build_index(base, adapter, records), runs)
    few, _ = cpu_s(lambda: build_index(base, adapter, records[:1]), runs)
    index = build_index(base, adapter, records[:1])
    query, _ = cpu_s(lambda: score_example(base, adapter, index, Example((), records[0])), runs)
    record_s = max(0.0, (more - few) / 2)
    floor_s = multiplications(base.config, tokens + 1) / pace["products_per_s"]
    return {
        "model": shape.name,
        "parameters": sum(t.numel() for t in base.tensors.values()),
        "tokens": tokens,
        "coordinates": index.header.coordinates,
        "record_ms": round(1000 * record_s, 1),
        "once_ms": round(1000 * max(0.0, few - record_s), 1),
        "query_ms": round(1000 * query, 1),
        "products_floor_ms": round(1000 * floor_s, 1),
        "over_floor": round(record_s / floor_s, 1),
        "rise_bytes": rise,
        "row_bytes": index.header.row_bytes,
        "gradient_bytes": 4 * index.header.coordinates,
    }


def random_rows(folder: Path, records: int, row_bytes: int, factors: int) -> Index:
    """A mapped index whose signs are random; every record's digest is another."""
    from attribution.index import Index, IndexHeader
    from attribution.whitening import FactorShape

    bits = 8 * (row_bytes - 32 - 4 * factors)
    shapes = tuple(FactorShape(f"m{k}", bits // factors // RANK, RANK) for k in range(factors))
    header = IndexHeader(bytes(32), bytes(32), records, shapes)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "header.bin").write_bytes(header.encode())
    (folder / "bases.bin").write_bytes(bytes(header.bases_bytes))
    (folder / "weights.bin").write_bytes(bytes(4 * header.coordinates))
    random = np.random.default_rng(3)
    with (folder / "rows.bin").open("wb") as file:
        for at in range(0, records, 1000):
            rows = random.integers(0, 256, (min(1000, records - at), header.row_bytes), np.uint8)
            scales = np.full((len(rows), factors), 1 << 14, "<u4")
            rows[:, 32 : 32 + 4 * factors] = scales.view(np.uint8)
            file.write(rows.data)
    return Index.open(folder)


def asked(folder: Path, records: int, row_bytes: int, runs: int, pace: dict[str, float]) -> dict[str, Any]:
    """What grows with records: root, scan, shares, bytes."""
    from attribution import exact
    from attribution.first_look import looked_scores, short_rows
    from attribution.shares import Scores, Shares, attribute
    from attribution.signs import scan

    index = random_rows(folder, records, row_bytes, FACTORS)
    shapes = index.header.shapes
    random = np.random.default_rng(4)
    query = np.clip(random.standard_normal(index.header.coordinates) * 1500, -8191, 8191).astype(np.int32)
    ways, values, rise = dict[str, float](), list[int](), 0
    for way, backend in WAYS.items():
        if backend not in exact.BACKENDS:
            continue
        exact.set_backend(backend)
        found = scan(query, index.signs, index.scales, shapes)
        if values and values != found:
            raise SystemExit(f"{way} gives other scores")
        values = found
        ways[way], rise = cpu_s(lambda: scan(query, index.signs, index.scales, shapes), runs)
    exact.set_backend(None)
    leading = np.ones(records, np.bool_)
    short = short_rows(index.signs, index.scales)
    looked_s, _ = cpu_s(lambda: looked_scores(query, index.signs, index.scales, shapes, leading, short), runs)
    root_s, _ = cpu_s(lambda: index.root)
    leaders_s, _ = cpu_s(lambda: index.leaders)
    rows = index.scored
    owners = [b"%d" % (k % 100) for k in range(records)]
    norm = int((query.astype(np.int64) ** 2).sum())
    looked = looked_scores(query, index.signs, index.scales, shapes, leading, short)

    def shared() -> Shares:
        return attribute(Scores(array("q", looked.tobytes()), rows, norm), owners)

    shares_s, _ = cpu_s(shared, runs)
    return {
        "records": records,
        "row_bytes": index.header.row_bytes,
        "index_bytes": index.size_bytes,
        **{way: round(1000 * ways[way], 1) if way in ways else None for way in WAYS},
        "looked_ms": round(1000 * looked_s, 1),
        "looked_bytes": short.signs.nbytes + short.counted.nbytes,
        "bytes_floor_ms": round(1000 * index.rows.nbytes / pace["bytes_per_s"], 2),
        "ms_per_gb": round(1e12 * min(ways.values()) / index.rows.nbytes),
        "shares_ms": round(1000 * shares_s, 1),
        "leaders_ms": round(1000 * leaders_s, 1),
        "root_ms": round(1000 * root_s, 1),
        "scan_rise_bytes": rise,
    }


def counted(rows: npt.NDArray[np.uint64], planes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Sums of a query's planes over rows, as `attribution.signs.scan` counts them, for any number of planes."""
    at_once = max(1, (1 << 19) // (8 * rows.shape[1]))
    found = np.zeros(len(rows), np.int64)
    for at in range(0, len(rows), at_once):
        part = rows[at : at + at_once]
        for power, plane in enumerate(planes):
            found[at : at + at_once] += np.bitwise_count(part & plane).sum(1, dtype=np.int64) << power
    return found


def narrower(records: int, row_bytes: Sequence[int], runs: int) -> list[dict[str, Any]]:
    """Scans of rows of each size by queries of 14, 4, 2 bits and 1 (signs alone), and what 25 ms are enough for."""
    random = np.random.default_rng(5)
    table = []
    for size in row_bytes:
        # At most 40 MB are held and counted; the rest is the same again.
        held = max(1, min(records, 40_000_000 // size))
        rows = random.integers(0, 1 << 63, (held, size // 8), np.uint64)
        for bits in (15, 5, 3, 1):
            planes = random.integers(0, 1 << 63, (bits, size // 8), np.uint64)
            took_s, _ = cpu_s(lambda rows=rows, planes=planes: counted(rows, planes), runs)  # type: ignore[misc]
            whole_ms = 1000 * took_s * records / held
            table.append(
                {
                    "records": records,
                    "row_bytes": size,
                    "query_planes": bits,
                    "scan_ms": round(whole_ms, 1),
                    "scan_ms_per_gb": round(1e12 * took_s / rows.nbytes),
                    "within_25_ms": whole_ms <= QUERY_MS_MAX,
                }
            )
    return table


def measure(work: Work, parts: Sequence[str], folder: Path) -> dict[str, Any]:
    """The tables of `parts`."""
    set_up("cpu")
    pace = paces()
    document: dict[str, Any] = {"machine": machine("cpu"), "paces": {k: round(v) for k, v in pace.items()}}
    if "models" in parts:
        # The largest once: a record of it takes seconds.
        rows = [
            built(s, work.tokens, work.runs if s.hidden * s.layers < 5000 else 1, pace) for s in work.models
        ]
        document["models"] = rows
    if "contexts" in parts:
        document["contexts"] = [built(work.models[0], n, work.runs, pace) for n in work.contexts]
    if "records" in parts:
        document["records"] = [
            asked(folder / f"{size}-{n}", n, size, work.runs, pace)
            for size in work.row_bytes[:2]
            for n in work.records
        ]
        record_s = built(work.models[0], work.tokens, work.runs, pace)["record_ms"] / 1000
        for row in document["records"]:
            row["build_extrapolated_s"] = round(record_s * row["records"], 1)
    if "rows" in parts:
        document["rows"] = narrower(work.records[-1], work.row_bytes, work.runs)
    return document


def show(document: dict[str, Any]) -> None:
    """The same for people."""
    for name in ("machine", "paces"):
        print(f"{name}: {document[name]}")
    for name in PARTS:
        rows = document.get(name, [])
        if rows:
            print(f"\n{name}: " + " | ".join(rows[0]))
        for row in rows:
            print("  " + " | ".join(f"{v:,}" if type(v) is int else str(v) for v in row.values()))


def main(arguments: Sequence[str]) -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a little of each, to see that it runs")
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument(
        "--folder", type=Path, help="where indices of up to a gigabyte are written for a while"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        document = measure(QUICK if options.quick else Work(), options.only or PARTS, Path(folder))
    print(json.dumps(document)) if options.json else show(document)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(sys.argv[1:]))
