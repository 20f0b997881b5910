"""An index of very many real records, built and asked: what it costs, and what a first look at its rows overlooks.

python -m benchmarks.large_index [--records 100000] [--trained 10000] [--queries 48] [--folder DIR] [--json]

Records are lines of 40 to 80 bytes from the docstrings of what this Python has installed, in an order drawn once, near-duplicates led; the
adapter (rank 8, every module) is trained on the first `--trained` of them, one epoch. Gradients wait in a scratch file: 242 kB a record.
Seconds are of CPU, one thread, and of the clock; memory is the rise of the resident set.

Three kinds of answers are asked: the rest of a record after its beginning; a record of which the later half is another one's (a text that
resembles two records, as an answer that mixes them does); and lines that are no record. Every answer is scored by the definition (a first look,
then 1,024 records in full) and against all rows. *Overlooked* are records that all rows would have paid (cosine at least the floor) and the definition does not.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import statistics
import sys
import sysconfig
import tempfile
import time
import warnings
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from benchmarks.lds.work import pieces
from benchmarks.measuring import forget_peak, machine, peak_bytes, set_up

if TYPE_CHECKING:
    from attribution.gradients import Example
    from attribution.index import Index

BYTES_MIN, BYTES_MAX = 40, 80
RANK = 8
PROMPT_BYTES = 12
OWNERS = 100
KINDS = ("verbatim", "mixed", "strange")
SEED = 7

Query = npt.NDArray[np.int32]


def lines() -> Iterator[str]:
    """Lines of the docstrings below this Python's library folders, in path order."""
    paths = sysconfig.get_paths()
    for root in dict.fromkeys([paths["stdlib"], paths["purelib"]]):
        for path in sorted(Path(root).rglob("*.py")):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    tree = ast.parse(path.read_bytes())
            except (OSError, SyntaxError, ValueError, RecursionError):
                continue
            for node in ast.walk(tree):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                    text = ast.get_docstring(node)
                    if text and text.isascii() and "\0" not in text:
                        yield from pieces(text, BYTES_MIN, BYTES_MAX)


def drawn(count: int) -> list[bytes]:
    """`count` different lines in an order drawn once. Raises ``SystemExit`` where there are too few."""
    found = dict[str, None]()
    for line in lines():
        found[line] = None
        if len(found) == count:
            break
    if len(found) < count:
        raise SystemExit(f"docstrings give {len(found)} lines, {count} are needed: fewer --records")
    order = np.random.default_rng(SEED).permutation(count)
    every = list(found)
    return [every[i].encode() for i in order]


