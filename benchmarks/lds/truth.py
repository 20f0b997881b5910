"""What really happens to the queries' losses when the fine-tune is repeated without some of the records. Kept on disk.

A truth file belongs to one work (hash of base, texts, recipe and this module's version) and holds the losses of every retraining by
the hash of the records that it kept, so a killed run goes on where it stopped and nothing is trained twice.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import blake3
import numpy as np
import numpy.typing as npt

from attribution.recipe import Recipe
from benchmarks.lds import learning
from benchmarks.lds.network import Network
from benchmarks.lds.work import Settings, Texts

VERSION = 1
Mask = npt.NDArray[np.bool_]
Losses = npt.NDArray[np.float64]


class ForeignState(ValueError):
    """The file on disk is not the truth of this work; the message says where it lies."""


def recipe(settings: Settings, seed: int) -> Recipe:
    """The recipe of every training of a work, full and partial ones."""
    return Recipe(
        rank=settings.rank,
        alpha=settings.alpha,
        learning_rate_micro=settings.learning_rate_micro,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        seed=seed,
    )


def work_digest(base_hash: bytes, texts: Texts, settings: Settings, seed: int) -> bytes:
    """Hash of all that decides a retraining's losses, but for the machine's rounding."""
    hasher = blake3.blake3(b"openledger/benchmark-truth/v1")
    hasher.update(base_hash + texts.digest())
    hasher.update(repr((VERSION, recipe(settings, seed).to_fields())).encode())
    return hasher.digest()


def mask_name(kept: Mask) -> str:
    """Under which a retraining's losses are kept."""
    return blake3.blake3(np.packbits(kept).tobytes() + len(kept).to_bytes(4, "little")).hexdigest()[:32]


class NotTrained(LookupError):
    """What was asked for is not on disk, and nothing shall be trained."""


def refuse(_: Mask) -> Losses:
    """In place of a retraining, where only what is on disk is wanted. Raises `NotTrained`."""
    raise NotTrained


@dataclass
class Truth:
    """Losses (queries + unrelated) by retraining, in memory and in the file `path` (npz), written after each."""

    path: Path
    digest: bytes
    known: dict[str, Losses]

    @classmethod
    def open(cls, path: Path, digest: bytes) -> Truth:
        """What is there already. Raises `ForeignState` if the file is another work's or is damaged."""
        if not path.exists():
            return cls(path, digest, {})
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                found = bytes(file["digest"].tobytes())
                known = {name: file[name] for name in file.files if name != "digest"}
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise ForeignState(f"{path} cannot be read: {error}") from error
        if found != digest:
            raise ForeignState(f"{path} belongs to another work; choose another --state or remove it")
        return cls(path, digest, known)

    def save(self) -> None:
        """Replace the file atomically."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.path.with_name(f"{self.path.stem}.{os.getpid()}.part.npz")
        np.savez(scratch, digest=np.frombuffer(self.digest, np.uint8), **self.known)  # type: ignore[arg-type]
        os.replace(scratch, self.path)

    def losses(self, kept: Mask, retrain: Callable[[Mask], Losses]) -> Losses:
        """Losses after training on `kept`, trained now if that was never done."""
        name = mask_name(kept)
        if name not in self.known:
            self.known[name] = retrain(kept)
            self.save()
        return self.known[name]


def retrainer(
    network: Network, learner: Callable[[Mask], learning.Factors], asked: Sequence[Sequence[int]]
) -> Callable[[Mask], Losses]:
    """A function from kept records to losses of what is asked; says how long it took."""

    def run(kept: Mask) -> Losses:
        started = time.process_time()
        found = learning.losses(network, learner(kept), asked)
        took = time.process_time() - started
        print(
            f"  retrained on {int(kept.sum())} records: {took:.1f} s, mean loss {found.mean():.3f}",
            file=sys.stderr,
            flush=True,
        )
        return found

    return run


def half_subsets(records: int, count: int, seed: int) -> npt.NDArray[np.bool_]:
    """Random halves (count, records), drawn from a stream of their own."""
    masks = np.zeros((count, records), np.bool_)
    for k in range(count):
        chosen = np.random.default_rng([seed, 2, k]).permutation(records)[: records // 2]
        masks[k, chosen] = True
    return masks
