"""What commands print, and how errors become exit codes. Results go to standard output, everything else to error."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

from node.client import (
    NodeUnreachable,
    RpcError,
    TransactionExpired,
    TransactionRejected,
    WaitTimeout,
)
from node.errors import ConfigInvalid, HomeExists, HomeMissing, KeyFileInvalid, NodeError

if TYPE_CHECKING:
    from rich.table import Table


class Exit(IntEnum):
    """Exit codes of every command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    NOT_FOUND = 5
    TIMEOUT = 6
    INTERRUPTED = 130


class UsageError(Exception):
    """Arguments that parse but make no sense together; the message says what to give instead."""


_RPC_NOT_FOUND = -32001


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument(
        "--json", action="store_true", dest="as_json", help="print one JSON document, for programs"
    )


def add_example(parser: argparse.ArgumentParser, *lines: str) -> None:
    """Show examples under a command's help."""
    parser.epilog = "\n".join(
        ["example:" if len(lines) == 1 else "examples:", *(f"  {line}" for line in lines)]
    )


def run_reporting_errors(parsed: argparse.Namespace) -> int:
    """Run the parsed command; print a known error in one line (or as JSON) and return its exit code."""
    try:
        return int(parsed.run(parsed))
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (`head`, say) has gone; there is nobody to tell.
        sys.stderr.close()
        return Exit.FAILED
    except Exception as error:
        described = _describe(error)
        if described is None:
            raise
        code, details = described
        if getattr(parsed, "as_json", False):
            print_json({"error": str(error), "kind": type(error).__name__, "exit_code": int(code), **details})
        else:
            print(f"openledger: {error}", file=sys.stderr)
        return code


def _describe(error: Exception) -> tuple[Exit, dict[str, object]] | None:
    """Return the exit code and a program's details of an error the user can act on; None for a fault of ours."""
    from node.ledger.errors import LedgerError

    match error:
        case RpcError():
            details: dict[str, object] = {"code": error.code, "data": error.data}
            return (Exit.NOT_FOUND if error.code == _RPC_NOT_FOUND else Exit.REFUSED), details
        case TransactionRejected():
            return Exit.REFUSED, {"transaction": dict(error.transaction)}
        case TransactionExpired():
            return Exit.REFUSED, {"tx_hash": error.tx_hash, "valid_until": error.valid_until}
        case NodeUnreachable():
            return Exit.UNREACHABLE, {"url": error.url}
        case WaitTimeout():
            return Exit.TIMEOUT, {}
        case UsageError() | ConfigInvalid() | HomeMissing() | HomeExists() | KeyFileInvalid():
            return Exit.USAGE, {}
        case LedgerError():
            return Exit.USAGE, {"code": error.code}
        case NodeError() | OSError():
            return Exit.FAILED, {}
        case _:
            return None


def print_json(document: object) -> None:
    """Print one JSON document."""
    print(json.dumps(document, indent=2, sort_keys=False))


def print_result(document: Mapping[str, object], as_json: bool, title: str = "") -> None:
    """Print a result: JSON for programs, or a table of names and values with nested lists as tables of their own."""
    if as_json:
        print_json(document)
        return
    from rich.console import Console
    from rich.markup import escape

    console = Console(soft_wrap=True)
    table = _table(title)
    table.add_column("field", style="bold")
    table.add_column("value", overflow="fold")
    nested: list[tuple[str, Sequence[Mapping[str, object]]]] = []
    for name, value in _flatten(document):
        if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            nested.append((name, value))
            table.add_row(escape(name), f"{len(value)}, below")
        else:
            table.add_row(escape(name), escape(_text(value)))
    console.print(table)
    for name, rows in nested:
        print_rows(name, rows)


def print_rows(title: str, rows: Iterable[Mapping[str, object]]) -> None:
    """Print rows of the same keys as one table."""
    from rich.console import Console
    from rich.markup import escape

    flat = [dict(_flatten(row)) for row in rows]
    table = _table(title)
    for name in flat[0] if flat else ():
        table.add_column(escape(name), overflow="fold")
    for row in flat:
        table.add_row(*(escape(_text(value)) for value in row.values()))
    Console().print(table)


def _table(title: str) -> Table:
    from rich.table import Table

    return Table(title=title or None, title_justify="left", show_edge=False)


def _flatten(document: Mapping[str, object], prefix: str = "") -> Iterable[tuple[str, object]]:
    for name, value in document.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "\n".join(_text(entry) for entry in value) if value else "-"
    return str(value)
