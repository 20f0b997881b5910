"""The terminal's view of a report: who was asked what, who earned it and why, and which promises held.

Everything here is rendered from ``report.json``'s document, so that the file holds whatever the terminal shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from node.devnet.report import SHARES_TOTAL, UNATTRIBUTED
from node.devnet.timeline import WIDTH_MAX

UNITS_PER_OPEN = 10**9
BAR_CELLS = 20
_COLOURS = ("cyan", "magenta", "yellow", "blue", "green", "red")
_NOBODY_COLOUR = "bright_black"

Document = Mapping[str, Any]


def render_report(console: Console, report: Document) -> None:
    """Print the whole report."""
    colours = contributor_colours(report)
    console.print()
    console.print(_calls(report, colours))
    console.print()
    console.print(_earned(report, colours))
    console.print(_supply(report))
    console.print()
    console.print(_checks(report))
    console.print()
    console.print(_time(report))
    console.print(_verdict(report))


def contributor_colours(report: Document) -> dict[str, str]:
    """A colour for each contributor, the same in every table."""
    colours = {
        entry["name"]: _COLOURS[position % len(_COLOURS)]
        for position, entry in enumerate(report["contributors"])
    }
    return {**colours, UNATTRIBUTED: _NOBODY_COLOUR}


def _calls(report: Document, colours: Mapping[str, str]) -> Table:
    table = _table("What was asked, and whom the answer was matched to")
    table.add_column("#", justify="right", style="dim")
    table.add_column("prompt ▸ answer", ratio=1)
    table.add_column("audit", justify="center", no_wrap=True)
    table.add_column("matched to", no_wrap=True, min_width=24)
    validators = sum(1 for node in report["nodes"] if node["validator"])
    for call in report["inferences"]:
        table.add_row(
            str(call["number"]),
            _conversation(call, colours),
            _audit(call, validators),
            _shares(call, colours),
        )
    return table


def _conversation(call: Document, colours: Mapping[str, str]) -> Text:
    text = Text(overflow="ellipsis", no_wrap=True)
    text.append(call["prompt"].rstrip("\n"), style=f"bold {colours.get(call['about'], '')}".strip())
    text.append(" ▸ ", style="dim")
    text.append(call["output"].replace("\n", " "))
    return text


def _audit(call: Document, validators: int) -> Text:
    if not call["audited"]:
        return Text("–", style="dim")
    agreeing = sum(1 for entry in call["attesters"] if entry["result_hash"] == call["result_hash"])
    return Text(f"{agreeing}/{validators} {(call['result_hash'] or '')[:6]}", style="green")


def _shares(call: Document, colours: Mapping[str, str]) -> Text:
    if not call["audited"]:
        return Text("not drawn: fee in escrow", style="dim")
    text = Text()
    for position, share in enumerate(sorted(call["shares"], key=lambda share: -share["share"])[:2]):
        if position:
            text.append("  ")
        text.append(f"{share['name']} {_percent(share['share'])}", style=colours.get(share["name"], ""))
    return text


def _earned(report: Document, colours: Mapping[str, str]) -> Table:
    table = _table("Who earned what, and why")
    table.add_column("account", no_wrap=True)
    table.add_column("earned, OPEN", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("why", ratio=1)
    most = max((int(entry["amount"]) for entry in report["earned"]), default=1) or 1
    audited = sum(1 for call in report["inferences"] if call["audited"])
    for entry in report["earned"]:
        colour = colours.get(entry["name"], "default")
        cells = -(-int(entry["amount"]) * BAR_CELLS // most)
        table.add_row(
            Text(entry["name"], style=colour),
            format_open(entry["amount"]),
            Text("█" * cells, style=colour),
            _reason(report, entry, audited),
        )
    return table


def _reason(report: Document, entry: Document, audited: int) -> str:
    of_audited = f"in {entry['answers']} of {audited} audited answers"
    match entry["role"]:
        case "contributor":
            records = next(row["records"] for row in report["contributors"] if row["name"] == entry["name"])
            return f"{records} records, matched {of_audited}"
        case "owner":
            return "trained and published the adapter"
        case "provider":
            return f"answered, bonded with {format_open(report['provider']['bond'], 0)} OPEN"
        case "validator":
            return f"recomputed and attested {entry['answers']} answers"
        case "unattributed":
            return f"no record matched well enough {of_audited}"
        case other:
            return str(other).replace("_", " ")


def _supply(report: Document) -> Text:
    text = Text(" supply ", style="bold")
    text.append(
        f"{format_open(report['supply_before'])} before = {format_open(report['supply_after'])} after"
    )
    text.append(f" + {format_open(report['burned'])} burned", style="red")
    text.append(f"; {format_open(report['escrowed'])} of it waits in escrow", style="dim")
    return text


def _checks(report: Document) -> Table:
    table = _table("What was promised")
    table.show_header = False
    table.add_column(width=1)
    table.add_column(ratio=3)
    table.add_column(ratio=2, style="dim")
    for check in report["checks"]:
        mark = Text("✓", style="bold green") if check["passed"] else Text("✗", style="bold red")
        name = Text(check["name"], style="" if check["passed"] else "bold red")
        table.add_row(mark, name, escape(check["detail"]))
    return table


def _time(report: Document) -> Table:
    total = report["seconds"] or 1.0
    table = _table(f"Time budget: {report['seconds']:.1f} s of {report['seconds_max']:.0f} s")
    table.show_header = False
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, ratio=1)
    for entry in report["time"]:
        share = entry["seconds"] / total
        cells = round(share * 2 * BAR_CELLS)
        table.add_row(
            entry["step"], f"{entry['seconds']:.1f} s", f"{100 * share:.0f} %", Text("▪" * cells, style="dim")
        )
    return table


def _verdict(report: Document) -> Text:
    failed = [check for check in report["checks"] if not check["passed"]]
    if not failed:
        return Text(f"\n ✓ all {len(report['checks'])} promises held", style="bold green")
    return Text(f"\n ✗ {len(failed)} of {len(report['checks'])} promises did not hold", style="bold red")


def render_files(console: Console, report_path: Path) -> None:
    """Where to read on after a demo."""
    console.print(Text.assemble(" report  ", (str(report_path), "cyan")), soft_wrap=True)


def render_running(console: Console, report: Document, devnet: Document) -> None:
    """What a running devnet offers: URLs, one curl, the keys, how to stop it."""
    table = _table("Running")
    table.show_header = False
    table.add_column(no_wrap=True, style="bold")
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(ratio=1, style="dim", overflow="fold")
    for node in report["nodes"]:
        note = "validator" if node["validator"] else "full node: everything of the story entered here"
        table.add_row(node["name"], node["rpc_url"], note)
    console.print()
    console.print(table)
    console.print()
    full = next(node["rpc_url"] for node in report["nodes"] if not node["validator"])
    audited = next((call for call in report["inferences"] if call["audited"]), None)
    if audited is not None:
        request = f'{{"jsonrpc":"2.0","id":1,"method":"receipt","params":{{"inference":"{audited["id"]}"}}}}'
        console.print(
            Text.assemble(" one receipt  ", (f"curl -s {full} -d '{request}'", "cyan")), soft_wrap=True
        )
    folder = Path(devnet["accounts"][0]["secret_key_file"]).parent
    names = ", ".join(account["name"] for account in devnet["accounts"])
    console.print(
        Text.assemble(" keys         ", (f"{folder}/NAME.key", "cyan"), f"  ({names})"), soft_wrap=True
    )
    console.print(Text.assemble(" stop         ", ("Ctrl-C", "bold"), " stops it"))


def format_open(units: str | int, decimals: int = 6) -> str:
    """Units as OPEN with up to nine decimals, rounded down; the exact units are in the report."""
    whole, rest = divmod(int(units), UNITS_PER_OPEN)
    if not decimals:
        return f"{whole:,}"
    return f"{whole:,}.{rest // 10 ** (9 - decimals):0{decimals}d}"


def _percent(share: int) -> str:
    return f"{100 * share // SHARES_TOTAL} %"


def _table(title: str) -> Table:
    return Table(
        title=Text(f" {title}", style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        header_style="dim",
        width=None,
        expand=True,
    )


def limited_console(console: Console) -> Console:
    """The same console, at most `WIDTH_MAX` columns wide: longer lines are hard to read."""
    if console.width > WIDTH_MAX:
        console.width = WIDTH_MAX
    return console
