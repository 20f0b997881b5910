"""Our method and its variants in binary32, and the shipped engine on the same adapter.

One description covers all: which side is turned and how, at which states of the adapter, how coordinates are weighed and folded.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attribution.gradients import Example
from attribution.index import build_index
from attribution.merkle import DIGEST_BYTES
from attribution.scores import score_example
from attribution.signs import Integers, integer_scores
from attribution.sketch import sketch_query, sketch_rows, sketch_scales, sketched
from attribution.whitening import FactorShape, example_gradients, normalised
from attribution.whitening.gradients import LEFT_OUT, STRENGTH
from benchmarks.lds.features import Features
from benchmarks.lds.network import State, as_adapter
from benchmarks.lds.work import Scored, Work

SCALE_BYTES = 4
DAMPING = 0.1
JITTER = 1e-3


@dataclass(frozen=True, slots=True)
class Variant:
    """What is done with the gradients.

    `states` are places in the list of checkpoints: gradients are averaged over them; with `at_mean` the gradient is instead taken
    once, at the mean of those states' factors, or with `strength` at the last state with its B weakened so. `wide` says what the wide side is turned by: "none", the "eigen"vectors of its
    moment over the records, or "triangular", two steps of Cholesky iteration towards them. `consistent` weighs a coordinate by the
    part of its mean square over states that its average keeps. `one_query` takes a query's gradient once, at the mean adapter
    of the whole run. `without` names projections that are left out. `bits`, if not 0, folds
    all coordinates by CountSketch before the signs; `signs` False keeps binary32; `whitening` False keeps raw gradients.
    """

    name: str
    states: tuple[int, ...] = (-1,)
    at_mean: bool = False
    strength: float = 1.0
    wide: str = "eigen"
    consistent: bool = False
    one_query: bool = False
    without: tuple[str, ...] = ()
    bits: int = 0
    signs: bool = True
    whitening: bool = True


MIDDLE = (1, 2, 3)
"""The states after two, three and four sixths of the training."""
FEW = LEFT_OUT
FLOAT_ENGINE = Variant("the engine's rows, binary32", strength=STRENGTH, wide="triangular", without=LEFT_OUT)
ENGINE = "the engine's rows, exact"
SKETCHED = {f"the engine's rows sketched to {8 << 10 >> k:,} bytes, exact": (1 << 16) >> k for k in (0, 2)}
"""Sums of a sketch by the method's name: what rows of large models have, and a quarter of it."""
BEST = Variant("signs, both sides, 3 states, consistent", states=MIDDLE, consistent=True, without=FEW)
SMALL = replace(BEST, name="the same, CountSketch to 16,384", bits=16_384)
QUICK_BEST = replace(BEST, name="3 states, consistent; query at the mean adapter", one_query=True)
QUICK_SMALL = replace(
    QUICK_BEST, name="3 states, CountSketch to 16,384; query at the mean adapter", bits=16_384
)
VARIANTS: tuple[Variant, ...] = (
    Variant("signs of raw gradients", wide="none", whitening=False),
    Variant("signs, narrow side", wide="none"),
    Variant("signs, both sides"),
    Variant("signs, both sides, mid-training", states=(2,)),
    Variant("signs, both sides, B at 3/4", strength=STRENGTH),
    Variant("signs, both sides, B at 3/4, without q and k", strength=STRENGTH, without=FEW),
    FLOAT_ENGINE,
    Variant("signs, both sides, at the mean adapter", states=(0, 1, 2, 3, 4, 5), at_mean=True),
    Variant("signs, both sides, 3 states", states=MIDDLE),
    Variant(
        "3 states, consistent, triangular; query at the mean adapter",
        states=MIDDLE,
        wide="triangular",
        consistent=True,
        one_query=True,
        without=FEW,
    ),
    BEST,
    SMALL,
    QUICK_BEST,
    QUICK_SMALL,
    Variant(
        "both sides, 3 states, consistent, no signs", states=MIDDLE, consistent=True, without=FEW, signs=False
    ),
)


def averaged(every: Sequence[Features]) -> Features:
    """Gradients averaged over states; sides are the last one's."""
    if len(every) == 1:
        return every[0]
    gradients = []
    for parts in zip(*(f.gradients for f in every), strict=True):
        total = parts[0] / len(every)
        for part in parts[1:]:
            total.add_(part, alpha=1.0 / len(every))
        gradients.append(total)
    last = every[-1]
    seconds = sum(f.seconds for f in every)
    return Features(last.records, last.names, last.layers, tuple(gradients), last.sides, seconds)


def mean_state(states: Sequence[State]) -> dict[str, tuple[Tensor, Tensor]]:
    """The mean of several states' factors."""
    count = len(states)
    return {
        name: (sum_of([s[name][0] for s in states]) / count, sum_of([s[name][1] for s in states]) / count)
        for name in states[0]
    }


