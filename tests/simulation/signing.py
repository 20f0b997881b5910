"""Who signs how in a simulated cluster: Ed25519, or a keyed hash that costs a fiftieth of it.

The keyed hash is BLAKE3 under the signer's secret (a message authentication code): nobody makes one without the secret, and
in a simulation the secrets lie with their owners and with the judge who verifies. No adversary here asks the judge to sign,
so a hash can be forged as little as a signature. Everything else about a run is the same, bytes and lengths included.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from blake3 import blake3

from consensus import crypto, evidence, safety, verify
from consensus.crypto import SIGNATURE_BYTES, Verifier
from consensus.safety import SafetyRecord, SafetyRules
from consensus.verify import Context

_MESSAGES = ("vote_message", "commit_vote_message", "timeout_message", "proposal_message")
REMEMBERED = 1 << 14
"""Answers of pure functions kept: the same few signatures are looked at by every node."""


@lru_cache(REMEMBERED)
def keyed_hash(seed: bytes, message: bytes) -> bytes:
    """Return 64 bytes that only the owner of the 32-byte `seed` can make for `message`."""
    made: bytes = blake3(message, key=seed).digest(length=SIGNATURE_BYTES)
    return made


class KeyedVerifier(Verifier):
    """Knows every seed and recomputes; what it is not told of, it refuses."""

    __slots__ = ("_seeds",)

    def __init__(self, seeds: dict[bytes, bytes]) -> None:
        super().__init__()
        self._seeds = seeds

    def __call__(self, public: bytes, message: bytes, signature: bytes) -> bool:
        seed = self._seeds.get(public)
        return seed is not None and keyed_hash(seed, message) == signature


class KeyedRules(SafetyRules):
    """The safety rules as they are, with the other kind of signature."""

    def _sign(self, message: bytes) -> bytes:
        return keyed_hash(self._seed, message)


class Scheme:
    """One way of signing for all nodes of a run."""

    def __init__(self, seeds: dict[bytes, bytes], *, real: bool, verifier: Verifier) -> None:
        self.real = real
        self.verifier = verifier if real else KeyedVerifier(seeds)
        self.sign: Callable[[bytes, bytes], bytes] = crypto.sign if real else keyed_hash

    def rules(self, seed: bytes, context: Context, record: SafetyRecord | None) -> SafetyRules:
        """Return a validator's safety rules with its stored record."""
        return (SafetyRules if self.real else KeyedRules)(seed, context, record)


@contextmanager
def in_force(scheme: Scheme) -> Iterator[None]:
    """While this lasts the scheme's signatures are what evidence is checked with, and what signatures cover is remembered.

    Evidence is checked without a validator set, so that no verifier can be handed in. What a signature covers is computed
    once for each statement and not once for each node that looks at it: the functions are pure, a memory of their answers
    changes nothing but the time. With Ed25519 all stays as it is.
    """
    if scheme.real:
        yield
        return
    kept: list[tuple[Any, str, Any]] = [(crypto, "verify", crypto.verify)]
    crypto.verify = scheme.verifier
    for name in _MESSAGES:
        quick = lru_cache(REMEMBERED)(getattr(verify, name))
        for module in (verify, safety, evidence):
            kept.append((module, name, getattr(module, name)))
            setattr(module, name, quick)
    try:
        yield
    finally:
        for module, name, function in kept:
            setattr(module, name, function)
