"""The daemon with its hot modules as machine code: `python -m scripts.compile --out DIR`.

mypyc translates a copy of the text (`scripts/translation.py`) with the C compiler that is there. DIR then has

    openledger-*.whl   the project as a wheel for this Python and processor: pip install --force-reinstall --no-deps DIR/openledger-*.whl
    site/              the same unpacked: PYTHONSAFEPATH=1 PYTHONPATH=DIR/site python -m node.cli.main ...
    work/              the copy, its C and its objects, so that the next time takes less; work/build.log

Without a compiler, or where anything fails, it says so, ends with 1, and wheel and site stay what they were. The text
remains the reference; docs/compiled.md says how the two are compared.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

from blake3 import blake3

from scripts.translation import OPTIMISE, TranslationError, translate, translated

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("attribution", "consensus", "node")
BESIDE = ("pyproject.toml", "README.md", "LICENSE")

TEXT = frozenset(
    {
        "consensus/__init__.py",
        "consensus/crypto.py",  # the curve is a library's; `node/executor.py` derives from `Verifier`
        "consensus/errors.py",  # the daemon's errors derive from these
        "node/ledger/__init__.py",
        "node/ledger/bodies.py",  # `ClassVar` in a data class becomes a field of it
        "node/ledger/errors.py",
    }
)
"""Stays text although its folder is translated."""

BESIDES = ("attribution/merkle.py", "node/mempool.py")
"""Translated with the ledger. What stays text elsewhere waits, or asks what `scripts/questions.py` refuses (`node/wire.py`)."""

FORM = Path("node/form.py")

LOOKING = Path(__file__).with_name("looking.py")


def native_groups(root: Path = ROOT) -> dict[str, list[Path]]:
    """Return what is translated, by shared library, as paths relative to `root`."""
    consensus = sorted((root / "consensus").glob("*.py"))
    ledger = [*sorted((root / "node/ledger").glob("*.py")), *(root / name for name in BESIDES)]
    return {
        name: [path for each in paths if (path := each.relative_to(root)).as_posix() not in TEXT]
        for name, paths in (("openledger_consensus", consensus), ("openledger_ledger", ledger))
    }


def sources(root: Path = ROOT) -> Iterator[Path]:
    """Yield every file of the packages and what the wheel needs beside them, relative to `root`, in order."""
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(root)
    yield from map(Path, BESIDE)


def read_text(root: Path = ROOT) -> dict[Path, bytes]:
    """Return what the copy is made of, read once: the tree may change while it is translated."""
    return {path: (root / path).read_bytes() for path in sources(root)}


def digest_of(text: Mapping[Path, bytes]) -> str:
    """Return 16 hex digits that change with any of the packages' files; what lies beside them says nothing of the code."""
    hashed = blake3()
    for path, data in text.items():
        if path.as_posix() in BESIDE:
            continue
        hashed.update(f"{path.as_posix()} {len(data)}\n".encode() + data)
    return hashed.hexdigest()[:16]


def site_of(folder: Path) -> Path:
    """Where in `folder` the code lies that can be run.

    Raises:
        TranslationError: there is none, or it was made of other text than this.
    """
    site = folder.resolve() / "site"
    made = (site / FORM).read_text() if (site / FORM).exists() else ""
    if f'MADE_OF = "{digest_of(read_text())}"' not in made:
        raise TranslationError(f"{folder} is not made of this text: python -m scripts.compile --out {folder}")
    return site


def environment_of(folder: Path) -> dict[str, str]:
    """Variables under which a process takes what was made in `folder`, and all else from here; raises as `site_of`."""
    paths = (str(site_of(folder)), str(ROOT))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def check_tools() -> None:
    """Raise `TranslationError` where what translates is not here."""
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if shutil.which(command[0]) is None:
        raise TranslationError(f"no C compiler ({command[0]}): install one, for example gcc")
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        raise TranslationError("Python's header files are not here: install them, for example python3-dev")
    if find_spec("mypyc") is None:
        raise TranslationError("mypyc is not here: pip install mypy")


