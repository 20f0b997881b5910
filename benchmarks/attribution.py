"""What a validator recomputes, beside the same mathematics in floating-point torch, one thread, ratios of one run.

python -m benchmarks.attribution [--device cuda] [--epochs 4] [--quick] [--json]

Per-example gradient factors, a training step and decoding on the shipped base (width 128) and on a random base of width 576 against
`benchmarks.floating` (binary32 on a CPU, bf16 on a GPU), each the least of several runs in turn, CPU time (on a GPU by the clock). Then the demo's path on the
shipped base: training, index and queries in CPU seconds, memory and bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from benchmarks.measuring import (
    device_peak_bytes,
    forget_peak,
    least,
    machine,
    no_device,
    peak_bytes,
    set_up,
    wait,
)

if TYPE_CHECKING:
    from attribution.adapter import Adapter
    from attribution.model import Base

T = TypeVar("T")

RANK = 8
TARGETS = {
    "factors": {128: 1.5, 576: 1.0},
    "training step": {128: 1.1, 576: 1.1},
    "decoding": {128: 3.0, 576: 1.5},
}
"""Time over that of binary32 torch, at most, by the width of the base."""
TARGET_CUDA = 2.0
"""Time over that of bf16 torch, at most, on a GPU."""


@dataclass(frozen=True, slots=True)
class Work:
    """How much of each: examples of `tokens` tokens for factors, a batch of `batch` for a step, ids to decode."""

    layers: int
    examples: int
    tokens: int
    batch: int
    prompt: int
    new_tokens: int
    seconds: float


WORK = Work(layers=4, examples=8, tokens=96, batch=4, prompt=24, new_tokens=32, seconds=6.0)
QUICK = Work(layers=1, examples=1, tokens=12, batch=1, prompt=4, new_tokens=3, seconds=0.0)


def timed(run: Callable[[], T], device: str) -> tuple[T, float]:
    """What `run` returns, and the seconds it took: of this process's CPU, or by the clock where a GPU computes."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    started = clock()
    result = run()
    wait(device)
    return result, clock() - started


def wide_base(layers: int, device: str) -> Base:
    """A random base of SmolLM2-135M's width: 576, nine heads over three, feed-forward 1536, and 512 tokens."""
    import torch

    from attribution.exact.random import uniform_floats
    from attribution.model import ModelConfig, norm_names, quantise_checkpoint, weight_shapes

    config = {
        "hidden_size": 576,
        "num_hidden_layers": layers,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "intermediate_size": 1536,
        "vocab_size": 512,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "rms_norm_eps": "1e-05",
        "rope_theta": "10000.0",
    }
    model = ModelConfig.from_mapping(config)
    state = {}
    for name, (rows, columns) in weight_shapes(model).items():
        drawn = torch.from_numpy(uniform_floats(0, f"benchmark {name}", rows * columns)).view(rows, columns)
        state[f"{name}.weight"] = drawn * (3.0 / columns) ** 0.5
    state |= {name: torch.ones(model.hidden_size) for name in norm_names(model)}
    return quantise_checkpoint(state, config).to(device)


def drawn_adapter(base: Base) -> Adapter:
    """Every module adapted, both factors random."""
    import torch

    from attribution.adapter import Adapter, LoraModule
    from attribution.exact.random import uniform_floats
    from attribution.model import PROJECTIONS, module_name, projection_shape

    modules = []
    for layer in range(base.config.num_hidden_layers):
        for projection in PROJECTIONS:
            out, width = projection_shape(base.config, projection)
            name = module_name(layer, projection)
            a = torch.from_numpy(uniform_floats(0, f"benchmark {name} a", RANK * width)).view(RANK, width)
            b = torch.from_numpy(uniform_floats(0, f"benchmark {name} b", out * RANK)).view(out, RANK)
            modules.append(LoraModule(name, a * 2.0**-4, b * 2.0**-5))
    return Adapter(RANK, 2 * RANK, tuple(modules)).to(base.device)


def texts(base: Base, count: int, tokens: int) -> list[tuple[int, ...]]:
    """Random records of one length, without BOS and EOS."""
    from attribution.exact.random import uniform_integers

    drawn = uniform_integers(1, "benchmark text", count * tokens, base.config.vocab_size - 1) + 1
    return [tuple(row) for row in drawn.reshape(count, tokens).tolist()]


