"""The benchmark of a large index, on a small one: what it prints is of the index that it built, and a second run asks the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from attribution.index import Index
from benchmarks import large_index


def test_a_small_index_is_built_once_and_asked_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--records", "24", "--trained", "4", "--queries", "2", "--folder", str(tmp_path), "--json"]
    documents = []
    for _ in range(2):
        assert large_index.main(arguments) == 0
        documents.append(json.loads(capsys.readouterr().out))
    first, second = documents
    index = Index.open(tmp_path / "index", bytes.fromhex(first["made"]["root"]))
    assert index.record_count == first["made"]["records"] == 24
    assert second["made"] == first["made"]
    for kind in large_index.KINDS:
        # So few are all scanned in full.
        assert (first[kind]["queries"], first[kind]["overlooked"]) == (2, 0)
        assert second[kind]["best_cosine"] == first[kind]["best_cosine"]
    assert first["verbatim"]["best_cosine"]["least"] > first["strange"]["best_cosine"]["most"]
    assert first["verbatim"]["payable"] >= 2
    with pytest.raises(SystemExit, match="another"):
        large_index.main(["--records", "25", *arguments[2:]])


def test_more_answers_than_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        large_index.main(["--records", "3", "--queries", "2", "--folder", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []
