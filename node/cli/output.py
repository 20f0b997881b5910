"""What commands print, and how errors become exit codes. Results go to standard output, everything else to error."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

from node.client import (
    NodeUnreachable,
    RpcError,
    TransactionExpired,
    TransactionRejected,
    WaitTimeout,
)
from node.errors import ConfigInvalid, KeyFileInvalid

if TYPE_CHECKING:
    from rich.table import Table


class Exit(IntEnum):
    """Exit codes of every command; `EXIT_MEANINGS` says what each means, docs/cli.md when it comes."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    NOT_FOUND = 5
    TIMEOUT = 6
    FAULT = 70
    INTERRUPTED = 130
    PIPE_CLOSED = 141


EXIT_MEANINGS: dict[Exit, str] = {
    Exit.OK: "done",
    Exit.FAILED: "failed",
    Exit.USAGE: "wrong usage, configuration or key",
    Exit.UNREACHABLE: "no node answers",
    Exit.REFUSED: "refused by the ledger or the node",
    Exit.NOT_FOUND: "no such thing",
    Exit.TIMEOUT: "not in time",
    Exit.FAULT: "a fault of this program",
    Exit.INTERRUPTED: "interrupted",
    Exit.PIPE_CLOSED: "nobody reads the output any more",
}

# By the name of the error's class, else of its nearest base; imported, the ledger's would cost every command its time.
EXIT_OF: dict[str, Exit] = {
    "UsageError": Exit.USAGE,
    "ConfigInvalid": Exit.USAGE,
    "KeyFileInvalid": Exit.USAGE,
    "HomeMissing": Exit.USAGE,
    "HomeExists": Exit.USAGE,
    "LedgerError": Exit.USAGE,
    "NodeUnreachable": Exit.UNREACHABLE,
    "RpcError": Exit.REFUSED,
    "TransactionRejected": Exit.REFUSED,
    "TransactionExpired": Exit.REFUSED,
    "WaitTimeout": Exit.TIMEOUT,
    "Interrupted": Exit.INTERRUPTED,
    "BrokenPipeError": Exit.PIPE_CLOSED,
    "NodeError": Exit.FAILED,
    "OSError": Exit.FAILED,
}
"""Exit code of each kind of error; an RpcError of code -32001 exits with `Exit.NOT_FOUND`. docs/cli.md shows this table."""

TRACEBACK_VARIABLE = "OPENLEDGER_TRACEBACK"


class UsageError(Exception):
    """Arguments that parse but make no sense together; the message says what to give instead."""


class Interrupted(Exception):
    """Ctrl-C, at a moment when there is more to say than that; the message says what was already done."""


_RPC_NOT_FOUND = -32001
_SHOWN_CHARACTERS_MAX = 256
_NARROW_COLUMNS = 4
_CELL_FRAME = 3


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


def report_errors(work: Callable[[], int], as_json: bool) -> int:
    """Return what ``work`` returns, or report what it raises and return that error's exit code; no traceback."""
    try:
        return work()
    except KeyboardInterrupt:
        return _report(Exit.INTERRUPTED, "interrupted", "Interrupted", {}, as_json)
    except BrokenPipeError:
        # The reader of our output (`head`, say) has gone; there is nobody to tell. What is still buffered goes nowhere,
        # or the interpreter would complain at exit.
        _discard_output()
        return Exit.PIPE_CLOSED
    except Exception as error:
        described = _describe(error)
        if described is None:
            if os.environ.get(TRACEBACK_VARIABLE):
                raise
            described = Exit.FAULT, {}
            message = f"{type(error).__name__}: {error} (this is a fault of openledger; {TRACEBACK_VARIABLE}=1 shows where)"
        else:
            message = _message(error)
        try:
            _report(described[0], message, type(error).__name__, described[1], as_json)
            if sys.stdout is not None:
                # What could not be written is still in the buffer, and would be tried again at exit.
                sys.stdout.flush()
        except OSError:
            # Standard output is what failed, a full disk perhaps.
            _discard_output()
            if as_json:
                _report(described[0], message, "", {}, as_json=False)
        return described[0]


