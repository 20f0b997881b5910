"""The machine code under test: made of this tree once, kept in `build/compiled` for the next time."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest

from scripts.compile import ROOT, check_tools, compile_to, environment_of, site_of
from scripts.translation import TranslationError

FOLDER = ROOT / "build/compiled"


@lru_cache(1)
def made() -> Path:
    """The site of this tree's machine code; minutes where the tree has changed. Skips the test where there is no compiler."""
    try:
        return site_of(FOLDER)
    except TranslationError:
        pass  # there is none yet, or it is of another day's text
    try:
        check_tools()
    except TranslationError as missing:
        pytest.skip(str(missing))
    compile_to(FOLDER)
    return site_of(FOLDER)


def environment(native: bool) -> dict[str, str]:
    """Variables of a process that takes the machine code, or the text alone."""
    variables = environment_of(FOLDER)
    return variables if native else variables | {"PYTHONPATH": str(ROOT)}
