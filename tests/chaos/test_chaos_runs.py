"""Whole runs, as `make chaos` starts them: honest daemons pass, and a run with a planted fault fails and says why."""

import subprocess
import sys
from pathlib import Path

import pytest

PATIENCE_S = 60
"""What a recovery may take here: these tests look at what happens, not at how fast this machine is today."""


def chaos(home: Path, *arguments: str) -> tuple[int, str]:
    """Exit status and output of a run."""
    command = [sys.executable, "-m", "tests.chaos", "--home", str(home), "--recovery-s-max", str(PATIENCE_S)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=280, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_killed_validator_under_load_costs_no_acknowledged_transfer_and_follows_again(
    tmp_path: Path,
) -> None:
    status, said = chaos(tmp_path / "home", "--seconds", "1", "--kinds", "KILL")
    assert status == 0, said
    assert "seed 7: no violation" in said


@pytest.mark.slow
def test_a_node_that_tells_of_another_state_is_a_violation(tmp_path: Path) -> None:
    """So a run can fail: here by a full node that lies about its ledger."""
    planted = "full-node=tests.integration.misdeeds.lying_daemon"
    status, said = chaos(tmp_path / "home", "--seconds", "1", "--kinds", "KILL", "--planted", planted)
    assert status == 1, said
    assert "SAFETY: two states after height" in said


@pytest.mark.slow
def test_a_transfer_that_was_called_executed_and_is_on_no_disk_is_a_violation(tmp_path: Path) -> None:
    planted = "full-node=tests.integration.misdeeds.boasting_daemon"
    status, said = chaos(tmp_path / "home", "--seconds", "1", "--kinds", "KILL", "--planted", planted)
    assert status == 1, said
    assert (
        "SAFETY: 1 acknowledged transactions are not on validator-1's disk; the first, abababababab" in said
    )


@pytest.mark.slow
def test_validators_that_forget_what_they_signed_are_a_violation(tmp_path: Path) -> None:
    """So a run can fail: here all lose power at once, and come back without their safety records."""
    planted = [
        word
        for number in range(1, 5)
        for word in ("--planted", f"validator-{number}=tests.integration.misdeeds.forgetful_daemon")
    ]
    status, said = chaos(tmp_path / "home", "--seconds", "8", "--kinds", "POWER_CUT", *planted)
    assert status == 1, said
    assert "ended although nothing made it end" in said


@pytest.mark.slow
def test_every_fault_that_needs_a_process_is_survived(tmp_path: Path) -> None:
    kinds = "PAUSE,HALVES,DISK_FULL,GARBAGE,LOST_TAIL,BYZANTINE"
    status, said = chaos(tmp_path / "home", "--seconds", "40", "--seed", "1", "--kinds", kinds)
    assert status == 0, said
