"""What climbs is found, what saws or stands is not, a daemon that is behind or gone is named; the picture is whole XML."""

import csv
import io
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from node.devnet.network import NodePlan
from node.devnet.processes import spawn
from node.home import Home
from tests.chaos.census import Usage, usage
from tests.chaos.curves import PANELS, draw
from tests.chaos.fleet import Seat
from tests.chaos.soak import BOUNDS, COLUMNS, Bound, Sample, judge, percentile, slope_per_hour

STILL = Usage(100 << 20, 80 << 20, 200 << 20, 23, 4, 1.0, 5 << 20, 1 << 20, 500, 8192, 800_000, 10_000)
MINUTES = 30
WAIT = "import signal; signal.pause()"


def run(column: str, value_at: Mapping[int, float]) -> list[Sample]:
    """Half an hour of one daemon in which one column takes the values, by minute."""
    return [
        Sample(
            minute * 60.0,
            "validator-1",
            minute * 100,
            minute * 900,
            50.0,
            120.0,
            replace(STILL, **{column: int(value)}),
        )
        for minute, value in value_at.items()
    ]


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda bound: bound.column)
def test_twice_the_slope_that_is_allowed_is_a_finding_and_half_of_it_is_none(bound: Bound) -> None:
    column, allowed = bound.column, bound.per_hour_max
    start = float(getattr(STILL, column))
    for factor, findings in ((0.5, 0), (2.0, 1)):
        # Whole numbers: what is counted in ones needs steps of its own size.
        climbing = {minute: start + factor * allowed * minute / 60 for minute in range(MINUTES)}
        if allowed < 1:
            climbing = {minute: start + (factor > 1) * (minute >= 20) for minute in range(MINUTES)}
        assert len(judge(run(column, climbing))) == findings


def test_a_climb_in_the_first_quarter_is_warming_up() -> None:
    curve = {minute: (80 << 20) + min(minute, 7) * (10 << 20) for minute in range(MINUTES)}
    assert judge(run("anonymous_bytes", curve)) == []


def test_a_curve_that_goes_up_and_down_does_not_climb() -> None:
    curve = {minute: (80 << 20) + minute % 5 * (8 << 20) for minute in range(MINUTES)}
    assert judge(run("anonymous_bytes", curve)) == []


def test_a_slope_is_per_hour_and_too_few_points_have_none() -> None:
    assert slope_per_hour([(0.0, 1.0), (60.0, 2.0), (120.0, 3.0)]) == pytest.approx(60.0)
    assert slope_per_hour([(0.0, 1.0), (60.0, 2.0)]) == 0.0


def test_percentiles_are_values_that_were_seen() -> None:
    assert percentile([], 0.5) == -1.0
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([float(value) for value in range(100)], 0.99) == 99.0


def test_the_picture_is_xml_with_a_line_for_each_daemon_in_each_panel() -> None:
    samples = [
        replace(sample, node=node)
        for node in ("validator-1", "full <node>")
        for sample in run("rss_bytes", dict.fromkeys(range(MINUTES), 5.0))
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(sample.row() for sample in samples)
    rows = list(csv.DictReader(io.StringIO(text.getvalue())))
    root = ElementTree.fromstring(draw("a title", rows))
    lines = root.findall(".//{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 2 * len(PANELS)
    assert all(len((line.get("points") or "").split()) == MINUTES for line in lines)


def test_a_living_process_is_counted_and_one_that_ended_is_not(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.data_path.mkdir()
    (home.data_path / "000003.log").write_bytes(bytes(70))
    (home.data_path / "000005.ldb").write_bytes(bytes(500))
    (home.data_path / "LOG").write_bytes(bytes(9))
    plan = NodePlan("alone", home, "http://127.0.0.1:1", "", False, bytes(32))
    seat = Seat(plan, child=spawn("alone", [sys.executable, "-c", WAIT], seat_log(plan), os.environ))
    assert seat.child is not None
    try:
        used = usage(seat)
        assert used is not None
        assert used.rss_bytes >= used.anonymous_bytes > 0
        assert used.threads >= 1
        assert used.descriptors >= 1
        assert (used.wal_bytes, used.tables_bytes, used.database_other_bytes) == (70, 500, 9)
    finally:
        seat.child.popen.kill()
        seat.child.popen.wait()
    assert usage(seat) is None


def seat_log(plan: NodePlan) -> Path:
    return Seat(plan).log
