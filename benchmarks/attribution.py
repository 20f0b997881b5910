"""Speed of what a validator recomputes, on the shipped base and the demo's records, one thread.

python -m benchmarks.attribution [--epochs 4] [--json]
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def timed(run: Callable[[], T]) -> tuple[T, float]:
    """What `run` returns, and the CPU seconds of this process that it took."""
    started = time.process_time()
    result = run()
    return result, time.process_time() - started


def measure(epochs: int) -> dict[str, float | int | str]:
    """Train, index, generate and score once; seconds are CPU seconds."""
    import torch

    from attribution.checkpoint import load_base
    from attribution.generation import generate
    from attribution.index import build_index
    from attribution.models import BASE_PATH
    from attribution.recipe import Recipe
    from attribution.scores import score
    from attribution.training import train
    from node.devnet.stories import beginning, stdlib_contributors

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    texts = [text for row in stdlib_contributors().values() for text in row]
    records = [list(text.encode()) for text in texts]
    base = load_base(BASE_PATH)
    adapter, train_s = timed(lambda: train(base, records, Recipe(epochs=epochs)))
    index, index_s = timed(lambda: build_index(base, adapter, records))
    prompts = [list(beginning(text).encode()) for text in texts[:10]]
    outputs, generate_s = timed(lambda: [generate(base, adapter, prompt, 48) for prompt in prompts])
    _, score_s = timed(
        lambda: [score(base, adapter, index, p, o) for p, o in zip(prompts, outputs, strict=True)]
    )
    tokens = epochs * sum(len(record) + 1 for record in records)
    answered = sum(len(output) + 1 for output in outputs)
    return {
        "torch": torch.__version__,
        "records": len(records),
        "train_tokens_per_s": round(tokens / train_s),
        "index_s": round(index_s, 2),
        "generate_ms_per_token": round(1000 * generate_s / answered, 2),
        "score_ms": round(1000 * score_s / len(prompts), 1),
        "index_bytes_per_record": index.size_bytes // len(records),
        "adapter_hash": adapter.hash.hex(),
        "index_root": index.root.hex(),
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(options.epochs)
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:24} {value}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
