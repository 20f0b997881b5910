"""Text for mypyc, which makes machine code of it: what a copy says otherwise, what it must not ask, and the build.

Shared by the daemon (`scripts/compile.py`) and the simulator (`tests/simulation/compiled.py`). What is relied on:

* **Integers** stay as wide as they are in Python. What is annotated or found to be an `int` is kept as a number: a `bool` among
  them becomes 0 or 1 and an `IntEnum` its value, so asking such a value for its type says `int` where the text says `bool`.
  `scripts/questions.py` finds every such question, by mypy's types; a module that asks one is not translated.
* **Types are checked where values come in**: an argument or attribute of another type than it is annotated with is a `TypeError` where
  the text would go on. `bytes`, `str`, `list`, `tuple` and classes accept what `isinstance` does.
* **Exceptions** are the same ones; classes of exceptions stay text (`errors.py`), so that anybody may derive from them.
* **Data classes** keep their `fields`, `==`, `hash`, `repr`, `replace` and `match`; a frozen one refuses assignments from text. They have
  neither `__slots__` nor `__dict__`, and their `__init__` is written out here, since one that is made at run time is not translated.
* **A translated class cannot be the base of one that is text**, and a function that a translated one calls cannot be replaced at run
  time. `scripts/compile.py` looks for the former; tests that do the latter are named in `tests/compiled/skipped.py`.
* **Slices** that have a beginning are Python's (`_with_plain_slices`): mypyc's own of bytes fail where they begin behind their end.
* **Protocols** stay plain classes (`_with_plain_protocols`); what has their methods may be text. `cached_property` and `lru_cache` stay what they are.
* **Threads**: translated code gives the interpreter's lock away only where it calls text or a library that does.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

Edit = tuple[str, str, int]
"""A pattern, what stands for it, and how often it must occur (0: any number)."""

EVERYWHERE: tuple[Edit, ...] = (
    # Slots need a class made anew, which a translated one cannot be; it has no dictionary without them either.
    (r"@dataclass\(frozen=True, slots=True\)", "@dataclass(frozen=True)", 0),
    (r"@dataclass\(slots=True\)", "@dataclass", 0),
)

_NOTHING = "as_it_is"
"""A decorator that gives back the class that it is given, as a copy of a class is the class."""

_PLAIN = "of_any_kind"
_ANYTHING = f"""from typing import Any as AnyKind


def {_PLAIN}(value: AnyKind) -> AnyKind:
    return value

"""
"""What gives back a value as one of which mypyc knows no type: a cast would not make it forget."""

QUESTIONS = Path(__file__).with_name("questions.py")

_BUILD = """
import json, sys
from mypyc.build import mypycify
from setuptools import setup
groups, optimise, arguments = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3:]
sys.argv = ["setup.py", *arguments]
setup(ext_modules=mypycify(
    ["--config-file=", "--ignore-missing-imports", "--follow-imports=silent", *(file for files in groups.values() for file in files)],
    opt_level=optimise, debug_level="0", target_dir="build/c", separate=[(files, name) for name, files in groups.items()]))
