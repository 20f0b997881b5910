"""`config.json` to `ModelConfig`: every key is read, or known to change nothing, or refused by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attribution.config import PROJECTIONS, ModelConfig, RopeScaling
from attribution.importing.errors import ImportRefused
from attribution.importing.files import shown

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
)
_READ = frozenset(
    (
        *_SIZES,
        "model_type",
        "architectures",
        "rms_norm_eps",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
        "layer_types",
    )
)
_HARMLESS = frozenset(
    (
        # Training, storage, and conveniences of the library that wrote the file.
        "_name_or_path",
        "_attn_implementation_autoset",
        "attention_dropout",
        "dtype",
        "initializer_range",
        "is_llama_config",
        "max_sequence_length",
        "pad_token_id",
        "tokenizer_class",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
    )
)
# Keys that would change what is computed, with the values that do not.
_ONLY: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "pretraining_tp": (1,),
    "rope_interleaved": (False,),
    "use_mrope": (False,),
    "partial_rotary_factor": (None, 1, 1.0),
    "quantization_config": (None,),
    "auto_map": (None,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
}
_WINDOW: dict[str, tuple[object, ...]] = {
    "use_sliding_window": (None, False),
    "sliding_window": (None,),
    "max_window_layers": (),
}


@dataclass(frozen=True, slots=True)
class Family:
    """What one `model_type` adds to a Llama decoder."""

    architecture: str
    biases: tuple[str, ...]
    flags: tuple[str, ...]
    qk_norm: bool = False
    windows: bool = False


FAMILIES = {
    "llama": Family("LlamaForCausalLM", (), ("attention_bias", "mlp_bias")),
    "qwen2": Family("Qwen2ForCausalLM", ("q_proj", "k_proj", "v_proj"), (), windows=True),
    "qwen3": Family("Qwen3ForCausalLM", (), ("attention_bias",), qk_norm=True, windows=True),
}


def model_config(
    values: Mapping[str, object], bits: int = 7, bos: int | None = None, eos: int | None = None
) -> ModelConfig:
    """The configuration of a base with weights of `bits` (7 or 14), from the object in a `config.json`.

    `bos` and `eos` stand for ids that the file lacks, or of which it gives several. Raises ImportRefused, BadModel.
    """
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ImportRefused(f"model_type {shown(kind)} is not one of {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    _check_keys(values, kind, family)
    given = {name: values.get(name) for name in _SIZES}
    theta, scaling = _rotary(values)
    return ModelConfig(
        **_sizes(given, kind),
        tie_word_embeddings=_flag(values, "tie_word_embeddings"),
        bos_token_id=_token(values, "bos_token_id", bos),
        eos_token_id=_token(values, "eos_token_id", eos),
        rms_norm_eps=_number(values, "rms_norm_eps"),
        rope_theta=theta,
        rope_scaling=scaling,
        biases=_biases(values, family),
        qk_norm=family.qk_norm,
        weight_bits=bits,
    )


def _check_keys(values: Mapping[str, object], kind: str, family: Family) -> None:
    architectures = values.get("architectures")
    if architectures is not None and architectures != [family.architecture]:
        raise ImportRefused(f"architectures {shown(architectures)} is not [{family.architecture!r}]")
    layers = values.get("layer_types")
    if layers is not None and not (
        isinstance(layers, list) and all(layer == "full_attention" for layer in layers)
    ):
        raise ImportRefused(f"layer_types {shown(layers)}: only full_attention is supported")
    unused = values.get("use_sliding_window") is False
    for key, value in values.items():
        if key in _READ or key in _HARMLESS or key in family.flags:
            continue
        if key in _WINDOW and family.windows:
            # The other two mean nothing once the first says that no layer has a window.
            if unused and key != "use_sliding_window":
                continue
            allowed = _WINDOW[key]
        elif key in _ONLY:
            allowed = _ONLY[key]
        else:
            raise ImportRefused(f"config.json: {shown(key)} is not an option of {kind} that is known here")
        if not any(type(value) is type(one) and value == one for one in allowed):
            raise ImportRefused(f"config.json: {key} = {shown(value)} is not supported")


def _sizes(given: dict[str, object], kind: str) -> dict[str, int]:
    hidden, heads = given["hidden_size"], given["num_attention_heads"]
    if given["num_key_value_heads"] is None and kind == "llama":
        given["num_key_value_heads"] = heads
    if given["head_dim"] is None and kind != "qwen3":
        if type(hidden) is not int or type(heads) is not int or heads < 1 or hidden % heads:
            raise ImportRefused(
                "hidden_size is not a multiple of num_attention_heads, and head_dim is not given"
            )
        given["head_dim"] = hidden // heads
    sizes: dict[str, int] = {}
    for name, value in given.items():
        if type(value) is not int:
            raise ImportRefused(f"config.json: {name} = {shown(value)} is not an integer")
        sizes[name] = value
    return sizes


def _flag(values: Mapping[str, object], name: str) -> bool:
    value = values.get(name, False)
    if type(value) is not bool:
        raise ImportRefused(f"config.json: {name} = {shown(value)} is not a boolean")
    return value


def _token(values: Mapping[str, object], name: str, chosen: int | None) -> int:
    if chosen is not None:
        return chosen
    value = values.get(name)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if type(value) is not int:
        option = name.partition("_")[0]
        raise ImportRefused(
            f"config.json: {name} = {shown(value)} is not one token; choose it with --{option} ID"
        )
    return value


def _number(values: Mapping[str, object], name: str) -> str:
    value = values.get(name)
    if type(value) is not int and type(value) is not float:
        raise ImportRefused(f"config.json: {name} = {shown(value)} is not a number")
    try:
        return repr(float(value))
    except OverflowError:
        raise ImportRefused(f"config.json: {name} is too large") from None


def _biases(values: Mapping[str, object], family: Family) -> tuple[str, ...]:
    found = set(family.biases)
    if "attention_bias" in family.flags and _flag(values, "attention_bias"):
        found.update(_ATTENTION)
    if "mlp_bias" in family.flags and _flag(values, "mlp_bias"):
        found.update(p for p in PROJECTIONS if p not in _ATTENTION)
    return tuple(p for p in PROJECTIONS if p in found)


def _rotary(values: Mapping[str, object]) -> tuple[str, RopeScaling | None]:
    """(theta, scaling) from the three places where versions of the library have written them, which must agree."""
    thetas = {_number(values, "rope_theta")} if values.get("rope_theta") is not None else set()
    scalings: list[RopeScaling | None] = []
    for place in ("rope_scaling", "rope_parameters"):
        inner = values.get(place)
        if inner is None:
            continue
        if not isinstance(inner, dict):
            raise ImportRefused(f"config.json: {place} = {shown(inner)} is not an object")
        if inner.get("rope_theta") is not None:
            thetas.add(_number(inner, "rope_theta"))
        scalings.append(_scaling(inner, place))
    if len(thetas) > 1 or len(set(scalings)) > 1:
        raise ImportRefused("config.json says twice, and differently, how positions are rotated")
    return thetas.pop() if thetas else "10000.0", scalings[0] if scalings else None


def _scaling(inner: dict[str, object], place: str) -> RopeScaling | None:
    kinds = [inner[key] for key in ("rope_type", "type") if key in inner]
    kind = kinds[0] if kinds else "default"
    if any(other != kind for other in kinds):
        raise ImportRefused(f"config.json: {place} names two types, {shown(kinds)}")
    wanted: dict[object, tuple[str, ...]] = {
        "default": (),
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    }
    if not isinstance(kind, str) or kind not in wanted:
        raise ImportRefused(
            f"config.json: {place} of type {shown(kind)}; supported are default, linear and llama3"
        )
    fields = wanted[kind]
    for key, value in inner.items():
        whole = key == "partial_rotary_factor" and type(value) in (int, float) and value == 1
        if key not in (*fields, "rope_type", "type", "rope_theta") and not whole:
            raise ImportRefused(f"config.json: {place} of type {kind} has an unknown option {shown(key)}")
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling(kind, _number(inner, "factor"))
    positions = inner.get("original_max_position_embeddings")
    if type(positions) is not int:
        raise ImportRefused(
            f"config.json: original_max_position_embeddings = {shown(positions)} is not an integer"
        )
    low, high = _number(inner, "low_freq_factor"), _number(inner, "high_freq_factor")
    return RopeScaling(kind, _number(inner, "factor"), low, high, positions)
