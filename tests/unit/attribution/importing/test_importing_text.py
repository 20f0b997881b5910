"""Tokenizers: the library's ids, bounded files, and nothing that reaches what is hashed."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from attribution.importing.errors import ImportRefused
from attribution.importing.text import read_text, read_tokenizer, text_ids

TEXT = "the cat sat on the mat, naïve"


def bpe(**changes: Any) -> dict[str, Any]:
    """A byte-level BPE of 259 tokens: every byte, and three merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = {symbol: i for i, symbol in enumerate(sorted(ByteLevel.alphabet()))}
    merges = [["t", "h"], ["th", "e"], ["a", "t"]]
    vocabulary |= {"".join(pair): 256 + i for i, pair in enumerate(merges)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
        **changes,
    }


def write(folder: Path, document: object) -> Path:
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return folder


def test_ids_are_the_librarys_without_bos_and_decode_to_the_text(tmp_path: Path) -> None:
    added = {"id": 259, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}  # fmt: skip
    special = {"<s>": {"id": "<s>", "ids": [259], "tokens": ["<s>"]}}
    pieces = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    post = {"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": special}
    tokenizer = read_tokenizer(write(tmp_path, bpe(added_tokens=[added], post_processor=post)))
    ids = text_ids(TEXT, tokenizer, 260)
    assert tokenizer.inner.encode(TEXT).ids == [259, *ids]
    assert 259 not in ids
    assert ids[0] == 257
    assert tokenizer.decode(ids) == TEXT
    data = (tmp_path / "tokenizer.json").read_bytes()
    assert tokenizer.digest == hashlib.sha256(data).digest()


def test_a_file_cannot_cut_or_pad_the_text(tmp_path: Path) -> None:
    plain = text_ids(TEXT, read_tokenizer(write(tmp_path, bpe())), 300)
    cut = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    pad = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
           "pad_type_id": 0, "pad_token": "!"}  # fmt: skip
    tokenizer = read_tokenizer(write(tmp_path, bpe(truncation=cut, padding=pad)))
    assert text_ids(TEXT, tokenizer, 300) == plain
    assert len(plain) > 3


def test_ids_outside_the_models_vocabulary_are_refused(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(write(tmp_path, bpe()))
    with pytest.raises(ImportRefused, match="gives token 258, the model has 258"):
        text_ids(TEXT, tokenizer, 258)


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"version":"9"}', b"[" * 100_000])
def test_files_that_are_no_tokenizer_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(ImportRefused, match="is not a tokenizer"):
        read_tokenizer(tmp_path)


def test_other_forms_missing_libraries_and_large_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"sentencepiece")
    with pytest.raises(ImportRefused, match=r"there is no tokenizer\.json"):
        read_tokenizer(tmp_path)
    write(tmp_path, bpe())
    monkeypatch.setattr("attribution.importing.text.TOKENIZER_BYTES_MAX", 100)
    with pytest.raises(ImportRefused, match="the limit is 100"):
        read_tokenizer(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportRefused, match="pip install tokenizers"):
        read_tokenizer(tmp_path)


def test_texts_are_bounded_and_utf8(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("naïve".encode())
    assert text_ids(read_text(path), None, 256) == tuple("naïve".encode())
    with pytest.raises(ImportRefused, match="a vocabulary of 255"):
        text_ids("a", None, 255)
    with pytest.raises(ImportRefused, match="the limit is 3"):
        read_text(path, 3)
    path.write_bytes(b"abc\xff")
    with pytest.raises(ImportRefused, match="not UTF-8 at byte 3"):
        read_text(path)
