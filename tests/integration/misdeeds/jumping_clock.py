"""A daemon like any other on a machine whose clock somebody sets: by as many ms as its home's ``clock_offset_ms`` says."""

import sys
import time
from pathlib import Path

from node.cli.main import main

LOOK_AGAIN_S = 0.05


class JumpingClock:
    """The time of day, moved."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._real = time.time_ns
        self._looked_s = float("-inf")
        self._offset_ns = 0

    def __call__(self) -> int:
        if time.monotonic() - self._looked_s > LOOK_AGAIN_S:
            self._looked_s = time.monotonic()
            if self._file.exists():
                self._offset_ns = int(self._file.read_text() or "0") * 1_000_000
        return self._real() + self._offset_ns


if __name__ == "__main__":
    home = Path(sys.argv[sys.argv.index("--home") + 1])
    setattr(time, "time_ns", JumpingClock(home / "clock_offset_ms"))  # noqa: B010 - the machine's clock is the misdeed
    sys.exit(main())
