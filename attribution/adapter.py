"""A low-rank adapter (LoRA, Hu et al. 2021): y = W x + B (s (A x)), s = alpha / rank, as PEFT stores it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from attribution.errors import BadAdapter
from attribution.last_made import LastMade
from attribution.linear import Bound, Lora
from attribution.model import GROUPS, PROJECTIONS, Base, module_name, projection_shape
from attribution.tensor_hash import tensor_bytes, tensors_digest

PREFIX = "base_model.model."
BYTES_MAX = 1 << 28
HEADER_BYTES_MAX = 1 << 20
MODULES_MAX = 256 * len(PROJECTIONS)
VALUE_MAX = 2.0**40


@dataclass(frozen=True, slots=True)
class LoraModule:
    """One module's factors: name as in `model.module_name`, a (rank, in), b (out, rank), float32."""

    name: str
    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class Adapter:
    """An adapter's modules in model order (layers, then q, k, v, o, gate, up, down), all of one rank.

    `rslora` scales by alpha / sqrt(rank) (Kalajdzievski 2023) instead of alpha / rank. Raises BadAdapter for shapes or values that cannot be an adapter. Whether it fits a base is `check_fits`' matter.
    """

    rank: int
    alpha: int
    modules: tuple[LoraModule, ...]
    rslora: bool = False
    _weaker: LastMade[float, Adapter] = field(default_factory=LastMade, init=False, repr=False, compare=False)
    _bound: LastMade[Base, Bound] = field(default_factory=LastMade, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= 256 or not 1 <= self.alpha <= 4096:
            raise BadAdapter(f"rank {self.rank} or alpha {self.alpha} is out of bounds")
        if not 1 <= len(self.modules) <= MODULES_MAX:
            raise BadAdapter(f"{len(self.modules)} modules")
        if len({m.name for m in self.modules}) != len(self.modules):
            raise BadAdapter("a module is named twice")
        for m in self.modules:
            for x, axis in ((m.a, 0), (m.b, 1)):
                if x.dtype != torch.float32 or x.dim() != 2 or x.shape[axis] != self.rank:
                    raise BadAdapter(f"{m.name} has a factor {x.dtype} {tuple(x.shape)} for rank {self.rank}")
                if x.numel() == 0 or not bool(x.abs().max() < VALUE_MAX):
                    raise BadAdapter(
                        f"{m.name} has an empty factor or a value that is not finite or too large"
                    )

    @property
    def scale(self) -> float:
        """S = alpha / rank, which multiplies u = A x as a binary32 number; with `rslora`, alpha / sqrt(rank).

        Root and quotient are binary64, each correctly rounded.
        """
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def tensors(self) -> dict[str, Tensor]:
        """PEFT names to tensors."""
        out = {}
        for m in self.modules:
            out[f"{PREFIX}{m.name}.lora_A.weight"] = m.a
            out[f"{PREFIX}{m.name}.lora_B.weight"] = m.b
        return out

    @cached_property
    def hash(self) -> bytes:
        """32 bytes: digest over rank, alpha and the sorted (name, dtype, shape, bytes)."""
        header = f"{self.rank} {self.alpha}{' rslora' if self.rslora else ''}"
        return tensors_digest("adapter", header.encode(), self.tensors())

    def weakened(self, strength: float) -> Adapter:
        """The same adapter with every B times ``strength``, one rounding each: on the way from the base to it.

        The last one is kept: every query asks for the same.
        """
        return self._weaker.get(strength, lambda: self._weakened(strength))

    def _weakened(self, strength: float) -> Adapter:
        modules = tuple(LoraModule(m.name, m.a, m.b * strength) for m in self.modules)
        return Adapter(self.rank, self.alpha, modules, self.rslora)

    def bound_to(self, base: Base) -> Bound:
        """`bind` on the base's device, kept for the base that it was last asked for."""
        return self._bound.get(base, lambda: bind(self.to(base.device), base))

    def to(self, device: str | torch.device) -> Adapter:
        """The same adapter on another device."""
        moved = tuple(LoraModule(m.name, m.a.to(device), m.b.to(device)) for m in self.modules)
        return Adapter(self.rank, self.alpha, moved, self.rslora)


def check_fits(adapter: Adapter, base: Base) -> None:
    """Raise BadAdapter unless every module exists in `base` with these shapes, in model order."""
    order = {
        module_name(layer, p): (i, projection_shape(base.config, p))
        for i, (layer, p) in enumerate(
            (layer, p) for layer in range(base.config.num_hidden_layers) for p in PROJECTIONS
        )
    }
    last = -1
    for m in adapter.modules:
        place, shape = order.get(m.name, (-1, (0, 0)))
        if place <= last:
            raise BadAdapter(f"{m.name} is not a module of the base, or out of order")
        last = place
        if (m.b.shape[0], m.a.shape[1]) != shape:
            raise BadAdapter(f"{m.name} does not have the shape {shape} of the base")


def bind(adapter: Adapter, base: Base) -> Bound:
    """Quantise the factors for use: per layer and group of GROUPS, the Lora beside it or None. Raises BadAdapter."""
    check_fits(adapter, base)
    by_name = {m.name: m for m in adapter.modules}
    out = []
    for i, layer in enumerate(base.layers):
        row: list[Lora | None] = []
        for group, frozen in zip(GROUPS, layer.groups, strict=True):
            chosen = [by_name[name] for p in group if (name := module_name(i, p)) in by_name]
            if chosen:
                a, b = torch.cat([m.a for m in chosen]), torch.cat([m.b for m in chosen]).t().contiguous()
                spans = group_spans(base, i, group, {m.name for m in chosen})
                row.append(Lora(a, b, spans, adapter.scale, frozen))
            else:
                row.append(None)
        out.append(tuple(row))
    return out


def group_spans(base: Base, layer: int, group: tuple[str, ...], names: set[str]) -> list[tuple[int, int]]:
    """Output columns, within their group, of the modules of `group` that are in `names`."""
    spans, start = [], 0
    for p in group:
        stop = start + projection_shape(base.config, p)[0]
        if module_name(layer, p) in names:
            spans.append((start, stop))
        start = stop
    return spans


def adapter_to_bytes(adapter: Adapter) -> bytes:
    """The adapter as one safetensors file: sorted names, no padding but the header's to 8 bytes; one form only."""
    tensors = dict(sorted(adapter.tensors().items()))
    metadata = {"alpha": str(adapter.alpha), "format": "pt", "rank": str(adapter.rank)}
    if adapter.rslora:
        metadata["use_rslora"] = "true"
    header: dict[str, object] = {"__metadata__": metadata}
    offset, chunks = 0, []
    for name, x in tensors.items():
        data = tensor_bytes(x)
        header[name] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
        chunks.append(data)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(chunks)


def adapter_from_bytes(
    data: bytes, device: str | torch.device = "cpu", bytes_max: int = BYTES_MAX
) -> Adapter:
    """Read what `adapter_to_bytes` wrote; any other bytes are refused with BadAdapter.

    Only the canonical form passes, so an adapter's bytes and its hash determine each other.
    """
    if len(data) > bytes_max:
        raise BadAdapter(f"{len(data)} bytes exceed the limit of {bytes_max}")
    header, body = _split(data)
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict):
        raise BadAdapter("the metadata are missing")
    rank, alpha = (_small_int(metadata.get(key)) for key in ("rank", "alpha"))
    factors: dict[str, dict[str, Tensor]] = {}
    for name, entry in header.items():
        for factor in ("A", "B"):
            suffix = f".lora_{factor}.weight"
            if name.startswith(PREFIX) and name.endswith(suffix):
                module = name[len(PREFIX) : -len(suffix)]
                factors.setdefault(module, {})[factor] = _tensor(name, entry, body)
                break
        else:
            raise BadAdapter(f"unexpected tensor {name[:80]!r}")
    modules = []
    for module in sorted(factors, key=_model_order):
        pair = factors[module]
        if set(pair) != {"A", "B"}:
            raise BadAdapter(f"{module} lacks a factor")
        modules.append(LoraModule(module, pair["A"], pair["B"]))
    adapter = Adapter(rank, alpha, tuple(modules), "use_rslora" in metadata)
    if adapter_to_bytes(adapter) != data:
        raise BadAdapter("the bytes are not in canonical form")
    return adapter.to(device)


