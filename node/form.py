"""Which form of this code runs: the text, or a copy whose hot modules are machine code (`scripts/compile.py`, docs/compiled.md)."""

from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec

MADE_OF = ""
"""In such a copy, 16 hex digits of the digest of the text that it was made of."""

_TELLING = "consensus.codec"
"""A module that every such copy has as machine code."""


def form() -> str:
    """Return "text", or "machine code of" the text's digest; looks at which file Python would load, not at what was promised."""
    found = find_spec(_TELLING)
    native = found is not None and (found.origin or "").endswith(tuple(EXTENSION_SUFFIXES))
    return f"machine code of {MADE_OF or 'unknown text'}" if native else "text"
