"""What a validator attests about one audited inference, and the hashes that bind it.

Shares are integers that sum to `SHARES_TOTAL`, one for each contributor, in ascending order of address; what no
record explains stands under the treasury's address (32 zero bytes). A result that is not `AuditStatus.OK` pays nobody,
so it carries no shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise

from consensus.codec import encode
from consensus.digest import digest
from node.ledger.errors import MalformedError
from node.ledger.fields import fixed, many, pack, row, uint

ADDRESS_BYTES = 32
HASH_BYTES = 32
SALT_BYTES = 32
SHARES_TOTAL = 10**9
SHARES_COUNT_MAX = 129
"""One share for each contributor of an adapter (params.contributors_per_adapter_max <= 128) and the treasury's."""

TREASURY = bytes(ADDRESS_BYTES)
"""Address of the treasury. No signature verifies under it (libsodium refuses keys of small order)."""

STATUS_MAX = 255
Shares = tuple[tuple[bytes, int], ...]


class AuditStatus(IntEnum):
    """Outcome of a recomputation, attested like any other result.

    1 and 2 are the provider's fault: its bond is burned. From 3 on nobody is at fault for certain, so the user is
    refunded and the bond stays.
    """

    OK = 0
    OUTPUT_DIFFERS = 1
    OPENING_INVALID = 2
    LIMIT_EXCEEDED = 3
    NON_FINITE = 4
    ARITHMETIC_REFUSED = 5


PROVIDER_FAULTS = frozenset({AuditStatus.OUTPUT_DIFFERS, AuditStatus.OPENING_INVALID})

SHARES_RULE = many(row(fixed(ADDRESS_BYTES), uint(SHARES_TOTAL, 1)), SHARES_COUNT_MAX)


def check_shares(status: int, shares: Shares) -> None:
    """Shares of an OK result sum to 10^9 in strictly ascending order of address; any other result has none."""
    if status != AuditStatus.OK:
        if shares:
            raise MalformedError("a result that pays nobody carries shares", "shares")
        return
    addresses = [address for address, _ in shares]
    if any(left >= right for left, right in pairwise(addresses)):
        raise MalformedError("shares are not in strictly ascending order of address", "shares")
    if sum(share for _, share in shares) != SHARES_TOTAL:
        raise MalformedError(f"shares do not sum to {SHARES_TOTAL}", "shares")


@dataclass(frozen=True, slots=True)
class AuditResult:
    """One result: status, hash over everything that was computed (32 bytes), shares."""

    status: int = field(metadata=uint(STATUS_MAX))
    result_hash: bytes = field(metadata=fixed(HASH_BYTES))
    shares: Shares = field(metadata=SHARES_RULE)

    def __post_init__(self) -> None:
        check_shares(self.status, self.shares)


def _integer_bytes(value: int) -> bytes:
    """Two's complement, big-endian, as short as it can be: scores may be wider than 64 bits."""
    return value.to_bytes((value + (value < 0)).bit_length() // 8 + 1, "big", signed=True)


def audit_result_hash(
    adapter_hash: bytes,
    index_root: bytes,
    index_version: int,
    prompt_ids: Sequence[int],
    output_ids: Sequence[int],
    scores: Sequence[int],
    shares: Shares,
    status: int,
) -> bytes:
    """Hash (32 bytes) of a recomputation; equal on two machines exactly when every integer is.

    `scores` are the integer scores of all records in index order, of any size and sign. The same on every chain: the
    result depends on content alone, and attestations bind it to an inference.
    """
    fields = [
        adapter_hash,
        index_root,
        index_version,
        b"".join(token.to_bytes(4, "big") for token in prompt_ids),
        b"".join(token.to_bytes(4, "big") for token in output_ids),
        [_integer_bytes(score) for score in scores],
        pack(shares),
        int(status),
    ]
    return digest("audit-result", encode(fields))


def attestation_commitment(
    inference: bytes, status: int, result_hash: bytes, shares: Shares, account: bytes, salt: bytes
) -> bytes:
    """Commitment (32 bytes) to a result by one validator.

    The account is inside, so bytes copied from another validator's commitment open for nobody else; the 32-byte salt
    keeps the few possible results from being guessed.
    """
    fields = [inference, int(status), result_hash, pack(shares), account, salt]
    return digest("attestation", encode(fields))
