"""What copies of one record change in payouts: the demo's records and recipe, with and without clusters.

python -m benchmarks.copies [--copies 10] [--epochs 20] [--json]

A stranger, mallory, contributes near copies of one of alice's records after everybody else. Every record's beginning is
asked, and the shares of all answers are added up, in thousandths of all that is paid. "Trained" says whether the trainer
used the copies, too. With clusters and a trainer that leaves copies out, the first and the second row must be equal.
"""

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

LEADER = 3


def near_copies(text: bytes, count: int) -> list[bytes]:
    """Copies with one byte changed near the end."""
    return [text[: -2 - k % 5] + bytes([48 + k]) + text[len(text) - 1 - k % 5 :] for k in range(count)]


def measure(copies: int, epochs: int) -> dict[str, Any]:
    import torch

    from attribution.checkpoint import load_base
    from attribution.duplicates import leaders
    from attribution.generation import generate
    from attribution.index import build_index
    from attribution.models import BASE_PATH
    from attribution.recipe import Recipe
    from attribution.scores import score
    from attribution.shares import attribute
    from attribution.training import train
    from node.devnet.stories import beginning, stdlib_contributors

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    story = stdlib_contributors()
    owners = [name.encode() for name, row in story.items() for _ in row]
    texts = [text for row in story.values() for text in row]
    records = [text.encode() for text in texts]
    copied = [*records, *near_copies(records[LEADER], copies)]
    everybody = [*owners, *[b"mallory"] * copies]
    base = load_base(BASE_PATH)
    started = time.process_time()
    clusters = leaders(copied)
    clusters_ms = 1000 * (time.process_time() - started)
    adapters = {False: train(base, records, Recipe(epochs=epochs))}
    adapters[True] = train(base, copied, Recipe(epochs=epochs))
    prompts = [list(beginning(text).encode()) for text in texts]

    def paid(trained: bool, some: Sequence[bytes], led: Sequence[int] | None) -> dict[str, float]:
        adapter, total = adapters[trained], Counter[str]()
        index = build_index(base, adapter, some, clusters=led)
        for prompt in prompts:
            scores = score(base, adapter, index, prompt, generate(base, adapter, prompt, 48))
            shares = attribute(scores, everybody[: len(some)])
            total.update({owner.decode(): part for owner, part in shares.by_owner})
            total["nobody"] += shares.unattributed
        return {who: round(part / len(prompts) / 10**6, 3) for who, part in sorted(total.items())}

    return {
        "records": len(records),
        "led": sum(leader != own for own, leader in enumerate(clusters)),
        "clusters_ms": round(clusters_ms, 1),
        "no copies": paid(False, records, None),
        "copies led": paid(False, copied, clusters),
        "copies not led": paid(False, copied, None),
        "copies led, trained": paid(True, copied, clusters),
        "copies not led, trained": paid(True, copied, None),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(options.copies, options.epochs)
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:26} {value}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
