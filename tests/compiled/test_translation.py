"""What is translated, what stays text, and what happens where nothing can be translated."""

from __future__ import annotations

import ast
import hashlib
import subprocess
import sys
import zipfile
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

import pytest

from node.form import form
from scripts import compile as command
from scripts.compile import (
    FORM,
    ROOT,
    TEXT,
    check_tools,
    compile_to,
    digest_of,
    native_groups,
    read_text,
    site_of,
)
from scripts.translation import QUESTIONS, TranslationError, translated
from tests.compiled.skipped import SKIPPED

CLASSES = '''"""Some classes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


class Names:
    """Constants."""

    ONE = "one"


class Reader(Protocol):
    """Something with a method."""

    def get(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Row:
    """A row."""

    first: int
    second: int = field(default=2, metadata={"check": 1})
    third: list[int] = field(default_factory=list)
    fourth: int = field(init=False)
    fifth: int = field(default=5, init=False)

    def __post_init__(self) -> None:
        if self.first < 0:
            raise ValueError("negative")
'''

ASKING = '''"""True must not pass for 1."""


def late(value: object) -> bool:
    return isinstance(value, int) and type(value) is not bool


def early(value: object) -> bool:
    return type(value) is not bool and isinstance(value, int)


def matched(value: object) -> int:
    match value:
        case int(number):
            return number
    return 0


def declared(value: int) -> bool:
    return type(value) is int
'''


SOME = (Path("consensus/codec.py"), Path("node/ledger/entries.py"))


def test_every_file_that_is_translated_says_in_the_copy_what_a_translated_one_can() -> None:
    for path in (path for paths in native_groups().values() for path in paths):
        made = translated(path, (ROOT / path).read_text())
        ast.parse(made)
        assert "slots=True" not in made, path
    assert all((ROOT / name).exists() for name in TEXT)


def test_a_data_class_gets_its_constructor_constants_are_final_and_protocols_stay_plain() -> None:
    made = translated(Path("some.py"), CLASSES)
    tree = {node.name: node for node in ast.parse(made).body if isinstance(node, ast.ClassDef)}
    assert 'ONE: Final = "one"' in made
    assert "from copy import copy as as_it_is" in made
    assert [ast.unparse(item) for item in tree["Reader"].decorator_list] == ["as_it_is"]
    assert [ast.unparse(item) for item in tree["Row"].decorator_list] == ["dataclass(frozen=True)"]
    constructor = ast.unparse(tree["Row"].body[-1])
    assert constructor.startswith(
        "def __init__(self, first: int, second: int=2, third: list[int] | None=None) -> None:"
    )
    assert "self.third = list() if third is None else third" in constructor
    assert "fourth" not in constructor
    assert constructor.endswith("self.fifth = 5\n    self.__post_init__()")


def test_a_slice_that_has_a_beginning_is_pythons_wherever_it_stands() -> None:
    text = "import os\n\n\ndef cut(data: bytes, i: int) -> bytes:\n    return data[i : data[i + 1 :][0]] + data[:i] + os.urandom(9)[-2:]\n"
    made = translated(Path("some.py"), text)
    assert (
        "of_any_kind(data)[i : of_any_kind(data)[i + 1 :][0]] + data[:i] + of_any_kind(os.urandom(9))[-2:]"
        in made
    )
    cut: dict[str, Any] = {}
    exec(compile(made, "some.py", "exec"), cut)
    assert cut["cut"](bytes([1, 3, 2, 9]), 0)[:-2] == bytes([1, 3, 2])
    assert "of_any_kind" not in translated(Path("some.py"), "first = [1, 2][:1]\n")


def test_an_edit_that_finds_too_little_is_refused() -> None:
    with pytest.raises(ValueError, match="occurs 0 times, not 1"):
        translated(Path("some.py"), CLASSES, ((r"class Gone", "class Here", 1),))


