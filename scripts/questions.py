"""Find where translated code would be asked for a type that it does not keep: `python -I scripts/questions.py FILE ...`.

Machine code keeps an `int` as a number: a `bool` among them is then 0 or 1, and whoever asks for its type is told `int`. So a
check that tells True from 1 and comes after one that found an `int` passes in machine code what the text refuses, and two nodes
disagree. By mypy's types, which are the translator's: prints each such place and ends with 1.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from mypy.build import BuildResult, build
from mypy.inspections import find_by_location
from mypy.main import process_options
from mypy.nodes import MypyFile
from mypy.types import Instance, Type, UnionType, get_proper_type

FLAGS = ("--config-file=", "--ignore-missing-imports", "--follow-imports=silent")
ASKING = frozenset({"type", "isinstance"})
KEPT_OTHERWISE = "builtins.int"


def questions(files: list[str]) -> list[str]:
    """Return `file:line: question` for each that machine code would answer otherwise, or what mypy has against the files."""
    sources, options = process_options([*FLAGS, *files])
    options.export_types = options.preserve_asts = True
    options.incremental = False
    result = build(sources, options)
    if result.errors:
        return result.errors
    found = []
    for source in sources:
        tree = result.graph[source.module].tree
        if tree is not None and source.path is not None:
            parsed = ast.parse(Path(source.path).read_text())
            found += [f"{source.path}:{line}: {text}" for line, text in _asked(parsed, tree, result)]
    return found


def _asked(parsed: ast.Module, tree: MypyFile, result: BuildResult) -> Iterator[tuple[int, str]]:
    for node in ast.walk(parsed):
        if isinstance(node, ast.MatchClass) and ast.unparse(node.cls) in ("int", "bool"):
            yield node.lineno, f"case {ast.unparse(node)}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ASKING and node.args:
            of = node.args[0]
            place = (of.lineno, of.col_offset, of.end_lineno or 0, of.end_col_offset or 0)
            expression = find_by_location(tree, *place)
            kind = None if expression is None else result.types.get(expression)
            if kind is not None and _is_number(kind):
                yield node.lineno, ast.unparse(node)


def _is_number(kind: Type) -> bool:
    """Whether a value of this type, or of one of these types, is kept as a number."""
    proper = get_proper_type(kind)
    if isinstance(proper, UnionType):
        return any(_is_number(item) for item in proper.items)
    return isinstance(proper, Instance) and any(base.fullname == KEPT_OTHERWISE for base in proper.type.mro)


if __name__ == "__main__":
    answers = questions(sys.argv[1:])
    print("\n".join(answers))
    sys.exit(bool(answers))
