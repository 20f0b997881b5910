"""Which code a campaign tries: its text, by digest. A state file of other code is refused."""

from functools import lru_cache
from pathlib import Path

from blake3 import blake3

ROOT = Path(__file__).resolve().parents[2]
NAMED = "code"
"""In a translated copy (`compiled.py`) this file holds the digest of the text that it was made of."""
_BESIDE = ("test_", "mutant", "mutations", "machines")
"""Beginnings of names of files beside the simulator that it does not need."""


def sources(root: Path = ROOT) -> list[Path]:
    """Return the files that decide what a run does, relative to `root`, in order."""
    simulator = [
        path for path in (root / "tests/simulation").rglob("*.py") if not path.name.startswith(_BESIDE)
    ]
    return sorted(path.relative_to(root) for path in [*(root / "consensus").rglob("*.py"), *simulator])


@lru_cache(1)
def code_digest() -> str:
    """Return 16 hex digits that change with any of the files' text."""
    named = ROOT / NAMED
    if named.exists():
        return named.read_text().strip()
    hashed = blake3()
    for path in sources():
        text = (ROOT / path).read_bytes()
        hashed.update(f"{path.as_posix()} {len(text)}\n".encode() + text)
    return hashed.hexdigest()[:16]
