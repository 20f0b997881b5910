"""The demonstration's texts on the Python that runs the tests, and the limits on anybody's own text."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from node.devnet import stories
from node.devnet.stories import (
    LOADED_RECORDS_MAX,
    LOADED_TEXT_BYTES_MAX,
    RECORD_BYTES_MAX,
    RECORD_BYTES_MIN,
    StoryError,
    load_directory,
    prompts,
    stdlib_contributors,
    unrelated_texts,
)


def test_three_contributors_with_enough_distinct_one_line_records() -> None:
    story = stdlib_contributors(40)
    assert list(story) == ["alice", "bob", "carol"]
    everything = [record for records in story.values() for record in records]
    assert [len(records) for records in story.values()] == [40, 40, 40]
    for record in everything:
        assert RECORD_BYTES_MIN <= len(record.encode("ascii")) <= RECORD_BYTES_MAX
        assert record.isprintable()
    assert len({r.split(": ", 1)[0] for r in everything}) == len(everything)
    assert len({r.split(": ", 1)[1] for r in everything}) == len(everything)


def test_records_are_the_same_every_time_and_fewer_are_a_prefix() -> None:
    story = stdlib_contributors(12)
    assert stdlib_contributors(12) == story
    assert stdlib_contributors(5)["alice"] == story["alice"][:5]


def test_missing_modules_are_replaced_by_substitutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path(sysconfig.get_paths()["stdlib"])
    for contributor in stories.CONTRIBUTORS:
        for module in (*contributor.modules, *contributor.substitutes):
            for source in (real / module, real / f"{module}.py"):
                if source.exists() and module != "turtle":
                    (tmp_path / source.name).symlink_to(source)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    story = stdlib_contributors()
    assert not any(record.startswith("turtle.") for record in story["alice"])
    assert len(story["alice"]) == len(story["bob"])


def test_an_installation_without_sources_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(StoryError, match="alice"):
        stdlib_contributors()


def test_prompts_begin_records_and_leave_something_to_answer() -> None:
    story = stdlib_contributors()
    asked = prompts(story, each=4, unrelated=3)
    assert len(asked) == 4 * 3 + 3
    for prompt in asked[:12]:
        assert prompt.record is not None
        assert prompt.contributor is not None
        assert prompt.record in story[prompt.contributor]
        assert prompt.record.startswith(prompt.text)
        assert len(prompt.record) - len(prompt.text) >= stories.ANSWER_BYTES_MIN
    assert len({p.text for p in asked}) == len(asked)
    assert all(p.record is None and p.contributor is None for p in asked[12:])


@pytest.mark.parametrize(
    "record", ["x", "ab", "a: b", "no header but quite a few words in it", "h: " + "y" * 90]
)
def test_a_beginning_is_never_empty_nor_the_whole_record(record: str) -> None:
    start = stories.beginning(record)
    assert record.startswith(start)
    assert 0 < len(start) <= max(1, len(record) - 1)


def test_unrelated_texts_are_many_distinct_and_in_no_record() -> None:
    texts = unrelated_texts()
    assert len(set(texts)) == len(texts) >= 40
    everything = " ".join(r for records in stdlib_contributors().values() for r in records)
    assert not any(text in everything for text in texts)


def test_the_texts_need_no_torch() -> None:
    code = "import sys, node.devnet.stories as s; s.stdlib_contributors(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def write(path: Path, *texts: object) -> None:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")


def test_somebodys_own_text_is_read_by_name_with_blank_lines_skipped(tmp_path: Path) -> None:
    write(tmp_path / "zoe.jsonl", "one", "two, über")
    (tmp_path / "adam.jsonl").write_text('\n{"text": "three"}\n\n', encoding="utf-8")
    (tmp_path / "notes.txt").write_text("ignored", encoding="utf-8")
    story = load_directory(tmp_path)
    assert list(story.items()) == [("adam", ["three"]), ("zoe", ["one", "two, über"])]
    assert len(prompts(story, each=3, unrelated=0)) == 3


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"text": "fine"}\n{"text": \n', "line 2: not JSON"),
        (b'{"text": "fine"}\n\n["text"]\n', "line 3: expected an object"),
        (b'{"text": 5}\n', "line 1: expected an object"),
        (b'{"text": "a", "more": 1}\n', "line 1: expected an object"),
        (b'{"text": "  "}\n', "line 1: empty"),
        (b'{"text": "a\\u0000b"}\n', "line 1: text contains NUL"),
        (b'{"text": "\\ud800"}\n', "line 1: not encodable"),
        (b'{"text": "a"}\n{"text": "a"}\n', "line 2: repeats line 1"),
        (json.dumps({"text": "x" * (LOADED_TEXT_BYTES_MAX + 1)}).encode(), "line 1: 401 bytes"),
        (b"".join(b'{"text": "%d"}\n' % i for i in range(LOADED_RECORDS_MAX + 1)), "line 257: more than 256"),
        (b"[" * 200_000, "line 1: not JSON"),
        (b"\xff\xfe\n", "bad.jsonl: "),
        (b"x" * (2**20 + 1), "1048577 bytes"),
        (b"\n", "no records"),
    ],
)
def test_bad_text_is_refused_with_file_and_line(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "bad.jsonl").write_bytes(content)
    with pytest.raises(StoryError, match=r"bad\.jsonl") as caught:
        load_directory(tmp_path)
    assert says in str(caught.value)


def test_a_folder_without_files_with_too_many_or_missing_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(StoryError, match="found 0"):
            load_directory(folder)
    for i in range(33):
        write(tmp_path / f"{i}.jsonl", "text")
    with pytest.raises(StoryError, match="found 33"):
        load_directory(tmp_path)
