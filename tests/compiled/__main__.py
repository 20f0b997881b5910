"""Unit and property tests of what is translated, run on machine code: `python -m tests.compiled [PYTEST ARGUMENT ...]`.

The tests are copied beside a copy of the site, so that nothing of the text's own folders is found. Ends as pytest does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.compile import ROOT
from tests.compiled.made import made
from tests.compiled.skipped import SKIPPED

BESIDE = ("tests", "scripts", "benchmarks", "docs", "pyproject.toml", "README.md", "Makefile")
TESTS = (
    "tests/unit/consensus",
    "tests/unit/node_ledger",
    "tests/unit/node/test_mempool.py",
    "tests/unit/node/test_mempool_eviction.py",
    "tests/property/test_ledger_codec.py",
    "tests/property/test_ledger_settlement.py",
    "tests/property/test_ledger_histories.py",
    "tests/property/test_ledger_epoch_histories.py",
    "tests/property/test_ledger_shortcuts.py",
    "tests/property/test_mempool_machine.py",
    "tests/property/test_replica_machine.py",
)

IS_COMPILED = "from node.form import form; raise SystemExit(not form().startswith('machine code of'))"


def main(arguments: list[str]) -> int:
    """Copy, name what is skipped, and run."""
    with tempfile.TemporaryDirectory(prefix="openledger-compiled-") as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(made(), copy)
        for name in BESIDE:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(
                    source, copy / name, ignore=shutil.ignore_patterns("node_modules", "__pycache__")
                )
            else:
                shutil.copy(source, copy / name)
        # By the same way that pytest takes: the copy first, and nothing from where this was called.
        environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-c", IS_COMPILED], cwd=copy, env=environment, check=True)
        for reason, names in SKIPPED.items():
            print(f"skipped, since it {reason}:", *names, sep="\n    ")
        deselected = [f"--deselect={name}" for names in SKIPPED.values() for name in names]
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            "not slow",
            *deselected,
        ]
        return subprocess.run(
            [*command, *(arguments or TESTS)], cwd=copy, env=environment, check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
