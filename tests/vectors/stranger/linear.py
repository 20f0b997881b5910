"""Linear layers with low-rank adapters, forward and backward (docs/exact-arithmetic.md, sections 3, 6 and 7).

Everything is binary32. A **grid** is (integers, exponent), as `quantise` gives it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.vectors.stranger.arithmetic import Matrix, Vector, dot, fl32, quantise, transposed

Grid = tuple[list[int], int]

PREFIX = "base_model.model."
STRENGTH = 0.75


def contract(a: Grid, b: Grid) -> float:
    """The real number (sum of products) 2^(ea + eb), rounded once."""
    return fl32(math.ldexp(float(dot(a[0], b[0])), a[1] + b[1])) + 0.0


def times(row: Sequence[float], factor: float) -> Vector:
    """A row times one number."""
    return [fl32(x * factor) for x in row]


def plus(one: Sequence[float], other: Sequence[float]) -> Vector:
    """Two rows added."""
    return [fl32(x + y) for x, y in zip(one, other, strict=True)]


@dataclass(frozen=True, slots=True)
class Lora:
    """What is beside outputs ``start`` to ``stop`` of a group: A by row, B by row, and B less the outputs' powers of two by column."""

    name: str
    start: int
    stop: int
    a: list[Grid]
    b: list[Grid]
    b_columns: list[Grid]


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that read one input: weights by output, by input (without their exponents), adapters, and all their A by input."""

    weights: list[Grid]
    columns: list[Grid]
    loras: list[Lora]
    a_columns: list[Grid]
    scale: float

    def forward(self, x: Vector) -> tuple[Vector, list[Vector]]:
        """Outputs, and ``u`` of each adapter."""
        grid = quantise(x)
        y, us = [contract(grid, row) for row in self.weights], []
        for lora in self.loras:
            u = [contract(grid, row) for row in lora.a]
            h = quantise(times(u, self.scale))
            y[lora.start : lora.stop] = plus(y[lora.start : lora.stop], [contract(h, row) for row in lora.b])
            us.append(u)
        return y, us

    def backward(self, dy: Vector) -> tuple[Vector, list[Vector]]:
        """Gradient by the input, and ``dh`` of each adapter."""
        q, e = quantise([fl32(d * 2.0 ** row[1]) for d, row in zip(dy, self.weights, strict=True)])
        dx = [contract((q, e), column) for column in self.columns]
        gs = [[contract((q[lora.start : lora.stop], e), b) for b in lora.b_columns] for lora in self.loras]
        if gs:
            grid = quantise([x for g in gs for x in times(g, self.scale)])
            dx = plus(dx, [contract(grid, column) for column in self.a_columns])
        return dx, gs


def grids(base: Mapping[str, Any], name: str) -> list[Grid]:
    """A base's weights, one grid a row."""
    return list(zip(base[f"{name}.q"], base[f"{name}.e"], strict=True))


def group(base: Mapping[str, Any], adapter: Mapping[str, Any], names: list[str], scale: float) -> Group:
    """The layers of these names side by side, with every B at three quarters."""
    weights, loras, stacked = list[Grid](), list[Lora](), Matrix()
    for name in names:
        rows = grids(base, name)
        start, weights = len(weights), weights + rows
        if f"{PREFIX}{name}.lora_A.weight" in adapter:
            a = adapter[f"{PREFIX}{name}.lora_A.weight"]
            b = [times(row, STRENGTH) for row in adapter[f"{PREFIX}{name}.lora_B.weight"]]
            less = [times(row, 2.0**-e) for row, (_, e) in zip(b, rows, strict=True)]
            columns = [quantise(column) for column in transposed(less)]
            sides = [quantise(row) for row in a], [quantise(row) for row in b]
            loras.append(Lora(name, start, len(weights), *sides, columns))
            stacked += a
    columns = [(list(column), 0) for column in zip(*(q for q, _ in weights), strict=True)]
    return Group(weights, columns, loras, [quantise(column) for column in transposed(stacked)], scale)
