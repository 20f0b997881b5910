"""The simulator and `consensus/` as machine code: mypyc translates a copy of the same text. Twice as fast, and more.

What is translated says the same as what is tested: only how things are kept differs (`_EDITS`), and
`test_compiled.py` compares every effect of every step with those of the text as it stands. A campaign of a hundred
thousand runs is worth the minutes that a C compiler takes; everything else runs without one.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.simulation.code import NAMED, ROOT, code_digest, sources

INTERPRETED = ("__main__.py", "running.py", "totals.py", "code.py", "compiled.py")
"""They begin runs and add up; nothing is won in them."""

_REPLACE = """
def replace(record: SafetyRecord, **changes: Any) -> SafetyRecord:
    changed = SafetyRecord(
        record.epoch,
        changes.pop("last_voted", record.last_voted),
        changes.pop("lock", record.lock),
        changes.pop("highest_timeout", record.highest_timeout),
        changes.pop("last_proposed", record.last_proposed),
        changes.pop("last_vote", record.last_vote),
        changes.pop("last_commit_vote", record.last_commit_vote),
        changes.pop("last_timeout", record.last_timeout),
        changes.pop("last_timeout_qc", record.last_timeout_qc),
    )
    if changes:
        raise TypeError(f"no such fields: {sorted(changes)}")
    return changed


def record_from_bytes("""

_EDITS: dict[str, tuple[tuple[str, str, int], ...]] = {
    # What nobody may change is checked by mypy and in the text as it stands; assigning without the guard is cheaper.
    "": (
        (r"@dataclass\(frozen=True(, slots=True)?\)", "@dataclass(unsafe_hash=True)", 0),
        (r"@dataclass\(slots=True\)", "@dataclass", 0),
    ),
    # Calls between translated functions cannot be replaced at run time: what `signing.in_force` replaces says so here.
    "consensus/evidence.py": ((r"crypto\.verify\(", 'vars(crypto)["verify"](', 1),),
    "consensus/verify.py": (
        (r"\ndef (\w+_message)\(", r"\n@lru_cache(16384)\ndef \1(", 4),
        (r"\nfrom dataclasses import", r"\nfrom functools import lru_cache\nfrom dataclasses import", 1),
    ),
    # A key of the few there are is derived once, not for each signature.
    "consensus/crypto.py": (
        (r"SigningKey\(seed\)", "_signing_key(seed)", 2),
        (r"\ndef sign\(", "\n_signing_key = lru_cache(64)(SigningKey)\n\n\ndef sign(", 1),
        (r"\nfrom nacl.signing", r"\nfrom functools import lru_cache\nfrom nacl.signing", 1),
    ),
    "consensus/types.py": (
        (r"\ndef header_id\(", r"\n@lru_cache(4096)\ndef header_id(", 1),
        (r"\nfrom dataclasses import", r"\nfrom functools import lru_cache\nfrom dataclasses import", 1),
    ),
    # `dataclasses.replace` asks at run time which fields there are.
    "consensus/safety.py": (
        (r"import dataclass, replace\n", "import dataclass\n", 1),
        (r"\ndef record_from_bytes\(", _REPLACE, 1),
    ),
}
"""By file, or for all: a pattern, what stands for it, and how often it must occur (0: any number)."""

_BUILD = """
import sys
from mypyc.build import mypycify
from setuptools import setup
files = sys.argv[1:]
sys.argv = ["setup.py", "-q", "build_ext", "--inplace"]
setup(name="simulator", packages=[], ext_modules=mypycify(
    ["--ignore-missing-imports", *files], opt_level="2", debug_level="0"))
"""


def translated(path: Path, text: str) -> str:
    """Return a file's text for the copy.

    Raises:
        ValueError: an edit does not find what it is for.
    """
    for pattern, instead, times in (*_EDITS[""], *_EDITS.get(path.as_posix(), ())):
        text, found = re.subn(pattern, instead, text)
        if times and found != times:
            raise ValueError(f"{path}: {pattern} occurs {found} times, not {times}")
    return _constructed(text)


def _constructed(text: str) -> str:
    """Write out the `__init__` of each data class: one that `dataclasses` makes at run time is not translated."""
    lines = text.splitlines()
    classes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    for node in reversed(classes):
        decorated = any(ast.unparse(item).startswith("dataclass") for item in node.decorator_list)
        rows = [item for item in node.body if isinstance(item, ast.AnnAssign)]
        if decorated and not node.bases and {"", "init"}.issuperset(map(_keyword, rows)):
            lines[node.end_lineno or 0 : node.end_lineno or 0] = _constructor(node, rows)
    return "\n".join(lines) + "\n"


def _keyword(row: ast.AnnAssign) -> str:
    """What a field says of itself first, `init` or `default_factory`; nothing for most."""
    return str(row.value.keywords[0].arg) if isinstance(row.value, ast.Call) and row.value.keywords else ""


def _constructor(node: ast.ClassDef, rows: list[ast.AnnAssign]) -> list[str]:
    taken = [row for row in rows if _keyword(row) != "init"]
    parameters = [
        f"{ast.unparse(row.target)}: {ast.unparse(row.annotation)}"
        + ("" if row.value is None else f" = {ast.unparse(row.value)}")
        for row in taken
    ]
    body = [f"        self.{ast.unparse(row.target)} = {ast.unparse(row.target)}" for row in taken]
    if any(isinstance(item, ast.FunctionDef) and item.name == "__post_init__" for item in node.body):
        body.append("        self.__post_init__()")
    return ["", f"    def __init__(self, {', '.join(parameters)}) -> None:", *(body or ["        pass"])]


def compiled(folder: Path) -> Path:
    """Return the translated copy of the code as it is now, in a folder of its own under `folder`; make it if it is not there.

    Raises:
        RuntimeError: mypyc or the C compiler failed; its output is in `build.log` beside the copy.
    """
    target = folder.resolve() / code_digest()
    if (target / NAMED).exists():
        return target
    shutil.rmtree(target, ignore_errors=True)
    for path in sources():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_text(translated(path, (ROOT / path).read_text()))
    (target / "tests/__init__.py").touch()
    files = [path.as_posix() for path in sources(target) if path.name not in INTERPRETED]
    print(f"translating {len(files)} files to {target}: some minutes, once", flush=True)
    with (target / "build.log").open("w") as log:
        command = [sys.executable, "-c", _BUILD, *files]
        made = subprocess.run(command, cwd=target, stdout=log, stderr=log, check=False)
    if made.returncode != 0:
        raise RuntimeError(f"the translation failed: {target / 'build.log'}")
    # Last, so that a copy that was not finished is made anew.
    (target / NAMED).write_text(code_digest())
    return target


def run_compiled(folder: Path, arguments: list[str]) -> None:
    """Go on as the translated simulator, with these arguments; does not return."""
    os.chdir(compiled(folder))
    os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *arguments])
