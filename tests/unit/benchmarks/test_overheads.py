"""The benchmark of what a daemon pays beside its transactions runs, and finds that each costs something."""

from __future__ import annotations

import json
import sys

import pytest
import structlog

from benchmarks.overheads import main


@pytest.mark.slow
def test_a_short_run_measures_a_frame_a_request_and_a_block(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["overheads", "--frames=5", "--requests=5", "--blocks=2", "--json"])
    interval_s = sys.getswitchinterval()
    try:
        assert main() == 0
    finally:
        sys.setswitchinterval(interval_s)
        structlog.reset_defaults()
    figures = json.loads(capsys.readouterr().out)
    assert all(figures[name] > 0 for name in ("frame_us", "request_us", "block_us_per_node"))
