"""What every method is given: a base, a fine-tune with its checkpoints, records and queries; and what it gives back.

A method is a function of a `Work` alone. It returns scores (queries, records), higher where training on the record is
expected to lower the query's loss more, first for `Work.queries`, then for `Work.unrelated`.
"""

from __future__ import annotations

import ast
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import blake3
import numpy as np
import numpy.typing as npt
from torch import Tensor

from attribution.model import Base
from benchmarks.lds.network import Network
from node.devnet.stories import CONTRIBUTORS, unrelated_texts

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Settings:
    """Sizes and the recipe: records of `bytes_min` to `bytes_max` bytes, AdamW with linear decay as in `attribution.recipe`."""

    records_each: int = 200
    queries: int = 64
    unrelated: int = 48
    bytes_min: int = 40
    bytes_max: int = 80
    rank: int = 8
    alpha: int = 16
    epochs: int = 3
    batch_size: int = 16
    learning_rate_micro: int = 6_000
    checkpoints: int = 6

    @property
    def steps(self) -> int:
        """Optimiser steps of a training on all records."""
        return self.epochs * -(-self.records_each * len(CONTRIBUTORS) // self.batch_size)


@dataclass(frozen=True)
class Checkpoint:
    """The adapter after `step` steps: factors (a, b), AdamW's second moments (v_a, v_b), bias-corrected, and the rate then."""

    step: int
    learning_rate: float
    state: dict[str, tuple[Tensor, Tensor]]
    second_moments: dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Work:
    """One fine-tune and what is asked about it.

    `network` holds the final factors (a method may load others into it, and shall put `checkpoints[-1].state` back).
    `checkpoints` are evenly spaced, the last one is the final state. Records and queries are token ids (bytes)
    without BOS and EOS, both of which are `base.config.bos_token_id` = `eos_token_id` = 0; a record's loss is the summed
    negative log-likelihood of its tokens and EOS given BOS. `labels` and `query_labels` number the contributors.
    """

    seed: int
    settings: Settings
    base: Base
    network: Network
    checkpoints: tuple[Checkpoint, ...]
    records: tuple[tuple[int, ...], ...]
    labels: tuple[int, ...]
    queries: tuple[tuple[int, ...], ...]
    query_labels: tuple[int, ...]
    unrelated: tuple[tuple[int, ...], ...]

    @property
    def asked(self) -> tuple[tuple[int, ...], ...]:
        """Queries, then unrelated texts: the rows of a method's scores."""
        return self.queries + self.unrelated


@dataclass(frozen=True)
class Scored:
    """What a method found. `scores` (queries + unrelated, records); cost in bytes a record, and in CPU time, one thread.

    `bytes_per_record` is what has to be kept for each record beside the model (for a method that recomputes or keeps text: that of
    the gradient or text). `cosines`: for methods that have a floor, squared-root energies (queries + unrelated, records)
    in 0..1 that the floor is compared with. `note` is shown beside the row.
    """

    name: str
    scores: Scores
    bytes_per_record: int
    build_s: float
    query_ms: float
    needs_retraining: bool = False
    cosines: Scores | None = None
    note: str = ""


Method = Callable[[Work], Scored]


@dataclass(frozen=True)
class Texts:
    """Records and queries with the numbers of their contributors."""

    records: tuple[tuple[int, ...], ...]
    labels: tuple[int, ...]
    queries: tuple[tuple[int, ...], ...]
    query_labels: tuple[int, ...]
    unrelated: tuple[tuple[int, ...], ...] = field(default=())

    def digest(self) -> bytes:
        """Hash of all of them, in order."""
        hasher = blake3.blake3(b"openledger/benchmark-texts/v1")
        for group in (self.records, self.queries, self.unrelated):
            hasher.update(len(group).to_bytes(4, "little"))
            for ids in group:
                hasher.update(len(ids).to_bytes(4, "little") + bytes(ids))
        hasher.update(bytes(self.labels) + bytes(self.query_labels))
        return hasher.digest()


def pieces(docstring: str, low: int, high: int) -> Iterator[str]:
    """A docstring's paragraphs as lines of `low` to `high` bytes: short ones joined, long ones cut at a sentence or word."""
    line = ""
    for paragraph in re.split(r"\n\s*\n", docstring):
        text = " ".join(paragraph.split())
        if ">>>" in text:
            continue
        if line and len(line) + 1 + len(text) > high:
            yield from [line] if len(line) >= low else []
            line = ""
        line = f"{line} {text}".strip()
        while len(line) > high:
            sentence = line.rfind(". ", low, high) + 1
            cut = sentence or line.rfind(" ", low, high + 1)
            cut = high if cut < low else cut
            yield line[:cut]
            line = line[cut:].strip()
    if len(line) >= low:
        yield line


@cache
def documents(root: Path, modules: tuple[str, ...]) -> tuple[str, ...]:
    """Docstrings of modules and packages below `root`, in path order, each text once. Nothing is imported."""
    found = dict[str, None]()
    for name in modules:
        package = root / name
        for path in sorted(package.glob("**/*.py")) if package.is_dir() else [root / f"{name}.py"]:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", SyntaxWarning)
                    tree = ast.parse(path.read_bytes())
            except (OSError, SyntaxError, ValueError):
                continue
            for node in ast.walk(tree):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                    text = ast.get_docstring(node)
                    if text and text.isascii() and "\0" not in text:
                        found.setdefault(text)
    return tuple(found)


def draw_texts(settings: Settings, seed: int) -> Texts:
    """Records and queries of the three contributors, drawn by `seed`; a docstring goes to one side as a whole.

    Raises ValueError where the installed standard library has too little text.
    """
    generator = np.random.default_rng([seed, 1])
    shares = [settings.queries // len(CONTRIBUTORS)] * len(CONTRIBUTORS)
    for k in range(settings.queries % len(CONTRIBUTORS)):
        shares[k] += 1
    root, taken = Path(sysconfig.get_paths()["stdlib"]), dict[str, None]()
    records, labels, queries, query_labels = list[str](), list[int](), list[str](), list[int]()
    for label, contributor in enumerate(CONTRIBUTORS):
        # None of these, substitutes included, is in the base's training text (scripts/make_base.py).
        texts = documents(root, (*contributor.modules, *contributor.substitutes))
        cut = [list(pieces(text, settings.bytes_min, settings.bytes_max)) for text in texts]
        order = [cut[i] for i in generator.permutation(len(cut))]
        held, kept = list[str](), list[str]()
        for document in order:
            fresh = [p for p in dict.fromkeys(document) if p not in taken]
            taken.update(dict.fromkeys(fresh))
            # At most four from one docstring, so that a few long ones do not fill either side.
            (held if len(held) < shares[label] else kept).extend(fresh[:4])
        chosen = [kept[i] for i in sorted(generator.permutation(len(kept))[: settings.records_each])]
        if len(chosen) < settings.records_each or len(held) < shares[label]:
            raise ValueError(f"the standard library has too few docstrings for {contributor.name}")
        records += chosen
        labels += [label] * len(chosen)
        queries += held[: shares[label]]
        query_labels += [label] * shares[label]
    strange = unrelated_texts()[: settings.unrelated]
    rows = [tuple(tuple(text.encode()) for text in group) for group in (records, queries, strange)]
    return Texts(rows[0], tuple(labels), rows[1], tuple(query_labels), rows[2])