def test_a_question_that_machine_code_answers_otherwise_is_found_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "asking.py").write_text(ASKING)
    asked = subprocess.run(
        [sys.executable, "-I", str(QUESTIONS), "asking.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 1, asked.stderr
    lines = ASKING.splitlines()
    expected = [
        f"asking.py:{number}: {text}"
        for number, line in enumerate(lines, 1)
        for text, place in (
            ("type(value)", "and type"),
            ("case int(number)", "case"),
            ("type(value)", "is int"),
        )
        if place in line
    ]
    assert len(expected) == 3
    assert sorted(asked.stdout.splitlines()) == sorted(expected)


def test_without_a_compiler_it_says_so_and_nothing_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(TranslationError, match=r"no C compiler \(no-such-compiler\)"):
        check_tools()
    monkeypatch.setattr(sys, "argv", ["compile", "--out", str(tmp_path / "out")])
    assert command.main() == 1
    assert "not compiled, nothing changed; the text runs as before: no C compiler" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_where_the_translation_fails_the_earlier_site_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/earlier").touch()

    def fail(*_: object) -> None:
        raise TranslationError("the compiler ran out of memory")

    monkeypatch.setattr(command, "_look", lambda *_: None)
    monkeypatch.setattr(command, "native_groups", lambda: {"some": list(SOME)})
    monkeypatch.setattr(command, "translate", fail)
    with pytest.raises(TranslationError, match="out of memory"):
        compile_to(tmp_path)
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["earlier"]
    assert not list(tmp_path.glob("*.whl"))


def _as_setuptools_would(
    work: Path, groups: dict[str, list[Path]], arguments: list[str], log: Path, _: str
) -> None:
    """A wheel of the copy's text, with the record that belongs to it."""
    log.touch()
    folder = Path(arguments[-1])
    folder.mkdir()
    with zipfile.ZipFile(folder / "openledger-0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("openledger-0.dist-info/RECORD", "of the translated text")
        for path in (FORM, *(path for paths in groups.values() for path in paths)):
            wheel.write(work / path, path.as_posix())


def test_wheel_and_site_hold_the_text_as_it_stands_and_take_the_place_of_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/earlier").touch()
    (tmp_path / "earlier.whl").touch()
    monkeypatch.setattr(command, "_look", lambda *_: None)
    monkeypatch.setattr(command, "native_groups", lambda: {"some": list(SOME)})
    monkeypatch.setattr(command, "translate", _as_setuptools_would)
    wheel = compile_to(tmp_path)
    assert list(tmp_path.glob("*.whl")) == [wheel]
    assert not (tmp_path / "site/earlier").exists()
    site = site_of(tmp_path)
    assert all((site / path).read_bytes() == (ROOT / path).read_bytes() for path in SOME)
    assert "slots=True" in (site / SOME[1]).read_text()
    assert "slots=True" not in (tmp_path / "work" / SOME[1]).read_text()
    with zipfile.ZipFile(wheel) as archive:
        record = archive.read("openledger-0.dist-info/RECORD").decode().splitlines()
        assert len(record) == len(archive.namelist())
        for name, digest, size in (row.split(",") for row in record if not row.endswith("RECORD,,")):
            data = archive.read(name)
            assert size == str(len(data))
            hashed = urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert digest == f"sha256={hashed}"


def test_a_site_of_other_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TranslationError, match="is not made of this text"):
        site_of(tmp_path)
    made = tmp_path / "site" / FORM
    made.parent.mkdir(parents=True)
    made.write_text('MADE_OF = "0123456789abcdef"\n')
    with pytest.raises(TranslationError, match="is not made of this text"):
        site_of(tmp_path)
    made.write_text(f'MADE_OF = "{digest_of(read_text())}"\n')
    assert site_of(tmp_path) == tmp_path / "site"


def test_the_text_says_that_it_is_text() -> None:
    assert form() == "text"
    assert (ROOT / FORM).read_text().count('MADE_OF = ""') == 1


def test_every_test_that_is_skipped_on_machine_code_exists() -> None:
    for name in (name for names in SKIPPED.values() for name in names):
        file, _, function = name.partition("::")
        assert f"def {function}(" in (ROOT / file).read_text(), name
