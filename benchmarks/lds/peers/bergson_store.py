"""bergson's gradient store: randomly projected per-example gradients on disk, asked through the inverse of their second moments.

Its own steps, in its own order: `build` (index), `approximate_hessians` with `autocorrelation` (one dense second moment a module,
damping 0.1 of the mean), `build` for the queries, `Attributor.search`. `projection` is its `projection_dim` p (p x p numbers
a module); `modules` are the LoRA factors of a PEFT model or the layers of the merged one; `adam` divides by AdamW's second
moments first (its TrackStar; LoRA only); `unit_norm` asks for cosines with both sides preconditioned.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.lds.peers.loading import (
    Clock,
    Files,
    adapted_model,
    base_model,
    check_logits,
    save_merged,
    write_answer,
)

TOKENS_MAX = 2048
"""Tokens of a batch: bergson's default."""


def write_tokenizer(files: Files) -> Path:
    """A tokenizer directory, which bergson wants although records come as ids: one word a byte."""
    place = files.folder / "tokenizer"
    if not place.exists():
        tokenizers, transformers = (importlib.import_module(name) for name in ("tokenizers", "transformers"))
        size = base_model(files.folder).config.vocab_size
        words = {f"<{i}>": i for i in range(size)}
        model = tokenizers.models.WordLevel(words, unk_token="<0>")
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer(model), pad_token="<0>", eos_token="<0>", bos_token="<0>"
        )
        fast.save_pretrained(place)
    return place


def write_data(files: Files, name: str, rows: list[list[int]]) -> Path:
    """Token ids as a `datasets` directory."""
    place = files.folder / name
    if not place.exists():
        datasets = importlib.import_module("datasets")
        datasets.Dataset.from_dict({"input_ids": rows, "length": [len(row) for row in rows]}).save_to_disk(
            place
        )
    return place


def model_path(files: Files, modules: str) -> tuple[Path, float]:
    """Where bergson loads the model from, and how far its logits are from the network's."""
    if modules == "base":
        place = save_merged(files.folder)
        from transformers import LlamaForCausalLM

        return place, check_logits(
            LlamaForCausalLM.from_pretrained(place, dtype=torch.float32).eval(), files.folder
        )
    return files.folder / "adapters" / "final", check_logits(adapted_model(files.folder), files.folder)


def write_optimiser(files: Files, model: Path) -> None:
    """optimizer.pt as torch saves AdamW's state, parameters numbered in the order of the PEFT model's."""
    moments = load_file(files.folder / "moments.safetensors")
    names = [name for name, _ in adapted_model(files.folder).named_parameters() if ".lora_" in name]
    state = {}
    for i, name in enumerate(names):
        key = name.removeprefix("base_model.model.").replace(".default", "")
        state[i] = {"exp_avg_sq": moments[key], "step": torch.tensor(1.0)}
    torch.save({"state": state, "param_groups": [{"params": list(state)}]}, model / "optimizer.pt")


def config(files: Files, name: str, data: Path, model: Path, **changed: Any) -> Any:
    """An `IndexConfig` whose output is `files.folder`/name."""
    settings = importlib.import_module("bergson.config.config")
    return settings.IndexConfig(
        run_path=str(files.folder / name),
        model=str(model),
        tokenizer=str(write_tokenizer(files)),
        precision="fp32",
        data=settings.DataConfig(dataset=str(data)),
        token_batch_size=TOKENS_MAX,
        loss_reduction="sum",
        overwrite=True,
        **changed,
    )


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    """Gradients of an index by module, (rows, numbers)."""
    data = importlib.import_module("bergson.data")
    gradients = data.load_module_gradients(folder)
    return {name: torch.from_numpy(gradients[name].copy()) for name in gradients.keys()}  # noqa: SIM118


def main(files: Files, options: dict[str, Any]) -> None:
    """Scores from a store with p = options["projection"]."""
    modules, p = str(options.get("modules", "lora")), int(options["projection"])
    unit, damping = bool(options.get("unit_norm", False)), float(options.get("damping", 0.1))
    torch.manual_seed(files.seed)
    model, apart = model_path(files, modules)
    settings = importlib.import_module("bergson.config.config")
    builds = importlib.import_module("bergson.build")
    hessians = importlib.import_module("bergson.hessians.hessian_approximations")
    attributors = importlib.import_module("bergson.query.attributor")
    records, asked = write_data(files, "records", files.records), write_data(files, "asked", files.asked)
    changed: dict[str, Any] = {"projection_dim": p}
    if options.get("adam"):
        write_optimiser(files, model)
        changed["optimizer_state"] = str(model)
    clock = Clock()
    clock.timed(
        "build",
        lambda: builds.build(config(files, "index", records, model, **changed), settings.PreprocessConfig()),
    )
    clock.timed(
        "hessian",
        lambda: hessians.approximate_hessians(
            config(files, "hessian", records, model, **changed),
            settings.HessianConfig(method="autocorrelation"),
        ),
    )
    attributor = clock.timed(
        "open",
        lambda: attributors.Attributor(
            files.folder / "index",
            unit_norm=unit,
            hessian_path=files.folder / "hessian",
            inversion_cfg=settings.InversionConfig(damping_factor=damping),
        ),
    )
    clock.timed(
        "queries",
        lambda: builds.build(config(files, "query", asked, model, **changed), settings.PreprocessConfig()),
    )
    gradients = loaded(files.folder / "query")
    found = clock.timed("search", lambda: attributor.search(gradients, None))
    scores = torch.empty(len(files.asked), len(files.records)).scatter_(1, found.indices, found.values)
    size = (files.folder / "index" / "gradients.bin").stat().st_size
    spent = clock.seconds
    write_answer(
        files.folder,
        scores,
        {
            "build_s": spent["build"] + spent["hessian"] + spent["open"],
            "query_ms": 1000 * (spent["queries"] + spent["search"]) / len(files.asked),
            "bytes_per_record": size // len(files.records),
            "note": f"p={p}{', AdamW moments' if options.get('adam') else ''}{', unit norm' if unit else ''}, damping {damping}; "
            f"index {spent['build']:.1f} s, second moments {spent['hessian']:.1f} s, search {spent['search']:.2f} s; "
            f"logits within {apart:.1e}",
        },
    )