def sum_of(parts: Sequence[Tensor]) -> Tensor:
    """Sum of tensors of one shape."""
    return torch.stack(list(parts)).sum(0)


def scales(gradients: Sequence[Tensor]) -> Tensor:
    """One over each example's largest entry, (examples, 1, 1)."""
    largest = torch.stack([g.flatten(1).abs().amax(1) for g in gradients], 1).amax(1)
    return (1.0 / torch.where(largest > 0, largest, 1.0))[:, None, None]


def turns(own: Tensor, wide: str) -> tuple[Tensor | None, Tensor]:
    """What the wide (w, w) and narrow (r, r) sides of a factor are multiplied by, from the records' gradients (n, w, r).

    A record's size does not matter: each is scaled by its own largest entry.
    """
    largest = own.flatten(1).abs().amax(1)[:, None, None]
    rows = own / torch.where(largest > 0, largest, 1.0)
    flat = rows.reshape(-1, rows.shape[2])
    narrow = torch.linalg.eigh((flat.T @ flat).double())[1].float()
    if wide == "none":
        return None, narrow
    tall = rows.transpose(0, 1).flatten(1)
    moment = (tall @ tall.T).double()
    if wide == "eigen":
        return torch.linalg.eigh(moment)[1].T.float(), narrow
    return triangular(moment).float(), narrow


def triangular(moment: Tensor) -> Tensor:
    """Nearly the eigenvectors of a moment, as rows: two steps C <- L^T L of its Cholesky factor L, largest diagonal first.

    With C = L1 L1^T, L1^T L1 = L2 L2^T the rows of L2^T L1^-1 are orthonormal and turn C into L2^T L2, whose large and small
    eigenvalues are apart already (Rutishauser's LR transformation; two steps are one of QR).
    """
    order = moment.diag().argsort(descending=True)
    unit = torch.eye(len(moment), dtype=torch.float64)
    c = moment[order][:, order] / moment.diag().mean().clamp_min(1e-300) + JITTER * unit
    first = torch.linalg.cholesky(c)
    second = torch.linalg.cholesky(first.T @ first)
    turned: Tensor = second.T @ torch.linalg.solve_triangular(first, unit[order], upper=False)
    return turned


def coordinates(every: Sequence[Features], variant: Variant, query: Features | None = None) -> list[Tensor]:
    """What a variant takes the signs of: (examples, coordinates) per factor, or one folded tensor.

    With `query`, what is asked has its gradients from there, and the records theirs from `every`.
    """
    mean = averaged(every)
    if query is not None:
        both = zip(mean.gradients, query.gradients, strict=True)
        joined = tuple(torch.cat([g[: mean.records], q[mean.records :]]) for g, q in both)
        mean = replace(mean, gradients=joined)
    size = scales(mean.gradients)
    found = []
    for f, name in enumerate(mean.names):
        if name.split(".")[-2] in variant.without:
            continue
        g = mean.gradients[f] * size
        if not variant.whitening:
            found.append(g.flatten(1))
            continue
        wide, narrow = turns(mean.gradients[f][: mean.records], variant.wide)
        turned = g @ narrow if wide is None else wide @ (g @ narrow)
        moment = (turned[: mean.records] ** 2).sum(0)
        weight = (moment + DAMPING * moment.mean()).clamp_min(1e-30).rsqrt()
        if variant.consistent:
            single = torch.zeros_like(moment)
            for features in every:
                own = features.gradients[f][: mean.records] * size[: mean.records]
                own = own @ narrow if wide is None else wide @ (own @ narrow)
                single += (own**2).sum(0) / len(every)
            weight = weight * moment / single.clamp_min(1e-30)
        found.append((turned * weight).flatten(1))
    return [folded(found, variant.bits)] if variant.bits else found


def folded(found: Sequence[Tensor], bits: int) -> Tensor:
    """CountSketch (Charikar et al. 2002) of all coordinates into `bits` sums, (examples, bits)."""
    total = torch.zeros(len(found[0]), bits)
    at = 0
    for x in found:
        place, sign = buckets(at, x.shape[1], bits)
        total.index_add_(1, place, x * sign)
        at += x.shape[1]
    return total


