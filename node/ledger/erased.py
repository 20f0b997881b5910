"""A contribution's records after some were erased: what remains, and a Merkle leaf's hash where a record was.

The blob is the canonical encoding of ``[[token id, ...] or 32 bytes, ...]``; with nothing erased it is that of
`records`. It has another digest than the contribution's blob, which cannot be helped, but it proves itself
against the contribution's Merkle root, which is on the ledger: whoever lacks the records takes it from anybody.
*Which* records may be missing it does not prove: the caller knows that, or refuses hashes where it expects
records.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from attribution.merkle import DIGEST_BYTES, leaf_hash, root_of_hashes
from consensus.codec import decode, encode
from consensus.errors import CodecError
from node.ledger.errors import MalformedError
from node.ledger.records import RECORDS_BYTES_MAX, check_records

Remaining = tuple[tuple[int, ...] | bytes, ...]
"""Every record of a contribution: its token ids, or the hash of its leaf."""


def erase_records(blob: bytes, root: bytes, numbers: Collection[int]) -> bytes:
    """The blob without the tokens of some records, which may be erased already.

    Raises :class:`MalformedError` on a blob that is not that of ``root``, or a number beyond its records.
    """
    remaining = read_remaining(blob, root)
    if any(not 0 <= number < len(remaining) for number in numbers):
        raise MalformedError(f"there are {len(remaining)} records", "records")
    hashes = _hashes(remaining)
    return encode_remaining([hashes[n] if n in numbers else record for n, record in enumerate(remaining)])


def read_remaining(blob: bytes, root: bytes) -> Remaining:
    """Records and hashes of a blob of either kind, checked against the contribution's root; raises :class:`MalformedError`."""
    try:
        value = decode(blob, RECORDS_BYTES_MAX, elements_max=RECORDS_BYTES_MAX)
    except CodecError as error:
        raise MalformedError(f"records: {error}", "records") from error
    if not isinstance(value, list):
        raise MalformedError("records are not a list", "records")
    check_records([[0] if _is_hash(record) else record for record in value])
    remaining = tuple([record if isinstance(record, bytes) else tuple(record) for record in value])
    if root_of_hashes(_hashes(remaining)) != root:
        raise MalformedError("these are not the contribution's records", "records")
    return remaining


def _is_hash(record: object) -> bool:
    return isinstance(record, bytes) and len(record) == DIGEST_BYTES


def _hashes(remaining: Remaining) -> list[bytes]:
    return [record if isinstance(record, bytes) else leaf_hash(encode(list(record))) for record in remaining]


def encode_remaining(remaining: Sequence[tuple[int, ...] | bytes]) -> bytes:
    """Blob of what is left; raises :class:`MalformedError` over the limit."""
    blob = encode([record if isinstance(record, bytes) else list(record) for record in remaining])
    if len(blob) > RECORDS_BYTES_MAX:  # a hash may be longer than the record that it stands for
        raise MalformedError(f"{len(blob)} bytes of records where {RECORDS_BYTES_MAX} are allowed", "records")
    return blob
