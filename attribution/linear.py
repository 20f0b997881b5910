"""Linear layers in exact arithmetic: frozen 7-bit (or 14-bit) weights, and low-rank adapters beside them.

Layers that read the same input (query, key and value; gate and up) form one group, so that the input is
quantised once and each product is one call. docs/exact-arithmetic.md, "Linear layers", is the specification: every
result here is binary32 nearest to an exact real sum, whatever way it is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from attribution.exact.backends import BACKENDS, chosen_backend, family_for
from attribution.exact.bits import pow2
from attribution.exact.products import int8_mm, limbs, product_fp32, product_int8
from attribution.exact.quantisation import Block, to_grid, value64

if TYPE_CHECKING:
    from attribution.exact.fused.layers import Factors, LimbWeights, Rows, Weights

# A binary32 sum of products of a 14-bit integer by weights is exact while 2^13 * (sum of |weights|) <= 2^24.
FP32_L1_MAX = 1 << 11
# 1 MiB of binary32: bounds the temporaries of wide layers; smaller ones were not faster with 32 MiB of cache.
CACHED_NUMBERS = 1 << 18
WEIGHT_E_MIN = -37
WEIGHT_E_MAX = 8


def _parts(q: Tensor) -> list[tuple[int, int]]:
    """Fewest equal spans of rows of q (K, N), int8, whose columns' L1 norms stay within FP32_L1_MAX."""
    k = q.shape[0]
    magnitude = q.to(torch.int32).abs()
    for count in range(1, k + 1):
        size = -(-k // count)
        spans = [(i, min(i + size, k)) for i in range(0, k, size)]
        if all(int(magnitude[i:j].sum(0).max()) <= FP32_L1_MAX for i, j in spans):
            return spans
    return []


class Frozen:
    """Frozen weights W = q * 2^e of one group: q int8 (N, K), |q| <= 64; e int32 (N), -37 <= e <= 8.

    Weights of 14 bits are int16, |q| <= 8192. `bias`, float32 (N), is for `group_forward` to add.

    `forward` gives x W^T from x quantised along K. `backward` gives (dy * 2^e) q from dy * 2^e quantised
    along N. Both round the exact sum once. The operands of each way of multiplying are made on first use.
    """

    def __init__(self, q: Tensor, e: Tensor, bias: Tensor | None = None) -> None:
        self.q = q
        self.bias = bias
        self.wide = q.dtype == torch.int16
        self.e = e
        self.scale = pow2(e)
        self.unscale = pow2(-e)
        self._cache: dict[str, list[tuple[int, int, Tensor]]] = {}
        self._packed: dict[bool, Weights | LimbWeights] = {}

    def packed(self, forward: bool) -> Weights | LimbWeights:
        """The operand of fused kernels for one direction, made on first use; that of `forward` brings the bias."""
        if forward not in self._packed:
            from attribution.exact.fused.layers import Weights

            self._packed[forward] = (
                Weights.of(self.q, self.scale, self.bias) if forward else Weights.of(self.q.t(), None, None)
            )
        return self._packed[forward]

    def forward(self, x: Block, out: Tensor | None = None) -> Tensor:
        """float32 (M, N) for x (M, K), in `out` if given, without the bias."""
        y = torch.empty(x.q.shape[0], self.q.shape[0], device=x.q.device) if out is None else out
        if family_for(x.q.device) == "fused":
            from attribution.exact.fused.layers import Rows

            return self.packed(True).times(Rows.taken(x.q, x.scale), None, y, biased=False)
        if self.wide:
            s = _wide_sum(x.q, self._operands("wide")[0][2].t())
            return y.copy_(s.mul_(x.scale64).mul_(self.scale.double()))
        family = family_for(x.q.device)
        if family == "fp32":
            return _sum_parts(x.value, self._operands("fp32 forward"), y)
        if family == "fp64":
            (_, _, weights), *_ = self._operands("fp64 forward")
            return y.copy_(torch.mm(x.q64, weights).mul_(x.scale64))
        s = _int8_sum(x.q, self.q)
        return y.copy_(s.mul_(x.scale64).mul_(self.scale.double()))

    def backward(self, dy: Block, out: Tensor | None = None) -> Tensor:
        """float32 (M, K) for dy (M, N), already scaled by the rows' powers of two, in `out` if given."""
        dx = torch.empty(dy.q.shape[0], self.q.shape[1], device=dy.q.device) if out is None else out
        if family_for(dy.q.device) == "fused":
            from attribution.exact.fused.layers import Rows

            return self.packed(False).times(Rows.taken(dy.q, dy.scale), None, dx)
        if self.wide:
            return dx.copy_(_wide_sum(dy.q, self._operands("wide")[0][2]).mul_(dy.scale64))
        family = family_for(dy.q.device)
        if family == "fp32":
            return _sum_parts(dy.value, self._operands("fp32 backward"), dx)
        if family == "fp64":
            (_, _, weights), *_ = self._operands("fp64 backward")
            return dx.copy_(torch.mm(dy.q64, weights).mul_(dy.scale64))
        (_, _, weights), *_ = self._operands("int8 backward")
        return dx.copy_(_int8_sum(dy.q, weights).mul_(dy.scale64))

    def _operands(self, kind: str) -> list[tuple[int, int, Tensor]]:
        if kind == "wide":
            # One copy serves both directions; binary64 products take it as it is.
            dtype = torch.float64 if _wide_family(self.q.device) == "fp64" else torch.float32
            if kind not in self._cache or self._cache[kind][0][2].dtype != dtype:
                self._cache[kind] = [(0, self.q.shape[0], self.q.to(dtype))]
        if kind not in self._cache:
            if kind == "int8 backward":
                return self._cache.setdefault(kind, [(0, self.q.shape[0], self.q.t().contiguous())])
            q = self.q.t() if kind.endswith("forward") else self.q
            spans = _parts(q) if kind.startswith("fp32") else [(0, q.shape[0])]
            weights = q.float() * self.scale if kind.endswith("forward") else q.float()
            weights = weights.double() if kind.startswith("fp64") else weights
            self._cache[kind] = [(i, j, weights[i:j].contiguous()) for i, j in spans]
        return self._cache[kind]


def _sum_parts(x: Tensor, parts: list[tuple[int, int, Tensor]], out: Tensor) -> Tensor:
    """Exact products of spans, then their sum rounded once, into `out`: each part is exact in binary32.

    x holds integers times one power of two per row, the weights integers times one per column, so scaling changes no
    rounding: every partial sum is an integer below 2^24 on the entry's own grid, which bounds on the exponents
    keep inside binary32's range. Two parts need one addition; more are added in binary64, where they are exact.
    """
    torch.mm(x[:, parts[0][0] : parts[0][1]], parts[0][2], out=out)
    if len(parts) == 1:
        return out
    if len(parts) == 2:
        return out.add_(torch.mm(x[:, parts[1][0] : parts[1][1]], parts[1][2]))
    total = out.double()
    wide = torch.empty_like(total)
    for i, j, weights in parts[1:]:
        torch.mm(x[:, i:j], weights, out=out)
        total.add_(wide.copy_(out))
    return out.copy_(total)


def row_spans(rows: int, width: int) -> list[tuple[int, int]]:
    """Consecutive spans of rows whose numbers of `width` columns stay in a core's second-level cache."""
    size = max(32, CACHED_NUMBERS // max(1, width))
    return [(i, min(i + size, rows)) for i in range(0, rows, size)]


def _int8_sum(q: Tensor, weights: Tensor) -> Tensor:
    """Exact integer sums as float64 (M, N) of q (M, K), 14-bit float32 integers, and int8 weights (N, K)."""
    m = q.shape[0]
    r = int8_mm(torch.cat(limbs(q), 0).to(torch.int8), weights).double()
    return r[:m].mul_(128.0).add_(r[m:])


def _wide_family(device: torch.device) -> str:
    """How products of 14 by 14 bits are computed: binary64 where 7-bit weights would by default take binary32."""
    family = family_for(device)
    return "fp64" if family == "fp32" and chosen_backend() is None and "fp64" in BACKENDS else family


def _wide_sum(q: Tensor, weights: Tensor) -> Tensor:
    """Exact integer sums as float64 (M, N) of q (M, K), 14-bit float32 integers, and weights (K, N) likewise."""
    family = _wide_family(q.device)
    if family == "fp64":
        return torch.mm(q.double(), weights)
    return product_fp32(q, weights) if family == "fp32" else product_int8(q, weights)


class Lora:
    """The adapter's factors for the modules of one group, quantised for each contraction they take part in.

    a (modules * r, in) stacks the modules' A; b (r, out of the adapted modules) holds their B transposed, side by side.
    `spans` are the modules' output columns within the group. The scale s = alpha / r, as binary32, multiplies u = A x.
    Everything of rank width is kept with the rank first, (modules * r, rows): narrow binary64 products run twice
    as fast that way. Operands are made on first use, so a and b must stay as they are.
    """

    def __init__(
        self, a: Tensor, b: Tensor, spans: list[tuple[int, int]], scale: float, base: Frozen
    ) -> None:
        self.a, self.b = a, b
        self.spans = spans
        self.rank = b.shape[0]
        self.outs = base.q.shape[0]
        self.packed = pack(spans)
        self.covers_all = b.shape[1] == self.outs
        self.scale = torch.tensor(scale, dtype=torch.float32)
        self.unscale = base.unscale if self.covers_all else torch.cat([base.unscale[i:j] for i, j in spans])

    @cached_property
    def unscale64(self) -> Tensor:
        """2^-e of the adapted modules' rows of the base, side by side, float64."""
        return self.unscale.double()

    @cached_property
    def a_rows(self) -> Tensor:
        """A quantised along its inputs and dequantised, float64."""
        return value64(self.a, 1)

    @cached_property
    def a_columns(self) -> Tensor:
        """A quantised along its rank and dequantised, float64."""
        return value64(self.a, 0)

    @cached_property
    def b_rows(self) -> Tensor:
        """B quantised along its rank and dequantised, float64."""
        return value64(self.b, 0)

    @cached_property
    def b_columns(self) -> list[Tensor]:
        """Each module's B, less the base rows' powers of two, quantised along its outputs and dequantised, float64."""
        scaled = self.b * self.unscale
        return [value64(scaled[:, i:j], 1) for i, j in self.packed]

    @cached_property
    def fused(self) -> Factors:
        """The same for fused kernels."""
        from attribution.exact.fused.layers import Factors

        return Factors(self)

    def down(self, x: Block) -> tuple[Tensor, Tensor, Tensor]:
        """(u, h, h quantised) for x (M, K): u = A x and h = s u, float32 (modules * r, M); the last in float64."""
        u = torch.mm(self.a_rows, x.q64.t()).mul_(x.scale64.t()).float()
        h = u * self.scale
        return u, h, value64(h.view(-1, self.rank, h.shape[1]), 1)

    def up(self, rows: Tensor, y: Tensor) -> None:
        """Add B h to y (M, N) in place, from rows (modules, r, M) of `down`."""
        wide = torch.empty(y.shape[0], self.b_rows.shape[1], dtype=torch.float64, device=y.device)
        for j, (start, stop) in enumerate(self.packed):
            torch.mm(rows[j].t(), self.b_rows[:, start:stop], out=wide[:, start:stop])
        if self.covers_all:
            y.add_(wide.float())
        else:
            for (start, stop), (i, k) in zip(self.packed, self.spans, strict=True):
                y[:, i:k].add_(wide[:, start:stop].float())

    def backward(self, dy: NarrowBlock, dx: Tensor) -> tuple[Tensor, Tensor]:
        """Add A^T (s g) to dx (M, K) in place; returns (g, s g), g = B^T dy, float32 (modules * r, M).

        dy holds the output gradient already scaled by the base rows' powers of two; b_columns undo them.
        """
        wide = torch.empty(self.rank * len(self.spans), dx.shape[0], dtype=torch.float64, device=dx.device)
        for j, (start, stop) in enumerate(self.spans):
            out = wide[j * self.rank : (j + 1) * self.rank]
            torch.mm(self.b_columns[j], dy.q64[:, start:stop].t(), out=out)
        g = wide.mul_(dy.scale.t().double()).float()
        gs = g * self.scale
        dx.add_(torch.mm(value64(gs, 0).t(), self.a_columns).float())
        return g, gs


Bound = list[tuple[Lora | None, ...]]
"""An adapter beside a base: per layer, and in it per group of modules that share an input, the factors or None."""


def group_forward(
    frozen: Frozen, lora: Lora | None, x: Block | Rows
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(y (M, N), u, h) of one group; u and h are None without an adapter. Wide rows are made a few at a time."""
    if not isinstance(x, Block) or family_for(x.q.device) == "fused":
        from attribution.exact.fused import layers

        return layers.group_forward(frozen, lora, layers.rows_of(x))
    y = torch.empty(x.q.shape[0], frozen.q.shape[0], device=x.q.device)
    u = h = rows = None
    if lora is not None:
        u, h, rows = lora.down(x)
    for i, j in row_spans(*y.shape):
        frozen.forward(Block(x.q[i:j], x.scale[i:j]), y[i:j])
        if frozen.bias is not None:
            y[i:j].add_(frozen.bias)
        if lora is not None and rows is not None:
            lora.up(rows[:, :, i:j], y[i:j])
    return y, u, h


@dataclass(frozen=True, slots=True)
class GroupGradient:
    """dx (M, K) and, with an adapter, dy as quantised (q64 float64, scale), dh = B^T dy and s dh (rank first)."""

    dx: Tensor
    dy: Quantised
    dh: Tensor | None
    dh_scaled: Tensor | None


class Quantised(Protocol):
    """A quantised matrix however it is held: q64 float64 integers (M, N), scale float32 (M, 1)."""

    @property
    def q64(self) -> Tensor:
        """The integers."""

    @property
    def scale(self) -> Tensor:
        """2^e of each row."""


@dataclass(frozen=True, slots=True)
class NarrowBlock:
    """What contractions over rows need of a quantised matrix: q64 float64 integers (M, N), scale float32 (M, 1)."""

    q64: Tensor
    scale: Tensor


def group_backward(frozen: Frozen, lora: Lora | None, dy: Tensor) -> GroupGradient:
    """Gradient of one group by its input, from dy (M, N); wide rows are handled a few at a time."""
    if family_for(dy.device) == "fused":
        from attribution.exact.fused import layers

        rows = layers.Rows.of(dy, frozen.scale)
        return GroupGradient(*layers.group_backward(frozen, lora, rows))
    m, n = dy.shape
    dx = torch.empty(m, frozen.q.shape[1], device=dy.device)
    q64 = torch.empty(m if lora is not None else 0, n, dtype=torch.float64, device=dy.device)
    scale = torch.empty(m, 1, device=dy.device)
    dh, dh_scaled = [], []
    for i, j in row_spans(m, n):
        block = Block.of(dy[i:j] * frozen.scale)
        frozen.backward(block, dx[i:j])
        scale[i:j] = block.scale
        if lora is not None:
            q64[i:j] = block.q
            g, gs = lora.backward(NarrowBlock(q64[i:j], scale[i:j]), dx[i:j])
            dh.append(g)
            dh_scaled.append(gs)
    if lora is None:
        return GroupGradient(dx, NarrowBlock(q64, scale), None, None)
    return GroupGradient(dx, NarrowBlock(q64, scale), torch.cat(dh, 1), torch.cat(dh_scaled, 1))


def pack(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans moved side by side from 0."""
    out, at = [], 0
    for i, j in spans:
        out.append((at, at + j - i))
        at += j - i
    return out


def contract(lora: Lora, x: Quantised, h: Tensor, dy: Quantised, gs: Tensor) -> tuple[Tensor, Tensor]:
    """Parameter gradients of one group over all rows: dA = (s g)^T x (modules * r, in), dB^T = (s u)^T dy (r, out).

    float32, each the exact real sum rounded once. The contraction runs over tokens, so each token's power of two is
    folded into the narrow operand, which is then quantised along tokens (docs/exact-arithmetic.md, "Folding"). Rows
    may come in any order, and shards may be summed as integers once they agree on the maxima.
    """
    if family_for(gs.device) == "fused":
        from attribution.exact.fused import layers

        return layers.contract(lora, layers.rows_of(x), h, layers.rows_of(dy), gs)
    q, scale = to_grid(torch.cat([gs * x.scale.t(), h * dy.scale.t()]))
    q64, scale64 = q.double(), scale.double()
    width = lora.rank * len(lora.spans)
    da = torch.mm(q64[:width], x.q64).mul_(scale64[:width]).float()
    db = torch.empty(lora.rank, lora.unscale64.shape[0], dtype=torch.float64, device=q.device)
    for j, ((i, k), (first, last)) in enumerate(zip(lora.spans, lora.packed, strict=True)):
        rows = slice(width + j * lora.rank, width + (j + 1) * lora.rank)
        torch.mm(q64[rows], dy.q64[:, i:k], out=db[:, first:last]).mul_(scale64[rows])
    return da, db.mul_(lora.unscale64).float()
