"""Ed25519 in whole numbers, slow and plain: what a signature must be to count (docs/protocol.md, *Signatures*).

Written from RFC 8032, section 5.1, and the rule of docs/protocol.md, apart from any library.
"""

from __future__ import annotations

import hashlib

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
SIGN_BIT = 1 << 255

Point = tuple[int, int]

NEUTRAL: Point = (0, 1)


def add(a: Point, b: Point) -> Point:
    """The sum of two points of the twisted Edwards curve -x^2 + y^2 = 1 + d x^2 y^2; complete, no cases."""
    (x1, y1), (x2, y2) = a, b
    both = D * x1 * x2 * y1 * y2 % P
    x = (x1 * y2 + x2 * y1) * pow(1 + both, -1, P) % P
    y = (y1 * y2 + x1 * x2) * pow(1 - both, -1, P) % P
    return x, y


def times(scalar: int, point: Point) -> Point:
    """Scalar multiple, by doubling."""
    out = NEUTRAL
    while scalar:
        if scalar & 1:
            out = add(out, point)
        point = add(point, point)
        scalar >>= 1
    return out


def negative(point: Point) -> Point:
    """The inverse of a point."""
    return -point[0] % P, point[1]


def encode(point: Point) -> bytes:
    """Section 5.1.2: y, little-endian, with the lowest bit of x on top."""
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def with_y(y: int, odd: int) -> Point | None:
    """The point with this y and an x of this parity, or None; x = 0 has parity 0 only."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if (x * x - square) % P or (x == 0 and odd):
        return None
    return (P - x if x & 1 != odd else x), y


def decode(data: bytes) -> Point | None:
    """Section 5.1.3: the point, or None where the bytes are not the one encoding of a point."""
    number = int.from_bytes(data, "little")
    y, odd = number % SIGN_BIT, number >> 255
    return with_y(y, odd) if y < P else None


BASE = with_y(4 * pow(5, -1, P) % P, 0) or NEUTRAL


def _of_order_8() -> Point:
    """A point of order 8: L times a point, where that has no smaller order."""
    for y in range(2, 100):
        point = with_y(y, 0)
        if point is not None and times(4, found := times(L, point)) != NEUTRAL:
            return found
    raise AssertionError("one y in four would do")


SMALL = [times(k, _of_order_8()) for k in range(8)]
"""The eight points whose order divides 8: k times one of order 8."""


def small_order(data: bytes) -> bool:
    """Whether y, whatever the top bit says, is modulo p that of a point of small order; y below 2^255."""
    y = int.from_bytes(data, "little") % SIGN_BIT
    return y % P in {point[1] for point in SMALL}


def challenge(r: bytes, public: bytes, message: bytes) -> int:
    """k of section 5.1.7."""
    return int.from_bytes(hashlib.sha512(r + public + message).digest(), "little") % L


def counts(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether a signature counts: the four conditions of docs/protocol.md."""
    r, s = signature[:32], int.from_bytes(signature[32:], "little")
    key = decode(public)
    if s >= L or small_order(r) or small_order(public) or key is None:
        return False
    right = add(times(s, BASE), negative(times(challenge(r, public, message), key)))
    return encode(right) == r


def counts_with_cofactor(public: bytes, message: bytes, signature: bytes) -> bool:
    """ZIP 215: points may be of any order and encoded in any way, and 8 times the equation must hold."""
    r, s = signature[:32], int.from_bytes(signature[32:], "little")
    key, point = _any_form(public), _any_form(r)
    if s >= L or key is None or point is None:
        return False
    right = add(times(s, BASE), negative(times(challenge(r, public, message), key)))
    return times(8, add(right, negative(point))) == NEUTRAL


def _any_form(data: bytes) -> Point | None:
    number = int.from_bytes(data, "little")
    y, odd = number % SIGN_BIT % P, number >> 255
    return with_y(y, odd) or with_y(y, 0)
