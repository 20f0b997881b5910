"""The list of hardenings stays true: each can still be removed, and names tests that exist."""

from pathlib import Path

import pytest

from tests.hardening.__main__ import rooms
from tests.hardening.removal import Removal

ROOT = Path(__file__).resolve().parents[2]
REMOVALS = [
    pytest.param(removal, id=f"{room}-{removal.threat}")
    for room, removals in rooms().items()
    for removal in removals
]


@pytest.mark.parametrize("removal", REMOVALS)
def test_a_listed_hardening_is_where_the_list_says_and_its_tests_exist(removal: Removal) -> None:
    assert (ROOT / removal.file).read_text().count(removal.text) == 1
    assert removal.text != removal.instead
    assert removal.tests
    for test in removal.tests:
        path, _, name = test.partition("::")
        assert not name or f"def {name.split('[')[0].split('::')[-1]}(" in (ROOT / path).read_text()
