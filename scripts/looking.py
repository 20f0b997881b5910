"""Import all of a copy's modules and say what would not work as machine code, or does not: one line and 1.

Run as ``python -P scripts/looking.py before|after MODULE ...`` with the copy on PYTHONPATH; the modules are those that are, or are
to be, translated. Before: a class that stays text must not derive from one that is translated, since its instances could not
be made. After: each of the modules must have come from a library.
"""

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from enum import Enum
from importlib.machinery import EXTENSION_SUFFIXES

PACKAGES = ("consensus", "node")


def import_all() -> None:
    """Import every module of the packages that a translated one could concern."""
    for package in PACKAGES:
        path = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(path, package + "."):
            if not module.name.endswith(".__main__"):
                importlib.import_module(module.name)


def text_children(native: frozenset[str]) -> Iterator[str]:
    """Yield each class that stays text and derives from one that is translated; enumerations and protocols are none."""
    for name in sorted(native):
        for kind in vars(importlib.import_module(name)).values():
            if not isinstance(kind, type) or kind.__module__ != name:
                continue
            if issubclass(kind, Enum) or getattr(kind, "_is_protocol", False):
                continue
            for child in type.__subclasses__(kind):
                if child.__module__ not in native:
                    yield f"{child.__module__}.{child.__qualname__} is text and derives from {name}.{kind.__qualname__}"


def still_text(native: frozenset[str]) -> Iterator[str]:
    """Yield each module that did not come from a library."""
    for name in sorted(native):
        file = importlib.import_module(name).__file__ or ""
        if not file.endswith(tuple(EXTENSION_SUFFIXES)):
            yield f"{name} is text: {file}"


if __name__ == "__main__":
    import_all()
    look = text_children if sys.argv[1] == "before" else still_text
    answers = list(look(frozenset(sys.argv[2:])))
    print("\n".join(answers))
    sys.exit(bool(answers))
