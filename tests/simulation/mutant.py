"""What a mutant is: one literal edit of one place in `consensus/`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One edit: in `file`, the only occurrence of `old` becomes `new`.

    Attributes:
        quick: a test that is likely to notice, run first; empty for the whole of the unit tests.
        named: one of the seven that the design names, or of its two liveness guards.
    """

    name: str
    file: str
    old: str
    new: str
    quick: str = ""
    named: bool = False
