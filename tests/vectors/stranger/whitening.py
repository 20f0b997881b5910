"""From gradients to whitened coordinates (docs/attribution.md, "Factors" and "Whitening").

A **gradient** is one example's: per factor a matrix (wide x rank) of binary32 numbers. All that is not said to be binary32 (`fl32`) is binary64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.vectors.stranger.arithmetic import (
    Matrix,
    Vector,
    exponent,
    fl32,
    fsum,
    matmul,
    quantise,
    sqrt32,
    transposed,
)

Gradient = list[Matrix]
Integers = list[list[int]]

SWEEPS = 10
NARROW_TURNED_MAX = 64
WIDE_TURNED_MAX = 512
JITTER = 2.0**-10
PIVOT_MIN = 2.0**-20
SQUARE_BITS = 18
SQUARED_MAX = 1 << 23
DAMPING = 0.1


# Gradients


def gradient(wide: Matrix, narrow: Matrix) -> Matrix:
    """``sum_t wide_t narrow_t^T`` of an example's tokens: for "B" of dz and u, for "A" of x and dh."""
    return matmul(transposed(wide), narrow)


def normalised(example: Gradient) -> Gradient:
    """The example times the power of two that brings its largest entry over all factors into [1/2, 1)."""
    scale = 2.0 ** -exponent(x for factor in example for row in factor for x in row)
    return [[[fl32(x * scale) for x in row] for row in factor] for factor in example]


# Second moments


def moments(factors: Sequence[Matrix]) -> tuple[Integers, Integers | None]:
    """Narrow (rank x rank) and wide (wide x wide) moment of one factor, summed over examples; no wide one above 512.

    Every example's factor is quantised as one row: one exponent for all of it, which is then dropped.
    """
    grids = [_whole(factor) for factor in factors]
    wide, rank = len(factors[0]), len(factors[0][0])
    narrow = _gram([row for q in grids for row in q], rank)
    if wide > WIDE_TURNED_MAX:
        return narrow, None
    return narrow, _gram([column for q in grids for column in zip(*q, strict=True)], wide)


def _whole(factor: Matrix) -> Integers:
    """A matrix quantised as one row."""
    rank = len(factor[0])
    q, _ = quantise([x for row in factor for x in row])
    return [q[at : at + rank] for at in range(0, len(q), rank)]


def _gram(rows: Sequence[Sequence[int]], width: int) -> Integers:
    """Sum of q q^T over rows q."""
    found = [[0] * width for _ in range(width)]
    for q in rows:
        for i, x in enumerate(q):
            for j, y in enumerate(q):
                found[i][j] += x * y
    return found


# The narrow side: Jacobi


def narrow_basis(moment: Integers) -> Matrix:
    """Eigenvectors as columns, binary32: ten sweeps of plane rotations in binary64, always all ten."""
    n = len(moment)
    a: Matrix = [[float(x) for x in row] for row in moment]
    v = _identity(n)
    if 1 < n <= NARROW_TURNED_MAX:
        for _ in range(SWEEPS):
            for pairs in tournament(n):
                rotate(a, v, pairs)
    return _binary32(v)


