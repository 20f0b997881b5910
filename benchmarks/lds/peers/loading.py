"""In a peer's process: the work's files as transformers and PEFT models whose logits are those of the work's own network."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

LOGITS_APART_MAX = 1e-5
"""Of the largest logit. Binary32 itself is off by about 2e-6 of it (5e-5 where logits reach 29); merging doubles that."""
IGNORED = -100
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Unequal(Exception):
    """The converted model's logits are not those of the work's network."""


@dataclass(frozen=True)
class Files:
    """A work's files, read: token ids between BOS and EOS of records, and of what is asked."""

    folder: Path
    records: list[list[int]]
    asked: list[list[int]]
    seed: int
    learning_rates: list[float]

    @classmethod
    def read(cls, folder: Path) -> Files:
        document = json.loads((folder / "work.json").read_text())
        bos, eos = document["bos"], document["eos"]
        closed = {name: [[bos, *row, eos] for row in document[name]] for name in ("records", "asked")}
        return cls(folder, closed["records"], closed["asked"], document["seed"], document["learning_rates"])

    @property
    def adapters(self) -> list[str]:
        """Checkpoints in the order of training; the last is `final`."""
        names = sorted((p.name for p in (self.folder / "adapters").iterdir() if p.name.isdecimal()), key=int)
        return [*names, "final"]


@dataclass
class Clock:
    """CPU seconds of this process and what it waited for, by name."""

    seconds: dict[str, float] = field(default_factory=dict)

    def timed(self, name: str, run: Callable[[], Any]) -> Any:
        started = cpu_s()
        result = run()
        self.seconds[name] = self.seconds.get(name, 0.0) + cpu_s() - started
        return result


def cpu_s() -> float:
    """CPU seconds of all threads and ended children."""
    spent = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


def base_model(folder: Path) -> Any:
    """`LlamaForCausalLM` of the frozen base, float32, on the CPU."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    return model.eval()


def adapted_model(folder: Path, name: str = "final") -> Any:
    """The base with an adapter as `peft` loads it: every factor an `nn.Linear` `lora_A.default` or `lora_B.default`."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base_model(folder), folder / "adapters" / name).eval()


def merged_model(folder: Path, name: str = "final") -> Any:
    """The base with an adapter added into its weights: a plain Llama."""
    return adapted_model(folder, name).merge_and_unload().eval()


def check_logits(model: Any, folder: Path) -> float:
    """Largest difference from the logits of the work's network on its probe. Raises Unequal where it is no rounding."""
    probe = load_file(folder / "probe.safetensors")
    with torch.no_grad():
        found = model(input_ids=probe["ids"], use_cache=False).logits
    apart, largest = float((found - probe["logits"]).abs().max()), float(probe["logits"].abs().max())
    if not apart <= LOGITS_APART_MAX * largest:
        raise Unequal(
            f"logits of {type(model).__name__}, up to {largest:.3g}, differ by {apart:.3g} from the network's"
        )
    return apart


def save_merged(folder: Path) -> Path:
    """The merged model as a Hugging Face directory, written once."""
    place = folder / "merged"
    if not place.exists():
        model = merged_model(folder)
        check_logits(model, folder)
        model.save_pretrained(place)
    return place


def linear_names(model: nn.Module, kind: str) -> list[str]:
    """Names of the linear layers to look at: `lora` (both factors of every module) or `base` (the frozen layers)."""
    chosen = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        parts = name.split(".")
        factor = any(part in ("lora_A", "lora_B") for part in parts)
        frozen = any(part in PROJECTIONS for part in parts) and not factor
        if (kind == "lora" and factor) or (kind == "base" and frozen):
            chosen.append(name)
    return chosen


def padded(rows: Sequence[Sequence[int]], longest: int | None = None) -> tuple[Tensor, Tensor]:
    """Ids and labels (count, longest) int64; a label is its position's own id, padding IGNORED (the model shifts)."""
    longest = longest or max(map(len, rows))
    ids = torch.zeros((len(rows), longest), dtype=torch.int64)
    labels = torch.full((len(rows), longest), IGNORED, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        labels[i, : len(row)] = torch.tensor(row)
    return ids, labels


def summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the negative log-likelihoods of labels[1:] given what stands before, in nats."""
    return functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )


def write_answer(folder: Path, scores: Tensor, facts: dict[str, object]) -> None:
    """Write answer.npz, whole or not at all."""
    scratch = folder / "answer.new.npz"
    np.savez(
        scratch,
        scores=scores.detach().to(torch.float32).numpy(),
        facts=np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8),
    )
    scratch.rename(folder / "answer.npz")
