"""Linear groups by fused kernels: operands packed once, rows quantised once, products with their epilogues in one pass.

`attribution.linear` decides when these serve and holds the definition; every function here gives its bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribution.errors import NotRepresentable
from attribution.exact.fused import limbs, products
from attribution.exact.fused.products import PAIRS_7, PAIRS_14
from attribution.exact.fused.vector import COLUMNS
from attribution.exact.quantisation import Block

if TYPE_CHECKING:
    from attribution.linear import Frozen, Lora, Quantised

Array = NDArray[Any]
Operands = tuple[Array, Array, Array, Array, Array, Array, Array]
_NONE32 = np.zeros(0, np.float32)
_NONE64 = np.zeros(0, np.float64)
_NO_LOW = np.zeros((0, 2), np.int16)
_NO_LOW_SCALE = np.zeros((0, 1), np.float64)
_NO_UP = np.zeros((0, 1, COLUMNS), np.int32)
_NO_RANGES = np.zeros((0, 2), np.int64)
_NO_BLOCKS = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Rows:
    """Quantised rows: q16 int16 (M, width + 1 or 2), zeros beyond the width; scales float64 (M)."""

    q16: Array
    scales: Array
    width: int

    @classmethod
    def of(cls, x: Tensor, factor: Tensor | None = None) -> Rows:
        """Quantise x (M, K) along K, each number times that of `factor` (K) first. Raises NotRepresentable."""
        m, k = x.shape
        q, scales = np.empty((m, _even(k + 1)), np.int16), np.empty(m, np.float64)
        numbers = array(x)
        if factor is None:
            done = products.quantise_rows(numbers, q, scales)
        else:
            done = products.quantise_scaled(numbers, array(factor), q, scales)
        require(done)
        return cls(q, scales, k)

    @classmethod
    def taken(cls, q: Tensor, scale: Tensor) -> Rows:
        """Rows that are quantised already: q (M, K) floating integers, scale (M, 1)."""
        m, k = q.shape
        q16 = np.zeros((m, _even(k + 1)), np.int16)
        q16[:, :k] = q.numpy()
        return cls(q16, scale.double().view(m).numpy(), k)

    @property
    def q64(self) -> Tensor:
        """The integers, float64 (M, K)."""
        return torch.from_numpy(self.q16[:, : self.width].astype(np.float64))

    @property
    def scale(self) -> Tensor:
        """2^e, float32 (M, 1)."""
        return torch.from_numpy(self.scales.astype(np.float32)).view(-1, 1)


def rows_of(x: Rows | Quantised | Block) -> Rows:
    """The rows in the form that kernels take; a Block's and a NarrowBlock's integers are copied."""
    if isinstance(x, Rows):
        return x
    return Rows.taken(x.q if isinstance(x, Block) else x.q64, x.scale)


def array(x: Tensor) -> Array:
    """The tensor's numbers, contiguous, in place where they are so already."""
    out: Array = x.contiguous().numpy()
    return out


def require(representable: bool) -> None:
    """Raise NotRepresentable unless a kernel found every row representable."""
    if not representable:
        raise NotRepresentable("a row holds an infinity, a NaN or a magnitude of 2^101 or more")


def _even(n: int) -> int:
    return n + n % 2


