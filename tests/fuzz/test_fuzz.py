"""A short search of every decoder, what earlier searches found, and a proof that the search would notice."""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consensus.codec import decode
from consensus.errors import CodecError
from tests.fuzz.__main__ import main
from tests.fuzz.campaign import FOUND, examine, search
from tests.fuzz.campaign import Report as Search
from tests.fuzz.mutation import mutated, pack
from tests.fuzz.target import Target, WrongReading, judge, judge_memory
from tests.fuzz.targets import targets
from tests.profiles import examples

ROOT = Path(__file__).resolve().parents[2]
SLOW = {"base": 12, "index": 40, "config-toml": 40, "genesis-json": 40, "json-rpc": 50, "adapter": 80}
SIGNED_FIELDS = {"recipe": {-1, 0}}
"""Targets in which other integers than those from 0 up, or a zero, have a place: eps_exponent is negative."""


@pytest.mark.parametrize("name", targets())
def test_valid_inputs_are_read_and_mutated_ones_are_refused_or_canonical(name: str) -> None:
    target = targets()[name]
    assert target.seeds
    for data in target.seeds:
        assert judge(target, data)
    report = search(target, seed=20, inputs=examples(SLOW.get(name, 150)))
    assert not report.findings, [finding.error for finding in report.findings.values()]


@pytest.mark.parametrize("path", sorted(FOUND.glob("*.bin")), ids=lambda path: path.stem)
def test_what_was_found_once_stays_mended(path: Path) -> None:
    target = targets()[path.stem.partition("--")[0]]
    judge(target, path.read_bytes())
    judge_memory(target, path.read_bytes())


def leaves(value: Any) -> Iterator[tuple[Any, Any]]:
    """(leaf, function that gives the whole with that leaf replaced) for every leaf of a decoded value."""
    if not isinstance(value, list):
        yield value, lambda other: other
        return
    for at, entry in enumerate(value):
        for leaf, put in leaves(entry):
            yield leaf, lambda other, at=at, put=put: [*value[:at], put(other), *value[at + 1 :]]


@pytest.mark.parametrize("name", targets())
def test_no_field_takes_a_boolean_for_an_integer_or_a_value_of_another_type(name: str) -> None:
    """Every leaf of every valid array, replaced by nil, booleans, negatives, text, bytes and arrays."""
    target, rng = targets()[name], random.Random(0)
    for data in target.seeds[:9]:
        try:
            whole = decode(data, len(data))
        except CodecError:
            return  # no array: a file or a text
        for leaf, put in list(leaves(whole))[:60]:
            for other in (None, True, False, -1, 2**64 - 1, "text", b"", b"x" * 31, [], [0]):
                read = judge(target, pack(rng, put(other), 0.0))
                if type(leaf) is int and not (type(other) is int and other >= 0):
                    assert not read or other in SIGNED_FIELDS.get(name, ()), (name, leaf, other)


def test_every_decoder_of_bytes_is_a_target() -> None:
    """Functions of consensus, the ledger, the wire, snapshots and the signer that are called decode_... or ..._from_bytes."""
    elsewhere = {
        "decode_list",  # takes its limit from its caller, which is a target
        "root_from_bytes",  # behind a checksum, which its target computes
        "from_bytes",  # of any record; the records are targets
    }
    decoders = [target.decode for target in targets().values()]
    known = {getattr(getattr(decoder, "func", decoder), "__name__", "") for decoder in decoders}
    found = set()
    for path in [
        *(ROOT / "consensus").glob("*.py"),
        *(ROOT / "node/ledger").glob("*.py"),
        *(ROOT / "node/snapshot").glob("*.py"),
        *(ROOT / "node/signer").glob("*.py"),
        ROOT / "node/wire.py",
        ROOT / "node/epochs.py",
        ROOT / "node/light.py",
    ]:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and (
                node.name.startswith("decode_") or node.name.endswith("from_bytes")
            ):
                found.add(node.name)
    assert len(found) > 25
    assert found - elsewhere <= known


def test_the_search_notices_a_lax_decoder_a_foreign_error_and_wasted_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lax(data: bytes) -> int:
        return data[0] & 0x7F  # IndexError on nothing, and the upper bit is ignored

    target = Target("lax", lax, lambda value: bytes([value]), (b"\x05",), (ValueError,))
    errors = " ".join(search(target, seed=1, inputs=300).findings)
    assert "WrongReading" in errors
    assert "IndexError" in errors
    with pytest.raises(WrongReading, match="memory"):
        judge_memory(Target("greedy", lambda data: [0] * (1 << 20), None, (b"",), ()), b"")
    monkeypatch.setattr("tests.fuzz.campaign.FOUND", tmp_path)
    monkeypatch.setattr("tests.fuzz.__main__.targets", lambda: {"lax": target})
    assert main(["--engine", "mutation", "--seconds", "0.2", "--target", "lax"]) == 1
    assert list(tmp_path.glob("lax--*.bin"))
    assert main(["--list"]) == 0


def test_a_search_is_replayed_by_its_seed() -> None:
    target = targets()["transaction"]
    runs = []
    for _ in range(2):
        rng = random.Random("7 transaction")
        runs.append([mutated(rng, target.seeds, target.text) for _ in range(50)])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 40
    report = Search("transaction")
    for data in runs[0]:
        examine(target, data, report)
    assert report.inputs == 50
