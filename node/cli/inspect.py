"""``openledger inspect``: what lies in the home of a node at rest, and whether it is whole."""

from __future__ import annotations

import argparse

from node.cli.connection import add_home_argument, home_of
from node.cli.output import Exit, add_example, add_json_argument, print_result


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``inspect``."""
    add_home_argument(parser, "the home of a node that does not run")
    parser.add_argument(
        "--deep",
        action="store_true",
        help="also add up the whole state, and read every chunk of every snapshot",
    )
    add_json_argument(parser)
    add_example(parser, "openledger inspect --home ~/.openledger", "openledger inspect --deep --json")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Print the summary; exits with FAILED where something is damaged."""
    from node.home import open_home
    from node.offline import open_offline, summary

    with open_offline(open_home(home_of(parsed).root)) as offline:
        document = summary(offline, deep=parsed.deep)
    print_result(document, parsed.as_json, "inspected")
    return Exit.OK if document["whole"] else Exit.FAILED
