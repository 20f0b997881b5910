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
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=560, check=False)
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


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("kinds", "seconds", "said_too"),
    [
        ("JOIN,LEAVE,STAKE", "24", "1 joined, 1 left, 1 stakes moved"),
        ("LOST_DISK,RECEIVING,SERVING", "20", "3 lost disks came back from a snapshot"),
        ("SIGNER_KILL,SIGNER_PAUSE", "14", "2 signers back without a start of their daemon"),
    ],
)
def test_what_changes_hands_while_processes_die_is_survived(
    tmp_path: Path, kinds: str, seconds: str, said_too: str
) -> None:
    status, said = chaos(tmp_path / "home", "--seconds", seconds, "--seed", "2", "--kinds", kinds)
    assert status == 0, said
    assert said_too in said


@pytest.mark.slow
def test_a_daemon_that_does_not_come_back_to_its_signer_is_a_finding(tmp_path: Path) -> None:
    planted = "validator-4=tests.integration.misdeeds.sulking_daemon"
    status, said = chaos(tmp_path / "home", "--seconds", "1", "--kinds", "SIGNER_KILL", "--planted", planted)
    assert status == 1, said
    assert "/ready of validator-4 says no more 'signer does not answer'" in said


@pytest.mark.slow
def test_a_node_that_takes_no_snapshot_where_it_must_is_a_finding(tmp_path: Path) -> None:
    planted = "full-node=tests.integration.misdeeds.plodding_daemon"
    arguments = ("--seconds", "1", "--seed", "7", "--kinds", "LOST_DISK", "--planted", planted)
    status, said = chaos(tmp_path / "home", *arguments)
    assert status == 1, said
    assert "full-node lost its disk and follows, but not from a snapshot" in said