def compile_to(folder: Path, optimise: str = OPTIMISE) -> Path:
    """Make wheel and site in `folder` and return the wheel; both are replaced only when all went well.

    Raises:
        TranslationError: something is missing or failed; nothing but `work` has changed.
    """
    check_tools()
    folder = folder.resolve()
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    text, groups = read_text(), native_groups()
    native = [path for paths in groups.values() for path in paths]
    _look("before", ROOT, native)
    _copy(work, text, set(native))
    _forget_stale(work, native)
    wheels = work / "dist"
    shutil.rmtree(wheels, ignore_errors=True)
    translate(work, groups, ["-q", "bdist_wheel", "--dist-dir", str(wheels)], work / "build.log", optimise)
    (made,) = wheels.glob("*.whl")
    wheel = _with_text(made, {path.as_posix(): text[path] for path in native})
    fresh = work / "site"
    shutil.rmtree(fresh, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(fresh)
    _look("after", fresh, native)
    return _put_in_place(folder, wheel, fresh)


def _copy(work: Path, text: Mapping[Path, bytes], native: set[Path]) -> None:
    """Bring the copy up to date; what has not changed keeps its time, what is gone goes."""
    for package in PACKAGES:
        for old in (work / package).rglob("*"):
            if old.is_file() and old.relative_to(work) not in text:
                old.unlink()
    for path, plain in text.items():
        data = plain
        if path in native:
            data = translated(path, plain.decode()).encode()
        elif path == FORM:
            data = plain.replace(b'MADE_OF = ""', f'MADE_OF = "{digest_of(text)}"'.encode())
        target = work / path
        if not target.exists() or target.read_bytes() != data:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)


def _forget_stale(work: Path, native: Sequence[Path]) -> None:
    """Remove from what setuptools gathered the last time all but libraries of modules that are still translated."""
    kept = {path.with_suffix("").as_posix() for path in native}
    for built in (work / "build").glob("lib*"):
        for path in built.rglob("*"):
            name = path.relative_to(built).as_posix().partition(".")[0]
            library = path.name.endswith(tuple(EXTENSION_SUFFIXES))
            if path.is_file() and not (library and (name in kept or name.endswith("__mypyc"))):
                path.unlink()


def _with_text(made: Path, native: Mapping[str, bytes]) -> Path:
    """The wheel with each module's text as it stands beside its library, for tracebacks and for whoever reads it.

    The translated text would not run as text: its constructors assign to frozen objects.
    """
    wheel = made.with_suffix(".text.whl")
    record: list[str] = []
    with zipfile.ZipFile(made) as before, zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as after:
        for info in sorted(before.infolist(), key=lambda info: info.filename.endswith("/RECORD")):
            data = native.get(info.filename) or before.read(info)
            if info.filename.endswith("/RECORD"):
                data = "".join([*record, f"{info.filename},,\n"]).encode()
            digest = urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{info.filename},sha256={digest},{len(data)}\n")
            after.writestr(info, data)
    return wheel.replace(made)


def _look(when: str, code: Path, native: Sequence[Path]) -> None:
    """Import everything that lies in `code` in a process of its own, and see that it is what it should be."""
    names = [path.with_suffix("").as_posix().replace("/", ".") for path in native]
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", str(LOOKING), when, *names]
    looked = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True, check=False)
    if looked.returncode != 0:
        raise TranslationError(f"{looked.stdout.strip()} {looked.stderr.strip()}"[-2000:].strip())


def _put_in_place(folder: Path, wheel: Path, fresh: Path) -> Path:
    old = folder / "work/old"
    shutil.rmtree(old, ignore_errors=True)
    if (folder / "site").exists():
        (folder / "site").rename(old)
    fresh.rename(folder / "site")
    shutil.rmtree(old, ignore_errors=True)
    for earlier in folder.glob("*.whl"):
        earlier.unlink()
    return wheel.replace(folder / wheel.name)


def main() -> int:
    """Make the copy; 1 with the reason where that does not work."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where wheel and site go")
    parser.add_argument(
        "--optimise",
        choices=("0", "1", "2", "3"),
        default=OPTIMISE,
        help="the C compiler's level; 0 is made soonest",
    )
    options = parser.parse_args()
    folder: Path = options.out
    print(f"translating to {folder}: some minutes the first time", flush=True)
    try:
        wheel = compile_to(folder, options.optimise)
    except (TranslationError, ValueError, OSError) as error:
        print(f"not compiled, nothing changed; the text runs as before: {error}", file=sys.stderr)
        return 1
    modules = sum(map(len, native_groups().values()))
    print(f"{modules} modules are machine code\nwheel {wheel}\nsite  {folder / 'site'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