def timed(run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What `run` gives, its seconds of CPU and of the clock, and how far the resident set rose."""
    forget_peak("cpu")
    before, started, began = peak_bytes(), time.process_time(), time.perf_counter()
    found = run()
    return found, {
        "cpu_s": round(time.process_time() - started, 2),
        "clock_s": round(time.perf_counter() - began, 2),
        "rise_mb": round(max(0, peak_bytes() - before) / 1e6),
    }


def examples(records: Sequence[bytes], strangers: Sequence[bytes], count: int) -> dict[str, list[Example]]:
    """Answers of each kind."""
    from attribution.gradients import Example

    chosen = np.random.default_rng(SEED + 1).permutation(len(records))[: 2 * count]
    own = [records[i] for i in chosen[:count]]
    other = [records[i] for i in chosen[count:]]
    mixed = [a[: len(a) // 2] + b[len(b) // 2 :] for a, b in zip(own, other, strict=True)]
    return {
        "verbatim": [Example(tuple(r[:PROMPT_BYTES]), tuple(r[PROMPT_BYTES:])) for r in own],
        "mixed": [Example((), tuple(r)) for r in mixed],
        "strange": [Example((), tuple(r)) for r in strangers[:count]],
    }


def made(folder: Path, count: int, trained: int, strangers: int) -> dict[str, Any]:
    """Lines, adapter and index below `folder`, and what each cost; what is there already is kept."""
    from attribution.adapter import adapter_to_bytes
    from attribution.checkpoint import load_base
    from attribution.duplicates import leaders
    from attribution.index_files import build_index_files
    from attribution.models import BASE_PATH
    from attribution.recipe import Recipe
    from attribution.training import train

    done = folder / "made.json"
    if done.exists():
        found: dict[str, Any] = json.loads(done.read_text())
        if (found["records"], found["training"]["records"]) != (count, min(trained, count)):
            raise SystemExit(f"{folder} has {found['records']} records, of another run: another --folder")
        return found
    texts = drawn(count + strangers)
    records, base = texts[:count], load_base(BASE_PATH)
    (folder / "lines.json").write_text(json.dumps([t.decode() for t in texts]))
    say(f"{count} lines; training on {min(trained, count)}")
    recipe = Recipe(epochs=1, rank=RANK, alpha=2 * RANK, batch_size=16, learning_rate_micro=6_000)
    adapter, training = timed(lambda: train(base, records[:trained], recipe))
    (folder / "adapter.safetensors").write_bytes(adapter_to_bytes(adapter))
    clusters, clustering = timed(lambda: leaders(records))
    led = sum(leader != i for i, leader in enumerate(clusters))
    say(f"{led} records are led; building")
    batches = 0

    def between() -> None:
        nonlocal batches
        batches += 1
        if batches % 500 == 0:
            say(f"{batches} batches, {time.process_time():.0f} s of CPU")

    index, building = timed(
        lambda: build_index_files(base, adapter, records, folder / "index", between, clusters)
    )
    found = {
        "records": count,
        "led": led,
        "tokens": sum(map(len, records)),
        "training": {"records": min(trained, count), **training},
        "leaders": clustering,
        "building": building,
        "record_ms": round(1000 * building["cpu_s"] / count, 2),
        "scratch_mb": round(4 * index.header.coordinates * count / 1e6),
        "index_mb": round(index.size_bytes / 1e6),
        "row_bytes": index.header.row_bytes,
        "root": index.root.hex(),
    }
    done.write_text(json.dumps(found))
    return found


def say(text: str) -> None:
    """Tell who waits."""
    print(text, file=sys.stderr, flush=True)


def asked(
    index: Index, ask: Callable[[Example], tuple[Query, int]], some: Sequence[Example]
) -> dict[str, Any]:
    """Milliseconds of CPU of a query's parts, and whom the definition overlooks of those that all rows would pay."""
    from attribution.first_look import looked_scores
    from attribution.shares import FLOOR_PPM_DEFAULT, Scores, attribute
    from attribution.signs import integer_scores

    owners = [b"%d" % (k % OWNERS) for k in range(index.record_count)]
    shapes, found = index.header.row_shapes, list[tuple[Query, Scores]]()
    parts: dict[str, list[float]] = {"gradient": [], "scan": [], "shares": [], "query": []}
    for example in some:
        started = time.process_time()
        query, norm = ask(example)
        asked_at = time.process_time()
        values = looked_scores(query, index.signs, index.scales, shapes, index.leading, index.short)
        scores = Scores(array("q", values.tobytes()), index.scored, norm)
        scanned_at = time.process_time()
        attribute(scores, owners)
        ended = time.process_time()
        spent = (asked_at - started, scanned_at - asked_at, ended - scanned_at, ended - started)
        for part, seconds in zip(parts.values(), spent, strict=True):
            part.append(1000 * seconds)
        found.append((query, scores))
    # All rows afterwards: 0.8 GB would take the caches from the next query.
    payable, overlooked, best, every_ms = 0, 0, list[float](), list[float]()
    for query, scores in found:
        started = time.process_time()
        values = integer_scores(query, index.signs, index.scales, shapes)
        every_ms.append(1000 * (time.process_time() - started))
        every = Scores(array("q", values.tobytes()), index.scored, scores.query_norm)
        likely = np.flatnonzero(index.leading & (values > 0)).tolist()
        pays = [i for i in likely if every.cosine_squared(i) >= FLOOR_PPM_DEFAULT**2]
        payable += len(pays)
        overlooked += sum(scores.values[i] != every.values[i] for i in pays)
        best.append(max((every.cosine_ppm(i) for i in likely), default=0) / 1e6)
    return {
        "queries": len(some),
        "tokens": round(statistics.mean(len(e.prompt_ids) + len(e.completion_ids) for e in some), 1),
        **{f"{name}_ms": spread(part) for name, part in parts.items()},
        "all_rows_ms": spread(every_ms),
        "payable": payable,
        "overlooked": overlooked,
        "best_cosine": spread(best),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Least, median and most."""
    return {
        "least": round(min(values), 3),
        "median": round(statistics.median(values), 3),
        "most": round(max(values), 3),
    }


def measure(folder: Path, records: int, trained: int, queries: int) -> dict[str, Any]:
    """What the index costs, and the answers of each kind asked of it."""
    from attribution.adapter import adapter_from_bytes
    from attribution.checkpoint import load_base
    from attribution.index import Index
    from attribution.models import BASE_PATH
    from attribution.scores import example_query

    set_up("cpu")
    document: dict[str, Any] = {"machine": machine("cpu"), "made": made(folder, records, trained, queries)}
    base = load_base(BASE_PATH)
    adapter = adapter_from_bytes((folder / "adapter.safetensors").read_bytes())
    texts = [text.encode() for text in json.loads((folder / "lines.json").read_text())]
    index, document["opening"] = timed(lambda: Index.open(folder / "index"))

    def ready() -> None:
        example = examples(texts[:records], texts[records:], 1)["strange"][0]
        asked(index, lambda e: example_query(base, adapter, index, e), [example])

    _, document["first_query"] = timed(ready)
    for kind, some in examples(texts[:records], texts[records:], queries).items():
        document[kind] = asked(index, lambda e: example_query(base, adapter, index, e), some)
    return document


def show(document: dict[str, Any]) -> None:
    """The same for people."""
    for name in ("machine", "made", "opening", "first_query"):
        print(f"{name}: {document[name]}")
    for kind in KINDS:
        print(f"\n{kind}")
        for name, value in document[kind].items():
            print(
                f"  {name}: {', '.join(f'{k} {v}' for k, v in value.items()) if isinstance(value, dict) else value}"
            )


def main(arguments: Sequence[str]) -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.large_index",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--trained", type=int, default=10_000, help="records that the adapter is trained on")
    parser.add_argument("--queries", type=int, default=48, help="answers of each kind")
    parser.add_argument("--folder", type=Path, help="keep the index here, and ask the one that is here")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if not 2 * options.queries <= options.records:
        parser.error("at least two records an answer are needed")
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
        document = measure(options.folder, options.records, options.trained, options.queries)
    else:
        with tempfile.TemporaryDirectory() as folder:
            document = measure(Path(folder), options.records, options.trained, options.queries)
    print(json.dumps(document)) if options.json else show(document)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(sys.argv[1:]))