def buckets(start: int, count: int, bits: int) -> tuple[Tensor, Tensor]:
    """Bucket (count,) int64 and sign (count,) float32 of coordinates start .. start + count - 1.

    z is splitmix64's output number c + 1 from the state 0 for coordinate c: the sign is its lowest bit, the bucket its upper half
    times `bits`, shifted right by 32.
    """
    with np.errstate(over="ignore"):
        z = np.arange(start + 1, start + count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    place = ((z >> np.uint64(32)) * np.uint64(bits)) >> np.uint64(32)
    sign = 1.0 - 2.0 * (z & np.uint64(1)).astype(np.float32)
    return torch.from_numpy(place.astype(np.int64)), torch.from_numpy(sign.astype(np.float32))


def row_scores(found: Sequence[Tensor], records: int, signs: bool) -> tuple[Tensor, Tensor]:
    """Scores and cosines (asked, records) of rows that keep a sign a coordinate and a scale a factor, or everything."""
    asked = len(found[0]) - records
    scores, own, query = torch.zeros(asked, records), torch.zeros(records), torch.zeros(asked)
    for x in found:
        row, ask = x[:records], x[records:]
        if signs:
            row = torch.where(row >= 0, 1.0, -1.0) * row.abs().mean(1, keepdim=True)
        scores += ask @ row.T
        own += (row * row).sum(1)
        query += (ask * ask).sum(1)
    scores = scores / own.clamp_min(1e-30).sqrt()
    return scores, scores / query.clamp_min(1e-30).sqrt()[:, None]


def row_bytes(found: Sequence[Tensor], signs: bool) -> int:
    """Bytes a record: digest, a scale a factor, a bit a coordinate; or digest and binary32 coordinates."""
    if not signs:
        return DIGEST_BYTES + 4 * sum(x.shape[1] for x in found)
    return DIGEST_BYTES + sum(SCALE_BYTES + -(-x.shape[1] // 8) for x in found)


def weakened(state: State, strength: float) -> dict[str, tuple[Tensor, Tensor]]:
    """A state with its B times `strength`."""
    return {name: (a, b * strength) for name, (a, b) in state.items()}


def floating(
    work: Work, variant: Variant, taken: Sequence[Features], query: Features | None = None
) -> Scored:
    """A variant in binary32, of gradients at its states; those of what is asked come from `query` if it is given."""
    started = time.process_time()
    found = coordinates(taken, variant, query)
    scores, cosines = row_scores(found, len(work.records), variant.signs)
    took = time.process_time() - started
    each = sum(f.seconds for f in taken) / taken[0].examples
    ask = query.seconds / query.examples if query is not None else each
    return Scored(
        variant.name,
        scores.double().numpy(),
        row_bytes(found, variant.signs),
        each * len(work.records) + took,
        1000 * (ask + took / len(found[0])),
        cosines=cosines.double().numpy(),
    )


def engine(work: Work) -> Scored:
    """The engine on the same adapter, exact from tokens to integer scores."""
    adapter = as_adapter(work.network, work.checkpoints[-1].state)
    started = time.process_time()
    index = build_index(work.base, adapter, work.records)
    built = time.process_time() - started
    started = time.process_time()
    rows = [score_example(work.base, adapter, index, Example((), ids)) for ids in work.asked]
    asked = (time.process_time() - started) / len(rows)
    norms = np.sqrt(np.array(rows[0].rows.norms, np.float64))
    cosines = [[r.cosine_ppm(i) / 1e6 for i in range(len(norms))] for r in rows]
    scores = np.array([r.values for r in rows], np.float64) / np.where(norms > 0, norms, 1.0)
    return Scored(
        ENGINE,
        scores,
        index.header.row_bytes,
        built,
        1000 * asked,
        cosines=np.array(cosines),
    )


def engine_sketched(sums: int, work: Work) -> Scored:
    """The engine's whitened coordinates in sketched rows of `sums` bits, exact from tokens to integer scores."""
    adapter, shape = (
        as_adapter(work.network, work.checkpoints[-1].state),
        [FactorShape("sketch", sums, 1)],
    )
    started = time.process_time()
    index = build_index(work.base, adapter, work.records)
    turning, weights = index.turning(work.base.device), index.factor_weights(work.base.device)

    def sketch(ids: Sequence[int]) -> Integers:
        _, found = example_gradients(work.base, adapter, [Example((), tuple(ids))])
        turned = turning.turned(normalised(found))
        return sketched([g * w for g, w in zip(turned, weights, strict=True)], sums)

    rows = np.concatenate([sketch(ids) for ids in work.records])
    signs, scales = sketch_rows(rows), sketch_scales(rows)
    built = time.process_time() - started
    started, scores, cosines = time.process_time(), list[Integers](), list[npt.NDArray[np.float64]]()
    for ids in work.asked:
        query, norm = sketch_query(sketch(ids)[0])
        scores.append(integer_scores(query, signs, scales, shape))
        cosines.append(np.maximum(scores[-1], 0) / np.sqrt(float(sums) * max(norm, 1)))
    asked = (time.process_time() - started) / len(work.asked)
    row_bytes = DIGEST_BYTES + SCALE_BYTES + signs.shape[1]
    values = np.array(scores, np.float64)
    name = next(name for name, width in SKETCHED.items() if width == sums)
    return Scored(name, values, row_bytes, built, 1000 * asked, cosines=np.array(cosines))
