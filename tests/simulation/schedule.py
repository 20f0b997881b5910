"""What befalls a run, drawn from its seed and number."""

import random
from dataclasses import dataclass

from tests.simulation.byzantine import KINDS

SIZES = (4,) * 13 + (7, 7, 10)
REAL_SIGNATURES_EVERY = 16
"""One run in so many signs with Ed25519, the others with keyed hashes."""


@dataclass(frozen=True)
class Schedule:
    """What befalls a run.

    Attributes:
        name: of the run, and the seed of everything random in it.
        validators: how many.
        misdeeds: what the last validators are, by the names in `byzantine.KINDS`; all others are honest.
        observers: full nodes without a key.
        chaos_ms: how long the network is bad; then it heals.
        calm_ms: how long after that the honest nodes have to recover.
        loss, duplicates, replays: chances per message, in percent.
        delay_ms_max: longest delay of a message while the network is bad.
        partitions: how many, spread over the bad time.
        crashes: how many honest crashes, spread over the bad time.
        crash_in_step: chance per step with a write, in 1/10000, of an end in one of the manners of `deaths.Manner`.
        batches: payload batches born during the run.
        skew_ms_max: how far clocks may lie apart.
        drift_ppm_max: how much faster or slower a clock may run, in millionths.
        heights_min: a run that has recovered ends once so many blocks are committed; None: after `calm_ms`.
        stakes: of each validator; the dishonest ones have less than a third. Empty: one each.
        real_signatures: Ed25519 in place of keyed hashes.
        collectors: so many validators, the first ones, send their votes to the next leader alone.
        drawn_leaders: leaders are drawn from a seed and do not take turns, so that one may lead several rounds on end.
        epoch_heights: the ledger freezes the next set so many blocks after an epoch's start.
        epochs: changes of the validator set; the last epoch does not end.
    """

    name: str
    validators: int
    misdeeds: tuple[str, ...]
    observers: int
    chaos_ms: int
    calm_ms: int
    loss: int
    duplicates: int
    replays: int
    delay_ms_max: int
    partitions: int
    crashes: int
    crash_in_step: int
    batches: int
    skew_ms_max: int
    drift_ppm_max: int = 0
    heights_min: int | None = None
    stakes: tuple[int, ...] = ()
    real_signatures: bool = True
    collectors: int = 0
    drawn_leaders: bool = False
    epoch_heights: int = 0
    epochs: int = 0


def draw_schedule(seed: int, run: int, only: str | None = None, size: int | None = None) -> Schedule:
    """Draw the schedule of one run; with `only` every dishonest validator is of that kind, with `size` there are as many."""
    name = f"{seed}:{run}"
    rng = random.Random(f"schedule {name}")
    rough = rng.random() < 0.8
    changing = rng.random() < 0.2 and only != "half-splitter"
    validators = rng.choice((5, 6, 7)) if changing else rng.choice(SIZES)
    validators = size or validators
    misdeeds = _draw_misdeeds(rng, validators, only, changing=changing)
    return Schedule(
        name=name,
        validators=validators,
        misdeeds=misdeeds,
        observers=1 if rng.random() < 0.15 else 0,
        chaos_ms=rng.choice((800, 1_600, 3_000)),
        calm_ms=12_000,
        loss=rng.choice((0, 2, 10, 25)) if rough else 0,
        duplicates=rng.choice((0, 5)) if rough else 0,
        replays=rng.choice((0, 3)) if rough else 0,
        delay_ms_max=rng.choice((5, 20, 100, 400)),
        partitions=rng.choice((0, 1, 3)) if rough else 0,
        crashes=rng.choice((0, 1, 4)) if rough else 0,
        crash_in_step=rng.choice((0, 100, 500)) if rough else 0,
        batches=rng.choice((0, 5, 15)),
        skew_ms_max=rng.choice((0, 50, 500)),
        drift_ppm_max=rng.choice((0, 0, 500, 20_000)),
        heights_min=rng.choice((20, 24)),
        stakes=_draw_stakes(rng, validators, len(misdeeds)) if rng.random() < 0.3 else (),
        real_signatures=run % REAL_SIGNATURES_EVERY == 0,
        collectors=rng.randint(1, validators) if rng.random() < 0.3 else 0,
        # Conspirators need to lead two rounds on end to hide a certificate from everybody else.
        drawn_leaders=rng.random() < 0.5 or only == "half-splitter",
        epoch_heights=rng.choice((2, 4, 6)) if changing else 0,
        epochs=rng.randint(2, 4) if changing else 0,
    )


def _draw_misdeeds(
    rng: random.Random, validators: int, only: str | None, *, changing: bool
) -> tuple[str, ...]:
    # Conspirators plan by the leaders of one epoch; in runs with several the others do their part.
    kinds = tuple(kind for kind in KINDS if not changing or kind != "half-splitter")
    faults_max = (validators - 1) // 3
    if only is not None:
        return (only,) * faults_max
    if rng.random() < 0.1:
        return ()
    count = rng.randint(1, faults_max)
    if rng.random() < 0.3:
        return (rng.choice(kinds),) * count
    return tuple(rng.choice(kinds) for _ in range(count))


def _draw_stakes(rng: random.Random, validators: int, dishonest: int) -> tuple[int, ...]:
    """Draw stakes of which the last `dishonest` have less than a third, and nearly so."""
    honest = [rng.randint(1, 9) for _ in range(validators - dishonest)]
    if not dishonest:
        return tuple(honest)
    # b < (h + b) / 3 as long as b <= (h - 1) // 2.
    purse = (sum(honest) - 1) // 2
    if purse < dishonest:
        return ()
    cuts = sorted(rng.sample(range(1, purse), dishonest - 1)) if dishonest > 1 else []
    shares = [high - low for low, high in zip([0, *cuts], [*cuts, purse], strict=True)]
    return (*honest, *shares)
