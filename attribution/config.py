"""Shape of a Llama-architecture decoder, from Hugging Face keys, with limits on every field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
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


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Fields as in a Hugging Face `LlamaConfig`; floats are kept as the text Python prints (shortest, exact)."""

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
        for name, low, high in (("rms_norm_eps", 1e-12, 1e-1), ("rope_theta", 1.0, 1e9)):
            text = getattr(self, name)
            if type(text) is not str or len(text) > 32 or not low <= _number(text) <= high:
                raise BadModel(f"{name} = {text!r} is not a number in {low}..{high}")
            if repr(_number(text)) != text:
                raise BadModel(f"{name} = {text!r} is not in its shortest form")

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
        """Sorted keys, no spaces, ASCII: one text per configuration."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    @classmethod
    def from_canonical_json(cls, text: str) -> ModelConfig:
        """Inverse of `canonical_json`; any other text is refused with BadModel."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):  # nested without end
            raise BadModel("the configuration is not JSON") from None
        if not isinstance(values, dict) or set(values) != {f.name for f in fields(cls)}:
            raise BadModel("the configuration's keys are not those of this version")
        config = cls(**values)
        if config.canonical_json() != text:
            raise BadModel("the configuration is not in canonical form")
        return config


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
