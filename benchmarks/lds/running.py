"""One seed's run: truth, every method's scores, removals. Each result is on disk before the next is begun."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from attribution.shares import COSINE_ONE_PPM, FLOOR_PPM_DEFAULT
from benchmarks.lds import baselines, counterfactual, ours, statistics
from benchmarks.lds.features import Features, extract
from benchmarks.lds.making import Made, make
from benchmarks.lds.network import State
from benchmarks.lds.peers import PeerFailed, PeerUnavailable
from benchmarks.lds.truth import half_subsets
from benchmarks.lds.work import Method, Scored, Settings, Work

REMOVED = ("TF-IDF, char 2-5", "EK-FAC", ours.BEST.name, ours.ENGINE)
"""Methods whose top records are removed: each takes a training per share, group and seed."""
FLOOR_MARGIN = 1.6
"""Floor over the highest cosine of the texts that it is calibrated on (docs/attribution.md, "Floor and shares")."""


@dataclass
class Shelf:
    """Features of one work by state, extracted when first asked for."""

    work: Work
    known: dict[tuple[int, ...], Features] = field(default_factory=dict)

    def at(self, state: int) -> Features:
        """At one checkpoint."""
        count = len(self.work.checkpoints)
        return self._get((state % count,), lambda: self.work.checkpoints[state].state)

    def of(self, variant: ours.Variant) -> list[Features]:
        """What a variant needs."""
        if variant.strength != 1.0:
            last = len(self.work.checkpoints) - 1
            weakened = ours.weakened(self.work.checkpoints[last].state, variant.strength)
            return [self._get((-2, last, round(variant.strength * 1_000_000)), lambda: weakened)]
        if not variant.at_mean:
            return [self.at(state) for state in variant.states]
        return [self.mean(variant.states)]

    def mean(self, states: tuple[int, ...]) -> Features:
        """At the mean of several checkpoints' factors."""
        chosen = [self.work.checkpoints[k].state for k in states]
        return self._get((-1, *states), lambda: ours.mean_state(chosen))

    def _get(self, key: tuple[int, ...], state: Callable[[], State]) -> Features:
        if key not in self.known:
            # EK-FAC alone looks at the tokens' moments, and at the end.
            last = len(self.work.checkpoints) - 1
            self.known[key] = extract(self.work, state(), sides=key == (last,))
        return self.known[key]


def own_methods(shelf: Shelf) -> dict[str, Method]:
    """Baselines and ours, by name, sharing what is extracted."""
    found: dict[str, Method] = {
        "contributor label": baselines.label,
        "TF-IDF, char 2-5": baselines.tf_idf,
        "BM25, words": baselines.bm25,
        "GradDot": lambda work: baselines.grad_dot(work, shelf.at(-1)),
        "TracIn": lambda work: baselines.tracin(
            work, [shelf.at(k) for k in range(1, len(work.checkpoints), 2)]
        ),
        "DataInf": lambda work: baselines.data_inf(work, shelf.at(-1)),
        "EK-FAC": lambda work: baselines.ek_fac(work, shelf.at(-1)),
    }
    for variant in ours.VARIANTS:
        found[variant.name] = partial(_variant, shelf, variant)
    found[ours.ENGINE] = ours.engine
    for name, sums in ours.SKETCHED.items():
        found[name] = partial(ours.engine_sketched, sums)
    return found


def _variant(shelf: Shelf, variant: ours.Variant, work: Work) -> Scored:
    query = shelf.mean(tuple(range(len(work.checkpoints)))) if variant.one_query else None
    return ours.floating(work, variant, shelf.of(variant), query)


@dataclass(frozen=True)
class SeedResult:
    """What one seed gave: by method its scores, predictions beside the truth, rises; why a method has none."""

    seed: int
    scored: dict[str, Scored]
    measured: dict[str, statistics.Measured]
    rises: dict[str, list[counterfactual.Rise]]
    refused: dict[str, str]
    attributed: dict[str, dict[str, float]]


