"""A development network as a user starts it: by the command, in a process of its own, once for all tests that look at it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

STORY_SECONDS_MAX = 400
COMMAND = [sys.executable, "-m", "node.cli.main"]


@dataclass(frozen=True, slots=True)
class Devnet:
    """``openledger devnet``, whose story has been told and which stays up."""

    home: Path
    process: subprocess.Popen[bytes]
    output: Path

    def document(self) -> dict[str, Any]:
        """``devnet.json``."""
        document: dict[str, Any] = json.loads((self.home / "devnet.json").read_bytes())
        return document

    def report(self) -> dict[str, Any]:
        """``report.json``."""
        document: dict[str, Any] = json.loads((self.home / "report.json").read_bytes())
        return document


@pytest.fixture(scope="session")
def devnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Devnet]:
    """Start a devnet, wait for its report, and end it if a test did not."""
    folder = tmp_path_factory.mktemp("devnet")
    home, output = folder / "home", folder / "output"
    command = [*COMMAND, "devnet", "--home", str(home), "--validators", "4"]
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "COLUMNS": "110"}
        )
    running = Devnet(home, process, output)
    try:
        _wait_for_running(running)
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(10)


def _wait_for_running(devnet: Devnet) -> None:
    """The last line of the welcome follows the report."""
    deadline = time.monotonic() + STORY_SECONDS_MAX
    while b"Ctrl-C" not in devnet.output.read_bytes():
        if devnet.process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"the devnet did not come up:\n{devnet.output.read_text()}")
        time.sleep(0.2)