def _split(data: bytes) -> tuple[dict[str, object], bytes]:
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(HEADER_BYTES_MAX, len(data) - 8):
        raise BadAdapter("the header's length is out of bounds")
    try:
        header = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError):
        raise BadAdapter("the header is not JSON") from None
    if not isinstance(header, dict) or len(header) > 2 * MODULES_MAX + 1:
        raise BadAdapter("the header is not a mapping of tensors within the limits")
    return header, data[8 + size :]


def _small_int(text: object) -> int:
    if not isinstance(text, str) or not text.isascii() or not text.isdigit() or len(text) > 6:
        raise BadAdapter("rank or alpha is not a small integer")
    return int(text)


def _tensor(name: str, entry: object, body: bytes) -> Tensor:
    match entry:
        case {
            "dtype": "F32",
            "shape": [int() as rows, int() as columns],
            "data_offsets": [int() as i, int() as j],
        }:
            if (
                0 < rows <= 1 << 18
                and 0 < columns <= 1 << 18
                and 0 <= i <= j <= len(body)
                and j - i == 4 * rows * columns
            ):
                array = np.frombuffer(body[i:j], dtype="<f4").astype(np.float32)
                return torch.from_numpy(array).view(rows, columns)
    raise BadAdapter(f"the entry of {name[:80]!r} is malformed")


def _model_order(name: str) -> tuple[int, int]:
    parts = name.split(".")
    if len(parts) != 5 or not (parts[2].isascii() and parts[2].isdigit()) or len(parts[2]) > 3:
        raise BadAdapter(f"{name[:80]!r} is not a module name")
    layer, projection = int(parts[2]), parts[4]
    if projection not in PROJECTIONS or module_name(layer, projection) != name:
        raise BadAdapter(f"{name[:80]!r} is not a module name")
    return layer, PROJECTIONS.index(projection)
