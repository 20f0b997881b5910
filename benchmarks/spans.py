"""Verbatim spans: size, building, queries, adding and erasing, on text that every Python installation has.

python -m benchmarks.spans [--corpus docstrings|sources] [--outputs 50] [--json]

Where the package `infini-gram` is installed (Liu et al. 2024; optional), its index of the same text is built
and asked the same questions, and its answers are compared with ours. Seconds are of CPU, of all threads (its
queries run in several); for its building, of the processes it starts; `*_wall_ms` is by the clock.
"""

import argparse
import importlib
import importlib.util
import json
import os
import random
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

from attribution.spans import SpanIndex
from scripts.make_base import docstrings

LENGTH_MIN = 12
SOURCE_RECORD_BYTES = 1024
SOURCE_BYTES_MAX = 8_000_000
ADDED = 100

T = TypeVar("T")


def timed(run: Callable[[], T]) -> tuple[T, float]:
    started = time.process_time()
    result = run()
    return result, time.process_time() - started


def corpus(name: str) -> list[bytes]:
    """Docstrings, or 8 MB of source in pieces of about a kilobyte, of the installed standard library: ASCII only."""
    root = Path(sysconfig.get_paths()["stdlib"])
    if name == "docstrings":
        return [text.encode() for _, _, text in docstrings(root)]
    pieces = (piece for path in sorted(root.rglob("*.py")) for piece in _pieces(path.read_bytes()))
    texts = [piece for piece in pieces if len(piece) < 4 * SOURCE_RECORD_BYTES]
    sizes = accumulate(map(len, texts))
    return [text for text, size in zip(texts, sizes, strict=True) if size <= SOURCE_BYTES_MAX]


def _pieces(text: bytes) -> Iterator[bytes]:
    lines, size = list[bytes](), 0
    for line in text.splitlines(keepends=True) if text.isascii() and b"\0" not in text else ():
        lines.append(line)
        size += len(line)
        if size >= SOURCE_RECORD_BYTES:
            yield b"".join(lines)
            lines, size = [], 0
    if lines:
        yield b"".join(lines)


def outputs(records: Sequence[bytes], count: int) -> list[bytes]:
    """Texts of 256 bytes: two cuttings of records, with every 40th byte replaced."""
    rng, texts = random.Random(1), []
    for _ in range(count):
        halves = [rng.choice(records)[:128] for _ in range(2)]
        text = bytearray(b" ".join(halves))
        for at in range(20, len(text), 40):
            text[at] = rng.randrange(97, 123)
        texts.append(bytes(text))
    return texts


def ours(records: Sequence[bytes], texts: Sequence[bytes], folder: Path) -> dict[str, Any]:
    size = sum(map(len, records))
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    index = SpanIndex.create(folder)
    _, build_s = timed(lambda: index.add(records))
    memory_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    bytes_per_byte, segments = index.size_bytes / size, index.segment_count
    started = time.perf_counter()
    spans, query_s = timed(lambda: [index.spans(text, LENGTH_MIN) for text in texts])
    wall_s = time.perf_counter() - started
    counts, count_s = timed(lambda: [index.count(text[:16]) for text in texts])
    found = [sorted((s.start, s.length, s.occurrences) for s in row) for row in spans]
    _, add_s = timed(lambda: [index.add([record]) for record in records[:ADDED]])
    _, erase_s = timed(lambda: index.erase([len(records) // 2]))
    return {
        "build_s_per_mb": round(build_s / size * 1e6, 3),
        "memory_mb": round(memory_kib / 1024, 1),
        "bytes_per_byte": round(bytes_per_byte, 3),
        "segments": segments,
        "spans_ms": round(1000 * query_s / len(texts), 2),
        "spans_wall_ms": round(1000 * wall_s / len(texts), 2),
        "count_us": round(1e6 * count_s / len(texts), 1),
        "add_one_ms": round(1000 * add_s / ADDED, 2),
        "erase_one_ms": round(1000 * erase_s, 1),
        "_spans": found,
        "_counts": counts,
    }


def theirs(records: Sequence[bytes], texts: Sequence[bytes], folder: Path) -> dict[str, Any]:
    """infini-gram over bytes: its own indexer in a process, then its engine."""
    engines = importlib.import_module("infini_gram.engine")
    data, saved = folder / "data", folder / "index"
    data.mkdir(parents=True)
    lines = (json.dumps({"text": record.decode("ascii")}) + "\n" for record in records)
    (data / "records.jsonl").write_text("".join(lines))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [
        sys.executable,
        "-m",
        "infini_gram.indexing",
        "--data_dir",
        str(data),
        "--save_dir",
        str(saved),
    ]
    command += ["--token_dtype", "u8", "--cpus", "1", "--mem", "2", "--add_unigram", "--ulimit", "1024"]
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    build_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    size = sum(map(len, records))
    engine = engines.InfiniGramEngine(
        index_dir=str(saved),
        eos_token_id=0,
        vocab_size=255,
        token_dtype="u8",
        precompute_unigram_logprobs=True,
    )
    started = time.perf_counter()
    answers, query_s = timed(
        lambda: [engine.attribute(list(text), [], LENGTH_MIN, 1 << 16, False) for text in texts]
    )
    wall_s = time.perf_counter() - started
    counts, count_s = timed(lambda: [engine.count(list(text[:16])) for text in texts])
    return {
        "build_s_per_mb": round(build_s / size * 1e6, 3),
        "bytes_per_byte": round(sum(p.stat().st_size for p in saved.iterdir()) / size, 3),
        "spans_ms": round(1000 * query_s / len(texts), 2),
        "spans_wall_ms": round(1000 * wall_s / len(texts), 2),
        "count_us": round(1e6 * count_s / len(texts), 1),
        "_spans": [sorted((s["l"], s["length"], s["count"]) for s in a["spans"]) for a in answers],
        "_counts": [answer["count"] for answer in counts],
    }


def measure(name: str, count: int) -> dict[str, Any]:
    records = [record for record in corpus(name) if record]
    texts = outputs(records, count)
    with tempfile.TemporaryDirectory() as folder:
        figures = {"records": len(records), "bytes": sum(map(len, records))}
        mine = ours(records, texts, Path(folder) / "ours")
        other: dict[str, Any] = {}
        if importlib.util.find_spec("infini_gram"):
            other = theirs(records, texts, Path(folder) / "theirs")
            other["same_spans"] = other["_spans"] == mine["_spans"]
            other["same_counts"] = other["_counts"] == mine["_counts"]
    rows = {"openledger": mine, "infini-gram": other or {"not_run": "the package is not installed"}}
    return figures | {
        who: {key: value for key, value in row.items() if key[0] != "_"} for who, row in rows.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--corpus", choices=("docstrings", "sources"), default="docstrings")
    parser.add_argument("--outputs", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(options.corpus, options.outputs)
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        for key, figure in value.items() if isinstance(value, dict) else [("", value)]:
            print(f"{name:12} {key:16} {figure}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
