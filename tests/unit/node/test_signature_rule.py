"""Which signatures count: the library against a second implementation, on honest and on doctored ones."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from consensus import crypto
from node import signature_rule
from node.cli.main import main
from node.cli.output import Exit
from node.signature_rule import CASES, MESSAGE, SignatureRuleDiffers, check_signature_rule
from tests.unit.node import ed25519_reference as reference
from tests.unit.node.ed25519_reference import BASE, NEUTRAL, SMALL, L, P


def scalar(*words: object) -> int:
    """A number below L, by hashing."""
    return int.from_bytes(hashlib.sha512(repr(words).encode()).digest(), "little") % L


def test_the_reference_signs_as_rfc_8032_does() -> None:
    # Section 7.1, TEST 2.
    seed = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    digest = hashlib.sha512(seed).digest()
    secret = int.from_bytes(digest[:32], "little") & ((1 << 254) - 8) | 1 << 254
    public = reference.encode(reference.times(secret, BASE))
    assert public.hex() == "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    assert public == crypto.public_key(seed)
    assert reference.counts(public, b"r", crypto.sign(seed, b"r"))
    assert not reference.counts(public, b"s", crypto.sign(seed, b"r"))


def test_every_case_is_decided_as_the_rule_says() -> None:
    for case in CASES:
        public, signature = bytes.fromhex(case.public), bytes.fromhex(case.signature)
        assert reference.counts(public, MESSAGE, signature) is case.counts, case.name
        assert crypto.verify(public, MESSAGE, signature) is case.counts, case.name
    check_signature_rule()


def test_cases_tell_the_equation_with_the_cofactor_apart() -> None:
    differ = [
        case.name
        for case in CASES
        if reference.counts_with_cofactor(bytes.fromhex(case.public), MESSAGE, bytes.fromhex(case.signature))
        is not case.counts
    ]
    assert len(differ) == len(CASES) - 4


@settings(max_examples=150, deadline=None)
@given(
    key=st.integers(0, 3),
    nonce=st.integers(0, 3),
    of_key=st.integers(0, 7),
    of_r=st.integers(0, 7),
    more=st.sampled_from((0, 0, 0, L, 2 * L, 15 * L)),
    key_more=st.sampled_from((0, 0, P, 1 << 255)),
    r_more=st.sampled_from((0, 0, P, 1 << 255)),
    message=st.integers(0, 15),
)
@example(key=1, nonce=1, of_key=0, of_r=0, more=0, key_more=0, r_more=0, message=0)
@example(key=0, nonce=1, of_key=0, of_r=0, more=0, key_more=P, r_more=0, message=0)
@example(key=1, nonce=0, of_key=0, of_r=0, more=0, key_more=0, r_more=0, message=0)
def test_the_library_decides_as_the_rule_says(
    key: int, nonce: int, of_key: int, of_r: int, more: int, key_more: int, r_more: int, message: int
) -> None:
    """Signatures of an owner who doctors everything there is: parts of small order, sums past L and p, top bits."""
    secret, drawn = (scalar("key", key) if key else 0), (scalar("nonce", nonce) if nonce else 0)
    public = doctored(reference.add(reference.times(secret, BASE), SMALL[of_key]), key_more)
    r = doctored(reference.add(reference.times(drawn, BASE), SMALL[of_r]), r_more)
    text = bytes([message])
    s = (drawn + reference.challenge(r, public, text) * secret) % L + more
    signature = r + (s % 2**256).to_bytes(32, "little")
    assert crypto.verify(public, text, signature) is reference.counts(public, text, signature)


def doctored(point: reference.Point, more: int) -> bytes:
    """The point's encoding, its number larger by ``more`` where that fits 32 bytes."""
    number = int.from_bytes(reference.encode(point), "little")
    return ((number + more) % 2**256).to_bytes(32, "little")


@settings(max_examples=150, deadline=None)
@given(public=st.binary(min_size=32, max_size=32), signature=st.binary(min_size=64, max_size=64))
def test_noise_counts_for_neither(public: bytes, signature: bytes) -> None:
    assert crypto.verify(public, MESSAGE, signature) is reference.counts(public, MESSAGE, signature) is False


def test_points_of_small_order_are_eight() -> None:
    assert len({reference.encode(point) for point in SMALL}) == 8
    assert all(reference.times(8, point) == NEUTRAL for point in SMALL)


@pytest.fixture
def cofactor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that multiplies by the cofactor, as later ones do."""
    monkeypatch.setattr(signature_rule, "verify", reference.counts_with_cofactor)


@pytest.mark.usefixtures("cofactor")
def test_a_library_of_another_opinion_is_refused_by_name() -> None:
    with pytest.raises(SignatureRuleDiffers, match=r"accepts .*R with a part of order 8.*requirements\.lock"):
        check_signature_rule()


@pytest.mark.usefixtures("cofactor")
def test_the_selfcheck_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selfcheck", "--quick", "--json"]) == Exit.FAILED
    document = json.loads(capsys.readouterr().out)
    assert [row["check"] for row in document["checks"] if not row["ok"]] == ["signatures"]
    assert "requirements.lock" in document["advice"][0]
    assert not any("kernel" in line for line in document["advice"])
