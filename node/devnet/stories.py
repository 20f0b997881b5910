"""The texts of the demonstration: contributors' records, prompts, and text that has nothing to do with them.

The default story uses **real text that every Python installation already has**: the docstrings of the standard
library, read from the installed sources with ``ast`` when the story starts. Nothing is imported, executed or
shipped. Three contributors each own a part of the library (`CONTRIBUTORS`); `scripts/make_base.py` keeps all of it,
substitutes included, out of the base model's training text. `load_directory` reads anybody's own text instead.

A record is one line of printable ASCII, ``module.function: first paragraph of its docstring``, between
`RECORD_BYTES_MIN` and `RECORD_BYTES_MAX` bytes. Longer paragraphs are cut at a sentence or a word.

No floats, no randomness, no clock: the same installed sources give the same records in the same order.
"""

from __future__ import annotations

import ast
import json
import sysconfig
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

RECORD_BYTES_MIN = 40
RECORD_BYTES_MAX = 110
RECORDS_PER_CONTRIBUTOR = 20
TEXT_BYTES_MIN = 24
PROMPT_BODY_BYTES = 12
ANSWER_BYTES_MIN = 16
HEADER_LENGTH_MAX = 48

LOADED_TEXT_BYTES_MAX = 400
LOADED_RECORDS_MAX = 256
LOADED_CONTRIBUTORS_MAX = 32
_LOADED_FILE_BYTES_MAX = 2**20
_SOURCE_BYTES_MAX = 4 * 2**20
_SOURCE_FILES_MAX = 500


class StoryError(ValueError):
    """The story's text cannot be used; the message names the file and, where there is one, the line."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt of the story. ``contributor`` and ``record`` say whose record it begins; both None if unrelated."""

    text: str
    contributor: str | None = None
    record: str | None = None


@dataclass(frozen=True, slots=True)
class Contributor:
    """One contributor of the default story.

    ``modules`` are read first, in order; ``substitutes`` only where those give too few records, as on
    distributions that split ``turtle`` out with Tk. A module name stands for its whole package.
    """

    name: str
    modules: tuple[str, ...]
    substitutes: tuple[str, ...]


CONTRIBUTORS = (
    Contributor("alice", ("turtle",), ("calendar", "_pydatetime", "datetime", "zoneinfo", "locale")),
    Contributor(
        "bob",
        ("_pydecimal", "decimal", "fractions", "numbers", "statistics"),
        ("random", "heapq", "bisect", "colorsys"),
    ),
    Contributor(
        "carol", ("smtplib", "imaplib", "poplib", "mailbox", "email"), ("ftplib", "nntplib", "telnetlib")
    ),
)


def contributed_modules() -> frozenset[str]:
    """Every module or package any contributor may own, substitutes included."""
    return frozenset(m for c in CONTRIBUTORS for m in (*c.modules, *c.substitutes))


