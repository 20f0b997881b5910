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
from typing import NoReturn

from node import __version__

DESCRIPTION = "A ledger that pays for AI answers to the people whose data shaped them."
EPILOG = """\
examples:
  openledger demo                          play the whole story on four validators and exit
  openledger devnet --home /tmp/devnet     the same, then keep the network running
  openledger status --rpc http://127.0.0.1:7550
  openledger tx transfer --to ADDRESS --amount 5 --key alice --wait

{exit_codes}
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
    "keys": Command("node.cli.keys:configure", "create, list, move and encrypt keys"),
    "tx": Command("node.cli.tx:configure", "build, sign and submit a transaction"),
    "query": Command("node.cli.query:configure_query", "ask a node about the ledger"),
    "spans": Command("node.cli.spans:configure", "which words of an answer or text match records"),
    "signer": Command("node.cli.signer:configure", "hold a validator's key in a process of its own"),
    "verify": Command("node.cli.verify:configure_verify", "recompute what the ledger claims"),
    "model": Command("node.cli.model:configure_model", "quantise a Hugging Face model to a base"),
    "adapter": Command("node.cli.model:configure_adapter", "bring PEFT adapters in and out"),
    "rollback": Command("node.cli.rollback:configure", "take executed blocks back"),
    "inspect": Command("node.cli.inspect:configure", "what lies in the home of a node at rest"),
    "debug": Command("node.cli.debug:configure", "collect what explains a node's behaviour"),
    "selfcheck": Command("node.cli.selfcheck:configure", "check this machine's exact arithmetic"),
}


class Parser(argparse.ArgumentParser):
    """argparse, but wrong usage is one line that says what to do, and a name nearly right is recognised."""

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError`, which `main` reports."""
        from node.cli.output import UsageError

        raise UsageError(f"{message}; see `{self.prog} --help`")

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is None or value in action.choices:
            return
        from difflib import get_close_matches

        names = [str(choice) for choice in action.choices]
        near = get_close_matches(str(value), names, n=1)
        expected = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names)}"
        raise argparse.ArgumentError(action, f"there is no {str(value)[:80]!r}; {expected}")


def build_parser(selected: str | None = None) -> argparse.ArgumentParser:
    """Return the parser; only the ``selected`` command has its arguments, so that only its modules are imported."""
    parser = Parser(
        prog="openledger",
        description=DESCRIPTION,
        epilog=EPILOG.format(exit_codes=_exit_codes()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
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


def _version() -> str:
    from node.form import form

    return f"{__version__} ({form()})"


def _exit_codes() -> str:
    from node.cli.output import EXIT_MEANINGS

    return "\n".join(
        ["exit codes:", *(f"  {int(code):<4} {meaning}" for code, meaning in EXIT_MEANINGS.items())]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; only ``--help`` and ``--version`` end in `SystemExit`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        from node.cli.output import report_errors

        return report_errors(lambda: _run(arguments), as_json="--json" in arguments)
    except KeyboardInterrupt:
        # Before anything was imported that could report it.
        return 130


def _run(arguments: list[str]) -> int:
    selected = next((argument for argument in arguments if not argument.startswith("-")), None)
    parser = build_parser(selected)
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    parsed = parser.parse_args(arguments)
    code = int(parsed.run(parsed))
    if sys.stdout is not None:
        # Here, not at exit: a full disk, or a reader that has gone, must still change the exit code.
        sys.stdout.flush()
    return code


if __name__ == "__main__":
    sys.exit(main())
