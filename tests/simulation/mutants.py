"""Breaks one rule at a time in a copy of the package and requires the tests to notice: `python -m tests.simulation.mutants`.

Each mutant is one literal edit. A mutant that survives means a rule without a test.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("tests/unit/consensus",)


@dataclass(frozen=True)
class Mutant:
    """One edit: in `file`, the only occurrence of `old` becomes `new`."""

    name: str
    file: str
    old: str
    new: str


MUTANTS = (
    Mutant(
        "commit vote after timeout",
        "safety.py",
        "self._require(qc.round > record.highest_timeout,",
        "self._require(True,",
    ),
    Mutant(
        "crash forgets a vote",
        "safety.py",
        'last_voted=fields.uint(items[2], "last voted")',
        "last_voted=0",
    ),
    Mutant(
        "crash forgets a timeout",
        "safety.py",
        'highest_timeout=fields.uint(items[4], "highest timeout")',
        "highest_timeout=0",
    ),
    Mutant(
        "crash forgets a lock",
        "safety.py",
        'lock=fields.uint(items[3], "lock")',
        "lock=0",
    ),
    Mutant(
        "commit vote without lock",
        "safety.py",
        "self.record = replace(record, lock=max(record.lock, qc.round), last_commit_vote=vote)",
        "self.record = replace(record, last_commit_vote=vote)",
    ),
    Mutant(
        "vote without lock",
        "safety.py",
        "lock=max(record.lock, qc.round), last_vote=vote",
        "last_vote=vote",
    ),
    Mutant(
        "no lock check",
        "safety.py",
        "self._require(high_qc.round >= record.lock,",
        "self._require(True,",
    ),
    Mutant(
        "timeout does not raise last_voted",
        "safety.py",
        "last_voted=max(record.last_voted, round_),",
        "",
    ),
    Mutant(
        "vote ignores the TC's high round",
        "safety.py",
        "self._require(qc.round >= tc.max_high_qc_round,",
        "self._require(True,",
    ),
    Mutant(
        "TC need not carry its highest QC",
        "verify.py",
        "if tc.high_qc.round != tc.max_high_qc_round or tc.high_qc.round >= tc.round:",
        "if tc.high_qc.round >= tc.round:",
    ),
    Mutant(
        "non-consecutive two-chain",
        "certificates.py",
        "if node.block.round == parent.block.round + 1:",
        "if True:",
    ),
    Mutant(
        "non-consecutive two-chain proof",
        "verify.py",
        "if proof.child_qc.round != proof.qc.round + 1:",
        "if False:",
    ),
    Mutant(
        "first guard: a late QC clears the TC",
        "certificates.py",
        "if core.last_tc is not None and qc.round >= core.last_tc.round:",
        "if core.last_tc is not None:",
    ),
    Mutant(
        "second guard: a replayed TC replaces the TC",
        "certificates.py",
        "    if tc.round < core.round:\n        return\n",
        "",
    ),
    Mutant(
        "votes twice in a round",
        "safety.py",
        "self._require(header.round > record.last_voted,",
        "self._require(True,",
    ),
    Mutant(
        "vote across rounds without a TC",
        "safety.py",
        "self._require(tc is not None and tc.round + 1 == header.round,",
        "self._require(True,",
    ),
    Mutant(
        "proposes twice in a round",
        "safety.py",
        "self._require(header.round > record.last_proposed,",
        "self._require(True,",
    ),
    Mutant(
        "payload does not gate the vote",
        "voting.py",
        "    if missing:\n        return False\n",
        "",
    ),
    Mutant(
        "execution is not compared",
        "voting.py",
        "return claim is Claim.AGREES",
        "return True",
    ),
    Mutant(
        "sends before it persists",
        "outbox.py",
        "effects: list[Effect] = [] if persist is None else [persist]\n        effects.extend(self.sends)",
        "effects: list[Effect] = [*self.sends]\n        effects.extend([] if persist is None else [persist])",
    ),
    Mutant(
        "duplicate signers count",
        "verify.py",
        "if not previous < index < len(validators):",
        "if not 0 <= index < len(validators):",
    ),
    Mutant(
        "one signature for every kind",
        "verify.py",
        'return digest("commit-vote", encode((epoch, round_, block_id, height)), chain_id)',
        'return digest("vote", encode((epoch, round_, block_id, bytes(32), height)), chain_id)',
    ),
    Mutant(
        "commits newest first",
        "tree.py",
        "        path.reverse()\n",
        "",
    ),
    Mutant(
        "beacon reveal unchecked",
        "rules.py",
        "_require(reveal_hash(header.beacon_reveal) == last,",
        "_require(True,",
    ),
    Mutant(
        "executed height may fall",
        "rules.py",
        "_require(header.executed_height >= above.executed_height,",
        "_require(True,",
    ),
)


def survives(mutant: Mutant) -> bool:
    """Return whether the tests pass with the mutant in place."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(ROOT / "consensus", copy / "consensus", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy / "pyproject.toml")
        target = copy / "consensus" / mutant.file
        text = target.read_text()
        if text.count(mutant.old) != 1:
            raise SystemExit(
                f"{mutant.name}: its line occurs {text.count(mutant.old)} times in {mutant.file}"
            )
        target.write_text(text.replace(mutant.old, mutant.new))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TESTS]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode not in (0, 1):
            raise SystemExit(f"{mutant.name}: the tests did not run\n{done.stdout}\n{done.stderr}")
        failed = next((row for row in done.stdout.splitlines() if row.startswith("FAILED")), "")
        verdict = "SURVIVES" if done.returncode == 0 else f"caught by {failed.split('::')[-1].split(' ')[0]}"
        print(f"{mutant.name:46} {verdict}", flush=True)
        return done.returncode == 0


def main() -> int:
    """Try every mutant; return 1 if any survives."""
    survivors = [mutant.name for mutant in MUTANTS if survives(mutant)]
    print(f"{len(MUTANTS)} mutants, {len(survivors)} survive")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
