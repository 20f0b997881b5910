"""Child processes of the supervisor: they keep their id, die with their parent, and are ended within a bound."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from node.devnet.processes import LAUNCHER, bound_log, child_environment, last_lines, reap, spawn, stop

SLEEP = [sys.executable, "-I", "-S", "-c", "import time; print('up', flush=True); time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-I",
    "-S",
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
]


def wait_for_text(log: Path, text: str, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while text not in last_lines(log):
        assert time.monotonic() < deadline, last_lines(log)
        time.sleep(0.02)


def test_the_process_id_is_the_commands_own(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", "-c", "import os; print('I am', os.getpid(), flush=True)"]
    child = spawn("child", command, tmp_path / "log", os.environ)
    child.popen.wait(10)
    assert f"I am {child.pid}" in last_lines(tmp_path / "log")


def test_a_child_dies_when_its_parent_is_killed(tmp_path: Path) -> None:
    parent = (
        "import subprocess, sys, os, time\n"
        f"child = subprocess.Popen([sys.executable, {str(LAUNCHER)!r}, str(os.getpid()), *{SLEEP!r}])\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert process.stdout.readline() == "up\n"
        process.kill()
    deadline = time.monotonic() + 5
    while _alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_command_whose_parent_has_gone_is_not_run() -> None:
    command = [sys.executable, str(LAUNCHER), "1", sys.executable, "-c", "print('ran')"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    assert done.returncode == 1
    assert done.stdout == ""


def test_stop_asks_first_and_kills_what_does_not_listen(tmp_path: Path) -> None:
    gentle = spawn("gentle", SLEEP, tmp_path / "gentle.log", os.environ)
    stubborn = spawn("stubborn", STUBBORN, tmp_path / "stubborn.log", os.environ)
    for child in (gentle, stubborn):
        wait_for_text(child.log, "up")
    start = time.monotonic()
    trio.run(stop, (gentle, stubborn), 0.5)
    assert time.monotonic() - start < 3
    assert gentle.code == -signal.SIGTERM
    assert stubborn.code == -signal.SIGKILL


def test_an_ended_child_is_reported_once(tmp_path: Path) -> None:
    child = spawn("child", SLEEP, tmp_path / "log", os.environ)
    assert reap([child]) == []
    child.popen.kill()
    child.popen.wait(10)
    assert reap([child]) == [child]
    assert reap([child]) == []


def test_ctrl_c_in_the_terminal_does_not_reach_a_child(tmp_path: Path) -> None:
    child = spawn("child", SLEEP, tmp_path / "log", os.environ)
    try:
        assert os.getpgid(child.pid) == child.pid != os.getpgrp()
    finally:
        trio.run(stop, (child,), 1.0)


def test_a_log_past_its_bound_is_moved_aside_and_its_writer_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("a") as writer:
        writer.write("x" * 100 + "\n")
        writer.flush()
        assert not bound_log(log, bytes_max=200)
        assert bound_log(log, bytes_max=50)
        writer.write("after\n")
        writer.flush()
    assert log.read_text() == "after\n"
    assert (tmp_path / "log.1").read_text() == "x" * 100 + "\n"


@pytest.mark.parametrize(("text", "expected"), [(None, "(no log)"), ("", "(an empty log)")])
def test_the_end_of_a_log_that_says_nothing_says_so(tmp_path: Path, text: str | None, expected: str) -> None:
    if text is not None:
        (tmp_path / "log").write_text(text)
    assert last_lines(tmp_path / "log") == expected


def test_the_end_of_a_long_log_is_its_last_lines(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(f"line {number}\n" for number in range(5000)))
    shown = last_lines(tmp_path / "log").splitlines()
    assert shown[-1] == "line 4999"
    assert len(shown) <= 12


def test_modules_of_the_same_name_in_the_working_directory_are_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "__init__.py").write_text("raise SystemExit('somebody else')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENLEDGER_RPC_PORT", "1")
    command = [sys.executable, "-m", "node.cli.main", "--help"]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "OPENLEDGER_RPC_PORT" not in child_environment()