def run_seed(
    settings: Settings,
    seed: int,
    subsets: int,
    state: Path,
    wanted: Callable[[str], bool],
    removal: bool,
    peers: bool,
    training: bool = True,
) -> SeedResult:
    """Everything of one seed; what is in `state` already is not done again.

    Without `training` there are as many half-subsets and removals as were trained before. Raises ValueError if there are none.
    """
    made = make(settings, seed, state, training)
    work = made.work
    asked = len(work.queries)
    halves = half_subsets(len(work.records), subsets, seed)
    found_losses = [counterfactual.known_only(made.losses, kept) for kept in halves]
    known = [k for k, losses in enumerate(found_losses) if losses is not None]
    masks = halves[known]
    real = -np.array([losses[:asked] for losses in found_losses if losses is not None])
    if not known:
        raise ValueError(f"no half-subset of seed {seed} was trained in {state}")
    scored, refused = scores_of(made, state, wanted, peers)
    measured = {
        name: statistics.Measured(statistics.predictions(found.scores[:asked], masks), real)
        for name, found in scored.items()
    }
    rises = dict[str, list[counterfactual.Rise]]()
    if removal:
        rises["random records"] = counterfactual.random_rises(work, made.losses)
        for name in REMOVED:
            if name in scored:
                rises[name] = counterfactual.rises(work, scored[name].scores[:asked], made.losses)
    attributed = {
        name: calibrated(found.cosines, asked) for name, found in scored.items() if found.cosines is not None
    }
    return SeedResult(seed, scored, measured, rises, refused, attributed)


def scores_of(
    made: Made, state: Path, wanted: Callable[[str], bool], peers: bool
) -> tuple[dict[str, Scored], dict[str, str]]:
    """Scores of all wanted methods, ours and peers', and why some have none."""
    from benchmarks.lds.peers.methods import methods as peer_methods

    scored, refused = dict[str, Scored](), dict[str, str]()
    shelf = Shelf(made.work)
    for name, method in {**own_methods(shelf), **(peer_methods() if peers else {})}.items():
        if not wanted(name):
            continue
        path = state / f"scores-{made.work.seed}-{made.truth.digest[:6].hex()}-{_slug(name)}.npz"
        try:
            scored[name] = load_scored(path) if path.exists() else method(made.work)
        except (PeerUnavailable, PeerFailed) as reason:
            refused[name] = str(reason)
            continue
        if not path.exists():
            save_scored(scored[name], path)
    return scored, refused


def calibrated(cosines: npt.NDArray[np.float64], asked: int) -> dict[str, float]:
    """Floor from every second unrelated text, the share attributed of the others, and that of the queries; both at the default, too.

    Shares as `attribution.shares` makes them: squared cosines from the floor on, against the floor's square for nobody.
    """
    strange = cosines[asked:]
    floor = FLOOR_MARGIN * float(np.clip(strange[0::2], 0, None).max(initial=0.0))
    default = FLOOR_PPM_DEFAULT / COSINE_ONE_PPM
    return {
        "floor": floor,
        "unrelated_attributed": attributed(strange[1::2], floor),
        "queries_attributed": attributed(cosines[:asked], floor),
        "unrelated_at_default": attributed(strange, default),
        "queries_at_default": attributed(cosines[:asked], default),
    }


def attributed(cosines: npt.NDArray[np.float64], floor: float) -> float:
    """Mean share that goes to anybody."""
    squares = np.where(cosines >= floor, np.clip(cosines, 0, None) ** 2, 0.0).sum(1)
    total = squares + max(floor, 1e-6) ** 2
    return float((squares / total).mean()) if len(cosines) else 0.0


def save_scored(found: Scored, path: Path) -> None:
    """Write scores and what they cost, atomically."""
    facts = {
        "name": found.name,
        "bytes_per_record": found.bytes_per_record,
        "build_s": found.build_s,
        "query_ms": found.query_ms,
        "needs_retraining": found.needs_retraining,
        "note": found.note,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.stem}.{os.getpid()}.part.npz")
    cosines = found.cosines if found.cosines is not None else np.zeros(0)
    np.savez_compressed(
        scratch,
        scores=found.scores,
        cosines=cosines,
        facts=np.frombuffer(json.dumps(facts).encode(), np.uint8),
    )
    os.replace(scratch, path)


def load_scored(path: Path) -> Scored:
    """Inverse of `save_scored`."""
    with np.load(path, allow_pickle=False) as file:
        facts = json.loads(file["facts"].tobytes())
        cosines = file["cosines"]
        return Scored(scores=file["scores"], cosines=cosines if cosines.size else None, **facts)


def chosen(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a method's name contains one of the patterns; without patterns every method is wanted."""
    return lambda name: not patterns or any(p.lower() in name.lower() for p in patterns)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def names(results: Iterable[SeedResult]) -> list[str]:
    """Methods that every seed has, in the first one's order."""
    rows = list(results)
    return [n for n in rows[0].scored if all(n in r.scored for r in rows)] if rows else []
