"""CPU time an example in a peer's process: what one more record costs, fixed costs taken off by the difference of two sizes.

Written to answer.npz: row i of scores is the kind i of `KINDS`, its columns the seconds of each run at the smaller size, then at the larger one.
"""

from __future__ import annotations

import importlib
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.lds.peers import bergson_store
from benchmarks.lds.peers.kronfluence_ekfac import TRAIN_BATCH, Records, language_task
from benchmarks.lds.peers.loading import (
    Files,
    adapted_model,
    check_logits,
    cpu_s,
    linear_names,
    merged_model,
    write_answer,
)

KINDS = {
    "bergson": (
        "store, LoRA, p=16",
        "second moments, LoRA, p=16",
        "store, LoRA, p=32",
        "store, base layers, p=16",
    ),
    "kronfluence": ("factors, LoRA", "scores, LoRA", "factors, base layers"),
}


def bergson_run(files: Files, kind: str) -> Callable[[int], float]:
    """A function from a number of records to the CPU seconds of collecting their projected gradients."""
    worker = importlib.import_module("bergson.utils.worker_utils")
    data_of, settings = (importlib.import_module(f"bergson.{name}") for name in ("data", "config.config"))
    collect = importlib.import_module("bergson.collection").collect_gradients
    path, _ = bergson_store.model_path(files, "base" if "base" in kind else "lora")
    cfg = bergson_store.config(
        files,
        "speed",
        bergson_store.write_data(files, "records", files.records),
        path,
        projection_dim=int(kind.rpartition("=")[2]),
    )
    if kind.startswith("second moments"):
        return lambda count: second_moments_s(files, count, path, cfg.projection_dim)
    model, targets = worker.setup_model_and_peft(cfg)
    data, _ = worker.setup_data_pipeline(cfg)

    def run(count: int) -> float:
        chosen = data.select(range(count))
        batches = data_of.allocate_batches(chosen["length"][:], cfg.token_batch_size)
        Path(cfg.partial_run_path).mkdir(parents=True, exist_ok=True)
        processor = worker.create_processor(model, cfg, targets)
        started = cpu_s()
        collect(
            model,
            chosen,
            processor,
            cfg,
            batches=batches,
            target_modules=targets,
            preprocess_cfg=settings.PreprocessConfig(),
        )
        return cpu_s() - started

    return run


def second_moments_s(files: Files, count: int, model: Path, p: int) -> float:
    """CPU seconds of bergson's other pass over `count` records, loading and eigenvectors included."""
    hessians = importlib.import_module("bergson.hessians.hessian_approximations")
    settings = importlib.import_module("bergson.config.config")
    data = bergson_store.write_data(files, f"records-{count}", files.records[:count])
    cfg = bergson_store.config(files, "moments", data, model, projection_dim=p)
    shutil.rmtree(cfg.run_path, ignore_errors=True)
    started = cpu_s()
    hessians.approximate_hessians(cfg, settings.HessianConfig(method="autocorrelation"))
    return cpu_s() - started


def kronfluence_run(files: Files, kind: str) -> Callable[[int], float]:
    """A function from a number of records to the CPU seconds of fitting factors on them, or of scoring them for one query."""
    analyzers, arguments = (
        importlib.import_module(f"kronfluence.{name}") for name in ("analyzer", "arguments")
    )
    which = "base" if "base" in kind else "lora"
    model = adapted_model(files.folder) if which == "lora" else merged_model(files.folder)
    check_logits(model, files.folder)
    task = language_task(linear_names(model, which))
    model = analyzers.prepare_model(model, task)
    longest = max(map(len, files.records + files.asked))
    place = files.folder / "kronfluence" / kind
    analyzer = analyzers.Analyzer("speed", model, task, cpu=True, disable_tqdm=True, output_dir=str(place))
    factors = arguments.FactorArguments(strategy="ekfac")

    def fit(count: int) -> None:
        analyzer.fit_all_factors(
            "ekfac",
            Records(files.records[:count], longest),
            per_device_batch_size=TRAIN_BATCH,
            initial_per_device_batch_size_attempt=TRAIN_BATCH,
            factor_args=factors,
            overwrite_output_dir=True,
        )

    def score(count: int) -> None:
        analyzer.compute_pairwise_scores(
            "scores",
            "ekfac",
            Records(files.asked[:1], longest),
            Records(files.records[:count], longest),
            per_device_query_batch_size=1,
            per_device_train_batch_size=TRAIN_BATCH,
            score_args=arguments.ScoreArguments(damping_factor=None),
            overwrite_output_dir=True,
        )

    if kind.startswith("scores"):
        fit(TRAIN_BATCH)

    def run(count: int) -> float:
        started = cpu_s()
        (score if kind.startswith("scores") else fit)(count)
        return cpu_s() - started

    return run


def main(files: Files, options: dict[str, Any]) -> None:
    """Time every kind of options["peer"] at both sizes, options["runs"] times in turn, after one run unmeasured."""
    peer, sizes = str(options["peer"]), [int(n) for n in options["sizes"]]
    make = bergson_run if peer == "bergson" else kronfluence_run
    rows = []
    for kind in KINDS[peer]:
        run = make(files, kind)
        run(sizes[0])
        taken = [[run(size) for size in sizes] for _ in range(int(options["runs"]))]
        rows.append([seconds for column in zip(*taken, strict=True) for seconds in column])
    seconds = torch.tensor(rows)
    if not math.isfinite(float(seconds.sum())):
        raise ValueError("a time is not finite")
    write_answer(files.folder, seconds, {"build_s": 0, "query_ms": 0, "bytes_per_record": 0, "note": ""})
