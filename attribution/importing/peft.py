"""Adapters as PEFT directories: `adapter_config.json` and `adapter_model.safetensors`, in and out.

Every option of `adapter_config.json` is read, or known to change nothing that is computed, or refused by its name.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from attribution.adapter import MODULES_MAX, PREFIX, Adapter, LoraModule, adapter_to_bytes
from attribution.config import PROJECTIONS
from attribution.errors import BadAdapter
from attribution.importing.errors import ImportRefused
from attribution.importing.files import names_in, read_json, shown
from attribution.importing.shards import PICKLES
from attribution.importing.tensor_file import TensorFile, open_tensors
from attribution.model import module_name

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
LAYERS_MAX = 256
_READ = frozenset(("peft_type", "r", "lora_alpha", "target_modules", "use_rslora", "layers_to_transform"))
_HARMLESS = frozenset(
    (
        # Where the base came from, how training went, and options of features that are refused below.
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "lora_dropout",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
    )
)
# Options that would change what is computed, with the values that do not.
_ONLY: dict[str, tuple[object, ...]] = {
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    # Others change the base's weights as well, which the file does not say.
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),
    "layers_pattern": (None, "layers"),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "loftq_config": ({}, None),
    "runtime_config": ({"ephemeral_gpu_offload": False}, None),
    **dict.fromkeys(
        ("fan_in_fan_out", "use_dora", "use_qalora", "lora_bias", "ensure_weight_tying"), (False, None)
    ),
    **dict.fromkeys(
        (
            "alora_invocation_tokens",
            "arrow_config",
            "corda_config",
            "eva_config",
            "exclude_modules",
            "kasa_config",
            "layer_replication",
            "lora_ga_config",
            "megatron_config",
            "modules_to_save",
            "monteclora_config",
            "target_parameters",
            "trainable_token_indices",
            "use_bdlora",
            "velora_config",
        ),
        (None,),
    ),
}


def read_peft(folder: Path, layers: int | None = None) -> Adapter:
    """The adapter in a PEFT directory; with `layers`, the base's number of them, none may be missing.

    Raises ImportRefused, BadAdapter.
    """
    names = names_in(folder)
    if WEIGHTS not in names:
        pickles = [name for name in names if name.endswith(PICKLES)]
        if pickles:
            raise ImportRefused(
                f"{shown(pickles[0])} is pickle, which can run code; save the adapter as safetensors"
            )
        raise ImportRefused(f"{WEIGHTS} is not in {folder}")
    values = read_json(folder / CONFIG)
    rank, alpha, rslora = _options(values)
    with open_tensors(folder / WEIGHTS) as file:
        modules = tuple(
            LoraModule(name, file.whole(_factor(name, "A")), file.whole(_factor(name, "B")))
            for name in _modules(file)
        )
    _check_targets(values, [m.name for m in modules], layers)
    return Adapter(rank, alpha, modules, rslora)


def write_peft(adapter: Adapter, folder: Path, layers: int | None = None) -> None:
    """Write a PEFT directory: whole or not at all, never over another. `layers` is the base's number, if known.

    Raises ImportRefused where `folder` exists.
    """
    if folder.exists():
        raise ImportRefused(f"{folder} exists; nothing is overwritten")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        text = json.dumps(peft_options(adapter, layers), indent=2, sort_keys=True) + "\n"
        for name, data in ((CONFIG, text.encode()), (WEIGHTS, adapter_to_bytes(adapter))):
            with (scratch / name).open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        scratch.chmod(0o755)
        scratch.rename(folder)
    except OSError:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def peft_options(adapter: Adapter, layers: int | None = None) -> dict[str, object]:
    """The contents of `adapter_config.json`. Raises BadAdapter for a module outside the base's layers."""
    places = [_place(m.name) for m in adapter.modules]
    used = sorted({layer for layer, _ in places})
    if layers is not None and used[-1] >= layers:
        raise BadAdapter(f"layer {used[-1]} is not one of the base's {layers}")
    projections = [p for p in PROJECTIONS if any(p == other for _, other in places)]
    options: dict[str, object] = {
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": adapter.rank,
        "target_modules": projections,
        "task_type": "CAUSAL_LM",
        "use_rslora": adapter.rslora,
    }
    if len(places) != len(used) * len(projections):
        # Not every layer has the same modules: each is named in full.
        options["target_modules"] = [m.name for m in adapter.modules]
    elif used != list(range(layers or 0)):
        options["layers_to_transform"] = used
    return options


