"""Shape of a Llama-architecture decoder, from Hugging Face keys, with limits on every field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from attribution.errors import BadModel

_LIMITS = {
    "hidden_size": 8192,
    "num_hidden_layers": 256,
    "num_attention_heads": 256,
    "num_key_value_heads": 256,
    "head_dim": 256,
    "intermediate_size": 1 << 16,
    "vocab_size": 1 << 18,
    "max_position_embeddings": 1 << 17,
}
_REFUSED = {"attention_bias": False, "mlp_bias": False, "rope_scaling": None, "hidden_act": "silu"}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WEIGHT_BITS = (7, 14)
ROPE_SCALINGS = ("linear", "llama3")


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched: "linear" by `factor`; "llama3" also has the last three fields.

    Floats as text, as in `ModelConfig`; those that a kind does not have are empty (0). Raises BadModel.
    """

    rope_type: str
    factor: str
    low_freq_factor: str = ""
    high_freq_factor: str = ""
    original_max_position_embeddings: int = 0

    def __post_init__(self) -> None:
        if self.rope_type not in ROPE_SCALINGS:
            raise BadModel(f"rope_type {str(self.rope_type)[:40]!r} is not one of {', '.join(ROPE_SCALINGS)}")
        _check_number("factor", self.factor, 1.0, 1024.0)
        positions = self.original_max_position_embeddings
        if self.rope_type == "linear":
            if (self.low_freq_factor, self.high_freq_factor, positions) != ("", "", 0):
                raise BadModel("linear rotary scaling has a factor and nothing else")
            return
        for name in ("low_freq_factor", "high_freq_factor"):
            _check_number(name, getattr(self, name), 1 / 1024, 1024.0)
        if not _number(self.low_freq_factor) < _number(self.high_freq_factor):
            raise BadModel("low_freq_factor is not below high_freq_factor")
        limit = _LIMITS["max_position_embeddings"]
        if type(positions) is not int or not 1 <= positions <= limit:
            raise BadModel(
                f"original_max_position_embeddings = {positions!r} is not an integer in 1..{limit}"
            )

    def to_mapping(self) -> dict[str, str | int]:
        """The fields that this kind has."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) not in ("", 0)}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Fields as in a Hugging Face `LlamaConfig`; floats are kept as the text Python prints (shortest, exact).

    The last four are not in every decoder: `biases` names the projections that have one (in the order of PROJECTIONS),
    `qk_norm` says that the heads of queries and keys are normed, `weight_bits` is 7 or 14. The canonical text names
    only those that differ from their defaults, so that it is one text for every model, old or new.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    bos_token_id: int
    eos_token_id: int
    rms_norm_eps: str
    rope_theta: str
    rope_scaling: RopeScaling | None = None
    biases: tuple[str, ...] = ()
    qk_norm: bool = False
    weight_bits: int = 7

    def __post_init__(self) -> None:
        for name, limit in _LIMITS.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= limit:
                raise BadModel(f"{name} = {value!r} is not an integer in 1..{limit}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise BadModel("num_attention_heads is not a multiple of num_key_value_heads")
        if self.head_dim % 2 or self.num_attention_heads * self.head_dim > 1 << 15:
            raise BadModel("head_dim is odd, or the heads are wider than 2^15 together")
        if type(self.tie_word_embeddings) is not bool:
            raise BadModel("tie_word_embeddings is not a boolean")
        for name in ("bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value < self.vocab_size:
                raise BadModel(f"{name} = {value!r} is not in the vocabulary")
        _check_number("rms_norm_eps", self.rms_norm_eps, 1e-12, 1e-1)
        _check_number("rope_theta", self.rope_theta, 1.0, 1e9)
        if self.rope_scaling is not None and type(self.rope_scaling) is not RopeScaling:
            raise BadModel("rope_scaling is not a scaling of rotary frequencies")
        if type(self.biases) is not tuple or self.biases != tuple(p for p in PROJECTIONS if p in self.biases):
            raise BadModel(f"biases are not projections out of {', '.join(PROJECTIONS)}, in that order")
        if type(self.qk_norm) is not bool:
            raise BadModel("qk_norm is not a boolean")
        if type(self.weight_bits) is not int or self.weight_bits not in WEIGHT_BITS:
            raise BadModel(f"weight_bits = {self.weight_bits!r} is neither 7 nor 14")

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Read a `config.json`'s mapping; keys this model does not know are ignored, unsupported features refused.

        Raises BadModel.
        """
        for key, only in _REFUSED.items():
            if config.get(key, only) != only:
                raise BadModel(f"{key} = {config[key]!r} is not supported")
        rope = config.get("rope_parameters") or {}
        if not isinstance(rope, Mapping) or rope.get("rope_type", "default") != "default":
            raise BadModel("only the default rotary embedding is supported")
        try:
            heads, hidden = config["num_attention_heads"], config["hidden_size"]
            head_dim = config.get("head_dim")
            if head_dim is None:
                if type(heads) is not int or type(hidden) is not int or heads < 1 or hidden % heads:
                    raise BadModel("hidden_size is not a multiple of num_attention_heads")
                head_dim = hidden // heads
            return cls(
                hidden_size=hidden,
                num_hidden_layers=config["num_hidden_layers"],
                num_attention_heads=heads,
                num_key_value_heads=config.get("num_key_value_heads") or heads,
                head_dim=head_dim,
                intermediate_size=config["intermediate_size"],
                vocab_size=config["vocab_size"],
                max_position_embeddings=config["max_position_embeddings"],
                tie_word_embeddings=config.get("tie_word_embeddings", False),
                bos_token_id=config["bos_token_id"],
                eos_token_id=config["eos_token_id"],
                rms_norm_eps=_text(config["rms_norm_eps"]),
                rope_theta=_text(config.get("rope_theta", rope.get("rope_theta", 10000.0))),
            )
        except KeyError as error:
            raise BadModel(f"the configuration lacks {error.args[0]!r}") from None

    def canonical_json(self) -> str:
        """Sorted keys, no spaces, ASCII, no field that has its default: one text per configuration."""
        values = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}
        if self.rope_scaling is not None:
            values["rope_scaling"] = self.rope_scaling.to_mapping()
        return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    @classmethod
    def from_canonical_json(cls, text: str) -> ModelConfig:
        """Inverse of `canonical_json`; any other text is refused with BadModel."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):  # nested without end
            raise BadModel("the configuration is not JSON") from None
        known = {f.name: f.default is not MISSING for f in fields(cls)}
        if not isinstance(values, dict) or not {k for k, optional in known.items() if not optional} <= set(
            values
        ) <= set(known):
            raise BadModel("the configuration's keys are not those of this version")
        if type(values.get("biases", [])) is not list:
            raise BadModel("biases are not a list")
        if "biases" in values:
            values["biases"] = tuple(values["biases"])
        if values.get("rope_scaling") is not None:
            values["rope_scaling"] = _rope_scaling(values["rope_scaling"])
        config = cls(**values)
        if config.canonical_json() != text:
            raise BadModel("the configuration is not in canonical form")
        return config


def _rope_scaling(values: object) -> RopeScaling:
    known = {f.name for f in fields(RopeScaling)}
    if not isinstance(values, dict) or not {"rope_type", "factor"} <= set(values) <= known:
        raise BadModel("the keys of rope_scaling are not those of this version")
    return RopeScaling(**values)


def _check_number(name: str, text: object, low: float, high: float) -> None:
    if type(text) is not str or len(text) > 32 or not low <= _number(text) <= high:
        raise BadModel(f"{name} = {str(text)[:40]!r} is not a number in {low}..{high}")
    if repr(_number(text)) != text:
        raise BadModel(f"{name} = {text!r} is not in its shortest form")


def _text(value: object) -> str:
    if isinstance(value, str):
        return repr(_number(value))
    if type(value) not in (int, float):
        raise BadModel(f"{value!r} is not a number")
    try:
        return repr(float(value))  # type: ignore[arg-type]
    except OverflowError:
        raise BadModel("an integer too large for a number") from None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise BadModel(f"{text!r} is not a number") from None
    if not math.isfinite(value):
        raise BadModel(f"{text!r} is not finite")
    return value
