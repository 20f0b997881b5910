"""Vouchers and the commitments an inference stands on: what the user signs, what the provider later opens.

Prompt and output stay off the ledger. Each is committed as a salted hash of its token ids; if the inference is drawn
for audit, the provider reveals a blob, ``encode([prompt_ids, prompt_salt, output_ids, output_salt])``, to the validators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from consensus.codec import encode
from consensus.crypto import sign
from consensus.digest import digest
from node.ledger.errors import MalformedError
from node.ledger.fields import U32_MAX, fixed, from_bytes, many, pack, to_bytes, uint, validate
from node.ledger.results import ADDRESS_BYTES, HASH_BYTES, SALT_BYTES

TOKENS_MAX = 32_768
"""Token ids in a prompt or an output, whatever the parameters say."""

OPENING_BYTES_MAX = 512 << 10
VOUCHER_BYTES_MAX = 1_024

TOKEN_IDS = many(uint(U32_MAX), TOKENS_MAX)


@dataclass(frozen=True, slots=True)
class Voucher:
    """A user's promise to pay `fee` for one answer; each sequence of a (user, provider) pair is recorded once.

    Sequences are recorded in strictly increasing order, starting from any number above 0.
    """

    chain_id: bytes = field(metadata=fixed(HASH_BYTES))
    user: bytes = field(metadata=fixed(ADDRESS_BYTES))
    provider: bytes = field(metadata=fixed(ADDRESS_BYTES))
    sequence: int = field(metadata=uint(minimum=1))
    adapter: bytes = field(metadata=fixed(HASH_BYTES))
    prompt_commitment: bytes = field(metadata=fixed(HASH_BYTES))
    new_tokens_max: int = field(metadata=uint(TOKENS_MAX, 1))
    fee: int = field(metadata=uint())
    valid_until: int = field(metadata=uint())


@dataclass(frozen=True, slots=True)
class Opening:
    """What a provider reveals to validators: both token sequences with the salts of their commitments."""

    prompt_ids: tuple[int, ...] = field(metadata=TOKEN_IDS)
    prompt_salt: bytes = field(metadata=fixed(SALT_BYTES))
    output_ids: tuple[int, ...] = field(metadata=TOKEN_IDS)
    output_salt: bytes = field(metadata=fixed(SALT_BYTES))


def encode_voucher(voucher: Voucher) -> bytes:
    """Canonical bytes; raises :class:`MalformedError` for a field out of its range."""
    return to_bytes(validate(voucher))


def decode_voucher(data: bytes) -> Voucher:
    """Read a voucher; raises :class:`MalformedError`."""
    return from_bytes(Voucher, data, VOUCHER_BYTES_MAX)


def inference_id(voucher: Voucher) -> bytes:
    """Name (32 bytes) of the inference a voucher pays for, and the digest its user signs.

    Known to user and provider before anything is recorded, and fixed by the user: a provider cannot grind it.
    """
    return digest("voucher", to_bytes(voucher), voucher.chain_id)


def sign_voucher(seed: bytes, voucher: Voucher) -> bytes:
    """Signature (64 bytes) of the user whose 32-byte seed this is; raises :class:`MalformedError`."""
    validate(voucher)
    return sign(seed, inference_id(voucher))


def _ids_commitment(kind: str, salt: bytes, ids: Sequence[int]) -> bytes:
    if len(salt) != SALT_BYTES:
        raise MalformedError(f"a salt has {SALT_BYTES} bytes", "salt")
    return digest(kind, encode([salt, list(ids)]))


def prompt_commitment(salt: bytes, ids: Sequence[int]) -> bytes:
    """Commitment (32 bytes) to a prompt's token ids under the user's 32-byte salt."""
    return _ids_commitment("prompt-commitment", salt, ids)


def output_commitment(salt: bytes, ids: Sequence[int]) -> bytes:
    """Commitment (32 bytes) to an output's token ids under the provider's 32-byte salt."""
    return _ids_commitment("output-commitment", salt, ids)


def encode_opening(opening: Opening) -> bytes:
    """The blob of a reveal: canonical ``[prompt_ids, prompt_salt, output_ids, output_salt]``."""
    data = encode(pack(validate(opening)))
    if len(data) > OPENING_BYTES_MAX:
        raise MalformedError(f"an opening of {len(data)} bytes, over {OPENING_BYTES_MAX}", "opening")
    return data


def decode_opening(data: bytes) -> Opening:
    """Read a reveal's blob; raises :class:`MalformedError` (`AuditStatus.OPENING_INVALID` to an auditor)."""
    return from_bytes(Opening, data, OPENING_BYTES_MAX)
