"""`python -m tests.vectors.stranger`: what plain Python computes from the inputs of ``attribution.json``, in the form of that file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.vectors.stranger.steps import computed

VECTORS = Path(__file__).parents[1] / "attribution.json"


def results() -> str:
    """All steps as JSON."""
    steps = computed(json.loads(VECTORS.read_text())["inputs"])
    return json.dumps(
        {"format": 1, "steps": [{"step": name, "value": steps[name]} for name in steps]}, indent=1
    )


if __name__ == "__main__":
    sys.stdout.write(results() + "\n")
