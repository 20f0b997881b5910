"""The lines that the story prints while it runs."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from node.devnet.timeline import Timeline


def printed(width: int = 100) -> tuple[Timeline, io.StringIO]:
    file = io.StringIO()
    return Timeline(Console(file=file, width=width, color_system=None)), file


def test_a_step_that_came_to_its_end_is_ticked_with_its_outcome_and_seconds() -> None:
    timeline, file = printed()
    with timeline.step("Train") as step:
        step.progress("step 1 of 2")
        step.done("an adapter [bold]of ours[/bold]")
    line = file.getvalue()
    assert line.startswith("✓ Train")
    assert "an adapter [bold]of ours[/bold]" in line
    assert line.rstrip().endswith("0.0 s")
    assert "step 1 of 2" not in line


def test_a_step_that_failed_is_crossed_and_still_timed() -> None:
    timeline, file = printed()
    with pytest.raises(ValueError, match="no luck"), timeline.step("Audit"):
        raise ValueError("no luck")
    assert file.getvalue().startswith("✗ Audit")
    assert [entry.step for entry in timeline.times] == ["Audit"]


def test_nothing_is_printed_for_programs_but_everything_is_timed() -> None:
    timeline = Timeline(None)
    with timeline.step("Ask") as step:
        step.done("twelve answers")
    assert [entry.step for entry in timeline.times] == ["Ask"]
    assert timeline.seconds >= timeline.times[0].seconds >= 0


@pytest.mark.parametrize("width", [60, 80, 200])
def test_lines_fit_the_terminal(width: int) -> None:
    timeline, file = printed(width)
    with timeline.step("Contribute") as step:
        step.done("word " * 60)
    assert max(map(len, file.getvalue().splitlines())) <= width
