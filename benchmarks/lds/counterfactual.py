"""Removal: train again without the records that a method puts at the top, and see how much worse the queries fare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.lds.statistics import Interval, removed
from benchmarks.lds.truth import Losses, Mask, NotTrained
from benchmarks.lds.work import Scores, Work

SHARES = (0.01, 0.05)
RANDOM_DRAWS = 2


@dataclass(frozen=True, slots=True)
class Rise:
    """Mean rise of a group's loss, nats a query, after removal of one share of the records."""

    share: float
    group: int
    nats: float


def groups(work: Work) -> list[list[int]]:
    """Query numbers by contributor: one removal each."""
    return [
        [i for i, label in enumerate(work.query_labels) if label == k] for k in sorted(set(work.query_labels))
    ]


def known_only(losses: Callable[[Mask], Losses], kept: Mask) -> Losses | None:
    """The losses, or None where they would have to be trained and must not."""
    try:
        return losses(kept)
    except NotTrained:
        return None


def rises(work: Work, scores: Scores, losses: Callable[[Mask], Losses]) -> list[Rise]:
    """What removing each group's top records does, for every share; without those that must not be trained."""
    wanted = [
        (share, [number], removed(scores, group, share))
        for share in SHARES
        for number, group in enumerate(groups(work))
    ]
    return _rises(work, wanted, losses)


def random_rises(work: Work, losses: Callable[[Mask], Losses]) -> list[Rise]:
    """The same for records drawn at random; one draw serves every group."""
    everybody = list(range(len(groups(work))))
    wanted = [
        (share, everybody, random_removal(len(work.records), share, work.seed, draw))
        for share in SHARES
        for draw in range(RANDOM_DRAWS)
    ]
    return _rises(work, wanted, losses)


def _rises(
    work: Work, wanted: list[tuple[float, list[int], Mask]], losses: Callable[[Mask], Losses]
) -> list[Rise]:
    full = known_only(losses, np.ones(len(work.records), np.bool_))
    out, members = [], groups(work)
    for share, numbers, kept in wanted:
        found = known_only(losses, kept)
        if full is not None and found is not None:
            rise = found - full
            out += [Rise(share, k, float(rise[members[k]].mean())) for k in numbers]
    return out


def random_removal(records: int, share: float, seed: int, draw: int) -> Mask:
    """Records kept when a random share goes."""
    kept = np.ones(records, np.bool_)
    generator = np.random.default_rng([seed, 3, round(1000 * share), draw])
    kept[generator.permutation(records)[: max(1, round(share * records))]] = False
    return kept


def summary(found: Sequence[Rise], share: float) -> Interval:
    """Mean over groups and seeds, with twice its standard error either way."""
    values = np.array([r.nats for r in found if r.share == share])
    if len(values) == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    error = 2.0 * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("inf")
    mean = float(values.mean())
    return Interval(mean, mean - error, mean + error)
