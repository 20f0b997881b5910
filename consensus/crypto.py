"""Ed25519 (RFC 8032) through libsodium, and a bounded memory of signatures already checked."""

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

SEED_BYTES = 32
PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64


def sign(seed: bytes, message: bytes) -> bytes:
    """Return the 64-byte signature of `message` under the 32-byte secret `seed`; deterministic."""
    return SigningKey(seed).sign(message).signature


def public_key(seed: bytes) -> bytes:
    """Return the 32-byte public key of the 32-byte secret `seed`."""
    return bytes(SigningKey(seed).verify_key)


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Return whether `signature` is `public`'s over `message`; wrong lengths are simply False."""
    if len(public) != PUBLIC_KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        VerifyKey(public).verify(message, signature)
    except BadSignatureError:
        return False
    return True


class Verifier:
    """`verify` with a bounded memory of good signatures.

    A certificate travels on many messages; each of its signatures needs the curve once. Only successes are
    remembered, so garbage cannot fill it; past `capacity` the oldest is forgotten and checked again if met.
    """

    __slots__ = ("_capacity", "_good")

    def __init__(self, capacity: int = 16384) -> None:
        self._capacity = capacity
        self._good: dict[tuple[bytes, bytes, bytes], None] = {}

    def __call__(self, public: bytes, message: bytes, signature: bytes) -> bool:
        """Return whether the signature is good, from memory where possible."""
        key = (public, message, signature)
        if key in self._good:
            return True
        if not verify(public, message, signature):
            return False
        if len(self._good) >= self._capacity:
            del self._good[next(iter(self._good))]
        self._good[key] = None
        return True
