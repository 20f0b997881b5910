"""Causal attention with grouped queries, forward and backward (docs/exact-arithmetic.md, sections 6 and 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.vectors.stranger.arithmetic import Vector, fl32, fsum, quantise
from tests.vectors.stranger.functions import cos_sin, exp, exp64, log, unit_sum
from tests.vectors.stranger.linear import Grid, contract

Heads = list[list[Vector]]
"""Numbers (heads, positions, width)."""


def rotations(config: Mapping[str, Any], length: int) -> list[tuple[Vector, Vector]]:
    """(cos, sin) of every position, from binary64."""
    width, theta = config["head_dim"], float(config["rope_theta"])
    frequencies = [exp64(log(theta) * (i * -2.0 / width)) for i in range(width // 2)]
    found = []
    for position in range(length):
        pairs = [cos_sin(position * f) for f in frequencies]
        found.append(([fl32(c) for c, _ in pairs], [fl32(s) for _, s in pairs]))
    return found


def rotated(x: Vector, cos: Vector, sin: Vector) -> Vector:
    """Both halves of a head, turned by the position's angles."""
    a, b = x[: len(cos)], x[len(cos) :]
    left = [fl32(fl32(p * c) - fl32(q * s)) for p, q, c, s in zip(a, b, cos, sin, strict=True)]
    right = [fl32(fl32(q * c) + fl32(p * s)) for p, q, c, s in zip(a, b, cos, sin, strict=True)]
    return left + right


@dataclass(frozen=True, slots=True)
class Attended:
    """What attention leaves for the way back: grids by head and position; per query head and position p, den and o."""

    q: list[list[Grid]]
    k: list[list[Grid]]
    v: list[list[Grid]]
    p: Heads
    den: list[Vector]
    o: Heads


def attended(q: Heads, k: Heads, v: Heads) -> Attended:
    """Every query head over the keys and values of its own group, up to its position."""
    qs, ks, vs = ([[quantise(row) for row in rows] for rows in heads] for heads in (q, k, v))
    found = Attended(qs, ks, vs, [], [], [])
    for head, queries in enumerate(qs):
        of = head // (len(qs) // len(ks))
        ps, dens, os = [], [], []
        for t, query in enumerate(queries):
            keys, values = ks[of][: t + 1], vs[of][: t + 1]
            scores = [contract(query, key) for key in keys]
            top = max(scores)
            p = [exp(fl32(s - top)) for s in scores]
            den = fl32(unit_sum(p))
            weights = quantise([fl32(x * 2.0**e) for x, (_, e) in zip(p, values, strict=True)])
            o = [contract(weights, (list(column), 0)) for column in zip(*(q for q, _ in values), strict=True)]
            ps.append(p)
            dens.append(den)
            os.append([fl32(x / den) for x in o])
        found.p.append(ps)
        found.den.append(dens)
        found.o.append(os)
    return found


def attended_back(do: Heads, kept: Attended) -> tuple[Heads, Heads, Heads]:
    """Gradients by queries, keys and values."""
    each, width, dq = len(kept.q) // len(kept.k), len(do[0][0]), Heads()
    grids, slopes = [], []
    for head, rows in enumerate(do):
        of = head // each
        grids.append(
            [quantise([fl32(x / den) for x in row]) for row, den in zip(rows, kept.den[head], strict=True)]
        )
        slopes.append(
            [_slopes(*row, kept.v[of]) for row in zip(grids[head], kept.o[head], kept.p[head], strict=True)]
        )
        dq.append([_folded(ds, kept.k[of][: t + 1], width) for t, ds in enumerate(slopes[head])])
    dk, dv = Heads(), Heads()
    for of in range(len(kept.k)):
        heads = range(of * each, (of + 1) * each)
        dk.append(_over_queries(slopes, kept.q, heads, width))
        dv.append(_over_queries(kept.p, grids, heads, width))
    return dq, dk, dv


def _slopes(g: Grid, o: Vector, p: Vector, values: list[Grid]) -> Vector:
    """dS of one query's keys."""
    dot = fl32(fsum([fl32(q * 2.0 ** g[1] * x) for q, x in zip(g[0], o, strict=True)]))
    return [fl32(fl32(contract(g, v) - dot) * x) for x, v in zip(p, values, strict=False)]


def _over_queries(x: Heads, rows: list[list[Grid]], heads: range, width: int) -> list[Vector]:
    """Gradients of one head of keys: a key meets the queries from its position on of all query heads that share it, in one row."""
    found, length = [], len(rows[0])
    for j in range(length):
        met = [(head, t) for head in heads for t in range(j, length)]
        found.append(_folded([x[h][t][j] for h, t in met], [rows[h][t] for h, t in met], width))
    return found


def _folded(x: Vector, rows: Sequence[Grid], width: int) -> Vector:
    """Sum of x times rows that have an exponent each: it is moved into x before x is quantised."""
    grid = quantise([fl32(a * 2.0**e) for a, (_, e) in zip(x, rows, strict=True)])
    return [contract(grid, ([q[i] for q, _ in rows], 0)) for i in range(width)]