def _panels(columns: int, pairs: int) -> Array:
    return np.zeros((-(-columns // COLUMNS), pairs, COLUMNS), np.int32)


@dataclass(frozen=True, slots=True)
class Weights:
    """Frozen weights for one direction: packed (panels, pairs, 16) int32, scale float64 by column, longest sum in pairs."""

    packed: Array
    scale: Array
    longest: int
    bias: Array

    @classmethod
    def of(cls, q: Tensor, scale: Tensor | None, bias: Tensor | None) -> Weights | LimbWeights:
        """Weights q (N, K), integers of 7 bits (int8) or 14 (int16), contracted along K; in the form that is the fastest here."""
        n, k = q.shape
        scales = np.ones(n) if scale is None else array(scale.double())
        biases = _NONE32 if bias is None else array(bias)
        narrow = q.dtype == torch.int8
        if narrow and limbs.USABLE and k <= limbs.WIDTH_MAX:
            return LimbWeights.of(array(q), scales, biases)
        packed = _panels(n, _even(k) // 2)
        products.pack_integers(array(q.to(torch.int16)), packed)
        return cls(packed, scales, PAIRS_7 if narrow else PAIRS_14, biases)

    def times(self, x: Rows, low: Low | None, out: Tensor, biased: bool = True) -> Tensor:
        """Write the product of x by these weights, with bias and `low`'s part, to out (M, N)."""
        bias = self.bias if biased else _NONE32
        operands = low.operands if low is not None else _NO_OPERANDS
        products.group(x.q16, x.scales, self.packed, self.scale, self.longest, bias, operands, out.numpy())
        return out


@dataclass(frozen=True, slots=True)
class LimbWeights:
    """The same for the unit that multiplies int8 tiles: panels as `limbs.pack_panels` makes them.

    The scales of all their columns are there in binary64 and in binary32, and for which rows the latter do (`limbs.short_range`).
    """

    panels: Array
    scale: Array
    short: Array
    between: Array
    bias: Array

    @classmethod
    def of(cls, q: Array, scale: Array, bias: Array) -> LimbWeights:
        """Weights q (N, K) int8, |q| <= 64, contracted along K."""
        n, k = q.shape
        panels = limbs.panels_for(n, k)
        limbs.pack_panels(q, panels)
        scales = np.ones(panels.shape[0] * COLUMNS)
        scales[:n] = scale
        return cls(panels, scales, scales.astype(np.float32), limbs.short_range(k, scale), bias)

    def times(self, x: Rows, low: Low | None, out: Tensor, biased: bool = True) -> Tensor:
        """As `Weights.times`."""
        bias = self.bias if biased else _NONE32
        operands = low.operands if low is not None else _NO_OPERANDS
        y, given = out.numpy(), (x.q16, x.width, x.scales, self.panels, self.scale)
        if x.scales.size == 1 and x.width <= limbs.SHORT_WIDTH_MAX:
            limbs.row_group(*given, bias, operands, y)
        else:
            limbs.group_limbs(*given, self.short, self.between, bias, operands, y)
        return out


_NO_OPERANDS: Operands = (_NO_LOW, _NO_LOW_SCALE, _NO_UP, _NONE64, _NO_RANGES, _NO_BLOCKS, _NO_BLOCKS)


@dataclass(frozen=True, slots=True)
class Up:
    """The second factor of a low-rank product: packed over its rank, scales, pairs of each panel, block of each column."""

    packed: Array
    scale: Array
    ranges: Array
    blocks: Array
    alone: Array

    @classmethod
    def of(cls, packed: Array, scale: Array, ranges: Array, blocks: Array) -> Up:
        """With the block of each panel whose sixteen columns have no other, else -1."""
        alone = np.full(packed.shape[0], -1)
        for panel in range(blocks.size // COLUMNS):
            found = np.unique(blocks[panel * COLUMNS : (panel + 1) * COLUMNS])
            alone[panel] = found[0] if found.size == 1 else -1
        return cls(packed, scale, ranges, blocks, alone)


@dataclass(frozen=True, slots=True)
class Low:
    """Rows of rank width, quantised block by block, beside what multiplies them."""

    q16: Array
    scales: Array
    up: Up

    @property
    def operands(self) -> Operands:
        """What the kernel takes, in its order."""
        up = self.up
        return self.q16, self.scales, up.packed, up.scale, up.ranges, up.blocks, up.alone


class Factors:
    """A `Lora`'s factors packed for the four contractions they take part in."""

    def __init__(self, lora: Lora) -> None:
        a, b = lora.a.contiguous(), lora.b.contiguous()
        ranks, width = a.shape
        self.rank, self.blocks, self.factor = lora.rank, len(lora.spans), np.float32(lora.scale.item())
        self.spans = lora.spans
        self.down, self.down_scale = _along(a.numpy())
        self.up = self._up(lora, array(b))
        across = _panels(width, _even(ranks) // 2)
        scale = np.empty(width)
        require(products.pack_across(a.numpy(), across, 0, 0, scale))
        ranges = np.empty((across.shape[0], 2), np.int64)
        ranges[:] = (0, across.shape[1])
        self.across = Up.of(across, scale, ranges, np.zeros(width, np.int64))
        scaled = b * lora.unscale
        self.back = [_along(array(scaled[:, i:j])) for i, j in lora.packed]

    def _up(self, lora: Lora, b: Array) -> Up:
        pairs, outs = _even(self.rank) // 2, lora.outs
        packed, scale = _panels(outs, pairs * self.blocks), np.ones(outs)
        ranges, blocks = np.zeros((packed.shape[0], 2), np.int64), np.zeros(outs, np.int64)
        for block, ((i, k), (first, last)) in enumerate(zip(lora.spans, lora.packed, strict=True)):
            part = np.ascontiguousarray(b[:, first:last])
            require(products.pack_across(part, packed, block * pairs, i, scale))
            blocks[i:k] = block
            for panel in range(i // COLUMNS, -(-k // COLUMNS)):
                begin = ranges[panel, 0] if ranges[panel, 1] else block * pairs
                ranges[panel] = (begin, (block + 1) * pairs)
        return Up.of(packed, scale, ranges, blocks)

    def narrow(self, x: Rows) -> tuple[Array, Array, Low]:
        """(u, h, h quantised module by module) for x: u = A x and h = s u, float32 (M, modules * r)."""
        m = x.scales.size
        u = np.empty((m, self.rank * self.blocks), np.float32)
        products.product(x.q16, 0, x.scales, self.down, self.down_scale, u, 0)
        h, q, scale = self._quantised(u, self.blocks)
        return u, h, Low(q, scale, self.up)

    def narrow_back(self, dy: Rows) -> tuple[Array, Array, Low]:
        """(g, s g, s g quantised over all modules) for dy: g = B^T dy, float32 (M, modules * r)."""
        m = dy.scales.size
        g = np.empty((m, self.rank * self.blocks), np.float32)
        for block, ((start, _), (packed, scale)) in enumerate(zip(self.spans, self.back, strict=True)):
            products.product(dy.q16, start, dy.scales, packed, scale, g, block * self.rank)
        gs, q, scale = self._quantised(g, 1)
        return g, gs, Low(q, scale, self.across)

    def _quantised(self, u: Array, blocks: int) -> tuple[Array, Array, Array]:
        m, ranks = u.shape
        h, padded = np.empty_like(u), _even(ranks // blocks)
        q, scale = np.empty((m, blocks, padded), np.int16), np.empty((m, blocks))
        require(products.quantise_blocks(u, self.factor, h, q, scale))
        return h, q.reshape(m, blocks * padded), scale


def _along(w: Array) -> tuple[Array, Array]:
    packed, scale = _panels(w.shape[0], _even(w.shape[1]) // 2), np.empty(w.shape[0])
    require(products.pack_along(w, packed, scale))
    return packed, scale


def group_forward(frozen: Frozen, lora: Lora | None, x: Rows) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`attribution.linear.group_forward`: (y (M, N), u, h), the last two with the rank first, as views."""
    y = torch.empty(x.scales.size, frozen.q.shape[0])
    weights = frozen.packed(forward=True)
    if lora is None:
        return weights.times(x, None, y), None, None
    u, h, low = lora.fused.narrow(x)
    return weights.times(x, low, y), torch.from_numpy(u).t(), torch.from_numpy(h).t()


def group_backward(
    frozen: Frozen, lora: Lora | None, dy: Rows
) -> tuple[Tensor, Rows, Tensor | None, Tensor | None]:
    """(dx (M, K), dy, dh, s dh) for dy, already scaled by the rows' powers of two; the last two with the rank first, as views."""
    dx = torch.empty(dy.scales.size, frozen.q.shape[1])
    weights = frozen.packed(forward=False)
    if lora is None:
        return weights.times(dy, None, dx), dy, None, None
    g, gs, low = lora.fused.narrow_back(dy)
    return weights.times(dy, low, dx), dy, torch.from_numpy(g).t(), torch.from_numpy(gs).t()


def contract(lora: Lora, x: Rows, h: Tensor, dy: Rows, gs: Tensor) -> tuple[Tensor, Tensor]:
    """`attribution.linear.contract`: (dA (modules * r, in), dB^T (r, outs of the adapted modules))."""
    m, r = x.scales.size, lora.rank
    q, grids = _folded(gs, x.scales)
    da = np.empty((q.shape[0], x.width), np.float32)
    ones = np.ones(x.width)
    products.product(q, 0, grids, _by_rows(x, 0, x.width), ones, da, 0)
    q, grids = _folded(h, dy.scales)
    unscale = lora.unscale64.numpy()
    db = np.empty((r, unscale.size), np.float32)
    for j, ((i, k), (first, last)) in enumerate(zip(lora.spans, lora.packed, strict=True)):
        rows = slice(j * r, (j + 1) * r)
        products.product(q[rows], 0, grids[rows], _by_rows(dy, i, k), unscale[first:last], db, first)
    if m == 0:
        return torch.zeros(da.shape), torch.zeros(db.shape)
    return torch.from_numpy(da), torch.from_numpy(db)


def _folded(narrow: Tensor, scales: Array) -> tuple[Array, Array]:
    rows = array(narrow.t())
    q, grids = np.empty((rows.shape[1], _even(rows.shape[0])), np.int16), np.empty(rows.shape[1])
    require(products.fold_tokens(rows, scales, q, grids))
    return q, grids


def _by_rows(x: Rows, start: int, stop: int) -> Array:
    packed = _panels(stop - start, _even(x.scales.size) // 2)
    products.pack_rows(np.ascontiguousarray(x.q16[:, start:stop]), stop - start, packed)
    return packed


def token_products(spans: Sequence[tuple[int, int]], wide: Tensor, narrow: Tensor) -> Tensor:
    """`attribution.whitening.gradients.factor_gradients` of one factor: (examples, W, R) of (tokens, W) and (tokens, R)."""
    out = torch.empty(len(spans), wide.shape[1], narrow.shape[1])
    require(products.token_products(np.array(spans, np.int64), array(wide), array(narrow), out.numpy()))
    return out


def integer_product(qa: Tensor, qb: Tensor) -> Tensor:
    """Exact sums as float64 (M, N) of float32 integers of 14 bits, qa (M, K) and qb (K, N), K <= 2^26."""
    (m, k), n = qa.shape, qb.shape[1]
    a, packed = np.zeros((m, _even(k)), np.int16), _panels(n, _even(k) // 2)
    a[:, :k] = qa.numpy()
    products.pack_rows(np.ascontiguousarray(qb.numpy(), np.int16), n, packed)
    out = np.empty((m, n))
    products.integer_product(a, packed, n, out)
    return torch.from_numpy(out)
