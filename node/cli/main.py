"""Entry point of ``openledger``: picks the command, imports only what that command needs.

Each command is a module with ``configure(parser)``, which adds its arguments and sets ``run``: a function of the parsed
arguments that returns an exit code (`node.cli.output.Exit`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from node import __version__

DESCRIPTION = "A ledger that pays for AI answers to the people whose data shaped them."
EPILOG = """\
examples:
  openledger demo                          play the whole story on four validators and exit
  openledger devnet --home /tmp/devnet     the same, then keep the network running
  openledger status --rpc http://127.0.0.1:7550
  openledger tx transfer --to ADDRESS --amount 5 --key alice --wait

exit codes:
  0 done   1 failed   2 wrong usage or configuration   3 no node answers
  4 refused by the ledger or the node   5 no such thing   6 not in time   130 interrupted
"""


@dataclass(frozen=True, slots=True)
class Command:
    """A command: the function that configures it, as ``module:function``, and one line of help."""

    target: str
    help: str


COMMANDS: dict[str, Command] = {
    "init": Command("node.cli.daemon:configure_init", "create a node's home: configuration and keys"),
    "start": Command("node.cli.daemon:configure_start", "run a node in the foreground"),
    "status": Command("node.cli.query:configure_status", "where a node stands"),
    "devnet": Command(
        "node.cli.devnet:configure_devnet", "start validators on this machine and keep them running"
    ),
    "demo": Command("node.cli.devnet:configure_demo", "play the whole story, check it, exit"),
    "keys": Command("node.cli.keys:configure", "create and list account keys"),
    "tx": Command("node.cli.tx:configure", "build, sign and submit a transaction"),
    "query": Command("node.cli.query:configure_query", "ask a node about the ledger"),
    "verify": Command("node.cli.verify:configure_verify", "recompute what the ledger claims"),
    "selfcheck": Command("node.cli.verify:configure_selfcheck", "check this machine's exact arithmetic"),
}


def build_parser(selected: str | None = None) -> argparse.ArgumentParser:
    """Return the parser; only the ``selected`` command has its arguments, so that only its modules are imported."""
    parser = argparse.ArgumentParser(
        prog="openledger",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        child = commands.add_parser(
            name,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name == selected:
            module, _, function = command.target.partition(":")
            getattr(import_module(module), function)(child)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Wrong usage exits with 2 through `SystemExit`, as argparse does."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    selected = next((argument for argument in arguments if not argument.startswith("-")), None)
    parsed = build_parser(selected).parse_args(arguments)

    from node.cli.output import run_reporting_errors

    return run_reporting_errors(parsed)


if __name__ == "__main__":
    sys.exit(main())
