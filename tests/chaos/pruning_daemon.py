"""A daemon like any other that forgets blocks after dozens instead of hundreds, so that a run of minutes sees it pruning."""

import sys

from node import pruning
from node.cli.main import main

RETAIN_HEIGHTS_MIN = 48
LOOK_HEIGHTS = 8

if __name__ == "__main__":
    setattr(pruning, "RETAIN_HEIGHTS_MIN", RETAIN_HEIGHTS_MIN)  # noqa: B010 - what is kept at least is the difference
    setattr(pruning, "LOOK_HEIGHTS", LOOK_HEIGHTS)  # noqa: B010
    sys.exit(main())
