"""The base model: a Llama-architecture decoder whose frozen weights ARE 7-bit (or 14-bit) integers with row exponents.

Shapes: `<name>.q` int8 (out, in), |q| <= 64; `<name>.e` int16 (out,), -37 <= e <= 8; norms float32 (hidden,).
W = q * 2^e. docs/exact-arithmetic.md, "The model", is the specification. With 14 bits q is int16, |q| <= 8192 and
e <= 1; a base may also have biases, norms of query and key heads, and stretched rotary frequencies: docs/models.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from attribution.config import PROJECTIONS as PROJECTIONS
from attribution.config import ModelConfig as ModelConfig
from attribution.config import RopeScaling
from attribution.errors import BadModel, NotRepresentable
from attribution.exact.bits import exponent_of, pow2, row_power
from attribution.exact.elementary import cos_sin, divide_, exp64, log
from attribution.linear import WEIGHT_E_MAX, WEIGHT_E_MIN, Frozen
from attribution.tensor_hash import tensors_digest

GROUPS: tuple[tuple[str, ...], ...] = (
    ("q_proj", "k_proj", "v_proj"),
    ("o_proj",),
    ("gate_proj", "up_proj"),
    ("down_proj",),
)
WEIGHT_BITS = 7
VECTOR_MAX = 2.0**20
_POSITIONS_AT_ONCE = 4096
_TWO_PI = 2.0 * math.pi


def module_name(layer: int, projection: str) -> str:
    """Hugging Face name, e.g. `model.layers.0.self_attn.q_proj`."""
    part = "mlp" if projection in ("gate_proj", "up_proj", "down_proj") else "self_attn"
    return f"model.layers.{layer}.{part}.{projection}"


def projection_shape(config: ModelConfig, projection: str) -> tuple[int, int]:
    """(out, in) of a projection."""
    d, f = config.hidden_size, config.intermediate_size
    q = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    return {
        "q_proj": (q, d),
        "k_proj": (kv, d),
        "v_proj": (kv, d),
        "o_proj": (d, q),
        "gate_proj": (f, d),
        "up_proj": (f, d),
        "down_proj": (d, f),
    }[projection]


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Names (without `.weight`) and shapes of the quantised matrices."""
    shapes = {"model.embed_tokens": (config.vocab_size, config.hidden_size)}
    for layer in range(config.num_hidden_layers):
        for projection in PROJECTIONS:
            shapes[module_name(layer, projection)] = projection_shape(config, projection)
    if not config.tie_word_embeddings:
        shapes["lm_head"] = (config.vocab_size, config.hidden_size)
    return shapes


def norm_names(config: ModelConfig) -> list[str]:
    """Names of the float32 norm weights."""
    names = ["model.norm.weight"]
    for layer in range(config.num_hidden_layers):
        names.append(f"model.layers.{layer}.input_layernorm.weight")
        names.append(f"model.layers.{layer}.post_attention_layernorm.weight")
    return names


def vector_shapes(config: ModelConfig) -> dict[str, int]:
    """Names and lengths of all float32 vectors: norms, and biases and norms of heads where the model has them."""
    shapes = dict.fromkeys(norm_names(config), config.hidden_size)
    for layer in range(config.num_hidden_layers):
        for projection in config.biases:
            shapes[f"{module_name(layer, projection)}.bias"] = projection_shape(config, projection)[0]
        if config.qk_norm:
            shapes.update(dict.fromkeys(head_norm_names(layer), config.head_dim))
    return shapes


def head_norm_names(layer: int) -> tuple[str, str]:
    """Names of the norm weights of a layer's query heads and key heads, each float32 (head_dim,)."""
    part = f"model.layers.{layer}.self_attn"
    return f"{part}.q_norm.weight", f"{part}.k_norm.weight"


def tensor_specs(config: ModelConfig) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Dtype and shape of every tensor of a base."""
    specs: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name, shape in weight_shapes(config).items():
        specs[f"{name}.q"] = (torch.int8 if config.weight_bits == WEIGHT_BITS else torch.int16, shape)
        specs[f"{name}.e"] = (torch.int16, shape[:1])
    for name, length in vector_shapes(config).items():
        specs[name] = (torch.float32, (length,))
    return specs


@dataclass(frozen=True)
class Layer:
    """One decoder layer's operands: frozen groups in the order of GROUPS, the two norms, and those of the heads."""

    groups: tuple[Frozen, ...]
    norms: tuple[Tensor, Tensor]
    head_norms: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True, eq=False)  # compared by identity: tensors have no one answer
