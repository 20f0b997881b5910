"""Typed errors of the exact engine, the model and training: nouns with the fields that explain them."""

from __future__ import annotations


class ExactError(Exception):
    """Root of every error raised by exact arithmetic and by what is built on it."""


class NotRepresentable(ExactError):
    """A value has no block fixed-point form: infinite, NaN, or at least 2^101 in magnitude."""


class ShapeMismatch(ExactError):
    """Operands whose shapes or dtypes do not fit the operation."""


class UnknownBackend(ExactError):
    """A backend name that is not usable on this machine."""

    def __init__(self, name: str, usable: tuple[str, ...]) -> None:
        super().__init__(f"backend {name!r} is not usable here; usable: {', '.join(usable) or 'none'}")
        self.name = name
        self.usable = usable


class BackendRefused(ExactError):
    """A backend disagreed with the integer oracle: it must not be used for anything that is hashed."""

    def __init__(self, name: str, case: str) -> None:
        super().__init__(f"backend {name!r} is not exact on this machine (case {case})")
        self.name = name
        self.case = case


class BadModel(ExactError):
    """A configuration, checkpoint or base file that is malformed or beyond the limits."""


class BadAdapter(ExactError):
    """Adapter bytes or tensors that are malformed, beyond the limits, or do not fit the base."""


class BadRecipe(ExactError):
    """A training recipe with a field out of its bounds."""


class BadTokens(ExactError):
    """Token ids outside the vocabulary, or an empty set of examples."""


class ContextTooLong(ExactError):
    """More positions than the model (or the recipe) allows."""

    def __init__(self, tokens: int, tokens_max: int) -> None:
        super().__init__(f"{tokens} positions exceed the limit of {tokens_max}")
        self.tokens = tokens
        self.tokens_max = tokens_max