def beside_floating(base: Base, device: str, work: Work) -> list[dict[str, Any]]:
    """One row for each kind of work on one base: seconds of both, their ratio, and what the exact side took of memory."""
    import torch

    from attribution.gradients import Example, factors
    from attribution.recipe import Recipe
    from benchmarks import floating

    adapter = drawn_adapter(base)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    records = texts(base, work.examples, work.tokens)
    bos, eos = base.config.bos_token_id, base.config.eos_token_id
    batch = torch.tensor([[bos, *record, eos] for record in records], device=base.device)
    other = floating.Floating(base, adapter, dtype)
    learner = floating.Floating(base, adapter, dtype)
    adamw = floating.optimiser(learner, 1e-4, 0.01)
    examples = [Example((), record) for record in records]
    prompt = [bos, *records[0][: work.prompt]]
    chosen = records[: work.batch]
    recipe = Recipe(rank=RANK, alpha=2 * RANK, batch_size=work.batch, epochs=1)
    step = exact_step(base, adapter, recipe, chosen)
    pairs: list[tuple[str, int, Callable[[], object], Callable[[], object]]] = [
        (
            "factors",
            work.examples * (work.tokens + 1),
            lambda: factors(base, adapter, examples),
            lambda: floating.factors(other, batch),
        ),
        (
            "training step",
            work.batch * (work.tokens + 1),
            step,
            lambda: floating.train_step(learner, adamw, batch[: work.batch], 1.0),
        ),
        (
            "decoding",
            work.prompt + work.new_tokens,
            lambda: exact_decoding(base, adapter, prompt, work.new_tokens),
            lambda: floating.decode(other, prompt, work.new_tokens),
        ),
    ]
    rows = []
    for name, tokens, ours, theirs in pairs:
        forget_peak(device)
        before = peak_bytes()
        ours()
        wait(device)
        rise, there = max(0, peak_bytes() - before), device_peak_bytes(device)
        took = least({"exact": ours, "floating": theirs}, device, work.seconds, 1 if not work.seconds else 3)
        width = base.config.hidden_size
        target = TARGET_CUDA if device == "cuda" else TARGETS[name][width]
        ratio = took["exact"] / took["floating"]
        rows.append(
            {
                "what": name,
                "width": width,
                "layers": base.config.num_hidden_layers,
                "tokens": tokens,
                "exact_ms": round(1000 * took["exact"], 2),
                "floating_ms": round(1000 * took["floating"], 2),
                "beside": "bf16" if device == "cuda" else "fp32",
                "ratio": round(ratio, 2),
                "target": target,
                "reached": ratio <= target,
                "exact_tokens_per_s": round(tokens / took["exact"]),
                "exact_peak_rise_bytes": rise,
                "exact_device_peak_bytes": there,
            }
        )
    return rows


def exact_step(
    base: Base, adapter: Adapter, recipe: Any, records: Sequence[Sequence[int]]
) -> Callable[[], None]:
    """A training step on the same batch again and again: gradient, clipping, AdamW."""
    from attribution.training import AdamW, Parameters, batch_gradient, clip

    parameters = Parameters(base, recipe)
    for (name, a, b), module in zip(parameters.modules(), adapter.modules, strict=True):
        if name != module.name:
            raise ValueError(f"{name} is not {module.name}")
        a.copy_(module.a)
        b.copy_(module.b.t())
    optimiser = AdamW(recipe, parameters.flat)
    c = base.config
    examples = [[c.bos_token_id, *record, c.eos_token_id] for record in records]

    def step() -> None:
        gradient, _ = batch_gradient(base, parameters, examples)
        clip(gradient, 1_000_000)
        optimiser.step(parameters.flat, gradient, 1e-4)

    return step


def exact_decoding(base: Base, adapter: Adapter, prompt: Sequence[int], new_tokens: int) -> list[int]:
    """`attribution.generation.generate` without its end at EOS, so that both sides decode as many ids."""
    from attribution.adapter import bind
    from attribution.exact.elementary import argmax
    from attribution.generation import Session

    session = Session(base, bind(adapter, base), len(prompt) + new_tokens)
    feed, out = list(prompt), list[int]()
    while len(out) < new_tokens:
        token = int(argmax(session.extend(feed)))
        out.append(token)
        feed = [token]
    return out


