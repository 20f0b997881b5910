"""Making a work: text, the fine-tune in binary32 with its checkpoints, and the truth beside it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from attribution.checkpoint import load_base
from attribution.model import Base
from attribution.models import BASE_PATH
from benchmarks.lds import learning
from benchmarks.lds.network import Network
from benchmarks.lds.truth import Losses, Mask, Truth, recipe, refuse, retrainer, work_digest
from benchmarks.lds.work import Checkpoint, Settings, Work, draw_texts


@dataclass(frozen=True)
class Made:
    """A work and how to retrain it: `losses(kept)` after training on the records in a mask, from disk if known."""

    work: Work
    truth: Truth
    losses: Callable[[Mask], Losses]


def make(settings: Settings, seed: int, state: Path, training: bool = True) -> Made:
    """The work of `seed`; its final adapter is trained (half a minute) or read, its truth lies in `state`.

    Without `training` no records are left out of a training that was not done before: `losses` then raises `NotTrained`.
    """
    base = load_base(BASE_PATH)
    texts = draw_texts(settings, seed)
    network = Network(base, settings.rank, settings.alpha)
    asked = (*texts.queries, *texts.unrelated)
    chosen = recipe(settings, seed)

    def learner(kept: Mask) -> learning.Factors:
        return learning.train(network, base, texts.records, kept, chosen)

    digest = work_digest(base.hash, texts, settings, seed)
    truth = Truth.open(state / f"truth-{seed}-{digest[:6].hex()}.npz", digest)
    run = retrainer(network, learner, asked) if training else refuse
    kept_at = state / f"fine-tune-{seed}-{digest[:6].hex()}.pt"
    if not kept_at.exists():
        save_checkpoints(trained(base, network, texts.records, settings, seed), kept_at)
    checkpoints = load_checkpoints(kept_at)
    network.load(checkpoints[-1].state)
    work = Work(
        seed,
        settings,
        base,
        network,
        checkpoints,
        texts.records,
        texts.labels,
        texts.queries,
        texts.query_labels,
        texts.unrelated,
    )
    return Made(work, truth, lambda kept: truth.losses(kept, run))


def save_checkpoints(checkpoints: tuple[Checkpoint, ...], path: Path) -> None:
    """Write them atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.stem}.{os.getpid()}.part")
    torch.save([(c.step, c.learning_rate, c.state, c.second_moments) for c in checkpoints], scratch)
    os.replace(scratch, path)


def load_checkpoints(path: Path) -> tuple[Checkpoint, ...]:
    """Inverse of `save_checkpoints`; tensors and numbers only, nothing is executed."""
    return tuple(Checkpoint(*row) for row in torch.load(path, weights_only=True))


def trained(
    base: Base, network: Network, records: tuple[tuple[int, ...], ...], settings: Settings, seed: int
) -> tuple[Checkpoint, ...]:
    """The full training's checkpoints, evenly spaced, the last one at its end."""
    taken = list[Checkpoint]()

    def seen(step: learning.Step) -> None:
        count = settings.checkpoints
        if step.step in {step.steps * (k + 1) // count for k in range(count)}:
            taken.append(
                Checkpoint(
                    step.step,
                    step.rate,
                    {n: (a.detach().clone(), b.detach().clone()) for n, (a, b) in step.factors.items()},
                    {n: (a.clone(), b.clone()) for n, (a, b) in step.second_moments.items()},
                )
            )

    learning.train(network, base, records, np.ones(len(records), np.bool_), recipe(settings, seed), seen)
    return tuple(taken)
