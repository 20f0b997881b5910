"""Breaks one rule at a time in a copy of the package and requires the tests to notice: `python -m tests.simulation.mutants`.

Each mutant is one literal edit (mutations.py and mutations_checks.py beside this file). A mutant that survives means a rule without a test. The
tools are tried in order until one notices; `--all-tools` asks each of them, and says after how many runs.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.simulation.mutant import Mutant
from tests.simulation.mutations import MUTANTS

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    "__init__.py",
    "conftest.py",
    "profiles.py",
    "unit/__init__.py",
    "unit/consensus",
    "fuzz/__init__.py",
    "fuzz/mutation.py",
    "property/__init__.py",
    "property/test_replica_machine.py",
    "simulation",
    "twins",
)
TIMEOUT_S = 900
NOTHING = Mutant(
    "nothing", "errors.py", "class ConsensusError(Exception):", "class ConsensusError(Exception):"
)
FAST = (
    "commit vote after timeout",
    "timeout does not raise last_voted",
    "non-consecutive two-chain",
    "first guard: a late QC clears the TC",
)
"""The short form, `--fast`: named ones whose quick test takes a second."""


@dataclass(frozen=True)
class Effort:
    """How long the searching tools look."""

    runs: int
    seed: int
    scenarios: int


def commands(mutant: Mutant, tool: str, effort: Effort) -> list[list[str]]:
    """What a tool runs, one after another until one fails."""
    python, unit = sys.executable, "tests/unit/consensus"
    pytest = [python, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    match tool:
        case "directed":
            quick = [[*pytest, f"{unit}/{mutant.quick}"]] if mutant.quick else []
            return [
                *quick,
                [
                    *pytest,
                    unit,
                    "tests/simulation/test_signing_order.py",
                    "tests/simulation/test_header_rules.py",
                ],
            ]
        case "machine":
            return [[*pytest, "tests/property/test_replica_machine.py"]]
        case "random":
            run = [python, "-m", "tests.simulation", "--stop", "--seed", str(effort.seed)]
            # Conspirators who hide a certificate need two of them: what is about locks shows there.
            hidden = [*run, "--only", "half-splitter", "--validators", "7", "--runs", str(effort.runs // 2)]
            return [[*run, "--runs", str(effort.runs)], hidden]
        case "twins":
            run = [python, "-m", "tests.twins", "--stop"]
            drawn = [*run, "--rounds", "6", "--random", str(effort.scenarios)]
            return [[*run, "--stride", "61", "--limit", str(effort.scenarios)], drawn]
        case _:
            raise ValueError(f"no such tool: {tool}")


TOOLS = ("directed", "machine", "random", "twins")


def broken_copy(mutant: Mutant, folder: Path) -> None:
    """Copy the package and the tests into `folder`, with the edit in place."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "consensus", folder / "consensus", ignore=ignored)
    for name in COPIED:
        source, target = ROOT / "tests" / name, folder / "tests" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=ignored)
        else:
            shutil.copy(source, target)
    shutil.copy(ROOT / "pyproject.toml", folder / "pyproject.toml")
    path = folder / "consensus" / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: its line occurs {text.count(mutant.old)} times in {mutant.file}")
    path.write_text(text.replace(mutant.old, mutant.new))


def caught_by(mutant: Mutant, tools: tuple[str, ...], effort: Effort, *, every: bool) -> dict[str, str]:
    """Return which tools notice the mutant, and by what; the first only, unless `every`."""
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        broken_copy(mutant, Path(name))
        for tool in tools:
            for command in commands(mutant, tool, effort):
                failure = _failure(mutant, command, Path(name))
                if failure is not None:
                    found[tool] = failure
                    break
            if found and not every:
                break
    return found


def _failure(mutant: Mutant, command: list[str], folder: Path) -> str | None:
    """Run one command; return what failed, or None."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "HYPOTHESIS_PROFILE": "ci"}
    environment.pop("PYTHONPATH", None)
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no end after {TIMEOUT_S} s"
    if done.returncode == 0:
        return None
    if done.returncode != 1:
        raise RuntimeError(f"{mutant.name}: {' '.join(command)} did not run\n{done.stdout}\n{done.stderr}")
    if re.search(r"^ERROR ", done.stdout, re.MULTILINE):
        raise RuntimeError(f"{mutant.name}: {' '.join(command)} could not collect its tests\n{done.stdout}")
    failed = re.search(r"^FAILED \S*::(\S+)", done.stdout, re.MULTILINE)
    if failed:
        return failed.group(1)
    violation = re.search(
        r"^VIOLATION: (.*)\n\s*(?:replay: .*--first |scenario )(\d+)", done.stdout, re.MULTILINE
    )
    if violation:
        return f"run {violation.group(2)}: {violation.group(1)}"
    return (done.stderr or done.stdout).strip().splitlines()[-1]


def main(arguments: list[str] | None = None) -> int:
    """Try every mutant; return 1 if any survives."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutants", description=__doc__)
    parser.add_argument("--only", default="", help="mutants with this text in their names")
    parser.add_argument("--named", action="store_true", help="those that the design names")
    parser.add_argument("--fast", action="store_true", help="a handful whose tests are quick")
    parser.add_argument("--tools", default=",".join(TOOLS), help="which tools, in this order")
    parser.add_argument("--all-tools", action="store_true", help="ask every tool, not only until one notices")
    parser.add_argument("--runs", type=int, default=200, help="schedules that the random search tries")
    parser.add_argument("--seed", type=int, default=11, help="seed of the random search")
    parser.add_argument("--scenarios", type=int, default=400, help="Twins scenarios of each sort")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at once")
    parser.add_argument(
        "--check", action="store_true", help="first require that nothing fails with no rule broken"
    )
    options = parser.parse_args(arguments)
    effort = Effort(options.runs, options.seed, options.scenarios)
    tools = tuple(options.tools.split(","))
    chosen = [
        mutant
        for mutant in MUTANTS
        if options.only in mutant.name
        and (mutant.named or not options.named)
        and (mutant.name in FAST or not options.fast)
    ]
    whole = caught_by(NOTHING, tools, effort, every=True) if options.check else {}
    if whole:
        print(f"with no rule broken there is a failure: {whole}")
        return 1
    began, survivors = time.monotonic(), []
    first: Counter[str] = Counter()

    def attempt(mutant: Mutant) -> tuple[Mutant, dict[str, str]]:
        return mutant, caught_by(mutant, tools, effort, every=options.all_tools)

    with ThreadPoolExecutor(options.jobs) as pool:
        for mutant, found in pool.map(attempt, chosen):
            verdict = "; ".join(f"{tool}: {what}" for tool, what in found.items()) or "SURVIVES"
            print(f"{mutant.name:52} {verdict}", flush=True)
            first.update(found.keys())
            if not found:
                survivors.append(mutant.name)
    tallies = ", ".join(f"{tool} {first[tool]}" for tool in tools)
    print(
        f"{len(chosen)} mutants, {len(survivors)} survive; caught by {tallies}; {time.monotonic() - began:.0f} s"
    )
    for name in survivors:
        print(f"SURVIVES: {name}")
    return 1 if survivors or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