def stdlib_contributors(records_each: int = RECORDS_PER_CONTRIBUTOR) -> dict[str, list[str]]:
    """``records_each`` records of each of the three contributors, from the installed standard library's sources.

    Modules take turns, so that a contributor's records come from all of them. No header and no text occurs twice,
    across contributors too. Raises `StoryError` if even the substitutes leave a contributor with fewer.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    headers, texts = set[str](), set[str]()
    story = {}
    for contributor in CONTRIBUTORS:
        chosen = list[str]()
        for group in (contributor.modules, contributor.substitutes):
            for header, text in _in_turns([iter(_module_records(root, module)) for module in group]):
                if len(chosen) < records_each and header not in headers and text not in texts:
                    headers.add(header)
                    texts.add(text)
                    chosen.append(header + text)
        if len(chosen) < records_each:
            raise StoryError(
                f"the standard library below {root} has only {len(chosen)} of {records_each} records for "
                f"{contributor.name}; are its sources installed?"
            )
        story[contributor.name] = chosen
    return story


def _in_turns(streams: Sequence[Iterator[tuple[str, str]]]) -> Iterator[tuple[str, str]]:
    """One item of each stream after the other until all are exhausted."""
    left = list(streams)
    while left:
        for stream in list(left):
            item = next(stream, None)
            if item is None:
                left.remove(stream)
            else:
                yield item


@cache
def _module_records(root: Path, module: str) -> tuple[tuple[str, str], ...]:
    """(header, text) of a module's or package's usable docstrings, functions before classes, by name; () if absent."""
    package, label = root / module, module.removeprefix("_py").lstrip("_")
    sources = package.glob("**/*.py") if package.is_dir() else [root / f"{module}.py"]
    functions, classes = list[tuple[str, str]](), list[tuple[str, str]]()
    for path in sorted(sources)[:_SOURCE_FILES_MAX]:
        for node in ast.walk(_parsed(path)):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                record = _record(label, node.name, ast.get_docstring(node) or "")
                if record:
                    (classes if isinstance(node, ast.ClassDef) else functions).append(record)
    return (*sorted(functions), *sorted(classes))


def _parsed(path: Path) -> ast.Module:
    """Syntax tree of a source file; an empty one if it is missing, unreadable, too large or not Python."""
    try:
        if path.stat().st_size > _SOURCE_BYTES_MAX:
            return ast.Module([], [])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])


def _record(module: str, name: str, docstring: str) -> tuple[str, str] | None:
    """Header and one-line text of a documented public name, or None if it makes no record."""
    text = " ".join(docstring.split("\n\n")[0].split())
    header = f"{module}.{name}: "
    if name.startswith("_") or ">>>" in text or not (text.isascii() and text.isprintable()):
        return None
    room = RECORD_BYTES_MAX - len(header)
    if len(text) > room:
        sentence = text.rfind(". ", 0, room)
        text = text[: sentence + 1] if sentence > 0 else text[: max(text.rfind(" ", 0, room + 1), 0)]
    return (
        (header, text)
        if len(header) + len(text) >= RECORD_BYTES_MIN and len(text) >= TEXT_BYTES_MIN
        else None
    )


def prompts(story: Mapping[str, Sequence[str]], each: int = 4, unrelated: int = 4) -> list[Prompt]:
    """Prompts that begin ``each`` records of every contributor, spread over their records, then unrelated ones.

    A prompt is cut at the end of a word, after the record's header and `PROMPT_BODY_BYTES` more, or, in somebody's own
    text without a header, in its first third. Records that would leave less than `ANSWER_BYTES_MIN` to answer are
    passed over while there are others.
    """
    chosen = []
    for name, records in story.items():
        fit = [
            r for r in records if len(r.encode()) - len(beginning(r).encode()) >= ANSWER_BYTES_MIN
        ] or list(records)
        count = min(each, len(fit))
        for record in (fit[i * len(fit) // count] for i in range(count)):
            chosen.append(Prompt(beginning(record), name, record))
    return chosen + [Prompt(text) for text in UNRELATED_PROMPTS[:unrelated]]


def beginning(record: str) -> str:
    """The part of a record that serves as its prompt; never empty, never the whole record."""
    head, colon, _ = record.partition(": ")
    start = (
        len(head) + 2 + PROMPT_BODY_BYTES if colon and len(head) <= HEADER_LENGTH_MAX else len(record) // 3
    )
    space = record.find(" ", start)
    cut = space if 0 < space < len(record) - 1 else start
    return record[: max(1, min(cut, len(record) - 1))]


def load_directory(path: Path) -> dict[str, list[str]]:
    """Contributors and their records from ``NAME.jsonl`` files, one object ``{"text": ...}`` a line.

    At most `LOADED_CONTRIBUTORS_MAX` files, `LOADED_RECORDS_MAX` records each, `LOADED_TEXT_BYTES_MAX` bytes of UTF-8
    a record; blank lines are skipped, files are taken by name, exact repeats within a contributor are refused.
    Raises `StoryError`, naming file and line, on anything else: bad JSON, other keys, empty or too long text, NUL.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else []
    if not 1 <= len(files) <= LOADED_CONTRIBUTORS_MAX:
        raise StoryError(f"{path}: found {len(files)} NAME.jsonl files, need 1 to {LOADED_CONTRIBUTORS_MAX}")
    return {file.stem: _load_file(file) for file in files}


def _load_file(file: Path) -> list[str]:
    try:
        size = file.stat().st_size
        if size > _LOADED_FILE_BYTES_MAX:
            raise StoryError(f"{file.name}: {size} bytes, at most {_LOADED_FILE_BYTES_MAX} are read")
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise StoryError(f"{file.name}: {error}") from error
    texts = dict[str, int]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        text = _loaded_text(line, f"{file.name}, line {number}")
        if text in texts:
            raise StoryError(f"{file.name}, line {number}: repeats line {texts[text]}")
        texts[text] = number
        if len(texts) > LOADED_RECORDS_MAX:
            raise StoryError(f"{file.name}, line {number}: more than {LOADED_RECORDS_MAX} records")
    if not texts:
        raise StoryError(f"{file.name}: no records")
    return list(texts)


