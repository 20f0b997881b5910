"""Methods without dependencies: text alone, labels, and what float gradients of the adapter give."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.lds.features import Features, extract
from benchmarks.lds.work import Scored, Scores, Work

DAMPING = 0.1
GRAM_SIZES = (2, 3, 4, 5)
BM25_K, BM25_B = 1.5, 0.75


def grams(ids: Sequence[int]) -> Counter[bytes]:
    """Counts of all runs of 2 to 5 bytes."""
    text = bytes(ids)
    return Counter(text[i : i + n] for n in GRAM_SIZES for i in range(len(text) - n + 1))


def words(ids: Sequence[int]) -> Counter[bytes]:
    """Counts of lower-case words."""
    return Counter("".join(c if c.isalnum() else " " for c in bytes(ids).decode().lower()).encode().split())


def _text_method(
    name: str,
    work: Work,
    split: Callable[[Sequence[int]], Counter[bytes]],
    weigh: Callable[[Counter[bytes], Counter[bytes], int, float], dict[bytes, float]],
    ask: Callable[[Counter[bytes], Counter[bytes], int], dict[bytes, float]],
) -> Scored:
    started = time.process_time()
    counted = [split(r) for r in work.records]
    spread = Counter(term for c in counted for term in c)
    mean_length = sum(sum(c.values()) for c in counted) / len(counted)
    postings: dict[bytes, list[tuple[int, float]]] = {}
    for row, counts in enumerate(counted):
        for term, weight in weigh(counts, spread, len(counted), mean_length).items():
            postings.setdefault(term, []).append((row, weight))
    built = time.process_time() - started
    started = time.process_time()
    scores = np.zeros((len(work.asked), len(counted)))
    for row, ids in enumerate(work.asked):
        for term, weight in ask(split(ids), spread, len(counted)).items():
            for record, own in postings.get(term, ()):
                scores[row, record] += weight * own
    asked = (time.process_time() - started) / len(work.asked)
    size = sum(map(len, work.records)) // len(work.records)
    return Scored(name, scores, size, built, 1000 * asked)


def _tf_idf(counts: Counter[bytes], spread: Counter[bytes], records: int, _: float) -> dict[bytes, float]:
    weights = {t: (1 + np.log(n)) * np.log(1 + records / spread[t]) for t, n in counts.items() if t in spread}
    norm = float(np.sqrt(sum(w * w for w in weights.values()))) or 1.0
    return {t: w / norm for t, w in weights.items()}


def tf_idf(work: Work) -> Scored:
    """Cosine of TF-IDF vectors of character runs of 2 to 5 bytes."""
    return _text_method("TF-IDF, char 2-5", work, grams, _tf_idf, lambda c, s, n: _tf_idf(c, s, n, 0.0))


def bm25(work: Work) -> Scored:
    """Okapi BM25 (Robertson and Zaragoza 2009) over words."""

    def weigh(
        counts: Counter[bytes], spread: Counter[bytes], records: int, mean: float
    ) -> dict[bytes, float]:
        length = sum(counts.values())
        return {
            t: n * (BM25_K + 1) / (n + BM25_K * (1 - BM25_B + BM25_B * length / mean))
            for t, n in counts.items()
        }

    def ask(counts: Counter[bytes], spread: Counter[bytes], records: int) -> dict[bytes, float]:
        return {
            t: n * float(np.log(1 + (records - spread[t] + 0.5) / (spread[t] + 0.5)))
            for t, n in counts.items()
        }

    return _text_method("BM25, words", work, words, weigh, ask)


def label(work: Work) -> Scored:
    """1 where record and query are the same contributor's (unrelated text is nobody's)."""
    started = time.process_time()
    own = np.array([*work.query_labels, *[-1] * len(work.unrelated)])
    scores: Scores = (own[:, None] == np.array(work.labels)[None]).astype(np.float64)
    return Scored("contributor label", scores, 1, time.process_time() - started, 0.0)


def dot(features: Features, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Sum over factors of inner products of asked (left) and records (right), float64 (asked, records)."""
    total = torch.zeros(features.examples - features.records, features.records, dtype=torch.float64)
    for a, b in zip(left, right, strict=True):
        total += (a.flatten(1) @ b.flatten(1).T).double()
    return total


