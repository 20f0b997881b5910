"""dattri's attributors on the LoRA factors: TRAK, TracIn (and GradDot as TracIn with one checkpoint), DataInf.

The loss is the records' summed token loss, the target is the same loss of the query (its default; log-odds, as in TRAK's paper,
rescale a query's whole row and change no rank). TRAK's weight is 1 - p with p = exp(-mean token loss), as in its nanoGPT
example. `checkpoints` of one training are averaged where more than one is asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.lds.peers.loading import (
    IGNORED,
    Clock,
    Files,
    adapted_model,
    check_logits,
    padded,
    write_answer,
)

BATCH = 150
"""Large, for dattri draws its projection anew for every batch, and TracIn computes the queries' gradients anew for every batch."""


def loss_of(model: Any, parameters: Any, pair: Any) -> tuple[Tensor, Tensor]:
    """(summed loss, counted tokens) of one row, in torch.func style; the influence functions give it as a batch of one."""
    ids, labels = (part.reshape(-1) for part in pair)
    logits = torch.func.functional_call(
        model, parameters, args=(), kwargs={"input_ids": ids[None], "use_cache": False}
    ).logits
    counted = labels[1:] != IGNORED
    loss = functional.cross_entropy(logits[0, :-1], labels[1:], ignore_index=IGNORED, reduction="sum")
    return loss, counted.sum()


def load_factors(model: Any, tensors: dict[str, Tensor]) -> Any:
    """Put a checkpoint's factors in place; only they are asked for."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in tensors)
        if name in tensors:
            parameter.data.copy_(tensors[name])
    return model.eval()


def factors_of(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if ".lora_" in name}


def rows(sequences: list[list[int]], longest: int) -> Any:
    return DataLoader(TensorDataset(*padded(sequences, longest)), batch_size=BATCH, shuffle=False)


def main(files: Files, options: dict[str, Any]) -> None:
    """Scores by options["method"]: trak, tracin or datainf."""
    method = str(options["method"])
    torch.manual_seed(files.seed)
    model = adapted_model(files.folder)
    apart = check_logits(model, files.folder)
    names = files.adapters[-int(options.get("checkpoints", 1)) :]
    checkpoints = [factors_of(adapted_model(files.folder, name)) for name in names]
    load_factors(model, checkpoints[-1])
    width = sum(t.numel() for t in checkpoints[0].values())

    def loss(parameters: Any, pair: Any) -> Tensor:
        return loss_of(model, parameters, pair)[0]

    def probability(parameters: Any, pair: Any) -> Tensor:
        summed, counted = loss_of(model, parameters, pair)
        return torch.exp(-summed / counted)

    tasks = importlib.import_module("dattri.task")
    task = tasks.AttributionTask(
        loss_func=loss, model=model, checkpoints=checkpoints, checkpoints_load_func=load_factors
    )
    longest = max(map(len, files.records + files.asked))
    train, asked = rows(files.records, longest), rows(files.asked, longest)
    clock = Clock()
    if method == "trak":
        dimension = int(options["projection"])
        attributor = importlib.import_module("dattri.algorithm.trak").TRAKAttributor(
            task,
            correct_probability_func=probability,
            projector_kwargs={"proj_dim": dimension, "proj_type": "rademacher", "device": "cpu"},
            device="cpu",
            regularization=float(options.get("regularization", 0.0)),
        )
        clock.timed("build", lambda: attributor.cache(train))
        scores = clock.timed("score", lambda: attributor.attribute(asked))
        stored = 4 * dimension * len(names)
    elif method == "tracin":
        rates = files.learning_rates[-len(names) :]
        attributor = importlib.import_module("dattri.algorithm.tracin").TracInAttributor(
            task,
            weight_list=torch.tensor(rates if len(names) > 1 else [1.0]),
            normalized_grad=False,
            device="cpu",
        )
        # It would project to 512 dimensions unasked (None means its default): GradDot then correlates with itself by 0.62.
        attributor.projector_kwargs = None
        scores = clock.timed("score", lambda: attributor.attribute(train, asked))
        stored = 4 * width * len(names)
    else:
        functions = importlib.import_module("dattri.algorithm.influence_function")
        attributor = functions.IFAttributorDataInf(
            task, device="cpu", regularization=float(options["regularization"])
        )
        clock.timed("build", lambda: attributor.cache(train))
        scores = clock.timed("score", lambda: attributor.attribute(train, asked))
        stored = 4 * width
    write_answer(
        files.folder,
        scores.detach().T,
        {
            "build_s": clock.seconds.get("build", 0.0),
            "query_ms": 1000 * clock.seconds["score"] / len(files.asked),
            "bytes_per_record": stored,
            "note": f"{options}; logits within {apart:.1e}",
        },
    )
