"""The workshop's side of the pipe: trains, indexes, generates and scores; torch is imported here and not by its parent."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from consensus.codec import encode
from node.ledger.records import decode_records

if TYPE_CHECKING:
    from attribution.adapter import Adapter
    from attribution.index import Index
    from attribution.model import Base
    from attribution.recipe import Recipe
    from attribution.training import Progress

_PROGRESS_STEPS = 10

STEPS = 300
"""Steps after which the shipped base recites most of its records (docs/attribution.md): 20 epochs of 60 records."""

EPOCHS_MIN, EPOCHS_MAX = 6, 200

Say = Callable[[str], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Serve jobs until standard input closes."""
    parser = argparse.ArgumentParser(prog="openledger-workshop")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
    # What libraries print must not reach the pipe that carries answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    bench = Bench(options.threads)
    for line in sys.stdin:
        _serve(bench, json.loads(line), answers)
    return 0


def story_recipe(record_count: int) -> Recipe:
    """The default recipe with as many epochs as make `STEPS` steps, within limits: few records are seen more often."""
    from attribution.recipe import Recipe

    steps_per_epoch = -(-record_count // Recipe().batch_size)
    return Recipe(epochs=min(max(round(STEPS / steps_per_epoch), EPOCHS_MIN), EPOCHS_MAX))


def _serve(bench: Bench, request: dict[str, Any], answers: TextIO) -> None:
    from attribution.errors import ExactError

    def write(message: Mapping[str, object]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    jobs: dict[str, Callable[..., dict[str, object]]] = {
        "open": bench.open,
        "train": bench.train,
        "generate": bench.generate,
        "unrelated": bench.unrelated,
    }
    try:
        job = jobs[request.pop("job")]
        write({"result": job(lambda text: write({"progress": text}), **request)})
    except (ExactError, OSError, ValueError, KeyError, TypeError) as error:
        write({"error": f"{type(error).__name__}: {error}"})


class Bench:
    """The models and the index of the story, once they are made."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._base: Base | None = None
        self._adapter: Adapter | None = None
        self._index: Index | None = None

    def open(self, say: Say) -> dict[str, object]:
        """Import torch, open the shipped base, and return its hash; the file is held against the pinned one."""
        from attribution.checkpoint import load_base
        from attribution.machine import prepare
        from attribution.models import BASE_HASH, BASE_PATH

        say("opening the base model")
        prepare("cpu", threads=self._threads)
        base = load_base(BASE_PATH)
        if base.hash != BASE_HASH:
            raise ValueError(f"{BASE_PATH.name} has the hash {base.hash.hex()}, not {BASE_HASH.hex()}")
        self._base = base
        return {"base_hash": base.hash.hex()}

    def train(self, say: Say, records: list[str], adapter: str) -> dict[str, object]:
        """Train on the records blobs in this order, write the adapter's file, build the index."""
        from attribution.adapter import adapter_to_bytes
        from attribution.duplicates import leaders
        from attribution.index import build_index
        from attribution.training import train

        base = self._opened()
        ids = [list(record) for path in records for record in decode_records(Path(path).read_bytes())]
        recipe = story_recipe(len(ids))

        def progress(at: Progress) -> None:
            if at.step % _PROGRESS_STEPS == 0 or at.step == at.steps:
                loss = at.loss / at.tokens / 2**30
                say(f"step {at.step} of {at.steps}, {loss:.2f} nats per byte")

        self._adapter = train(base, ids, recipe, progress)
        Path(adapter).write_bytes(adapter_to_bytes(self._adapter))
        say(f"building the index of {len(ids)} records")
        self._index = build_index(base, self._adapter, ids, clusters=leaders(ids))
        return {
            "adapter_hash": self._adapter.hash.hex(),
            "recipe": encode(list(recipe.to_fields())).hex(),
            "index_root": self._index.root.hex(),
        }

    def generate(self, say: Say, prompts: list[list[int]], new_tokens_max: int) -> dict[str, object]:
        """Greedy answers."""
        from attribution.generation import generate

        base, adapter, outputs = self._opened(), self._trained(), []
        for number, prompt in enumerate(prompts, 1):
            say(f"answering prompt {number} of {len(prompts)}")
            outputs.append(generate(base, adapter, prompt, new_tokens_max))
        return {"outputs": outputs}

    def unrelated(self, say: Say, texts: list[list[int]], floor_ppm: int) -> dict[str, object]:
        """Unattributed parts of 10^9 of each text, scored as if it were an output (teacher-forced), without a prompt."""
        from attribution.scores import score
        from attribution.shares import attribute

        base, adapter = self._opened(), self._trained()
        if self._index is None:
            raise ValueError("no index yet")
        # Who owns which record does not matter to what nobody owns.
        owners = [b"\1"] * self._index.record_count
        parts = []
        for number, text in enumerate(texts, 1):
            say(f"scoring unrelated sentence {number} of {len(texts)}")
            scores = score(base, adapter, self._index, [], text)
            parts.append(attribute(scores, owners, floor_ppm).unattributed)
        return {"unattributed": parts}

    def _opened(self) -> Base:
        if self._base is None:
            raise ValueError("the base is not open yet")
        return self._base

    def _trained(self) -> Adapter:
        if self._adapter is None:
            raise ValueError("no adapter yet")
        return self._adapter


if __name__ == "__main__":
    sys.exit(main())
