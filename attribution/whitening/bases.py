"""A factor's bases: integer second moments of both sides over the records, and what turns the sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attribution import exact
from attribution.exact.backends import fused_serves
from attribution.exact.bits import pow2
from attribution.whitening.gradients import FactorShape
from attribution.whitening.narrow import eigenvectors
from attribution.whitening.rounding import rounded
from attribution.whitening.wide import WIDE_TURNED_MAX, wide_bases

if TYPE_CHECKING:
    from attribution.exact.fused.turning import PackedBases

MOMENT_EXAMPLES_MAX = 1 << 12
"""Examples of one call of `moments`, whose sums are then exact in binary64."""

_DOUBLES_KEPT_MAX = 1 << 22
"""Integers of all wide bases that are kept as binary64, as they are needed: 32 MiB. More are kept as binary32."""
_QUANTISED_AT_ONCE = 1 << 22
"""Numbers of wide bases of one shape that are stacked and quantised at once (64 MiB for the work), unless one has more."""
_NUMBERS_AT_ONCE = 1 << 20
"""Of factors of one shape that are turned in one call: about 40 MiB for the work on them, unless one factor alone has more."""


@dataclass(frozen=True, slots=True)
class Bases:
    """What a factor G (wide, rank) is turned by, ``wide G narrow``: float32 (rank, rank), and (wide, wide) or None for none."""

    narrow: Tensor
    wide: Tensor | None


def turns_wide(shape: FactorShape) -> bool:
    """Whether a factor's wide side is turned, too."""
    return shape.wide <= WIDE_TURNED_MAX


def bases_count(shape: FactorShape) -> int:
    """Numbers in a factor's bases, and in its moments."""
    return shape.rank * shape.rank + (shape.wide * shape.wide if turns_wide(shape) else 0)


def moments(gradient: Tensor) -> Tensor:
    """Second moments of a factor's sides over examples (examples, wide, rank): int64, the narrow (rank, rank), then the wide one's.

    Each example's factor is quantised as one row (14 bits, so its size does not matter): at most 2^26 a product, summed over
    `WIDE_MAX` coordinates or `RANK_MAX` and `MOMENT_EXAMPLES_MAX` examples: at most 2^53, exact in binary64. Parts are added as
    int64: at most 2^58 for `RECORDS_MAX` examples. Raises ``ValueError`` on more examples at once.
    """
    if len(gradient) > MOMENT_EXAMPLES_MAX:
        raise ValueError(f"moments of {len(gradient)} examples at once; at most {MOMENT_EXAMPLES_MAX}")
    if fused_serves(gradient):
        from attribution.exact.fused.turning import second_moments

        return second_moments(gradient, gradient.shape[1] <= WIDE_TURNED_MAX)
    q = exact.quantise(gradient.flatten(1))[0].double().view(gradient.shape)
    rows = q.flatten(0, 1)
    found = [(rows.T @ rows).flatten()]
    if gradient.shape[1] <= WIDE_TURNED_MAX:
        tall = q.transpose(0, 1).flatten(1)
        found.append((tall @ tall.T).flatten())
    return torch.cat(found).to(torch.int64)


def bases_of(sums: Sequence[Tensor], shapes: Sequence[FactorShape]) -> list[Bases]:
    """Bases of every factor from the sums of its `moments` over all records, each number rounded to binary64 once."""
    split = [_split(rounded(total), shape) for total, shape in zip(sums, shapes, strict=True)]
    # An adapter has one rank, so Jacobi rotates all factors in one batch; wide sides go by their width.
    narrow = list(eigenvectors(torch.stack([n for n, _ in split])))
    wide: list[Tensor | None] = [None] * len(shapes)
    for width in sorted({s.wide for s in shapes if turns_wide(s)}):
        chosen = [(f, w) for f, (_, w) in enumerate(split) if w is not None and len(w) == width]
        for (f, _), basis in zip(chosen, wide_bases(torch.stack([w for _, w in chosen])), strict=True):
            wide[f] = basis
    return [Bases(n, w) for n, w in zip(narrow, wide, strict=True)]


def flat_bases(bases: Sequence[Bases]) -> npt.NDArray[np.float32]:
    """All factors' bases as they lie in ``bases.bin``: per factor the narrow one, then the wide one, row-major."""
    parts = [part.flatten() for b in bases for part in (b.narrow, b.wide) if part is not None]
    return torch.cat(parts).cpu().numpy()


