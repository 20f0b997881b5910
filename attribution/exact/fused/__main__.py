"""Compile the fused kernels for this machine, once: `python -m attribution.exact.fused`.

Half a minute of CPU. Holds every backend and every kernel against the oracle and the torch paths first, and exits with 1 if one differs or numba is missing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

from attribution import exact
from attribution.exact.fused.kept import ASKED, INSTALLED, complete
from attribution.machine import set_up


def main() -> int:
    """Compile, check, and note that it is done."""
    if not INSTALLED:
        print("numba is not installed: pip install 'openledger[fast]'")
        return 1
    if os.environ.get(ASKED) != "1":
        # Which backends there are is decided when the package is imported, so another process does it.
        command = [sys.executable, "-m", "attribution.exact.fused"]
        return subprocess.run(command, env={**os.environ, ASKED: "1"}, check=False).returncode
    set_up(1)
    started = time.process_time()
    reports = exact.selfcheck(strict=False)
    wrong = [f"{report.name}: {report.failed_case}" for report in reports if report.failed_case is not None]
    for line in wrong:
        print(f"wrong on this machine: {line}")
    if wrong or "fused" not in exact.BACKENDS:
        return 1
    from attribution.exact.fused.compiling import FOLDER

    if FOLDER is None:
        print("there is no place to keep machine code: neither beside the sources nor in the user's cache")
        return 1
    complete(FOLDER)
    print(f"kernels compiled and right, {time.process_time() - started:.1f} s of CPU: {FOLDER}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
