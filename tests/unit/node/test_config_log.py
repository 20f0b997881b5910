"""Logging as configured: where it goes, what form it has, which libraries are quiet."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import logging, sys, warnings
import structlog
from node.config import LogSection
from node.log import configure_logging
configure_logging(LogSection(level=sys.argv[1], format=sys.argv[2]), moniker="val0")
log = structlog.get_logger("test")
log.debug("detail")
log.info("executed", height=7, digest=b"\\x01\\xff", moniker_of="x")
logging.getLogger("libp2p.host").error("failed to open stream")
logging.getLogger("asyncio").info("Running on http")
logging.getLogger("asyncio").warning("trouble")
warnings.warn("old", DeprecationWarning)
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
"""


def lines(level: str, form: str) -> list[str]:
    command = [sys.executable, "-W", "default", "-c", SCRIPT, level, form]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_json_lines_have_level_time_and_what_was_bound() -> None:
    events = [json.loads(line) for line in lines("info", "json")]
    assert [event["event"] for event in events] == ["executed", "trouble", "failed"]
    assert {event["moniker"] for event in events} == {"val0"}
    assert (events[0]["height"], events[0]["digest"], events[0]["level"]) == (7, "01ff", "info")
    assert all(event["timestamp"].endswith("Z") for event in events)
    assert events[2]["exception"][0]["exc_type"] == "ZeroDivisionError"


def test_the_console_form_is_for_people_and_the_level_is_kept() -> None:
    shown = "\n".join(lines("error", "console"))
    assert "failed" in shown
    assert "ZeroDivisionError" in shown
    assert "executed" not in shown
    assert "detail" in "\n".join(lines("debug", "console"))