"""


OPTIMISE = "2"


class TranslationError(Exception):
    """A copy could not be made, or not translated; the message says what to look at."""


def translated(path: Path, text: str, edits: Sequence[Edit] = ()) -> str:
    """Return a file's text for the copy, by `EVERYWHERE` and by `edits` of this file.

    Raises:
        ValueError: an edit does not find what it is for.
    """
    for pattern, instead, times in (*EVERYWHERE, *edits):
        text, found = re.subn(pattern, instead, text)
        if times and found != times:
            raise ValueError(f"{path}: {pattern} occurs {found} times, not {times}")
    return _with_constants(_with_plain_protocols(_constructed(_with_plain_slices(text))))


def _with_plain_slices(text: str) -> str:
    """Leave slices that have a beginning to Python: mypyc's own of bytes raises SystemError where they begin behind their end.

    What is sliced is of no type that mypyc knows then.
    """
    places = list[tuple[int, int, str]]()
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Subscript)
            and isinstance(node.slice, ast.Slice)
            and isinstance(node.ctx, ast.Load)
            and node.slice.lower is not None
        ):
            sliced = node.value
            places.append((sliced.lineno, sliced.col_offset, f"{_PLAIN}("))
            places.append((sliced.end_lineno or 0, sliced.end_col_offset or 0, ")"))
    if not places:
        return text
    lines = text.splitlines()
    for line, column, more in sorted(places, reverse=True):
        before = lines[line - 1].encode()
        lines[line - 1] = (before[:column] + more.encode() + before[column:]).decode()
    return _with_import("\n".join(lines) + "\n", _ANYTHING)


def _constructed(text: str) -> str:
    """Write out the `__init__` of each data class without a base."""
    lines = text.splitlines()
    classes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    for node in reversed(classes):
        decorated = any(ast.unparse(item).startswith("dataclass") for item in node.decorator_list)
        if decorated and not node.bases:
            end = node.end_lineno or 0
            lines[end:end] = _constructor(node)
    return "\n".join(lines) + "\n"


def _constructor(node: ast.ClassDef) -> list[str]:
    parameters, body = ["self"], []
    for row in node.body:
        if not isinstance(row, ast.AnnAssign) or ast.unparse(row.annotation).startswith("ClassVar"):
            continue
        name, kind = ast.unparse(row.target), ast.unparse(row.annotation)
        said = _said_of(row)
        if said.get("init") == "False":
            taken = f"({said['default_factory']})()" if "default_factory" in said else said.get("default", "")
        elif "default_factory" in said:
            parameters.append(f"{name}: {kind} | None = None")
            taken = f"({said['default_factory']})() if {name} is None else {name}"
        else:
            parameters.append(f"{name}: {kind}" + (f" = {said['default']}" if "default" in said else ""))
            taken = name
        # A frozen class refuses this in mypy's eyes; here it is its own constructor.
        if taken:
            body.append(f"        self.{name} = {taken}  # type: ignore")
    if any(isinstance(item, ast.FunctionDef) and item.name == "__post_init__" for item in node.body):
        body.append("        self.__post_init__()")
    return ["", f"    def __init__({', '.join(parameters)}) -> None:", *(body or ["        pass"])]


def _said_of(row: ast.AnnAssign) -> dict[str, str]:
    """What a field says of itself, by keyword; a plain default as `default`."""
    value = row.value
    if value is None:
        return {}
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
        return {str(keyword.arg): ast.unparse(keyword.value) for keyword in value.keywords}
    return {"default": ast.unparse(value)}


def _with_plain_protocols(text: str) -> str:
    """Leave protocols what they are, so that text may derive from them: a class with a decorator is not translated."""
    lines, found = text.splitlines(), False
    for node in reversed(ast.parse(text).body):
        if isinstance(node, ast.ClassDef) and any(
            ast.unparse(base).startswith("Protocol") for base in node.bases
        ):
            lines.insert(node.lineno - 1, f"@{_NOTHING}")
            found = True
    return _with_import("\n".join(lines) + "\n", f"from copy import copy as {_NOTHING}") if found else text


def _with_import(text: str, statement: str) -> str:
    """Put an import before all others but what is of the future."""
    lines, tree = text.splitlines(), ast.parse(text)
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    first = next((node for node in imports if getattr(node, "module", "") != "__future__"), tree.body[0])
    lines.insert(first.lineno - 1, statement)
    return "\n".join(lines) + "\n"


def _with_constants(text: str) -> str:
    """Declare final what a class without bases only names: a translated class has no other attributes of its own."""
    lines, tree, found = text.splitlines(), ast.parse(text), False
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or node.bases:
            continue
        for row in node.body:
            if isinstance(row, ast.Assign) and ast.unparse(row.targets[0]).isupper():
                at = row.lineno - 1
                lines[at], found = lines[at].replace(" = ", ": Final = ", 1), True
    made = "\n".join(lines) + "\n"
    return _with_import(made, "from typing import Final") if found else made


def translate(
    folder: Path,
    groups: Mapping[str, Sequence[Path]],
    arguments: Sequence[str],
    log: Path,
    optimise: str = OPTIMISE,
) -> None:
    """Make extension modules of the copy in `folder`, one shared library for each group, by setuptools with these arguments.

    Files are relative to `folder`; `optimise` is the C compiler's level. What was made is kept in ``build``: where a group's C is what it was, it is not compiled again.

    Raises:
        TranslationError: a file asks what machine code would answer otherwise, or mypyc or the C compiler failed (`log` has it all).
    """
    files = [path.as_posix() for paths in groups.values() for path in paths]
    with log.open("w") as output:
        asked = subprocess.run(
            [sys.executable, "-I", str(QUESTIONS), *files],
            cwd=folder,
            stdout=output,
            stderr=output,
            check=False,
        )
        if asked.returncode != 0:
            raise TranslationError(f"machine code would answer otherwise than the text: see {log}")
        named = {name: [path.as_posix() for path in paths] for name, paths in groups.items()}
        made = subprocess.run(
            [sys.executable, "-c", _BUILD, json.dumps(named), optimise, *arguments],
            cwd=folder,
            stdout=output,
            stderr=output,
            check=False,
        )
    if made.returncode != 0:
        raise TranslationError(f"mypyc or the C compiler failed: see {log}")
