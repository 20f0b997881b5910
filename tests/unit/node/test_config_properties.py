"""Whatever a file, a variable or a flag says, it is a configuration or a `ConfigInvalid` that names the key in one line."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.config import Config, apply_toml, load_config, render_toml
from node.errors import ConfigInvalid
from tests.profiles import examples

SECTIONS = [section.name for section in fields(Config)]
NAMES = [(section, key.name) for section in SECTIONS for key in fields(getattr(Config(), section))]

# What TOML can say: also what no key takes, and numbers beyond every bound.
values = st.recursive(
    st.booleans()
    | st.integers()
    | st.integers(-5, 70_000)
    | st.sampled_from([10**4000, -(10**4000)])
    | st.floats()
    | st.text(max_size=80)
    | st.datetimes()
    | st.sampled_from(["info", "cpu", "127.0.0.1", "int8", ""]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
names = st.sampled_from(NAMES)
section_names = st.sampled_from(SECTIONS) | st.text(max_size=12)
key_names = st.sampled_from([key for _, key in NAMES]) | st.text(max_size=12)


def accept(load: Callable[[], Config]) -> Config | None:
    """Return what was loaded, once its text is read back to the same; None where it was refused as it should be."""
    try:
        config = load()
    except ConfigInvalid as error:
        refused = error
    else:
        read_back(config)
        return config
    assert len(str(refused)) < 1500
    assert refused.expected
    assert isinstance(refused.key, str)
    return None


def read_back(config: Config) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_text(render_toml(config), encoding="utf-8")
        assert load_config(path, {}) == config


@settings(max_examples=examples(300))
@given(name=names, value=values)
def test_any_value_of_a_known_key_is_taken_or_refused(name: tuple[str, str], value: object) -> None:
    section, key = name
    config = accept(lambda: apply_toml(Config(), {section: {key: value}}))
    if config is not None:
        taken = getattr(getattr(config, section), key)
        assert list(taken) == value if isinstance(taken, tuple) else taken == value
        assert type(taken) is type(getattr(getattr(Config(), section), key))


@settings(max_examples=examples(200))
@given(st.dictionaries(section_names, values | st.dictionaries(key_names, values, max_size=3), max_size=3))
def test_any_document_is_taken_or_refused_and_unknown_names_never_taken(document: dict[str, Any]) -> None:
    config = accept(lambda: apply_toml(Config(), document))
    if config is not None:
        assert set(document) <= set(SECTIONS)
        assert all((section, key) in NAMES for section, table in document.items() for key in table)


@settings(max_examples=examples(200))
@given(text=st.text(max_size=200) | st.binary(max_size=200).map(lambda data: data.decode("latin-1")))
def test_any_file_is_taken_or_refused(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        accept(lambda: load_config(path, {}))


@settings(max_examples=examples(200))
@given(section=section_names, key=key_names, text=st.text(max_size=60))
def test_any_variable_is_taken_refused_or_not_ours(section: str, key: str, text: str) -> None:
    accept(lambda: load_config(None, {f"OPENLEDGER_{section}_{key}".upper(): text}))


@settings(max_examples=examples(200))
@given(name=names.map(".".join) | st.text(max_size=20), value=values)
def test_any_flag_is_taken_or_refused(name: str, value: object) -> None:
    accept(lambda: load_config(None, {}, {name: value}))


@pytest.mark.parametrize("name", NAMES)
def test_no_key_takes_what_has_another_type(name: tuple[str, str]) -> None:
    section, key = name
    wrong: list[object] = [None, {}, [[]], 1.5, float("nan"), b"", 10**5000, -(10**5000)]
    for value in wrong:
        with pytest.raises(ConfigInvalid):
            apply_toml(Config(), {section: {key: value}})
