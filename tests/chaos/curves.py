"""The curves of a soak as one SVG: `python -m tests.chaos.curves soak.csv docs/soak.svg`. Small multiples, a line for each daemon."""

import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

Row = Mapping[str, str]
Points = list[tuple[float, float]]

PANEL_WIDTH, PANEL_HEIGHT = 380, 200
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 30, 28
COLUMNS = 2
HEAD = 34
POINTS_MAX = 400
TICKS = 4
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#555555", "#e69f00", "#56b4e9", "#7a5195")
"""Told apart by people who do not see all colours (Okabe and Ito), then two more."""

MEBI = float(1 << 20)


@dataclass(frozen=True, slots=True)
class Panel:
    """One graph: its title with the unit, and its lines by name, made of a CSV's rows."""

    title: str
    lines: Callable[[Sequence[Row]], dict[str, Points]]


def by_node(*columns: str, per: float) -> Callable[[Sequence[Row]], dict[str, Points]]:
    """A line for each node: the sum of some columns, in units of `per`."""

    def lines(rows: Sequence[Row]) -> dict[str, Points]:
        found: dict[str, Points] = {}
        for row in rows:
            value = sum(float(row[column]) for column in columns) / per
            found.setdefault(row["node"], []).append((float(row["time_s"]) / 60, value))
        return found

    return lines


def of_network(**columns: str) -> Callable[[Sequence[Row]], dict[str, Points]]:
    """A line for each of the network's own columns, given by name; what is negative was not measured."""

    def lines(rows: Sequence[Row]) -> dict[str, Points]:
        moments = {row["time_s"]: row for row in rows}.values()
        return {
            name: [
                (float(row["time_s"]) / 60, float(row[column])) for row in moments if float(row[column]) >= 0
            ]
            for name, column in columns.items()
        }

    return lines


PANELS = (
    Panel("daemon's own memory, MiB (RssAnon)", by_node("anonymous_bytes", per=MEBI)),
    Panel("worker's memory, MiB (VmRSS)", by_node("worker_rss_bytes", per=MEBI)),
    Panel(
        "database, MiB (tables, log, manifest)",
        by_node("tables_bytes", "wal_bytes", "database_other_bytes", per=MEBI),
    ),
    Panel("write-ahead log, MiB", by_node("wal_bytes", per=MEBI)),
    Panel("daemon's log file, MiB", by_node("log_bytes", per=MEBI)),
    Panel("executed height, thousands", by_node("height", per=1000.0)),
    Panel("finality, ms", of_network(p50="finality_p50_ms", p99="finality_p99_ms")),
    Panel("descriptors and threads", by_node("descriptors", "threads", per=1.0)),
)


def draw(title: str, rows: Sequence[Row], panels: Sequence[Panel] = PANELS) -> str:
    """The whole picture as SVG text; its x axes are minutes."""
    high = HEAD + -(-len(panels) // COLUMNS) * PANEL_HEIGHT
    nodes = list(dict.fromkeys(row["node"] for row in rows))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {COLUMNS * PANEL_WIDTH} {high}" '
        'font-family="sans-serif" font-size="10" fill="#333">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="16" font-size="13">{escape(title)}</text>',
        *_legend(nodes, LEFT, 28),
    ]
    for position, panel in enumerate(panels):
        x, y = position % COLUMNS * PANEL_WIDTH, HEAD + position // COLUMNS * PANEL_HEIGHT
        parts += [
            f'<g transform="translate({x},{y})">',
            *_panel(panel.title, panel.lines(rows), nodes),
            "</g>",
        ]
    return "\n".join([*parts, "</svg>\n"])


def _panel(title: str, lines: dict[str, Points], nodes: Sequence[str]) -> list[str]:
    points = [point for line in lines.values() for point in line]
    across = max((at for at, _ in points), default=1.0) or 1.0
    top = _round_up(max((value for _, value in points), default=1.0))
    width, height = PANEL_WIDTH - LEFT - RIGHT, PANEL_HEIGHT - TOP - BOTTOM

    def x(at: float) -> float:
        return LEFT + at / across * width

    def y(value: float) -> float:
        return TOP + (1 - value / top) * height

    parts = [f'<text x="{LEFT}" y="{TOP - 8}" font-size="11">{escape(title)}</text>']
    for tick in range(TICKS + 1):
        value, at = top * tick / TICKS, across * tick / TICKS
        parts.append(f'<path d="M{LEFT} {y(value):.1f}h{width}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y(value) + 3:.1f}" text-anchor="end">{value:g}</text>')
        parts.append(f'<text x="{x(at):.1f}" y="{TOP + height + 14}" text-anchor="middle">{at:.0f}</text>')
    own_names = [name for name in lines if name not in nodes]
    for name, line in lines.items():
        colour = COLOURS[(nodes.index(name) if name in nodes else own_names.index(name)) % len(COLOURS)]
        step = max(1, -(-len(line) // POINTS_MAX))
        path = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in line[::step])
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.2"/>')
    return parts + _legend(own_names, PANEL_WIDTH - 90, TOP - 8)


def _legend(names: Sequence[str], x: int, y: int) -> list[str]:
    parts, at = [], x
    for position, name in enumerate(names):
        colour = COLOURS[position % len(COLOURS)]
        parts.append(f'<text x="{at}" y="{y}" fill="{colour}">{escape(name)}</text>')
        at += 8 * len(name) + 12
    return parts


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 8 times a power of ten: ticks at quarters stay short."""
    scale = 1.0
    while scale * 10 < value:
        scale *= 10
    while scale > value > 0:
        scale /= 10
    return next((scale * step for step in (1, 2, 4, 8) if scale * step >= value), scale * 10)


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 2:
        print(__doc__)
        return 2
    with Path(arguments[0]).open(newline="") as file:
        rows = list(csv.DictReader(file))
    minutes = max((float(row["time_s"]) for row in rows), default=0.0) / 60
    nodes = len({row["node"] for row in rows})
    Path(arguments[1]).write_text(draw(f"{nodes} daemons for {minutes:.0f} minutes", rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
