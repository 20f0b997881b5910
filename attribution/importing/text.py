"""Text to token ids by a model's own `tokenizer.json`, or byte by byte.

What the ledger holds and hashes are token ids, so a tokenizer decides nothing that is voted or paid: it is a convenience of
whoever writes text, and an optional dependency.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attribution.importing.errors import ImportRefused
from attribution.importing.files import read_bytes

NAME = "tokenizer.json"
TOKENIZER_BYTES_MAX = 1 << 26
TEXT_BYTES_MAX = 1 << 20
_BYTES = 256


@dataclass(frozen=True)
class Tokenizer:
    """A `tokenizer.json` as it was found: its bytes, their digest, and the library's object that reads them."""

    data: bytes
    inner: Any

    @property
    def digest(self) -> bytes:
        """SHA-256 of the file, as `sha256sum` prints it: for people to compare, no part of anything that is hashed."""
        return hashlib.sha256(self.data).digest()

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of `text` alone: no BOS, no EOS, no template."""
        return tuple(self.inner.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: tuple[int, ...]) -> str:
        """The text of `ids`."""
        return str(self.inner.decode(list(ids), skip_special_tokens=False))


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model directory. Raises ImportRefused."""
    if importlib.util.find_spec("tokenizers") is None:
        raise ImportRefused("reading tokenizer.json takes the library `tokenizers`: pip install tokenizers")
    if not (folder / NAME).exists():
        raise ImportRefused(f"there is no {NAME} in {folder}; other forms of tokenizers are not read")
    from tokenizers import Tokenizer as Inner

    data = read_bytes(folder / NAME, TOKENIZER_BYTES_MAX)
    try:
        inner = Inner.from_buffer(data)
    except Exception as error:  # the library raises nothing narrower
        raise ImportRefused(f"{NAME} is not a tokenizer: {str(error)[:80]}") from None
    # A file may ask for every text to be cut or padded.
    inner.no_truncation()
    inner.no_padding()
    return Tokenizer(data, inner)


def read_text(path: Path, bytes_max: int = TEXT_BYTES_MAX) -> str:
    """A UTF-8 text file of at most `bytes_max` bytes. Raises ImportRefused."""
    try:
        return read_bytes(path, bytes_max).decode()
    except UnicodeDecodeError as error:
        raise ImportRefused(f"{path.name} is not UTF-8 at byte {error.start}") from None


def text_ids(text: str, tokenizer: Tokenizer | None, vocabulary: int) -> tuple[int, ...]:
    """Ids of a text by `tokenizer`, or its bytes (None). Raises ImportRefused for ids outside the vocabulary."""
    if tokenizer is None and vocabulary < _BYTES:
        raise ImportRefused(f"a vocabulary of {vocabulary} tokens has none for every byte")
    ids = tuple(text.encode()) if tokenizer is None else tokenizer.encode(text)
    if ids and max(ids) >= vocabulary:
        raise ImportRefused(f"the tokenizer gives token {max(ids)}, the model has {vocabulary}")
    return ids
