"""Gradients of whole examples, factor by factor: what is whitened.

A LoRA module ``y = W x + s B (A x)`` gives an example two gradients, each summed over its tokens, and each the product of
a wide and a narrow side::

    factor "B":  dB   = sum_t dz_t (A x_t)^T      wide = outputs, narrow = rank
    factor "A":  dA^T = sum_t x_t (B^T dz_t)^T    wide = inputs,  narrow = rank

Both are taken not where training ended but on the way there: at `STRENGTH` of the adapter's B. And not of all modules: what
`LEFT_OUT` names says little (docs/attribution.md, "Linear datamodeling score", has both measurements).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attribution import exact
from attribution.adapter import Adapter
from attribution.exact.backends import fused_serves
from attribution.exact.bits import pow2, row_magnitude
from attribution.gradients import Example, FactorBatch, ModuleFactors, factors
from attribution.model import Base

STRENGTH = 0.75
"""B is multiplied by this before gradients are taken: at the end of a training the records it fits best have hardly any left."""
LEFT_OUT = ("q_proj", "k_proj")
"""Projections whose gradients are not used where an adapter has others."""

RECORDS_MAX = 100_000
"""Records that one index may have: the sums of `squares` are exact in int64 for that many (see there)."""
WIDE_MAX = 1 << 15
RANK_MAX = 1 << 8
GRID_BITS = 13
_NUMBERS_AT_ONCE = 1 << 20
"""Of a batch's sides in one call: 12 MiB for the work on them. One example has a few of them, and calls cost more than they do."""


@dataclass(frozen=True, slots=True)
class FactorShape:
    """Name ("<module>.B" or "<module>.A") and shape of one gradient factor."""

    name: str
    wide: int
    rank: int

    @property
    def coordinates(self) -> int:
        """Number of entries, wide * rank."""
        return self.wide * self.rank


def example_gradients(
    base: Base, adapter: Adapter, examples: Sequence[Example]
) -> tuple[tuple[FactorShape, ...], list[Tensor]]:
    """Shapes of the factors that count, and their gradients as `factor_gradients` gives them, at `STRENGTH` of the adapter.

    Raises what `attribution.gradients.factors` raises.
    """
    left_out = LEFT_OUT if any(_projection(m.name) not in LEFT_OUT for m in adapter.modules) else ()
    batch = factors(base, adapter.weakened(STRENGTH), examples, left_out)
    return factor_shapes(batch), factor_gradients(batch)


def _counted(batch: FactorBatch) -> Sequence[ModuleFactors]:
    """The batch's modules but those of `LEFT_OUT`; all where there are no others."""
    left = [m for m in batch.modules if _projection(m.name) not in LEFT_OUT]
    return left or batch.modules


def _projection(module: str) -> str:
    return module.rpartition(".")[2]


def factor_shapes(batch: FactorBatch) -> tuple[FactorShape, ...]:
    """Two factors per module that counts, in the module's order: "B" (outputs x rank), then "A" (inputs x rank)."""
    shapes = []
    for module in _counted(batch):
        shapes.append(FactorShape(f"{module.name}.B", module.dz.shape[1], module.u.shape[1]))
        shapes.append(FactorShape(f"{module.name}.A", module.x.shape[1], module.dh.shape[1]))
    return tuple(shapes)


def factor_gradients(batch: FactorBatch) -> list[Tensor]:
    """Per factor that counts the gradients of every example, float32 (examples, wide, rank), on the batch's device.

    Each is `exact.matmul` of the example's own tokens: both sides quantised along tokens to 14 bits, the integer
    products summed exactly, one rounding. Examples are padded with zero tokens, which change neither.
    """
    if fused_serves(batch.modules[0].x):
        from attribution.exact.fused.layers import token_products

        pairs = [pair for m in _counted(batch) for pair in ((m.dz, m.u), (m.x, m.dh))]
        return [token_products(batch.spans, *pair) for pair in pairs]
    gather, mask = _padding(batch.spans, batch.modules[0].x.device)
    gradients = []
    for modules in _runs(_counted(batch), mask.numel()):
        sides = [side for m in modules for side in (m.dz, m.u, m.x, m.dh)]
        q, scale = _quantised_tokens(torch.cat(sides, 1), gather, mask)
        widths = [side.shape[1] for side in sides]
        parts = list(zip(torch.split(q, widths, 2), torch.split(scale, widths, 2), strict=True))
        gradients += [_token_product(*pair) for pair in zip(parts[::2], parts[1::2], strict=True)]
    return gradients


def _runs(modules: Sequence[ModuleFactors], tokens: int) -> list[list[ModuleFactors]]:
    """Modules whose sides have few enough numbers to be quantised in one call; at least one a run."""
    runs, room = list[list[ModuleFactors]](), 0
    for module in modules:
        numbers = tokens * sum(side.shape[1] for side in (module.dz, module.u, module.x, module.dh))
        if not runs or numbers > room:
            runs.append([])
            room = _NUMBERS_AT_ONCE
        runs[-1].append(module)
        room -= numbers
    return runs


def _padding(spans: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Row numbers (examples, longest) into the concatenated tokens, and a 0/1 mask of real tokens (..., 1)."""
    longest = max(stop - start for start, stop in spans)
    starts = torch.tensor([start for start, _ in spans], device=device)[:, None]
    lengths = torch.tensor([stop - start for start, stop in spans], device=device)[:, None]
    steps = torch.arange(longest, device=device)[None]
    real = steps < lengths
    return torch.where(real, starts + steps, starts), real[:, :, None].to(torch.float32)


def _quantised_tokens(side: Tensor, gather: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Integers as float64 (examples, tokens, width) and powers of two float32 (examples, 1, width)."""
    q, e = exact.quantise(side[gather] * mask, 1)
    return q.double(), pow2(e)


def _token_product(wide: tuple[Tensor, Tensor], narrow: tuple[Tensor, Tensor]) -> Tensor:
    """fl32(sum over tokens) * 2^e_wide * 2^e_narrow; |sum| <= tokens * 2^26 < 2^53."""
    # The narrow side first: half the time of the other way round.
    product = torch.bmm(narrow[0].transpose(1, 2), wide[0]).float()
    return product.mul_(wide[1]).mul_(narrow[1].transpose(1, 2)).transpose(1, 2).contiguous()


def normalised(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Every example scaled by the power of two that brings its largest entry over all factors into [1/2, 1).

    So no example's size decides anything below, and all grids are fixed ones. An all-zero example stays zero.
    """
    if len(gradients[0]) == 1:
        # A query: all its factors in one piece, for calls cost more than its numbers do.
        flat = torch.cat([g.flatten() for g in gradients])[None]
        flat *= pow2(-(exact.quantise(row_magnitude(flat))[1] + GRID_BITS))
        parts = torch.split(flat[0], [g.numel() for g in gradients])
        return [part.view(g.shape) for part, g in zip(parts, gradients, strict=True)]
    largest = torch.stack([row_magnitude(g.flatten(1)) for g in gradients], 1).flatten(1)
    # `quantise` finds the smallest e with every entry below 2^(e + 13).
    scale = pow2(-(exact.quantise(largest)[1] + GRID_BITS))[:, :, None]
    return [g * scale for g in gradients]