def _report(code: Exit, message: str, kind: str, details: Mapping[str, object], as_json: bool) -> int:
    if as_json:
        print_json({"error": message, "kind": kind, "exit_code": int(code), **details})
        if sys.stdout is not None:
            sys.stdout.flush()
    elif sys.stderr is not None:
        print(f"openledger: {printable(message)}", file=sys.stderr)
    return code


def _discard_output() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _message(error: Exception) -> str:
    """One line that says what to do, where the error itself does not."""
    match error:
        case NodeUnreachable():
            return f"{error}; is it running? `openledger start` runs one, --rpc names another"
        case WaitTimeout():
            return f"{error}; it may still happen, --timeout waits longer"
        case OSError() if error.filename is not None and error.strerror:
            return f"{os.fsdecode(error.filename)}: {error.strerror}"
        case OSError() if error.strerror:
            return error.strerror
        case _:
            return " ".join(str(error).split("\n"))


def printable(text: str) -> str:
    """Return ``text`` with every character that could move a cursor, hide or reorder text written as its escape.

    Names, descriptions and error messages come from nodes and from whoever paid for a transaction.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character == "\n" else ascii(character)[1:-1]
        for character in text
    )


def _describe(error: Exception) -> tuple[Exit, dict[str, object]] | None:
    """Return the exit code and a program's details of an error the user can act on; None for a fault of ours."""
    code = next((EXIT_OF[cls.__name__] for cls in type(error).__mro__ if cls.__name__ in EXIT_OF), None)
    if code is None:
        return None
    details: dict[str, object] = {}
    match error:
        case RpcError():
            code = Exit.NOT_FOUND if error.code == _RPC_NOT_FOUND else code
            details = {"code": error.code, "data": error.data}
        case TransactionRejected():
            details = {"transaction": dict(error.transaction)}
        case TransactionExpired():
            details = {"tx_hash": error.tx_hash, "valid_until": error.valid_until}
        case NodeUnreachable():
            details = {"url": error.url}
        case KeyFileInvalid():
            details = {"file": str(error.path)}
        case ConfigInvalid():
            details = {"key": error.key}
        case _ if hasattr(error, "code"):
            details = {"code": error.code}
    return code, details


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
            table.add_row(escape(printable(name)), f"{len(value)}, below")
        else:
            table.add_row(escape(printable(name)), escape(_text(value)))
    console.print(table)
    for name, rows in nested:
        print_rows(name, rows)


def print_rows(title: str, rows: Iterable[Mapping[str, object]]) -> None:
    """Print rows of the same keys as one table, or one below the other where the terminal is too narrow for it."""
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    flat = [{name: _text(value) for name, value in _flatten(row)} for row in rows]
    names = list(flat[0]) if flat else []
    table = _table(title)
    if len(names) > _NARROW_COLUMNS and _width(names, flat) > console.width:
        table.add_column("field", style="bold")
        table.add_column("value", overflow="fold")
        for row in flat:
            for name, text in row.items():
                table.add_row(escape(printable(name)), escape(text))
            table.add_section()
    else:
        for name in names:
            table.add_column(escape(printable(name)), overflow="fold")
        for row in flat:
            table.add_row(*(escape(text) for text in row.values()))
    console.print(table)


def _width(names: Sequence[str], rows: Sequence[Mapping[str, str]]) -> int:
    """Columns of the terminal that a table takes whose cells are not folded."""
    return sum(max(len(name), *(len(row.get(name, "")) for row in rows)) + _CELL_FRAME for name in names)


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
    text = printable(str(value))
    if len(text) > _SHOWN_CHARACTERS_MAX:
        return f"{text[:_SHOWN_CHARACTERS_MAX]}... (--json prints all {len(text)} characters)"
    return text or "-"