def demo_path(device: str, epochs: int, quick: bool) -> dict[str, float | int | str]:
    """Train, index, generate and score once on the demo's records (`quick`: on four); seconds are CPU seconds, of a GPU by the clock."""
    from attribution.checkpoint import load_base
    from attribution.generation import generate
    from attribution.index import build_index
    from attribution.models import BASE_PATH
    from attribution.recipe import Recipe
    from attribution.scores import score
    from attribution.training import train
    from node.devnet.stories import beginning, stdlib_contributors

    lines = [text for row in stdlib_contributors().values() for text in row]
    chosen = lines[:4] if quick else lines
    records = [list(text.encode()) for text in chosen]
    base = load_base(BASE_PATH, device=device)
    forget_peak(device)
    adapter, train_s = timed(lambda: train(base, records, Recipe(epochs=epochs)), device)
    train_bytes = peak_bytes()
    forget_peak(device)
    index, index_s = timed(lambda: build_index(base, adapter, records), device)
    index_bytes = peak_bytes()
    prompts = [list(beginning(text).encode()) for text in chosen[: 1 if quick else 10]]
    new_tokens = 4 if quick else 48
    outputs, generate_s = timed(
        lambda: [generate(base, adapter, prompt, new_tokens) for prompt in prompts], device
    )
    answered = [(p, o) for p, o in zip(prompts, outputs, strict=True) if o]
    forget_peak(device)
    _, score_s = timed(lambda: [score(base, adapter, index, p, o) for p, o in answered], device)
    tokens = epochs * sum(len(record) + 1 for record in records)
    decoded = sum(len(output) + 1 for output in outputs)
    return {
        "records": len(records),
        "train_tokens_per_s": round(tokens / train_s),
        "train_peak_bytes": train_bytes,
        "index_s": round(index_s, 2),
        "index_ms_per_record": round(1000 * index_s / len(records), 2),
        "index_peak_bytes": index_bytes,
        "index_bytes_per_record": index.size_bytes // len(records),
        "generate_ms_per_token": round(1000 * generate_s / decoded, 2),
        "score_ms": round(1000 * score_s / max(1, len(answered)), 1),
        "score_us_per_record": round(1e6 * score_s / max(1, len(answered)) / len(records), 1),
        "score_peak_bytes": peak_bytes(),
        "adapter_hash": adapter.hash.hex(),
        "index_root": index.root.hex(),
    }


def measure(device: str = "cpu", epochs: int = 4, quick: bool = False) -> dict[str, Any]:
    """Everything: the machine, the ratios, the demo's path."""
    from attribution.checkpoint import load_base
    from attribution.machine import describe
    from attribution.models import BASE_PATH

    set_up(device)
    work = QUICK if quick else WORK
    rows = beside_floating(load_base(BASE_PATH, device=device), device, work)
    rows += beside_floating(wide_base(work.layers, device), device, work)
    return {
        "machine": machine(device),
        "products_by": describe(device)["weights_by"],
        "ratios": rows,
        "demo": demo_path(device, 1 if quick else epochs, quick),
    }


def show(document: dict[str, Any]) -> None:
    """The same for people."""
    for name, value in document["machine"].items():
        shown = ", ".join(value) or "none" if isinstance(value, list) else value
        print(f"{name:24} {shown}")
    print(f"{'products_by':24} {document['products_by']}")
    print(
        f"\n{'what':14} {'width':>6} {'exact ms':>9} {'float ms':>9} {'ratio':>6} {'target':>6} {'tokens/s':>9}"
    )
    for row in document["ratios"]:
        print(
            f"{row['what']:14} {row['width']:>6} {row['exact_ms']:>9} {row['floating_ms']:>9} "
            f"{row['ratio']:>6} {row['target']:>6} {row['exact_tokens_per_s']:>9}"
        )
    print()
    for name, value in document["demo"].items():
        print(f"{name:24} {value}")


def main(arguments: Sequence[str]) -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attribution", description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="a little of each, to see that it runs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if reason := no_device(options.device):
        print(json.dumps({"skipped": reason}) if options.json else reason)
        return 0
    document = measure(options.device, options.epochs, options.quick)
    print(json.dumps(document)) if options.json else show(document)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(sys.argv[1:]))
