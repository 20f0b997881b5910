"""The simulator and `consensus/` as machine code: mypyc translates a copy of the same text. Twice as fast, and more.

What is translated says the same as what is tested: only how things are kept differs (`scripts/translation.py`, `_EDITS`), and
`test_compiled.py` compares every effect of every step with those of the text as it stands. A campaign of a hundred
thousand runs is worth the minutes that a C compiler takes; everything else runs without one.
"""

import os
import shutil
import sys
from pathlib import Path

from scripts.translation import Edit, TranslationError, translate
from scripts.translation import translated as translated_by
from tests.simulation.code import NAMED, ROOT, code_digest, sources

INTERPRETED = ("__main__.py", "running.py", "totals.py", "code.py", "compiled.py")
"""They begin runs and add up; nothing is won in them."""

_IMPORTED = ("__init__.py", "translation.py")
"""Of `scripts/`, what this module imports in the copy too."""

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

_EDITS: dict[str, tuple[Edit, ...]] = {
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
"""By file, beside what `scripts.translation` says for all."""


def translated(path: Path, text: str) -> str:
    """Return a file's text for the copy: its own where it stays text, as a constructor that is written out assigns to frozen objects.

    Raises:
        ValueError: an edit does not find what it is for.
    """
    if path.name in INTERPRETED:
        return text
    return translated_by(path, text, _EDITS.get(path.as_posix(), ()))


def compiled(folder: Path) -> Path:
    """Return the translated copy of the code as it is now, in a folder of its own under `folder`; make it if it is not there.

    Raises:
        RuntimeError: mypyc or the C compiler failed, or would answer otherwise; `build.log` beside the copy says what.
    """
    target = folder.resolve() / code_digest()
    if (target / NAMED).exists():
        return target
    shutil.rmtree(target, ignore_errors=True)
    for path in sources():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_text(translated(path, (ROOT / path).read_text()))
    (target / "tests/__init__.py").touch()
    (target / "scripts").mkdir()
    for name in _IMPORTED:
        shutil.copy(ROOT / "scripts" / name, target / "scripts" / name)
    files = [path for path in sources(target) if path.name not in INTERPRETED]
    print(f"translating {len(files)} files to {target}: some minutes, once", flush=True)
    try:
        translate(target, {"simulator": files}, ["-q", "build_ext", "--inplace"], target / "build.log")
    except TranslationError as error:
        raise RuntimeError(str(error)) from error
    # Last, so that a copy that was not finished is made anew.
    (target / NAMED).write_text(code_digest())
    return target


def run_compiled(folder: Path, arguments: list[str]) -> None:
    """Go on as the translated simulator, with these arguments; does not return."""
    os.chdir(compiled(folder))
    os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *arguments])
