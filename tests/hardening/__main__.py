"""Removes each hardening once and requires its tests to fail: `python -m tests.hardening [ROOM ...] [--only TEXT]`.

The tree is copied to a temporary folder, where first the named tests must pass, then fail with one hardening removed.
Exits 1 when a removal goes unnoticed. Needs minutes; `make hardening` runs all of it, outside `make test`.
"""

import argparse
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.hardening.removal import Removal

ROOT = Path(__file__).resolve().parents[2]
COPIED = (".ci", "consensus", "attribution", "node", "tests", "docs", "scripts", "benchmarks", "configs")
COPIED_FILES = ("pyproject.toml", ".importlinter", "README.md", "ARCHITECTURE.md", "CHANGELOG.md")
TEST_TIMEOUT_S = 300
TESTS_FAILED = 1  # pytest's exit status when tests ran and some failed; others mean that nothing was shown
MEMORY_FAULTS = (-signal.SIGSEGV, -signal.SIGBUS)  # what a kernel without its bounds ends pytest by


def rooms() -> dict[str, tuple[Removal, ...]]:
    """What each room lists, by the room's name, in the order of the names."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py"))
    modules = {
        name: importlib.import_module(f"tests.hardening.{name}")
        for name in names
        if name not in ("__init__", "__main__", "removal")
    }
    return {name: module.REMOVALS for name, module in modules.items()}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hardening", description=__doc__)
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help=f"any of {', '.join(rooms())}")
    parser.add_argument("--only", default="", metavar="TEXT", help="removals whose threat contains TEXT")
    options = parser.parse_args(arguments)
    unknown = set(options.rooms) - set(rooms())
    if unknown:
        parser.error(f"no such room: {', '.join(sorted(unknown))}; there are {', '.join(rooms())}")
    chosen = [
        (room, removal)
        for room, removals in rooms().items()
        for removal in removals
        if (not options.rooms or room in options.rooms) and options.only in removal.threat
    ]
    with tempfile.TemporaryDirectory(prefix="openledger-hardening-") as folder:
        tree = copy_tree(Path(folder))
        print(f"{len(chosen)} hardenings; first the tests as they are ...", flush=True)
        status, output = run_tests(tree, sorted({test for _, removal in chosen for test in removal.tests}))
        if status != 0:
            print(output[-4000:] + "\nThe tests fail with every hardening in place; nothing can be shown.")
            return 1
        unnoticed = [removal for room, removal in chosen if not noticed(tree, room, removal)]
    print(f"{len(chosen) - len(unnoticed)} of {len(chosen)} removals were noticed")
    return 1 if unnoticed else 0


def copy_tree(folder: Path) -> Path:
    """What the tests need, without environments and caches."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules")
            )
    for name in COPIED_FILES:
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, folder / name)
    return folder


def noticed(tree: Path, room: str, removal: Removal) -> bool:
    """Whether every named test fails without the hardening; puts it back in any case."""
    path = tree / removal.file
    original = path.read_text()
    if original.count(removal.text) != 1:
        print(
            f"  STALE     {room}: {removal.threat}: its text is not in {removal.file} exactly once",
            flush=True,
        )
        return False
    path.write_text(original.replace(removal.text, removal.instead))
    start = time.monotonic()
    try:
        survivors = [test for test in removal.tests if run_tests(tree, [test])[0] != TESTS_FAILED]
    finally:
        path.write_text(original)
    verdict = "UNNOTICED" if survivors else "noticed"
    print(f"  {verdict:9} {room}: {removal.threat} ({time.monotonic() - start:.1f} s)", flush=True)
    for test in survivors:
        print(f"            did not fail: {test}", flush=True)
    return not survivors


def run_tests(tree: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Pytest's exit status and output for `tests` in `tree`; a run past its time, or that memory's guard ended, counts as failed."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        result = subprocess.run(
            command,
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TEST_TIMEOUT_S * max(1, len(tests)),
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        return TESTS_FAILED, f"no end within {expired.timeout} s"
    status = TESTS_FAILED if result.returncode in MEMORY_FAULTS else result.returncode
    return status, result.stdout + result.stderr


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