class Base:
    """A quantised base model on one device. Make it with `quantise_checkpoint` or `load_base`."""

    config: ModelConfig
    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        specs = tensor_specs(self.config)
        if set(specs) != set(self.tensors):
            odd = sorted(set(specs) ^ set(self.tensors))
            raise BadModel(f"missing or unexpected tensors: {', '.join(odd[:4])}")
        for name, (dtype, shape) in specs.items():
            _check_tensor(name, self.tensors[name], dtype, shape, self.config.weight_bits)

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.tensors["model.norm.weight"].device

    @cached_property
    def hash(self) -> bytes:
        """32 bytes: digest over the configuration and the sorted (name, dtype, shape, bytes)."""
        return tensors_digest("model", self.config.canonical_json().encode(), self.tensors)

    @cached_property
    def eps(self) -> float:
        """The norm's epsilon, binary64."""
        return float(self.config.rms_norm_eps)

    @cached_property
    def embedding(self) -> Tensor:
        """Dequantised embedding table, float32 (vocab, hidden), exact."""
        e = self.tensors["model.embed_tokens.e"].to(torch.int32)
        return self.tensors["model.embed_tokens.q"].float() * pow2(e)[:, None]

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Operands layer by layer."""
        out = []
        for i in range(self.config.num_hidden_layers):
            groups = tuple(self._frozen([module_name(i, p) for p in group]) for group in GROUPS)
            first = self.tensors[f"model.layers.{i}.input_layernorm.weight"]
            second = self.tensors[f"model.layers.{i}.post_attention_layernorm.weight"]
            names = head_norm_names(i)
            heads = (self.tensors[names[0]], self.tensors[names[1]]) if self.config.qk_norm else None
            out.append(Layer(groups, (first, second), heads))
        return tuple(out)

    @cached_property
    def head(self) -> Frozen:
        """The output projection (the embedding itself where tied)."""
        return self._frozen(["model.embed_tokens" if self.config.tie_word_embeddings else "lm_head"])

    @cached_property
    def rope(self) -> tuple[Tensor, Tensor]:
        """(cos, sin), float32 (positions, 1, head_dim / 2)."""
        return rope_tables(self.config, self.device)

    def _frozen(self, names: list[str]) -> Frozen:
        q = torch.cat([self.tensors[f"{n}.q"] for n in names])
        e = torch.cat([self.tensors[f"{n}.e"] for n in names]).to(torch.int32)
        if not any(f"{n}.bias" in self.tensors for n in names):
            return Frozen(q, e)
        rows = {n: self.tensors[f"{n}.e"].shape for n in names}
        biases = [self.tensors.get(f"{n}.bias", torch.zeros(rows[n], device=q.device)) for n in names]
        return Frozen(q, e, torch.cat(biases))

    def to(self, device: str | torch.device) -> Base:
        """The same base on another device."""
        return Base(self.config, {name: t.to(device) for name, t in self.tensors.items()})


def rope_tables(config: ModelConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cos and sin of position * theta^(-2i/head_dim), in binary64 by our polynomials, rounded to binary32."""
    half = config.head_dim // 2
    i = torch.arange(half, dtype=torch.float64, device=device)
    theta = torch.tensor(float(config.rope_theta), dtype=torch.float64, device=device)
    frequency = exp64(log(theta) * divide_(i * -2.0, float(config.head_dim)))
    if config.rope_scaling is not None:
        frequency = scaled_frequencies(frequency, config.rope_scaling)
    position = torch.arange(config.max_position_embeddings, dtype=torch.float64, device=device)
    cos = torch.empty(config.max_position_embeddings, 1, half, device=device)
    sin = torch.empty_like(cos)
    # A few at a time: the functions' temporaries would be a dozen tables in binary64.
    for start in range(0, config.max_position_embeddings, _POSITIONS_AT_ONCE):
        rows = slice(start, start + _POSITIONS_AT_ONCE)
        c, s = cos_sin(position[rows, None] * frequency)
        cos[rows, 0], sin[rows, 0] = c.float(), s.float()
    return cos, sin


