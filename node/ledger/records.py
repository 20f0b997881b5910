"""A contribution's blob: records as token ids, their Merkle root, and the limits that both must keep.

The blob is the canonical encoding of ``[[token id, ...], ...]``; a leaf of the root is the encoding of one record's ids.
Content hashes are the same on every chain.
"""

from __future__ import annotations

from collections.abc import Sequence

from attribution.merkle import merkle_root
from consensus.codec import decode, encode
from consensus.errors import CodecError
from node.ledger.errors import MalformedError
from node.ledger.fields import U32_MAX

RECORDS_MAX = 10_000
RECORD_TOKENS_MAX = 4_096
RECORDS_BYTES_MAX = 8 << 20

Records = tuple[tuple[int, ...], ...]


def check_records(records: Sequence[Sequence[int]]) -> None:
    """Raise :class:`MalformedError` unless there are 1 to 10,000 records of 1 to 4,096 token ids below 2^32."""
    if not 1 <= len(records) <= RECORDS_MAX:
        raise MalformedError(f"{len(records)} records where 1 to {RECORDS_MAX} are allowed", "records")
    for position, record in enumerate(records):
        if not isinstance(record, list | tuple) or not 1 <= len(record) <= RECORD_TOKENS_MAX:
            raise MalformedError(f"record {position} is not 1 to {RECORD_TOKENS_MAX} tokens", "records")
        if any(type(token) is not int for token in record) or not 0 <= min(record) <= max(record) <= U32_MAX:
            raise MalformedError(f"record {position} has a token id outside [0, 2^32)", "records")


def encode_records(records: Sequence[Sequence[int]]) -> bytes:
    """Blob of these records; raises :class:`MalformedError` over a limit."""
    check_records(records)
    blob = encode([list(record) for record in records])
    if len(blob) > RECORDS_BYTES_MAX:
        raise MalformedError(f"{len(blob)} bytes of records where {RECORDS_BYTES_MAX} are allowed", "records")
    return blob


def decode_records(blob: bytes) -> Records:
    """Records of a blob; raises :class:`MalformedError` for anything that `encode_records` cannot have made."""
    try:
        value = decode(blob, RECORDS_BYTES_MAX, elements_max=RECORDS_BYTES_MAX)
    except CodecError as error:
        raise MalformedError(f"records: {error}", "records") from error
    if not isinstance(value, list):
        raise MalformedError("records are not a list", "records")
    check_records(value)
    return tuple([tuple(record) for record in value])


def records_root(records: Sequence[Sequence[int]]) -> bytes:
    """Merkle root (32 bytes) over the records in their order."""
    return merkle_root([encode(list(record)) for record in records])


def token_count(records: Sequence[Sequence[int]]) -> int:
    """Number of tokens in all records."""
    return sum(len(record) for record in records)
