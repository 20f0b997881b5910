"""Every peer as a `Method` on a work: files out, a bounded process, scores back, and a look whether they make sense."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.lds.network import padded, token_losses
from benchmarks.lds.peers import PeerFailed, processes
from benchmarks.lds.peers.exchange import asked, read_answer, selves, write_work
from benchmarks.lds.work import Method, Scored, Work

GRADIENTS_ASKED, GRADIENTS_RECORDS = 8, 64


@dataclass(frozen=True)
class Peer:
    """One row of the table: the package, the module that drives it, and its settings."""

    name: str
    package: str
    module: str
    options: dict[str, object] = field(default_factory=dict)
    several_trainings: bool = False


PEERS: tuple[Peer, ...] = (
    Peer("kronfluence EK-FAC, LoRA", "kronfluence", "kronfluence_ekfac", {"modules": "lora"}),
    Peer("kronfluence EK-FAC, base layers", "kronfluence", "kronfluence_ekfac", {"modules": "base"}),
    Peer("bergson p=16, base layers", "bergson", "bergson_store", {"modules": "base", "projection": 16}),
    Peer("bergson p=32, base layers", "bergson", "bergson_store", {"modules": "base", "projection": 32}),
    Peer("bergson p=16, LoRA", "bergson", "bergson_store", {"modules": "lora", "projection": 16}),
    Peer("dattri TRAK, 512", "dattri", "dattri_methods", {"method": "trak", "projection": 512}),
)
MORE: tuple[Peer, ...] = (
    Peer("bergson EK-FAC, LoRA", "bergson", "bergson_ekfac", {"modules": "lora"}),
    Peer(
        "bergson EK-FAC + CG, LoRA",
        "bergson",
        "bergson_ekfac",
        {"modules": "lora", "steps": 5, "documents": 64},
    ),
    Peer("bergson p=32, LoRA", "bergson", "bergson_store", {"modules": "lora", "projection": 32}),
    Peer(
        "bergson TrackStar p=16, LoRA",
        "bergson",
        "bergson_store",
        {"modules": "lora", "projection": 16, "adam": True, "unit_norm": True},
    ),
    Peer(
        "kronfluence EK-FAC, LoRA, damping 1e-8",
        "kronfluence",
        "kronfluence_ekfac",
        {"modules": "lora", "damping": 1e-8},
    ),
    Peer("dattri GradDot", "dattri", "dattri_methods", {"method": "tracin"}),
    Peer("dattri TracIn, 4 checkpoints", "dattri", "dattri_methods", {"method": "tracin", "checkpoints": 4}),
    Peer(
        "dattri TRAK, 2048",
        "dattri",
        "dattri_methods",
        {"method": "trak", "projection": 2048, "regularization": 1e-3},
    ),
    Peer("dattri DataInf", "dattri", "dattri_methods", {"method": "datainf", "regularization": 0.1}),
)
"""Other settings and cheaper methods of theirs, on demand."""


def methods(more: bool = False, bounds: processes.Bounds | None = None) -> dict[str, Method]:
    """The peers by name, `MORE` as well if asked for. A method raises PeerUnavailable or PeerFailed where it has no scores."""
    chosen = PEERS + MORE if more else PEERS
    return {peer.name: partial(_method, peer, bounds or processes.Bounds()) for peer in chosen}


def _method(peer: Peer, bounds: processes.Bounds, work: Work) -> Scored:
    return score(peer, work, bounds)


def score(
    peer: Peer,
    work: Work,
    bounds: processes.Bounds,
    command: Callable[[Path, Peer, Path], list[str]] | None = None,
) -> Scored:
    """Scores of one peer on a work; `command` replaces its process. Raises PeerUnavailable, PeerFailed."""
    python = processes.interpreter()
    version = processes.found(python, peer.package)
    with tempfile.TemporaryDirectory(prefix="peer-") as name:
        folder = Path(name).resolve()
        write_work(work, folder)
        processes.run((command or child)(Path(str(python)), peer, folder), folder, bounds)
        answer = read_answer(folder / "answer.npz", (len(asked(work)), len(work.records)))
    sense = senses(work, answer.scores)
    return Scored(
        name=peer.name,
        scores=answer.scores[: len(work.asked)],
        bytes_per_record=answer.bytes_per_record,
        build_s=answer.build_s,
        query_ms=answer.query_ms,
        needs_retraining=peer.several_trainings,
        note=f"{peer.package} {version}; {answer.note}; {sense}",
    )


def child(python: Path, peer: Peer, folder: Path) -> list[str]:
    """The command of a peer's process."""
    return [
        str(python),
        "-m",
        "benchmarks.lds.peers.child",
        peer.module,
        str(folder),
        json.dumps(peer.options),
    ]


def senses(work: Work, scores: NDArray[np.float64]) -> str:
    """Whether scores can be right: of `selves`, how many rank themselves first, and the correlation with GradDot.

    Raises PeerFailed where the sign is wrong: no record among its own first tenth, and GradDot correlated negatively.
    """
    own = selves(work)
    ranks = [int((row > row[i]).sum()) for row, i in zip(scores[len(work.asked) :], own, strict=True)]
    first, near = sum(rank == 0 for rank in ranks), sum(rank * 10 < len(work.records) for rank in ranks)
    correlation = graddot_correlation(work, scores)
    if near == 0 and correlation < 0:
        raise PeerFailed(
            f"scores make no sense: no record finds itself, GradDot correlation {correlation:.2f}"
        )
    return f"itself first {first}/{len(own)}, GradDot correlation {correlation:.2f}"


def graddot_correlation(work: Work, scores: NDArray[np.float64]) -> float:
    """Mean correlation over some queries between scores and dot products of LoRA gradients, over some records."""
    chosen = np.linspace(0, len(work.records) - 1, min(GRADIENTS_RECORDS, len(work.records))).astype(int)
    rows = range(min(GRADIENTS_ASKED, len(work.asked)))
    of_records = torch.stack([gradient(work, work.records[i]) for i in chosen])
    of_asked = torch.stack([gradient(work, work.asked[i]) for i in rows])
    dots = (of_asked @ of_records.T).numpy()
    found = [np.corrcoef(dots[i], scores[i, chosen])[0, 1] for i in rows]
    return float(np.nan_to_num(np.mean(found)))


def gradient(work: Work, ids: tuple[int, ...]) -> torch.Tensor:
    """Gradient of a record's summed loss with respect to all factors, flat."""
    factors = [f for _, m in work.network.adapted() for f in (m.lora_A.weight, m.lora_B.weight)]
    with torch.enable_grad():
        inputs, targets = padded([ids], work.base.config.eos_token_id)
        loss = token_losses(work.network(inputs), targets).sum()
        gradients = torch.autograd.grad(loss, factors)
    return torch.cat([g.flatten() for g in gradients])