def scaled_frequencies(frequency: Tensor, scaling: RopeScaling) -> Tensor:
    """Rotary frequencies (binary64) stretched as Llama 3.1 does, or linearly; docs/models.md gives the operations."""
    slow = divide_(frequency.clone(), float(scaling.factor))
    if scaling.rope_type == "linear":
        return slow
    low, high = float(scaling.low_freq_factor), float(scaling.high_freq_factor)
    turns = divide_(frequency * float(scaling.original_max_position_embeddings), _TWO_PI)
    smooth = divide_(turns - low, high - low)
    between = (1.0 - smooth) * slow + smooth * frequency
    return torch.where(turns < low, slow, torch.where(turns > high, frequency, between))


def quantise_weight(w: Tensor, bits: int = WEIGHT_BITS) -> tuple[Tensor, Tensor]:
    """(q int8, e int16) of a float32 matrix, one exponent per row: smallest e in [-37, 8] with max|w| < 2^(e+6).

    With 14 bits q is int16 and e the smallest in [-37, 1] with max|w| < 2^(e+13). Raises NotRepresentable for a
    magnitude of 2^14 or more, an infinity or a NaN.
    """
    e = exponent_of(row_power(w)).sub_(bits - 2).clamp_(min=WEIGHT_E_MIN)
    if e.numel() and int(e.max()) > exponent_max(bits):
        raise NotRepresentable("a weight has a magnitude of 2^14 or more")
    dtype = torch.int8 if bits == WEIGHT_BITS else torch.int16
    return torch.mul(w, pow2(-e)).round_().to(dtype), e[:, 0].to(torch.int16)


def exponent_max(bits: int) -> int:
    """Largest exponent of a row: weights stay below 2^14 whatever their bits."""
    return WEIGHT_E_MAX + WEIGHT_BITS - bits


def quantise_checkpoint(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> Base:
    """Quantise float tensors with Hugging Face Llama names to a Base on their device.

    Unknown tensors are refused, except `lm_head.weight` where it is tied. Raises BadModel, NotRepresentable.
    """
    model = ModelConfig.from_mapping(config)
    shapes = weight_shapes(model)
    wanted = {f"{name}.weight" for name in shapes} | set(norm_names(model))
    extra = set(state_dict) - wanted - ({"lm_head.weight"} if model.tie_word_embeddings else set())
    extra = {name for name in extra if not name.endswith("rotary_emb.inv_freq")}
    if extra or wanted - set(state_dict):
        odd = sorted(extra | (wanted - set(state_dict)))
        raise BadModel(f"missing or unexpected tensors: {', '.join(odd[:4])}")
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        weight = state_dict[f"{name}.weight"].detach().to(torch.float32)
        if tuple(weight.shape) != shape:
            raise BadModel(f"{name} has shape {tuple(weight.shape)}, not {shape}")
        tensors[f"{name}.q"], tensors[f"{name}.e"] = quantise_weight(weight)
    for name in norm_names(model):
        tensors[name] = state_dict[name].detach().to(torch.float32).clone() + 0.0
    return Base(model, tensors)


def _check_tensor(name: str, x: Tensor, dtype: torch.dtype, shape: tuple[int, ...], bits: int) -> None:
    if x.dtype != dtype or tuple(x.shape) != shape:
        raise BadModel(f"{name} is {x.dtype} {tuple(x.shape)}, not {dtype} {shape}")
    if name.endswith(".q"):
        limit = 1 << (bits - 1)
        if int(x.min()) < -limit or int(x.max()) > limit:
            raise BadModel(f"{name} holds integers beyond {limit}")
    elif name.endswith(".e"):
        if int(x.min()) < WEIGHT_E_MIN or int(x.max()) > exponent_max(bits):
            raise BadModel(f"{name} holds exponents outside [{WEIGHT_E_MIN}, {exponent_max(bits)}]")
    else:
        magnitude = x.abs().max()
        if not bool(magnitude < VECTOR_MAX):
            raise BadModel(f"{name} holds a value that is not finite or too large")
