"""The same blocks and the same hostile bytes, by text and by machine code, in a process each: the same to the last byte."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import pytest

from tests.compiled.made import environment, made
from tests.compiled.material import histories, hostile_inputs
from tests.compiled.player import play
from tests.profiles import examples

HISTORIES = 12


def _played(material: Path, native: bool) -> list[str]:
    command = [sys.executable, "-m", "tests.compiled.player", str(material)]
    done = subprocess.run(
        command, env=environment(native), cwd=material.parent, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_the_material_reaches_what_is_accepted_and_what_is_refused() -> None:
    material = {"inputs": hostile_inputs(3, each=8), "histories": list(histories(3, 2))}
    told = "\n".join(play(json.loads(json.dumps(material))))
    for seen in (
        "Transaction(",
        "MalformedError malformed",
        "CodecError",
        "CommitVoteMessage(",
        "not an integer in",
        "the proposer is no validator",
        "state True",
    ):
        assert seen in told, seen
    assert "state False" not in told


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(examples(3)))
def test_blocks_receipts_roots_and_refusals_are_the_same_to_the_last_byte(tmp_path: Path, seed: int) -> None:
    made()
    material = tmp_path / "material.json"
    written = {"inputs": hostile_inputs(seed), "histories": list(histories(seed, HISTORIES))}
    material.write_text(json.dumps(written))
    text, native = _played(material, False), _played(material, True)
    assert text[0] == "text"
    assert native[0].startswith("machine code of ")
    different = [pair for pair in zip_longest(text[1:], native[1:]) if pair[0] != pair[1]]
    assert not different, f"{len(different)} of {len(text)}, for example {different[0]}"
