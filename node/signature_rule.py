"""Which signatures count, where libraries of Ed25519 differ, and a look at this machine's library before a node runs.

RFC 8032 leaves it to the implementation what to do with points of small order and whether the equation is multiplied by
the cofactor (Chalkias, Garillot, Nikolaenko 2020, *Taming the many EdDSAs*). On a ledger that is no matter of taste: whoever holds a key can make a
transaction that nodes of two opinions execute differently. The rule is written in docs/protocol.md, *Signatures*; it is that of libsodium to 1.0.20,
which later ones leave (they multiply by the cofactor).
"""

from __future__ import annotations

from dataclasses import dataclass

from consensus.crypto import verify
from node.errors import NodeError

MESSAGE = b"which signatures count"


@dataclass(frozen=True, slots=True)
class Case:
    """A key and a signature of `MESSAGE`, both in hex, and whether it counts."""

    name: str
    public: str
    signature: str
    counts: bool

    @property
    def decided_otherwise(self) -> bool:
        """Whether this machine's library is of another opinion."""
        return verify(bytes.fromhex(self.public), MESSAGE, bytes.fromhex(self.signature)) is not self.counts


CASES = (
    Case(
        "a plain signature",
        "0f7608783489684c04726001595638e5258c2ed0bdb3d18d9e3453ea8bb458ad",
        "b1d2b0edaf2082f3c441b5021bded1009ce6eb33dabd62730cb4d995289d5aa3"
        "9196edaa4d9defd9a9458874c37418b8c05a009f89accfef1f86daeb37fe880e",
        True,
    ),
    Case(
        "S plus the group order",
        "0f7608783489684c04726001595638e5258c2ed0bdb3d18d9e3453ea8bb458ad",
        "b1d2b0edaf2082f3c441b5021bded1009ce6eb33dabd62730cb4d995289d5aa3"
        "7e6ae3076800023280e27f17a26ef7ccc05a009f89accfef1f86daeb37fe881e",
        False,
    ),
    Case(
        "R with a part of order 8",
        "0f7608783489684c04726001595638e5258c2ed0bdb3d18d9e3453ea8bb458ad",
        "bddff68e90493cbd570984e942df75f8c18f6b527afd86f7f744669e362d0500"
        "a1963073ce099485208e90f72ccad6aa26a1963b7f2957ad4b39f6ea1a525908",
        False,
    ),
    Case(
        "R with a part of order 2",
        "0f7608783489684c04726001595638e5258c2ed0bdb3d18d9e3453ea8bb458ad",
        "3c2d4f1250df7d0c3bbe4afde4212eff631914cc25429d8cf34b266ad762a55c"
        "f8abae3e102f4b2ea029da89cfa67589afe8cfea7bf0503b0446cd0d1e7e2d06",
        False,
    ),
    Case(
        "key with a part of order 8 that the challenge cancels",
        "c668425144eca1e8f9a8e178986f150a310e6f426cbc38a42c17a9e0c0e71982",
        "2e1c2f027648cb4ce96640f610ff4a5f6e665f86c5f5a8dc9c01b2346fba10dc"
        "705d99866354c32084b2bad38ec36c623a3ee0c91bbcbd22719c4856a1104402",
        True,
    ),
    Case(
        "key with a part of order 8",
        "c668425144eca1e8f9a8e178986f150a310e6f426cbc38a42c17a9e0c0e71982",
        "5e48707046d9c045faedfd1fc525b07d33ba0fa1f0cec026329a30be6a747083"
        "1c868279f4dae858de7c0d768263eb1e6200cf6635a97d4e8bf98ac6d2e7a008",
        False,
    ),
    Case(
        "key and R with parts of order 8 that agree",
        "c668425144eca1e8f9a8e178986f150a310e6f426cbc38a42c17a9e0c0e71982",
        "d971ee22081b3ab62144cfd8ef621c71709d1bd7c9898fb5e43fec005099ede6"
        "734d5ec4ade65b2af0798ae3b0f7ed8a3cd698b1edc44f019c7335c905b4d300",
        True,
    ),
    Case(
        "key of order 8",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "b1d2b0edaf2082f3c441b5021bded1009ce6eb33dabd62730cb4d995289d5aa3"
        "efa60ae0fff01efa116d848e5ab45181bf8fb9730320e99e0e2a5e6c9254c102",
        False,
    ),
    Case(
        "key of order 2",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "b962003672414d7b3e423fd18d5cb22d3c1a68c6f55d2a846b0d542f536d257e"
        "76a1988a1d94fd8a4958edfb9cc5e3b50d96a77b662dd5e070589986601a7c07",
        False,
    ),
    Case(
        "neutral key, encoded as p + 1",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "b1d2b0edaf2082f3c441b5021bded1009ce6eb33dabd62730cb4d995289d5aa3"
        "efa60ae0fff01efa116d848e5ab45181bf8fb9730320e99e0e2a5e6c9254c102",
        False,
    ),
    Case(
        "neutral key, encoded with -0",
        "0100000000000000000000000000000000000000000000000000000000000080",
        "b1d2b0edaf2082f3c441b5021bded1009ce6eb33dabd62730cb4d995289d5aa3"
        "efa60ae0fff01efa116d848e5ab45181bf8fb9730320e99e0e2a5e6c9254c102",
        False,
    ),
    Case(
        "neutral R",
        "0f7608783489684c04726001595638e5258c2ed0bdb3d18d9e3453ea8bb458ad",
        "0100000000000000000000000000000000000000000000000000000000000000"
        "55c5aec9f8e5af851bd3c00a6d72b203cdf509986cbba1350b879587434ca50d",
        False,
    ),
)
"""Made by tests/unit/node/ed25519_reference.py; by the equation with the cofactor, the second alone would not count."""


class SignatureRuleDiffers(NodeError):
    """The library that verifies signatures here does not take exactly those that count on the network."""

    def __init__(self, case: Case) -> None:
        self.case = case
        told = "refuses" if case.counts else "accepts"
        super().__init__(
            f"libsodium on this machine {told} a signature that the network does not ({case.name}), so this node could "
            "leave the chain at one odd transaction; install the PyNaCl that requirements.lock names, from its wheel"
        )


def check_signature_rule() -> None:
    """Raise `SignatureRuleDiffers` unless this machine's library decides every one of `CASES` right; under 2 ms."""
    for case in CASES:
        if case.decided_otherwise:
            raise SignatureRuleDiffers(case)