def _options(values: Mapping[str, object]) -> tuple[int, int, bool]:
    """(rank, alpha, whether the scale is alpha / sqrt(rank))."""
    if values.get("peft_type") != "LORA":
        raise ImportRefused(f"{CONFIG}: peft_type {shown(values.get('peft_type'))} is not LORA")
    for key, value in values.items():
        if key in _READ or key in _HARMLESS:
            continue
        if key not in _ONLY:
            raise ImportRefused(f"{CONFIG}: {shown(key)} is not an option that is known here")
        if not any(type(value) is type(one) and value == one for one in _ONLY[key]):
            raise ImportRefused(f"{CONFIG}: {key} = {shown(value)} is not supported")
    rank, alpha, rslora = values.get("r"), values.get("lora_alpha"), values.get("use_rslora", False)
    if isinstance(alpha, float) and alpha.is_integer():
        alpha = int(alpha)
    if type(rank) is not int or type(alpha) is not int:
        raise ImportRefused(f"{CONFIG}: r = {shown(rank)} and lora_alpha = {shown(alpha)} must be integers")
    if type(rslora) is not bool:
        raise ImportRefused(f"{CONFIG}: use_rslora = {shown(rslora)} is not a boolean")
    return rank, alpha, rslora


def _factor(module: str, factor: str) -> str:
    return f"{PREFIX}{module}.lora_{factor}.weight"


def _modules(file: TensorFile) -> list[str]:
    """Names of the file's modules in model order, each with both factors, and nothing else in the file."""
    known = {
        _factor(module_name(layer, p), "A"): (layer, i)
        for layer in range(LAYERS_MAX)
        for i, p in enumerate(PROJECTIONS)
    }
    found = sorted(place for name in file.entries if (place := known.get(name)) is not None)
    if not 1 <= len(found) <= MODULES_MAX:
        raise ImportRefused(f"{WEIGHTS} holds no factor that is known here")
    modules = [module_name(layer, PROJECTIONS[i]) for layer, i in found]
    wanted = {_factor(name, factor) for name in modules for factor in ("A", "B")}
    odd = sorted(wanted ^ set(file.entries))
    if odd:
        raise ImportRefused(f"{WEIGHTS}: missing or unexpected tensor {shown(odd[0])}")
    for name in sorted(wanted):
        if len(file.entries[name].shape) != 2:
            raise ImportRefused(f"{WEIGHTS}: {shown(name)} is not a matrix")
    return modules


def _place(name: str) -> tuple[int, str]:
    parts = name.split(".")
    return int(parts[2]), parts[-1]


def _check_targets(values: Mapping[str, object], modules: list[str], layers: int | None) -> None:
    """Every module that the options select is in the file, and no other: PEFT would leave out the rest silently."""
    targets, chosen = values.get("target_modules"), values.get("layers_to_transform")
    if targets == "all-linear":
        targets = list(PROJECTIONS)
    if (
        not isinstance(targets, list)
        or not all(isinstance(t, str) for t in targets)
        or len(targets) > MODULES_MAX
    ):
        raise ImportRefused(f"{CONFIG}: target_modules = {shown(targets)} is not a list of names")
    seen = {_place(name)[0] for name in modules}
    if chosen is None:
        selected = set(range(layers if layers is not None else max(seen) + 1))
    elif isinstance(chosen, list) and all(type(n) is int for n in chosen) and len(chosen) <= LAYERS_MAX:
        selected = set(chosen)
    elif type(chosen) is int:
        selected = {chosen}
    else:
        raise ImportRefused(f"{CONFIG}: layers_to_transform = {shown(chosen)} is not a list of layers")
    exact = {t for t in targets if t.startswith("model.layers.")}
    suffixes = tuple(f".{t}" for t in targets)
    wanted = {
        name
        for layer in selected | seen
        for p in PROJECTIONS
        if (name := module_name(layer, p)) in exact or (layer in selected and name.endswith(suffixes))
    }
    odd = sorted(wanted ^ set(modules))
    if odd:
        place = "not selected by" if odd[0] in modules else f"not in {WEIGHTS}, but selected by"
        raise ImportRefused(f"{odd[0]} is {place} target_modules and layers_to_transform")
    unused = [t for t in targets if not any(n == t or n.endswith(f".{t}") for n in modules)]
    if unused:
        raise ImportRefused(
            f"{CONFIG}: target_modules names {shown(unused[0])}, of which {WEIGHTS} holds nothing"
        )
