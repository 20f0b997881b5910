"""The form of a peer id that the ledger admits: base58 of an Ed25519 key's identity hash, as libp2p writes it.

What is in a validator set is read by every node's network. An id of another form could not be dialled by anybody, or would
be an error where it is read.
"""

from __future__ import annotations

from node.ledger.errors import MalformedError
from node.ledger.fields import Rule

_DIGITS = {
    char: digit for digit, char in enumerate("123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz")
}
_LENGTH = 52
_KEY_BITS = 256
_PREFIX = 0x2408011220
"""Identity multihash of 36 bytes (its leading 0 is the digit "1"), protobuf: type Ed25519, 32 bytes of key."""


def is_peer_id(text: str) -> bool:
    """Whether this is the one text of some Ed25519 peer id (12D3KooW...)."""
    if len(text) != _LENGTH or text[0] != "1" or any(char not in _DIGITS for char in text):
        return False
    number = 0
    for char in text[1:]:
        number = 58 * number + _DIGITS[char]
    return text[1] != "1" and number >> _KEY_BITS == _PREFIX


def peer_id() -> Rule:
    """A field that holds a peer id."""

    def check(value: object, where: str) -> str:
        if type(value) is not str or not is_peer_id(value):
            raise MalformedError(f"{where}: not an Ed25519 peer id", where)
        return value

    return {"check": check}
