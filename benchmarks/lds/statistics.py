"""Linear datamodelling score with bootstrap intervals, and what removal of records did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Masks = npt.NDArray[np.bool_]

RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the middle 95 % of its bootstrap."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Measured:
    """One seed's retrainings beside one method's predictions, both (subsets, queries), higher = the query fares better."""

    predicted: Floats
    real: Floats


def predictions(scores: Floats, masks: Masks) -> Floats:
    """Predicted effect (subsets, queries): the sum of the scores (queries, records) of each subset's records."""
    sums: Floats = masks.astype(np.float64) @ scores.T
    return sums


def mid_ranks(values: Floats) -> Floats:
    """Ranks along axis 0, ties in the middle of their places, less their mean."""
    below = (values[None] < values[:, None]).sum(1).astype(np.float64)
    same = (values[None] == values[:, None]).sum(1)
    ranks: Floats = below + 0.5 * (same - 1) - 0.5 * (len(values) - 1)
    return ranks


def spearman(a: Floats, b: Floats) -> Floats:
    """Rank correlation of each column of two (n, columns) arrays; 0 where a column is constant."""
    x, y = mid_ranks(a), mid_ranks(b)
    norm = np.sqrt((x * x).sum(0) * (y * y).sum(0))
    products: Floats = (x * y).sum(0)
    found: Floats = np.divide(products, norm, out=np.zeros_like(norm), where=norm > 0)
    return found


def lds(measured: Sequence[Measured]) -> float:
    """Mean over seeds and queries of the rank correlation over subsets."""
    return float(np.mean([spearman(m.predicted, m.real).mean() for m in measured]))


def resampled(measured: Sequence[Measured], resamples: int = RESAMPLES) -> Floats:
    """Scores of bootstrap samples over queries and subsets, (resamples,); the same draws for every method."""
    generator = np.random.default_rng(20)
    out = np.empty(resamples)
    for k in range(resamples):
        total = 0.0
        for m in measured:
            subsets, queries = m.real.shape
            rows = generator.integers(0, subsets, subsets)
            columns = generator.integers(0, queries, queries)
            pick = np.ix_(rows, columns)
            total += float(spearman(m.predicted[pick], m.real[pick]).mean())
        out[k] = total / len(measured)
    return out


def interval(mean: float, samples: Floats) -> Interval:
    """The mean with the percentiles 2.5 and 97.5 of its bootstrap samples."""
    low, high = np.percentile(samples, (2.5, 97.5))
    return Interval(mean, float(low), float(high))


def removed(scores: Floats, queries: Sequence[int], share: float) -> Masks:
    """Which records are kept (records,) when the `share` of them with the highest summed scores for `queries` goes."""
    count = max(1, round(share * scores.shape[1]))
    # Each query counts alike, whatever the scale of its scores.
    rows = scores[list(queries)]
    size = np.linalg.norm(rows, axis=1, keepdims=True)
    total = np.divide(rows, size, out=np.zeros_like(rows), where=size > 0).sum(0)
    kept = np.ones(scores.shape[1], np.bool_)
    kept[np.argsort(-total, kind="stable")[:count]] = False
    return kept
