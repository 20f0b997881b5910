"""The terminal's view of a report: who was asked what, who earned it and why, and which promises held.

Everything here is rendered from ``report.json``'s document, so that the file holds whatever the terminal shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from node.devnet.report import SHARES_TOTAL, UNATTRIBUTED, VERBATIM_RATIO_MIN, format_open, likeness
from node.devnet.timeline import WIDTH_MAX

BAR_CELLS = 24
SHARE_CELLS = 10
_COLOURS = ("cyan", "magenta", "yellow", "blue", "green", "red")
_NOBODY_COLOUR = "bright_black"
DETAIL_WIDTH_MIN = 26
_INDENT = " "

Document = Mapping[str, Any]


def render_report(console: Console, report: Document) -> None:
    """Print the whole report."""
    colours = contributor_colours(report)
    sections = (
        _titled("What was asked, and whose records the answer matched", _calls(report, colours)),
        _titled("Who earned what, and why", _earned(report, colours), _supply(report)),
        _titled("What was promised", _checks(report)),
        _titled(_time_title(report), _time(report)),
        _verdict(report),
    )
    for section in sections:
        console.print()
        console.print(section)


def _titled(title: str, *content: Table | Text) -> Group:
    return Group(Text(f"{_INDENT}{title}", style="bold underline"), *content)


def contributor_colours(report: Document) -> dict[str, str]:
    """A colour for each contributor, the same in every table."""
    colours = {
        entry["name"]: _COLOURS[position % len(_COLOURS)]
        for position, entry in enumerate(report["contributors"])
    }
    return {**colours, UNATTRIBUTED: _NOBODY_COLOUR}


def _calls(report: Document, colours: Mapping[str, str]) -> Table:
    table = _table()
    table.add_column("", justify="right", style="dim")
    table.add_column("prompt ▸ answer", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("audit", no_wrap=True)
    table.add_column("matched", no_wrap=True, min_width=26)
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
    """Two lines: the prompt in the colour of whose record it begins, and the answer."""
    text = Text(_one_line(call["prompt"]), style=f"bold {colours.get(call['about'], '')}".strip())
    text.append("\n▸ ", style="not bold dim default")
    text.append(_one_line(call["output"]) or "(nothing)", style="not bold default")
    alike = likeness(call["output"], call["expected"])
    if alike >= VERBATIM_RATIO_MIN:
        text.append("  = record" if alike == 1 else "  ≈ record", style="not bold dim green")
    return text


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _audit(call: Document, validators: int) -> Text:
    if not call["audited"]:
        return Text("not drawn", style="dim")
    agreeing = sum(1 for entry in call["attesters"] if entry["result_hash"] == call["result_hash"])
    text = Text(f"{agreeing} of {validators}", style="green" if agreeing == validators else "red")
    text.append(f"\n{(call['result_hash'] or '')[:8]}", style="dim")
    return text


def _shares(call: Document, colours: Mapping[str, str]) -> Text:
    if not call["audited"]:
        return Text(f"{format_open(call['fee'])} OPEN wait in escrow", style="dim")
    text = Text()
    shares = sorted(call["shares"], key=lambda share: -share["share"])
    for share in shares[:2]:
        colour = colours.get(share["name"], "")
        cells = round(share["share"] * SHARE_CELLS / SHARES_TOTAL)
        if text:
            text.append("\n")
        text.append(f"{_percent(share['share']):>5} ", style=colour)
        text.append("█" * cells + " " if cells else "", style=colour)
        text.append(_nobody(share["name"]), style=colour)
    if len(shares) > 2:
        text.append(f" +{len(shares) - 2}", style="dim")
    return text


def _nobody(name: str) -> str:
    return "nobody" if name == UNATTRIBUTED else name


def _earned(report: Document, colours: Mapping[str, str]) -> Table:
    table = _table()
    table.add_column("account", no_wrap=True)
    table.add_column("OPEN", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("why", ratio=1)
    rows = _earners(report)
    most = max((amount for _, amount, _, _ in rows), default=0) or 1
    for name, amount, colour_of, reason in rows:
        colour = colours.get(colour_of, "default")
        bar = Text("█" * -(-amount * BAR_CELLS // most), style=colour)
        table.add_row(Text(name, style=colour), format_open(amount, 4), bar, reason)
    return table


def _earners(report: Document) -> list[tuple[str, int, str, str]]:
    """(shown name, units, colour's name, reason): a row for each account, all validators in one."""
    audited = sum(1 for call in report["inferences"] if call["audited"])
    rows, validators = [], []
    for entry in report["earned"]:
        if entry["role"] == "validator":
            validators.append(entry)
        else:
            shown = "treasury" if entry["role"] in ("unattributed", "absent-validator") else entry["name"]
            rows.append((shown, int(entry["amount"]), entry["name"], _reason(report, entry, audited)))
    if validators:
        total = sum(int(entry["amount"]) for entry in validators)
        shown = f"{len(validators)} validators"
        rows.append((shown, total, "", "recomputed every audited answer and attested it"))
    return rows


def _reason(report: Document, entry: Document, audited: int) -> str:
    match entry["role"]:
        case "contributor":
            records = next(row["records"] for row in report["contributors"] if row["name"] == entry["name"])
            return f"{records} records, matched in {entry['answers']} of {audited} audited answers"
        case "owner":
            return "trained the adapter and published it"
        case "provider":
            return f"answered, with {format_open(report['provider']['bond'], 0)} OPEN of bond at stake"
        case "unattributed":
            return "what no record matched well enough"
        case "absent-validator":
            return "the part of validators that were late or attested something else"
        case other:
            return str(other).replace("-", " ")


def _supply(report: Document) -> Text:
    text = Text(f"{_INDENT}supply  ", style="bold")
    text.append(format_open(report["supply_before"]), style="not bold")
    text.append(" before = ", style="not bold dim")
    text.append(format_open(report["supply_after"]), style="not bold")
    text.append(" after + ", style="not bold dim")
    text.append(f"{format_open(report['burned'])} burned", style="not bold red")
    text.append(f", with {format_open(report['escrowed'])} of it waiting in escrow", style="not bold dim")
    return text


def _checks(report: Document) -> Table:
    table = _table(header=False)
    table.add_column(width=1)
    table.add_column()
    # A narrow window breaks the promise's words before it squeezes what was found.
    table.add_column(min_width=DETAIL_WIDTH_MIN, style="dim")
    for check in report["checks"]:
        mark = Text("✓", style="bold green") if check["passed"] else Text("✗", style="bold red")
        name = Text(check["name"], style="" if check["passed"] else "bold red")
        table.add_row(mark, name, escape(check["detail"]))
    return table


def _time_title(report: Document) -> str:
    limit = report["seconds_max"]
    return f"Time: {report['seconds']:.1f} s" + ("" if limit is None else f" of {limit:.0f} s")


def _time(report: Document) -> Table:
    total = report["seconds"] or 1.0
    table = _table(header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, ratio=1)
    for step, seconds in _by_step(report["time"]):
        cells = round(seconds / total * 2 * BAR_CELLS)
        bar = Text("▪" * cells, style="dim")
        table.add_row(step, f"{seconds:.1f} s", f"{100 * seconds / total:.0f} %", bar)
    return table


def _by_step(entries: Iterable[Document]) -> list[tuple[str, float]]:
    """Steps in order, those that came twice in one."""
    sums: dict[str, float] = {}
    for entry in entries:
        sums[entry["step"]] = sums.get(entry["step"], 0.0) + entry["seconds"]
    return list(sums.items())


def _verdict(report: Document) -> Text:
    failed = [check for check in report["checks"] if not check["passed"]]
    if not failed:
        return Text(f"{_INDENT}✓ all {len(report['checks'])} promises held", style="bold green")
    return Text(
        f"{_INDENT}✗ {len(failed)} of {len(report['checks'])} promises did not hold", style="bold red"
    )


def render_files(console: Console, report_path: Path) -> None:
    """Where to read on after a demo."""
    console.print(Text.assemble(_INDENT, "  everything in ", (str(report_path), "cyan")), soft_wrap=True)


def render_running(console: Console, report: Document, devnet: Document) -> None:
    """What a running devnet offers: URLs, one curl, the keys, how to stop it."""
    table = _table(header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(ratio=1, style="dim", overflow="fold")
    for node in report["nodes"]:
        table.add_row(node["name"], node["rpc_url"], "" if node["validator"] else "the story entered here")
    console.print()
    console.print(_titled("Still running", table))
    full = next(node["rpc_url"] for node in report["nodes"] if not node["validator"])
    audited = next((call for call in report["inferences"] if call["audited"]), None)
    if audited is not None:
        request = f'{{"jsonrpc":"2.0","id":1,"method":"receipt","params":{{"inference":"{audited["id"]}"}}}}'
        console.print()
        console.print(Text(f"{_INDENT}One receipt", style="bold underline"))
        console.print(Text(f"curl -s {full} -d '{request}'", style="cyan"), soft_wrap=True)
    folder = Path(devnet["accounts"][0]["secret_key_file"]).parent
    names = ", ".join(account["name"] for account in devnet["accounts"])
    console.print()
    console.print(
        Text.assemble(
            _INDENT,
            ("Keys  ", "bold"),
            (f"{folder}/NAME.key", "cyan"),
            f" for {names}; not encrypted, test money",
        ),
        soft_wrap=True,
    )
    console.print(Text.assemble(_INDENT, ("Ctrl-C", "bold"), " stops everything"))


def _percent(share: int) -> str:
    return f"{100 * share // SHARES_TOTAL} %"


def _table(header: bool = True) -> Table:
    return Table(
        box=box.SIMPLE_HEAD if header else None,
        show_edge=False,
        show_header=header,
        padding=(0, 1),
        header_style="dim",
        expand=True,
    )


def limited_console(console: Console) -> Console:
    """The same console, at most `WIDTH_MAX` columns wide: longer lines are hard to read."""
    if console.width > WIDTH_MAX:
        console.width = WIDTH_MAX
    return console
