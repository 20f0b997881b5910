"""The translated simulator does what the text as it stands does."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.code import ROOT, code_digest, sources
from tests.simulation.compiled import INTERPRETED, compiled, translated


def _trace(root: Path) -> str:
    command = [sys.executable, "-m", "tests.simulation", "--seed", "7", "--runs", "24", "--trace"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    found = re.search(r"^trace (\w{32})$", done.stdout, re.MULTILINE)
    assert found is not None
    return found.group(1)


def test_every_file_has_the_places_that_are_edited_and_is_python_afterwards() -> None:
    for path in sources():
        text = (ROOT / path).read_text()
        made = translated(path, text)
        ast.parse(made)
        assert made == text if path.name in INTERPRETED else "slots=True" not in made


def test_an_edit_without_its_place_is_refused() -> None:
    with pytest.raises(ValueError, match="occurs 0 times"):
        translated(Path("consensus/evidence.py"), "nothing of the kind\n")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_effect_of_every_step_is_the_same_in_machine_code(tmp_path: Path) -> None:
    copy = compiled(tmp_path)
    assert (copy / "code").read_text() == code_digest()
    assert _trace(copy) == _trace(ROOT)