def size(features: Features) -> int:
    """Bytes of one record's gradient in binary32."""
    return 4 * sum(g[0].numel() for g in features.gradients)


def _timed(name: str, work: Work, features: Features, score: Callable[[], Tensor], note: str = "") -> Scored:
    started = time.process_time()
    scores = score()
    took = time.process_time() - started
    each = features.seconds / features.examples
    return Scored(
        name,
        scores.double().numpy(),
        size(features),
        each * features.records + took,
        1000 * (each + took / max(1, len(scores))),
        note=note,
    )


def grad_dot(work: Work, features: Features | None = None) -> Scored:
    """Inner product of the adapter's gradients at the end."""
    f = features or extract(work, work.checkpoints[-1].state)
    return _timed("GradDot", work, f, lambda: dot(f, [g[f.records :] for g in f.gradients], f.of_records()))


def tracin(work: Work, features: Sequence[Features] | None = None) -> Scored:
    """TracInCP (Pruthi et al. 2020): inner products at every second checkpoint, weighted by the learning rate then."""
    states = work.checkpoints[1::2]
    every = features or [extract(work, c.state) for c in states]

    def run() -> Tensor:
        return torch.stack(
            [
                dot(f, [g[f.records :] for g in f.gradients], f.of_records()) * c.learning_rate
                for f, c in zip(every, states, strict=True)
            ]
        ).sum(0)

    found = _timed("TracIn", work, every[-1], run, f"{len(every)} checkpoints")
    seconds, examples = sum(f.seconds for f in every), every[0].examples
    return Scored(
        found.name,
        found.scores,
        found.bytes_per_record * len(every),
        seconds * every[0].records / examples,
        1000 * seconds / examples,
        note=found.note,
    )


def data_inf(work: Work, features: Features | None = None) -> Scored:
    """DataInf (Kwon et al. 2024): the mean of inverses of each record's rank-one Fisher, per factor, damped by 0.1 of its mean."""
    f = features or extract(work, work.checkpoints[-1].state)

    def run() -> Tensor:
        total = torch.zeros(f.examples - f.records, f.records, dtype=torch.float64)
        for g in f.gradients:
            rows = g.flatten(1).double()
            own, asked = rows[: f.records], rows[f.records :]
            norms = (own * own).sum(1)
            damping = DAMPING * norms.mean() / own.shape[1]
            gram, cross = own @ own.T, asked @ own.T
            total += (cross - (cross / (damping + norms)) @ gram / f.records) / damping
        return total

    return _timed("DataInf", work, f, run)


def ek_fac(work: Work, features: Features | None = None) -> Scored:
    """EK-FAC (George et al. 2018; Grosse et al. 2023) on the adapter's factors in binary32, gradients kept whole.

    Both sides turned to the eigenvectors of their token moments, curvature the mean square of the turned gradients of records,
    damped by a tenth of its mean.
    """
    f = features or extract(work, work.checkpoints[-1].state, sides=True)

    def run() -> Tensor:
        asked, own = list[Tensor](), list[Tensor]()
        for g, sides in zip(f.gradients, f.sides, strict=True):
            left, right = (torch.linalg.eigh(m.double())[1].float() for m in (sides.wide, sides.narrow))
            turned = left.T @ g @ right
            curvature = (turned[: f.records] ** 2).mean(0)
            own.append(turned[: f.records])
            asked.append(turned[f.records :] / (curvature + DAMPING * curvature.mean()))
        return dot(f, asked, own)

    return _timed("EK-FAC", work, f, run, "float, gradients recomputed or kept")