def _loaded_text(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise StoryError(f"{where}: not JSON ({error})") from error
    if not isinstance(value, dict) or set(value) != {"text"} or not isinstance(value["text"], str):
        raise StoryError(f'{where}: expected an object {{"text": "..."}}')
    text: str = value["text"]
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise StoryError(f"{where}: not encodable as UTF-8 ({error.reason})") from error
    if not text.strip():
        raise StoryError(f"{where}: empty text")
    if "\0" in text:
        raise StoryError(f"{where}: text contains NUL")
    if size > LOADED_TEXT_BYTES_MAX:
        raise StoryError(f"{where}: {size} bytes of text, at most {LOADED_TEXT_BYTES_MAX}")
    return text


def unrelated_texts() -> tuple[str, ...]:
    """Sentences that no datanet of the story contains, for calibrating the attribution floor."""
    return UNRELATED_TEXTS


UNRELATED_PROMPTS = (
    "The old lighthouse keeper ",
    "For the soup, chop two onions ",
    "In spring the river floods ",
    "My grandmother kept bees ",
    "The train to the coast ",
    "Snow fell on the village ",
)

UNRELATED_TEXTS = (
    "The ferry leaves the harbour at six and returns before dark.",
    "Simmer the lentils with bay leaves until they are tender.",
    "A red kite circled above the ploughed field all afternoon.",
    "The violin maker varnished the wood in seven thin coats.",
    "Our neighbours planted three apple trees behind the barn.",
    "In winter the lake freezes and children skate across it.",
    "The museum bought a small painting of a woman with a jug.",
    "He forgot his umbrella and walked home in the pouring rain.",
    "Granite forms when magma cools slowly deep underground.",
    "The choir rehearses on Tuesdays in the chapel by the mill.",
    "She knitted a grey scarf for her brother who lives abroad.",
    "Salmon swim upstream for weeks to reach their birthplace.",
    "The baker sold his last loaf to a tired bus driver.",
    "Copper roofs turn green after many years in sea air.",
    "They climbed the ridge at dawn and ate bread at the summit.",
    "A good compost heap needs both leaves and kitchen scraps.",
    "The judge listened for an hour and then asked one question.",
    "Venus is brightest shortly after sunset in the western sky.",
    "The carpenter measured the doorway twice before sawing.",
    "Wild garlic grows thickly along the shaded stream.",
    "Her first novel was written on trains between two cities.",
    "The goalkeeper dived to the left and held the ball.",
    "Tea was carried by mules over passes of great height.",
    "Our cat sleeps on the warm lid of the piano.",
    "The vaccine must be kept cold on its way to the clinic.",
    "An owl called twice, and the wood was silent again.",
    "The bridge was closed while welders repaired a cracked beam.",
    "Potters in this valley dig their clay from the river bank.",
    "The orchestra tuned while latecomers looked for their seats.",
    "Dry the mushrooms on a rack in a barely warm oven.",
    "Camels can drink a hundred litres of water in ten minutes.",
    "The mayor opened the new swimming pool on a rainy Sunday.",
    "Moss covers the north side of the ruined abbey.",
    "He won the chess game by giving up his queen.",
    "The tailor pinned the sleeve and asked him to stand still.",
    "Rain at harvest time can spoil a whole year of wheat.",
    "The children built a raft from barrels and old planks.",
    "Bread dough should double in size before it is shaped.",
    "A glacier once filled this valley to the tops of the hills.",
    "The nurse read the chart and lowered the blinds.",
    "Swallows nest under the eaves of the railway station.",
    "The cellist practised the slow movement until midnight.",
    "Fishermen mend their nets on the wall beside the quay.",
    "Our teacher drew the water cycle with blue chalk.",
    "The desert blooms for two weeks after a heavy storm.",
    "Honey never spoils if the jar is kept tightly closed.",
    "The clock in the tower has been four minutes slow since May.",
    "A dozen geese crossed the road and stopped the traffic.",
)
