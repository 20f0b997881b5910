"""A factor's bases: integer second moments of both sides over the records, and what turns the sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attribution import exact
from attribution.exact.bits import pow2
from attribution.whitening.gradients import FactorShape
from attribution.whitening.narrow import eigenvectors
from attribution.whitening.rounding import rounded
from attribution.whitening.wide import WIDE_TURNED_MAX, wide_bases

MOMENT_EXAMPLES_MAX = 1 << 12
"""Examples of one call of `moments`, whose sums are then exact in binary64."""

Numbers = npt.NDArray[np.float32] | npt.NDArray[np.int64]


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


def turned(gradients: Sequence[Tensor], bases: Sequence[Bases]) -> list[Tensor]:
    """Every factor (examples, wide, rank) times its bases, ``wide (G narrow)``, both products as `exact.matmul` defines them."""
    rotated = rotated_narrow(gradients, [b.narrow for b in bases])
    return [g if b.wide is None else _turned_wide(g, b.wide) for g, b in zip(rotated, bases, strict=True)]


def rotated_narrow(gradients: Sequence[Tensor], bases: Sequence[Tensor]) -> list[Tensor]:
    """Every factor (examples, wide, rank) times its basis (rank, rank), as `exact.matmul` defines; same shapes.

    Rows of all factors are quantised together, which changes nothing: a row's exponent is its own. Ranks may differ
    between factors only in principle (an adapter has one); then each factor goes alone.
    """
    if len({g.shape[2] for g in gradients}) > 1:
        return [rotated_narrow([g], [b])[0] for g, b in zip(gradients, bases, strict=True)]
    rank, sizes = gradients[0].shape[2], [g.shape[0] * g.shape[1] for g in gradients]
    q, e = exact.quantise(torch.cat([g.reshape(-1, rank) for g in gradients]))
    scales = torch.split(pow2(e), sizes)
    out = []
    for part, scale, basis, g in zip(torch.split(q.double(), sizes), scales, bases, gradients, strict=True):
        qb, eb = exact.quantise(basis, 0)
        product = torch.mm(part, qb.double()).float().mul_(scale).mul_(pow2(eb))
        out.append(product.add_(0.0).view(g.shape))
    return out


def _turned_wide(gradient: Tensor, basis: Tensor) -> Tensor:
    """``basis`` (wide, wide) times every example's factor: 14-bit numbers, sums of at most 2^26 wide, one rounding."""
    examples, wide, rank = gradient.shape
    q, e = exact.quantise(gradient, 1)
    qb, eb = exact.quantise(basis)
    # One product for all examples: (wide, wide) by (wide, examples * rank).
    side_by_side = q.double().permute(1, 0, 2).reshape(wide, examples * rank)
    product = torch.mm(qb.double(), side_by_side).view(wide, examples, rank).permute(1, 0, 2)
    return product.float().mul_(pow2(e)).mul_(pow2(eb)).add_(0.0).contiguous()