def tournament(n: int) -> list[list[tuple[int, int]]]:
    """Rounds of disjoint pairs p < q that meet each pair once: the circle method, with one bye a round where n is odd.

    Players sit in a row; the i-th meets the i-th from the end. After a round the first stays, the last comes behind it.
    """
    players = list(range(n + n % 2))
    rounds = []
    for _ in range(len(players) - 1):
        met = zip(players[: len(players) // 2], reversed(players), strict=False)
        rounds.append([(min(pair), max(pair)) for pair in met if max(pair) < n])
        players = [players[0], players[-1], *players[1:-1]]
    return rounds


def rotate(a: Matrix, v: Matrix, pairs: Sequence[tuple[int, int]]) -> None:
    """One round: all angles from a as it is, then a's rows, then a's columns, then v's columns."""
    angles = [(p, q, *_angle(a[p][p], a[q][q], a[p][q])) for p, q in pairs]
    for p, q, c, s in angles:
        a[p], a[q] = (
            [c * x - s * y for x, y in zip(a[p], a[q], strict=True)],
            [s * x + c * y for x, y in zip(a[p], a[q], strict=True)],
        )
    for matrix in (a, v):
        for p, q, c, s in angles:
            for row in matrix:
                row[p], row[q] = c * row[p] - s * row[q], s * row[p] + c * row[q]


def _angle(app: float, aqq: float, apq: float) -> tuple[float, float]:
    """Cosine and sine of the smaller rotation that annihilates a_pq."""
    g, h = aqq - app, apq * 2.0
    scale = max(abs(g), abs(h))
    if scale == 0.0:
        t = 0.0
    else:
        g, h = g / scale, h / scale
        t = h / (abs(g) + sqrt32(fl32(g * g + h * h)))
    t = -t if g < 0.0 else t
    z = t * t + 1.0
    c = 1.0 / sqrt32(fl32(z))
    for _ in range(2):
        c = c * (1.5 - (z * 0.5) * (c * c))
    return c, t * c


# The wide side: two steps of Cholesky


def wide_basis(moment: Integers) -> Matrix:
    """Nearly the eigenvectors, as rows, binary32: L2^T L1^-1 of the sorted, scaled and damped moment."""
    n = len(moment)
    order = sorted(range(n), key=lambda i: (-float(moment[i][i]), i))
    c = _prepared([[float(moment[i][j]) for j in order] for i in order])
    first = cholesky(c)
    second = cholesky(_transposed_product(first, first))
    turned = _transposed_product(second, _inverse(first))
    place = {column: at for at, column in enumerate(order)}
    return _binary32([[row[place[j]] for j in range(n)] for row in turned])


def _prepared(c: Matrix) -> Matrix:
    """C_11, the largest, is brought into [1/2, 1); 2^-10 of the mean of the diagonal is added to the diagonal."""
    n, scale = len(c), math.ldexp(1.0, -math.frexp(c[0][0] or 1.0)[1])
    c = [[x * scale for x in row] for row in c]
    total = 0.0
    for j in range(n):
        total = total + c[j][j]
    jitter = total * JITTER / n
    return [[x + jitter if i == j else x for j, x in enumerate(row)] for i, row in enumerate(c)]


def cholesky(c: Matrix) -> Matrix:
    """Lower factor, right-looking; a pivot below 2^-20 counts as that."""
    n = len(c)
    a, lower = [row[:] for row in c], _zeros(n)
    for j in range(n):
        root = sqrt32(fl32(max(a[j][j], PIVOT_MIN)))
        lower[j][j] = root
        for i in range(j + 1, n):
            lower[i][j] = a[i][j] / root
        for i in range(j + 1, n):
            for k in range(j + 1, i + 1):
                a[i][k] -= lower[i][j] * lower[k][j]
    return lower


def _inverse(lower: Matrix) -> Matrix:
    """Of a lower triangular matrix: row j is divided, then taken from the rows below it, for j = 1 .. n."""
    n = len(lower)
    out = _identity(n)
    for j in range(n):
        out[j] = [x / lower[j][j] for x in out[j]]
        for i in range(j + 1, n):
            for k in range(j + 1):
                out[i][k] -= lower[i][j] * out[j][k]
    return out


def _transposed_product(a: Matrix, b: Matrix) -> Matrix:
    """a^T b of lower triangular matrices: the products of their j-th rows, added for j = 1 .. n."""
    n = len(a)
    total = _zeros(n)
    for j in range(n):
        for i in range(j + 1):
            for k in range(j + 1):
                total[i][k] += a[j][i] * b[j][k]
    return total


# Turning, weights


def turned(factor: Matrix, narrow: Matrix, wide: Matrix | None) -> Matrix:
    """``wide (G narrow)`` of a normalised gradient; the second product only where there is a wide basis."""
    rotated = matmul(factor, narrow)
    return rotated if wide is None else matmul(wide, rotated)


def squares(factors: Sequence[Matrix]) -> Integers:
    """Sums over examples of squared turned coordinates on the grid 2^-18, each held below 2^23 first."""
    wide, rank = len(factors[0]), len(factors[0][0])
    return [[sum(_on_grid(f[i][j]) ** 2 for f in factors) for j in range(rank)] for i in range(wide)]


def _on_grid(x: float) -> int:
    return min(max(round(math.ldexp(x, SQUARE_BITS)), -SQUARED_MAX), SQUARED_MAX)


def weights(sums: Integers) -> Matrix:
    """``1 / sqrt32(fl(l + 0.1 mean))`` per coordinate; the mean is that of the factor's l, each rounded to binary32 for it."""
    own = [[float(total) for total in row] for row in sums]
    mean = fsum([fl32(x) for row in own for x in row]) / (len(own) * len(own[0]))
    damped = [[fl32(x + mean * DAMPING) for x in row] for row in own]
    return [[fl32(1.0 / sqrt32(x)) if x > 0.0 else 0.0 for x in row] for row in damped]


def whitened(factor: Matrix, weight: Matrix) -> Matrix:
    """Turned coordinates times their weights."""
    return [
        [fl32(x * w) + 0.0 for x, w in zip(*rows, strict=True)] for rows in zip(factor, weight, strict=True)
    ]


def _identity(n: int) -> Matrix:
    return [[float(i == j) for j in range(n)] for i in range(n)]


def _zeros(n: int) -> Matrix:
    return [[0.0] * n for _ in range(n)]


def _binary32(matrix: Matrix) -> Matrix:
    return [_row32(row) for row in matrix]


def _row32(row: Vector) -> Vector:
    return [fl32(x) + 0.0 for x in row]
