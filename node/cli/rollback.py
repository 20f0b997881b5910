"""``openledger rollback``: take executed blocks back, so that they are fetched and executed again."""

from __future__ import annotations

import argparse

from node.cli.connection import add_home_argument, home_of
from node.cli.output import Exit, add_example, add_json_argument, print_result


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``rollback``."""
    add_home_argument(parser, "the home of a node that does not run")
    parser.add_argument(
        "--to", type=_height, metavar="HEIGHT", help="the height to go back to (default: one block back)"
    )
    parser.add_argument("--dry-run", action="store_true", help="say where it would end, and change nothing")
    add_json_argument(parser)
    add_example(
        parser,
        "openledger rollback --home ~/.openledger",
        "openledger rollback --home ~/.openledger --to 1200 --dry-run --json",
    )
    parser.set_defaults(run=run)


def _height(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"expected a height, got {text[:80]!r}")
    return int(text)


def run(parsed: argparse.Namespace) -> int:
    """Roll back and print from where to where."""
    from node.home import open_home
    from node.offline import open_offline, roll_back, rollback_target

    with open_offline(open_home(home_of(parsed).root)) as offline:
        target = rollback_target(offline, parsed.to)
        document: dict[str, object] = {
            "height_executed_before": offline.store.executed().height,
            "height_committed_before": offline.store.committed_height(),
            "height": target,
            "done": not parsed.dry_run,
            "safety_record": "not touched",
        }
        if not parsed.dry_run:
            roll_back(offline, target)
    print_result(document, parsed.as_json, "rolled back")
    return Exit.OK