def split_bases(
    values: npt.NDArray[np.float32], shapes: Sequence[FactorShape], device: torch.device
) -> list[Bases]:
    """Inverse of `flat_bases`, on ``device``."""
    flat = torch.from_numpy(np.array(values, np.float32)).to(device)
    parts = torch.split(flat, [bases_count(shape) for shape in shapes])
    return [Bases(*_split(part, shape)) for part, shape in zip(parts, shapes, strict=True)]


def _split(flat: Tensor, shape: FactorShape) -> tuple[Tensor, Tensor | None]:
    square = shape.rank * shape.rank
    wide = flat[square:].view(shape.wide, shape.wide) if turns_wide(shape) else None
    return flat[:square].view(shape.rank, shape.rank), wide


@dataclass(frozen=True, slots=True)
class _Alike:
    """Factors of one shape: their places, and their bases as integers and powers of two, stacked; the wide ones transposed."""

    places: tuple[int, ...]
    narrow: tuple[Tensor, Tensor]
    wide: tuple[Tensor, Tensor] | None


class Turning:
    """All factors' bases, quantised once and grouped by shape: what turns gradients."""

    def __init__(self, bases: Sequence[Bases], shapes: Sequence[FactorShape]) -> None:
        self._packed: list[PackedBases] = []
        self._alike: list[_Alike] = []
        if bases and fused_serves(bases[0].narrow):
            from attribution.exact.fused.turning import PackedBases

            self._packed = [PackedBases.of(b.narrow, b.wide) for b in bases]
            return
        doubles = sum(b.wide.numel() for b in bases if b.wide is not None) <= _DOUBLES_KEPT_MAX
        for shape in sorted(set(shapes), key=lambda s: (s.wide, s.rank)):
            of_shape = [f for f, s in enumerate(shapes) if s == shape]
            at_once = (
                max(1, _QUANTISED_AT_ONCE // (shape.wide * shape.wide))
                if turns_wide(shape)
                else len(of_shape)
            )
            for start in range(0, len(of_shape), at_once):
                places = tuple(of_shape[start : start + at_once])
                narrow = _quantised(torch.stack([bases[f].narrow for f in places]), 1)
                sides = [side for f in places if (side := bases[f].wide) is not None]
                self._alike.append(_Alike(places, narrow, _turning_wide(sides, doubles) if sides else None))

    def turned(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Every factor (examples, wide, rank) times its bases, ``wide (G narrow)``, both products as `exact.matmul` defines them."""
        if self._packed:
            return [b.turned(g) for b, g in zip(self._packed, gradients, strict=True)]
        out = list(gradients)
        for alike in self._alike:
            at_once = max(1, _NUMBERS_AT_ONCE // max(1, gradients[alike.places[0]].numel()))
            for start in range(0, len(alike.places), at_once):
                chosen = slice(start, start + at_once)
                found = _rotated(
                    torch.stack([gradients[f] for f in alike.places[chosen]]), alike.narrow, chosen
                )
                if alike.wide is not None:
                    found = _turned_wide(found, alike.wide, chosen)
                for f, turned in zip(alike.places[chosen], found, strict=True):
                    out[f] = turned
        return out


def _quantised(bases: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    q, e = exact.quantise(bases, dim)
    return q, pow2(e)


def _turning_wide(sides: Sequence[Tensor], doubles: bool) -> tuple[Tensor, Tensor]:
    # Transposed, because few rows times a matrix take two thirds of the time of a matrix times few columns.
    q, scale = _quantised(torch.stack(list(sides)).transpose(1, 2).contiguous(), 1)
    return q.double() if doubles else q, scale


def _rotated(g: Tensor, narrow: tuple[Tensor, Tensor], chosen: slice) -> Tensor:
    """Factors (factors, examples, wide, rank) times their bases (rank, rank): sums of at most 2^26 rank, one rounding."""
    q, e = exact.quantise(g)
    product = torch.bmm(q.double().flatten(1, 2), narrow[0][chosen].double()).float().view(g.shape)
    return product.mul_(pow2(e)).mul_(narrow[1][chosen, None]).add_(0.0)


def _turned_wide(g: Tensor, wide: tuple[Tensor, Tensor], chosen: slice) -> Tensor:
    """Bases (wide, wide) times factors (factors, examples, wide, rank): sums of at most 2^26 wide, one rounding."""
    g = g.transpose(2, 3).contiguous()
    q, e = exact.quantise(g)
    # One product a factor for all examples: (examples * rank, wide) by (wide, wide).
    product = torch.bmm(q.double().flatten(1, 2), wide[0][chosen].double()).float().view(g.shape)
    product.mul_(pow2(e)).mul_(wide[1][chosen, None]).add_(0.0)
    return product.transpose(2, 3).contiguous()
