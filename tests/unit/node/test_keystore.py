"""The encrypted key file: its form is fixed, only its passphrase opens it, and no file can hurt who reads it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.bindings import crypto_pwhash_alg, crypto_secretbox_open
from nacl.bindings.crypto_pwhash import crypto_pwhash_ALG_ARGON2ID13

from consensus.digest import digest
from node.errors import KeyFileInvalid
from node.keystore import (
    OPENING_COST_MAX,
    SEALED_BYTES_MAX,
    SEALING_COST,
    KdfCost,
    KeyMalformed,
    KeyMismatch,
    KeyTooCostly,
    Passphrase,
    PassphraseWrong,
    open_sealed,
    parse_sealed,
    public_key,
    seal_seed,
)
from tests.profiles import examples

SEED = bytes(range(32))
CHEAP = KdfCost(passes=1, memory_bytes=8 * 1024)
WORDS = "correct horse"
PATH = Path("alice.key")

# Written by version 1 of the format. A reader that no longer opens it has locked people out of their money.
GOLDEN = """{"kind": "openledger-key", "version": 1,
 "public_key": "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8",
 "kdf": {"name": "argon2id13", "passes": 1, "memory_bytes": 8192, "salt": "000102030405060708090a0b0c0d0e0f"},
 "cipher": {"name": "xsalsa20-poly1305", "nonce": "101112131415161718191a1b1c1d1e1f2021222324252627",
            "text": "402eb4a63b18c6dd0ebf6ba29504c17966c76447bc2ef64b55409405c8c9367d88c219d99f91f0c94319cfc44a8e9c80"},
 "checksum": "cb74ecfd12fc40a0833e5a2eb46ae2f3cdc70e1eae44c69f2635fec8df12cd42"}"""


def sealed_members() -> dict[str, Any]:
    members: dict[str, Any] = json.loads(seal_seed(SEED, Passphrase(WORDS), CHEAP))
    return members


def written(members: dict[str, Any]) -> bytes:
    """The file of ``members`` with the checksum that an attacker would put there as well."""
    bare = {name: value for name, value in members.items() if name != "checksum"}
    text = json.dumps(bare, sort_keys=True, separators=(",", ":"))
    return json.dumps({**bare, "checksum": digest("key-file", text.encode()).hex()}).encode()


def opened(data: bytes, words: str = WORDS) -> bytes:
    return open_sealed(PATH, parse_sealed(PATH, data), Passphrase(words))


def test_a_sealed_seed_opens_with_its_passphrase_alone() -> None:
    data = seal_seed(SEED, Passphrase(WORDS), CHEAP)
    assert opened(data) == SEED
    for words in ("Correct horse", WORDS + " ", "", "x"):
        with pytest.raises(PassphraseWrong) as caught:
            opened(data, words)
        assert caught.value.__suppress_context__
        assert "horse" not in str(caught.value)


def test_a_file_of_version_1_still_opens() -> None:
    assert opened(GOLDEN.encode()) == SEED


def test_the_form_is_the_documented_one_and_an_independent_reader_opens_it() -> None:
    members = sealed_members()
    assert list(members) == ["kind", "version", "public_key", "kdf", "cipher", "checksum"]
    assert (members["kind"], members["version"]) == ("openledger-key", 1)
    kdf, cipher = members["kdf"], members["cipher"]
    assert (kdf["name"], cipher["name"]) == ("argon2id13", "xsalsa20-poly1305")
    key = crypto_pwhash_alg(
        32,
        WORDS.encode(),
        bytes.fromhex(kdf["salt"]),
        kdf["passes"],
        kdf["memory_bytes"],
        crypto_pwhash_ALG_ARGON2ID13,
    )
    text, nonce = bytes.fromhex(cipher["text"]), bytes.fromhex(cipher["nonce"])
    assert crypto_secretbox_open(text, nonce, key) == SEED
    assert members["public_key"] == public_key(SEED).hex()
    assert SEED.hex() not in json.dumps(members)


def test_new_files_cost_what_libsodium_calls_moderate_and_stay_below_what_is_opened() -> None:
    assert (SEALING_COST.passes, SEALING_COST.memory_bytes) == (3, 256 * 2**20)
    assert SEALING_COST.passes <= OPENING_COST_MAX.passes
    assert SEALING_COST.memory_bytes <= OPENING_COST_MAX.memory_bytes


def test_every_flipped_bit_is_noticed_before_the_passphrase_is_used() -> None:
    data = seal_seed(SEED, Passphrase(WORDS), CHEAP)
    for position in range(len(data)):
        for bit in range(8):
            bad = bytearray(data)
            bad[position] ^= 1 << bit
            with pytest.raises(KeyMalformed):
                parse_sealed(PATH, bytes(bad))


def test_every_cut_is_noticed() -> None:
    data = seal_seed(SEED, Passphrase(WORDS), CHEAP).rstrip()
    for length in range(len(data)):
        with pytest.raises(KeyMalformed):
            parse_sealed(PATH, data[:length])


def test_another_public_key_is_noticed_once_the_file_is_opened() -> None:
    members = sealed_members()
    members["public_key"] = public_key(bytes(32)).hex()
    with pytest.raises(KeyMismatch, match="somebody changed the file"):
        opened(written(members))


def test_a_damaged_cipher_text_with_a_right_checksum_does_not_open() -> None:
    members = sealed_members()
    text = members["cipher"]["text"]
    members["cipher"]["text"] = ("0" if text[0] != "0" else "1") + text[1:]
    with pytest.raises(PassphraseWrong):
        opened(written(members))


@pytest.mark.parametrize(
    ("passes", "memory_bytes"),
    [
        (OPENING_COST_MAX.passes + 1, 8192),
        (2**32 - 1, 8192),
        (1, OPENING_COST_MAX.memory_bytes + 1),
        (1, 100 * 2**30),
        (10**100, 10**100),
    ],
)
def test_a_hostile_cost_is_refused_before_it_is_paid(passes: int, memory_bytes: int) -> None:
    members = sealed_members()
    members["kdf"] |= {"passes": passes, "memory_bytes": memory_bytes}
    data = written(members)
    began = time.process_time()
    tracemalloc.start()
    with pytest.raises(KeyTooCostly):
        opened(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    assert time.process_time() - began < 1


def change(*names: str, to: object) -> Callable[[dict[str, Any]], None]:
    def apply(members: dict[str, Any]) -> None:
        for name in names[:-1]:
            members = members[name]
        members[names[-1]] = to

    return apply


@pytest.mark.parametrize(
    "apply",
    [
        change("kind", to="openledger-adapter"),
        change("version", to=2),
        change("version", to=True),
        change("version", to="1"),
        change("extra", to=1),
        change("kdf", to=[]),
        change("kdf", "extra", to=1),
        change("kdf", "name", to="argon2i"),
        change("kdf", "passes", to=0),
        change("kdf", "passes", to=-1),
        change("kdf", "passes", to=1.0),
        change("kdf", "passes", to=True),
        change("kdf", "memory_bytes", to=8191),
        change("kdf", "memory_bytes", to="8192"),
        change("kdf", "salt", to="00" * 15),
        change("kdf", "salt", to="00" * 17),
        change("kdf", "salt", to="0G" * 16),
        change("kdf", "salt", to=None),
        change("cipher", to=None),
        change("cipher", "name", to="aes-256-gcm"),
        change("cipher", "nonce", to="AB" * 24),
        change("cipher", "text", to="ab" * 47),
        change("public_key", to="ab" * 31),
        change("public_key", to=7),
    ],
)
def test_what_is_not_of_the_form_is_refused_though_its_checksum_is_right(
    apply: Callable[[dict[str, Any]], None],
) -> None:
    members = sealed_members()
    apply(members)
    with pytest.raises(KeyMalformed):
        opened(written(members))


@pytest.mark.parametrize("name", ["kind", "version", "public_key", "kdf", "cipher", "checksum"])
def test_no_member_may_be_missing_or_come_twice(name: str) -> None:
    members = sealed_members()
    value = members.pop(name)
    with pytest.raises(KeyMalformed):
        parse_sealed(PATH, json.dumps(members).encode())
    members[name] = value
    twice = json.dumps(members)[:-1] + f', "{name}": {json.dumps(value)}}}'
    with pytest.raises(KeyMalformed):
        parse_sealed(PATH, twice.encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"7",
        b"\xff\xfe",
        b'{"kind": "openledger-key"}',
        b'{"version": ' + b"9" * 4050 + b"}",
    ],
)
def test_what_is_no_key_file_is_refused(data: bytes) -> None:
    with pytest.raises(KeyMalformed):
        parse_sealed(PATH, data)


def test_deep_nesting_is_refused() -> None:
    for data in (b"[" * SEALED_BYTES_MAX, b'{"a":' * 800):
        with pytest.raises(KeyMalformed):
            parse_sealed(PATH, data)


def test_a_file_over_its_limit_is_refused_though_it_would_parse() -> None:
    data = seal_seed(SEED, Passphrase(WORDS), CHEAP)
    assert opened(data.ljust(SEALED_BYTES_MAX)) == SEED
    with pytest.raises(KeyMalformed, match="at most 4096 bytes"):
        parse_sealed(PATH, data.ljust(SEALED_BYTES_MAX + 1))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
places = st.sampled_from(
    [("kind",), ("version",), ("public_key",), ("kdf",), ("cipher",)]
    + [("kdf", name) for name in ("name", "passes", "memory_bytes", "salt")]
    + [("cipher", name) for name in ("name", "nonce", "text")]
)
TEMPLATE = sealed_members()


@settings(max_examples=examples(200))
@given(place=places, value=json_values)
def test_no_value_in_any_place_raises_an_untyped_error(place: tuple[str, ...], value: object) -> None:
    members = json.loads(json.dumps(TEMPLATE))
    change(*place, to=value)(members)
    try:
        parse_sealed(PATH, written(members))
    except KeyFileInvalid:
        return
    assert members == TEMPLATE or len(place) == 2 or place == ("public_key",)


@settings(max_examples=examples(200))
@given(st.binary(max_size=200))
def test_no_bytes_raise_an_untyped_error(data: bytes) -> None:
    with pytest.raises(KeyFileInvalid):
        parse_sealed(PATH, data)


def test_a_passphrase_is_one_text_however_its_characters_are_composed() -> None:
    data = seal_seed(SEED, Passphrase("f\u00fcnf K\u00e4tzchen"), CHEAP)
    assert opened(data, "fu\u0308nf Ka\u0308tzchen") == SEED


def test_a_passphrase_and_what_holds_it_print_as_nothing() -> None:
    passphrase = Passphrase(WORDS)
    assert WORDS not in repr(passphrase) + str(passphrase) + f"{[passphrase]}"
    assert not hasattr(passphrase, "__dict__")


def test_files_sealed_together_share_a_salt_but_never_a_nonce() -> None:
    passphrase = Passphrase(WORDS)
    one, other = (parse_sealed(PATH, seal_seed(SEED, passphrase, CHEAP)) for _ in range(2))
    assert one.salt == other.salt
    assert one.nonce != other.nonce
    assert one.text != other.text
    assert parse_sealed(PATH, seal_seed(SEED, Passphrase(WORDS), CHEAP)).salt != one.salt


def test_too_little_memory_is_an_error_that_says_how_much_is_needed() -> None:
    script = f"""
import resource, sys
from pathlib import Path
from node.keystore import KdfCost, KeyTooCostly, Passphrase, open_sealed, parse_sealed, seal_seed
from nacl.pwhash import argon2id
passphrase = Passphrase({WORDS!r})
data = seal_seed(bytes(32), passphrase, KdfCost(1, {256 * 2**20}))
resource.setrlimit(resource.RLIMIT_AS, (200 * 2**20, 200 * 2**20))
try:
    open_sealed(Path("a.key"), parse_sealed(Path("a.key"), data), Passphrase({WORDS!r}))
except KeyTooCostly as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert "256 MiB of free memory" in done.stdout
