"""How far recited records stand above unrelated text: the demo's records and recipe, several trainings.

python -m benchmarks.recital [--epochs 16 20] [--ranks 16] [--seeds 3] [--json]

Every second record's beginning is asked and what is answered is scored; one that is like the record's rest in nine tenths (difflib's
ratio) is verbatim. From a rank of 32 on rows are sketched (`attribution.rows`). Beside it 48 sentences that no record has, scored teacher-forced. Cosines as the floor is compared with them.
"""

import argparse
import json
import os
import time
from difflib import SequenceMatcher
from typing import Any

VERBATIM = 0.9
ANSWER_TOKENS_MAX = 48


def measure(epochs: int, rank: int, seed: int) -> dict[str, Any]:
    """One training: similarities of answers, cosines of verbatim ones and of unrelated text, shares."""
    import numpy as np
    import torch

    from attribution.checkpoint import load_base
    from attribution.generation import generate
    from attribution.gradients import Example
    from attribution.index import build_index
    from attribution.models import BASE_PATH
    from attribution.recipe import Recipe
    from attribution.scores import score, score_example
    from attribution.shares import attribute
    from attribution.training import train
    from node.devnet.stories import beginning, stdlib_contributors, unrelated_texts

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    story = stdlib_contributors()
    owners = [name.encode() for name, row in story.items() for _ in row]
    texts = [text for row in story.values() for text in row]
    records = [text.encode() for text in texts]
    base = load_base(BASE_PATH)
    adapter = train(base, records, Recipe(epochs=epochs, rank=rank, alpha=2 * rank, seed=seed))
    started = time.process_time()
    index = build_index(base, adapter, records)
    built = time.process_time() - started
    alike, cosines, right, led, to_owner = list[float](), list[float](), 0, 0, list[float]()
    for i in range(0, len(texts), 2):
        prompt = beginning(texts[i]).encode()
        answer = generate(base, adapter, list(prompt), ANSWER_TOKENS_MAX)
        said = SequenceMatcher(None, bytes(answer), records[i][len(prompt) :], autojunk=False).ratio()
        scores = score(base, adapter, index, prompt, answer)
        share = attribute(scores, owners).of(owners[i]) / 10**9
        alike.append(said)
        led += share > 0.5
        if said >= VERBATIM:
            right += scores.best() == i
            cosines.append(scores.cosine_ppm(i) / 1e6)
            to_owner.append(share)
    started = time.process_time()
    strange = []
    for text in unrelated_texts():
        scores = score_example(base, adapter, index, Example((), tuple(text.encode())))
        best = scores.best()
        strange.append(0.0 if best is None else scores.cosine_ppm(best) / 1e6)
    asked = (time.process_time() - started) / len(strange)
    return {
        "epochs": epochs,
        "rank": rank,
        "seed": seed,
        "similarity": round(float(np.mean(alike)), 3),
        "verbatim": round(len(cosines) / len(alike), 2),
        "right record first": round(right / max(1, len(cosines)), 2),
        "owner has more than half": round(led / len(alike), 2),
        "cosine: median, 5 %, least": [round(float(x), 3) for x in np.percentile(cosines, (50, 5, 0))],
        "owner's share at the median": round(float(np.median(to_owner)), 3),
        "unrelated: median, most": [round(float(x), 3) for x in (np.median(strange), max(strange))],
        "index": {"seconds": round(built, 2), "bytes": index.size_bytes, "row": index.header.row_bytes},
        "score, ms": round(1000 * asked, 1),
    }


def main() -> None:
    """Train, ask and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=int, nargs="*", default=[16, 20])
    parser.add_argument("--ranks", type=int, nargs="*", default=[16])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = [
        measure(epochs, rank, seed)
        for epochs in options.epochs
        for rank in options.ranks
        for seed in range(options.seeds)
    ]
    if options.json:
        print(json.dumps(found))
        return
    for row in found:
        print(", ".join(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
