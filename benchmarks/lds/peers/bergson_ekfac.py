"""bergson's EK-FAC pipeline: factors, queries through their damped inverse, every record's gradient against them.

`steps` of preconditioned conjugate gradients on `documents` records refine each query's solution (its EKFAC + CG, the best of its
own table that needs no retraining), at the price of a Gauss-Newton product a step and query.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from benchmarks.lds.peers import bergson_store
from benchmarks.lds.peers.loading import Clock, Files, write_answer


def main(files: Files, options: dict[str, Any]) -> None:
    """Scores with factors on options["modules"], refined by options["steps"] steps (0: not)."""
    modules, steps = str(options.get("modules", "lora")), int(options.get("steps", 0))
    torch.manual_seed(files.seed)
    model, apart = bergson_store.model_path(files, modules)
    settings = importlib.import_module("bergson.config.config")
    pipeline = importlib.import_module("bergson.hessians.pipeline")
    records = bergson_store.write_data(files, "records", files.records)
    asked = bergson_store.write_data(files, "asked", files.asked)
    astra: Any = importlib.import_module("bergson.hessians.astra")
    mapped = astra.numpy_to_tensor
    # On a CPU it adds to gradients that are mapped from a file for reading only, which ends the process by SIGSEGV.
    astra.numpy_to_tensor = lambda array: mapped(array).clone()
    cfg = bergson_store.config(files, "ekfac", records, model, projection_dim=0)
    clock = Clock()
    clock.timed(
        "all",
        lambda: pipeline.hessian_pipeline(
            cfg,
            settings.HessianConfig(method="kfac", ev_correction=True),
            settings.ScoreConfig(),
            settings.PreprocessConfig(),
            settings.HessianPipelineConfig(
                query=settings.QuerySetConfig(dataset=str(asked)),
                inversion_cfg=settings.InversionConfig(damping_factor=float(options.get("damping", 0.1))),
                astra=settings.AstraConfig(
                    num_steps=steps, solver="cg", batch_size=int(options.get("documents", 64))
                ),
            ),
        ),
    )
    data = importlib.import_module("bergson.data")
    found = torch.from_numpy(data.load_scores(files.folder / "ekfac" / "scores")[:].copy()).float()
    scores = found.reshape(len(files.records), len(files.asked)).T
    width = sum(
        v.numel() // len(files.asked) for v in bergson_store.loaded(files.folder / "ekfac" / "query").values()
    )
    spent = clock.seconds["all"]
    write_answer(
        files.folder,
        scores,
        {
            "build_s": 0.0,
            "query_ms": 1000 * spent / len(files.asked),
            "bytes_per_record": 4 * width,
            "note": f"{steps} steps of conjugate gradients; factors, queries and scores {spent:.0f} s together, all in the "
            f"query's time; logits within {apart:.1e}",
        },
    )
