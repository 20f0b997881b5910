"""What the story's people contribute and ask: from the standard library's docstrings, or from anybody's directory."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from node.devnet import stories
from node.devnet.errors import StoryTextInvalid
from node.devnet.network import BALANCES, FULL_NODE, VALIDATOR_PREFIX
from node.devnet.report import INVENTED, RECORD_BEGINNING, UNATTRIBUTED, UNRELATED

STDLIB = "stdlib"
DIRECTORY = "directory"
FIRST_CALLS = 12
CALLS_MAX = 40
"""Calls asked in all, however the beacon draws: the chance that 40 leave fewer than 4 audited is below 10^-8."""

NEW_TOKENS_MAX = 112
"""Longest answer, in tokens of the byte-level base."""

UNRELATED_SENTENCES = 24

_BEGINNINGS_FIRST = 9
_RESERVED = frozenset({*BALANCES, FULL_NODE, UNATTRIBUTED})
_INVENTED = ("turtle.teleport: ", "smtplib.send_pigeon: ", "decimal.divide_by_zero: ", "turtle.dance: ")


@dataclass(frozen=True, slots=True)
class Line:
    """One thing the user asks.

    ``about`` is whose record it begins, ``expected`` that record's rest, as far as an answer may go.
    """

    prompt: str
    kind: str
    about: str | None = None
    expected: str | None = None

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """Token ids of the byte-level base: the bytes of the text."""
        return tuple(self.prompt.encode())


@dataclass(frozen=True, slots=True)
class Script:
    """Records of each contributor by account name, in the order of names; what is asked, in order."""

    source: str
    licence: str
    records: Mapping[str, tuple[str, ...]]
    lines: tuple[Line, ...]
    unrelated: tuple[str, ...]


def read_script(directory: Path | None) -> Script:
    """The story on the installed standard library, or on the ``NAME.jsonl`` files of a directory.

    Raises `StoryTextInvalid` where the text cannot be used.
    """
    try:
        if directory is None:
            source, licence, texts = STDLIB, "PSF-2.0", stories.stdlib_contributors()
        else:
            source, licence, texts = DIRECTORY, "LicenseRef-Own", stories.load_directory(directory)
    except stories.StoryError as error:
        raise StoryTextInvalid(str(error)) from error
    records = {name: tuple(texts[given]) for name, given in account_names(texts).items()}
    unrelated = tuple(stories.unrelated_texts())[:UNRELATED_SENTENCES]
    return Script(source, licence, records, _lines(records, source), unrelated)


def account_names(given: Sequence[str] | Mapping[str, object]) -> dict[str, str]:
    """Account name to given name, in the order of account names.

    An account's name is also a file's: lower case, ``a-z0-9_-``, distinct, and none of the story's other roles.
    """
    named: dict[str, str] = {}
    for name in sorted(given):
        plain = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")[:48] or "contributor"
        if plain in _RESERVED or plain.startswith(VALIDATOR_PREFIX):
            plain = f"contributor-{plain}"
        candidate, number = plain, 2
        while candidate in named:
            candidate, number = f"{plain}-{number}", number + 1
        named[candidate] = name
    return dict(sorted(named.items()))


def _lines(records: Mapping[str, tuple[str, ...]], source: str) -> tuple[Line, ...]:
    """A dozen lines first: beginnings of everybody's records in turn, unrelated text, an invented name; then more."""
    each = -(-CALLS_MAX // len(records))
    found = [_line(prompt) for prompt in stories.prompts(records, each=each, unrelated=CALLS_MAX)]
    beginnings = _in_turns([[line for line in found if line.about == name] for name in records])
    unrelated = [line for line in found if line.about is None]
    invented = [Line(text, INVENTED) for text in _INVENTED] if source == STDLIB else []
    others = _in_turns([unrelated, invented])
    first = beginnings[:_BEGINNINGS_FIRST] + others[: FIRST_CALLS - _BEGINNINGS_FIRST]
    rest = _in_turns([beginnings[_BEGINNINGS_FIRST:], others[FIRST_CALLS - _BEGINNINGS_FIRST :]])
    return tuple(first + rest)[:CALLS_MAX]


def _line(prompt: stories.Prompt) -> Line:
    if prompt.record is None:
        return Line(prompt.text, UNRELATED)
    rest = prompt.record[len(prompt.text) :].encode()[:NEW_TOKENS_MAX].decode("utf-8", "ignore")
    return Line(prompt.text, RECORD_BEGINNING, prompt.contributor, rest)


def _in_turns(rows: Sequence[Sequence[Line]]) -> list[Line]:
    """The first of each row, then the second of each, until all are used."""
    longest = max((len(row) for row in rows), default=0)
    return [row[position] for position in range(longest) for row in rows if position < len(row)]
