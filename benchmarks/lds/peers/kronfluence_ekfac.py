"""kronfluence's EK-FAC (Grosse et al. 2023): factors fitted on the records, every score from a training gradient computed anew.

Settings are those of its own language-model examples: sampled labels (true Fisher), summed token losses, padding masked in the
factors, damping 0.1 of the mean eigenvalue (`damping_factor=None`; its default of 1e-8 is reported where it is asked for).
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.lds.peers.loading import (
    IGNORED,
    Clock,
    Files,
    adapted_model,
    check_logits,
    linear_names,
    merged_model,
    padded,
    summed_loss,
    write_answer,
)

TRAIN_BATCH = 16


class Records(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Rows padded to one length; `attention_mask` is 1 where a token is fed and predicts a label."""

    def __init__(self, rows: list[list[int]], longest: int) -> None:
        self.ids, self.labels = padded(rows, longest)
        self.mask = torch.zeros_like(self.ids)
        self.mask[:, :-1] = (self.labels[:, 1:] != IGNORED).long()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"ids": self.ids[i], "labels": self.labels[i], "mask": self.mask[i]}


def language_task(names: list[str]) -> Any:
    """A kronfluence `Task` for summed next-token losses, tracking the modules `names`."""
    task: Any = importlib.import_module("kronfluence.task").Task

    class Language(task):  # type: ignore[misc]
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            logits = model(input_ids=batch["ids"], use_cache=False).logits.float()
            labels = batch["labels"]
            if sample:
                with torch.no_grad():
                    drawn = torch.multinomial(logits[:, :-1].flatten(0, 1).softmax(-1), 1).view(
                        len(labels), -1
                    )
                    drawn = torch.where(labels[:, 1:] == IGNORED, IGNORED, drawn)
                    labels = torch.cat([labels[:, :1], drawn], 1)
            return summed_loss(logits, labels)

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return names

        def get_attention_mask(self, batch: Any) -> Tensor:
            mask: Tensor = batch["mask"]
            return mask

    return Language()


def main(files: Files, options: dict[str, Any]) -> None:
    """Scores with factors on `modules` ("lora" or "base"), with `damping` (None: 0.1 of the mean)."""
    kind, damping = str(options.get("modules", "lora")), options.get("damping")
    torch.manual_seed(files.seed)
    model = adapted_model(files.folder) if kind == "lora" else merged_model(files.folder)
    apart = check_logits(model, files.folder)
    names = linear_names(model, kind)
    analyzers = importlib.import_module("kronfluence.analyzer")
    arguments = importlib.import_module("kronfluence.arguments")
    task = language_task(names)
    model = analyzers.prepare_model(model, task)
    longest = max(map(len, files.records + files.asked))
    train, query = Records(files.records, longest), Records(files.asked, longest)
    analyzer = analyzers.Analyzer(
        "peer", model, task, cpu=True, disable_tqdm=True, output_dir=str(files.folder / "kronfluence")
    )
    clock = Clock()
    clock.timed(
        "fit",
        lambda: analyzer.fit_all_factors(
            "ekfac",
            train,
            per_device_batch_size=TRAIN_BATCH,
            initial_per_device_batch_size_attempt=TRAIN_BATCH,
            factor_args=arguments.FactorArguments(
                strategy="ekfac", use_empirical_fisher=bool(options.get("empirical", False))
            ),
        ),
    )

    clock.timed(
        "score",
        lambda: analyzer.compute_pairwise_scores(
            "scores",
            "ekfac",
            query,
            train,
            per_device_query_batch_size=len(query),
            per_device_train_batch_size=TRAIN_BATCH,
            score_args=arguments.ScoreArguments(damping_factor=damping),
        ),
    )
    scores = analyzer.load_pairwise_scores("scores")["all_modules"]
    width = sum(model.get_submodule(n).original_module.weight.numel() for n in names)
    write_answer(
        files.folder,
        scores,
        {
            "build_s": clock.seconds["fit"],
            "query_ms": 1000 * clock.seconds["score"] / len(files.asked),
            "bytes_per_record": 4 * width,
            "note": f"training gradients recomputed in {clock.seconds['score']:.1f} s for all queries together; "
            f"damping {'0.1 mean' if damping is None else damping}; logits within {apart:.1e}",
        },
    )
