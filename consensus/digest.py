"""Domain-separated hashing: blake3("openledger/<kind>/v1" || 0x00 || chain_id || data)."""

from blake3 import blake3

DIGEST_BYTES = 32
ZERO32 = bytes(32)
_PREFIXES: dict[str, bytes] = {}
"""What kinds that were found good begin with; the code names them, so there are few."""

_KINDS_MAX = 256


def digest(kind: str, data: bytes, chain_id: bytes = b"") -> bytes:
    """Return the 32-byte digest of `data` in the domain `kind`.

    Args:
        kind: lower-case ASCII name of what is hashed, without NUL ("vote", "header").
        data: canonical bytes.
        chain_id: the 32-byte genesis hash, or empty for content that is the same on every chain.

    Raises:
        ValueError: a kind with a NUL or outside ASCII, or a chain id that is neither 0 nor 32 bytes.
    """
    prefix = _PREFIXES.get(kind)
    if prefix is None:
        if "\0" in kind or not kind.isascii():
            raise ValueError(f"not a digest kind: {kind!r}")
        prefix = b"openledger/" + kind.encode() + b"/v1\0"
        if len(_PREFIXES) < _KINDS_MAX:
            _PREFIXES[kind] = prefix
    if len(chain_id) not in (0, DIGEST_BYTES):
        raise ValueError("a chain id has 32 bytes")
    hashed: bytes = blake3(prefix + chain_id + data).digest()
    return hashed
