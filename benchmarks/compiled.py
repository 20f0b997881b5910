"""Measure machine code instead of text: `--compiled DIR` of `benchmarks.path` and `benchmarks.throughput`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from scripts.compile import environment_of
from scripts.translation import TranslationError


def add_option(parser: argparse.ArgumentParser) -> None:
    """Let a benchmark take what `python -m scripts.compile --out DIR` made."""
    parser.add_argument("--compiled", type=Path, metavar="DIR", help="measure the machine code made there")


def go_on_compiled(module: str, folder: Path) -> NoReturn:
    """Run this benchmark again with the same arguments and the code of `folder`; its daemons inherit that."""
    arguments, given = [], iter(sys.argv[1:])
    for argument in given:
        if argument == "--compiled":
            next(given)
        elif not argument.startswith("--compiled="):
            arguments.append(argument)
    try:
        environment = environment_of(folder)
    except TranslationError as error:
        raise SystemExit(str(error)) from error
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], environment)
