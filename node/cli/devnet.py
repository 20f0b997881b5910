"""``openledger devnet`` and ``openledger demo``; the work is `node.devnet`'s."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from node.cli.output import add_example, add_json_argument

_VALIDATORS_MIN = 4
_VALIDATORS_MAX = 16


def configure_devnet(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``devnet``."""
    _add_arguments(parser)
    add_example(parser, "openledger devnet --home /tmp/devnet --validators 4")
    parser.set_defaults(run=run, stay_up=True)


def configure_demo(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``demo``."""
    _add_arguments(parser)
    add_example(
        parser,
        "openledger demo",
        'openledger demo --home /tmp/demo --data DIR    your own text: NAME.jsonl of {"text": ...} per contributor',
    )
    parser.set_defaults(run=run, stay_up=False)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--home", type=Path, metavar="DIR", help="where everything is kept (default: a new temporary folder)"
    )
    parser.add_argument(
        "--validators",
        type=_validators,
        default=_VALIDATORS_MIN,
        metavar="N",
        help=f"how many validators, {_VALIDATORS_MIN} to {_VALIDATORS_MAX} (default: {_VALIDATORS_MIN})",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="contributors' text (default: the standard library's docstrings)",
    )
    add_json_argument(parser)


def _validators(text: str) -> int:
    if not re.fullmatch("[0-9]{1,2}", text) or not _VALIDATORS_MIN <= int(text) <= _VALIDATORS_MAX:
        raise argparse.ArgumentTypeError(
            f"expected {_VALIDATORS_MIN} to {_VALIDATORS_MAX}, got {text[:80]!r}"
        )
    return int(text)


def run(parsed: argparse.Namespace) -> int:
    """Start the network and play the story."""
    from node.devnet.main import run_devnet

    return run_devnet(
        home=parsed.home,
        validators=parsed.validators,
        data=parsed.data,
        stay_up=parsed.stay_up,
        as_json=parsed.as_json,
    )
