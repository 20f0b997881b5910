"""A recompute worker whose first score differs from the true one in its lowest bit."""

import sys
from dataclasses import replace
from typing import Any

from attribution import scores
from node.recompute import worker

_honest_score = scores.score


def _flipped_score(*arguments: Any) -> Any:
    found = _honest_score(*arguments)
    return replace(found, values=(found.values[0] ^ 1, *found.values[1:]))


if __name__ == "__main__":
    setattr(scores, "score", _flipped_score)  # noqa: B010 - replacing a function is the misdeed
    sys.exit(worker.main())
