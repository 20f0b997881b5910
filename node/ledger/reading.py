"""A transaction read once: its hash, its fields and what its sender signed, and a bounded memory of what was read.

One transaction is met many times on its way (from a client or peer, in a batch, where it executes, where it is shown); its bytes say the
same each time. Only well-formed transactions are remembered, so garbage cannot fill the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from consensus.codec import SHORT_BYTES_MAX, encode_known, unpack_short
from consensus.digest import digest
from consensus.errors import CodecError
from node.ledger.bodies import SIGNATURE_BYTES, Transfer
from node.ledger.fields import U63_MAX
from node.ledger.transaction import (
    TRANSACTION_VERSION,
    Transaction,
    decode_transaction,
    hash_transaction_bytes,
)

REMEMBERED_MAX = 8_192
"""In each of two generations."""

REMEMBERED_BYTES_MAX = 1_024
"""Longer ones are read anew each time, so that the memory stays below some 30 MB."""

_EIGHT_FIELDS = b"\x98"
_SIGNATURE_FIELD_BYTES = 2 + SIGNATURE_BYTES
"""The last field of the canonical form: two bytes of header and the signature."""

# Where the fields of a transfer stand: version, chain and sender first, the signature last, integers and body between.
_VERSION_AND_BYTES32 = bytes([0x99, TRANSACTION_VERSION, 0xC4, 32])
_BYTES32, _BYTES64 = b"\xc4\x20", b"\xc4\x40"
_SENDER_AT, _NONCE_AT, _FIVE_FIELDS = 38, 70, b"\x95"


@dataclass(frozen=True, slots=True)
class ReadTransaction:
    """A well-formed transaction; `signed` is (sender, message, signature) as a `SignatureCheck` takes them."""

    tx_hash: bytes
    transaction: Transaction
    signed: tuple[bytes, bytes, bytes]


Read = Callable[[bytes], ReadTransaction]


def read_transaction(data: bytes, chain_id: bytes) -> ReadTransaction:
    """Read canonical bytes, named on this chain; raises :class:`MalformedError`.

    What was signed is the array of the first eight fields: as the form is canonical, these are the bytes that stand there.
    """
    transaction = _decode_transfer(data, chain_id) or decode_transaction(data)
    message = digest(
        "transaction-sign", _EIGHT_FIELDS + data[1:-_SIGNATURE_FIELD_BYTES], transaction.chain_id
    )
    signed = (transaction.sender, message, transaction.signature)
    return ReadTransaction(hash_transaction_bytes(data, chain_id), transaction, signed)


def _decode_transfer(data: bytes, chain_id: bytes) -> Transaction | None:
    """`decode_transaction` of a short transfer on this chain, at a fifth of its cost; None for anything else, good or bad.

    The fixed parts stand where the canonical form has them. What is between is unpacked, looked at value by value, and
    must be what it packs to, like everything in `consensus.codec.decode`.
    """
    if (
        not _NONCE_AT + _SIGNATURE_FIELD_BYTES <= len(data) <= SHORT_BYTES_MAX
        or len(chain_id) != 32
        or not data.startswith(_VERSION_AND_BYTES32 + chain_id + _BYTES32)
        or data[-_SIGNATURE_FIELD_BYTES:-SIGNATURE_BYTES] != _BYTES64
    ):
        return None
    between = _FIVE_FIELDS + data[_NONCE_AT:-_SIGNATURE_FIELD_BYTES]
    try:
        nonce, fee, valid_until, kind, body = values = unpack_short(between)
    except CodecError:
        return None
    if not (type(nonce) is type(fee) is type(valid_until) is type(kind) is int and type(body) is list):
        return None
    if kind != Transfer.KIND or len(body) != 2:
        return None
    to, amount = body
    if (
        type(to) is not bytes
        or len(to) != 32
        or type(amount) is not int
        or not (0 <= nonce <= U63_MAX and 0 <= fee <= U63_MAX and 0 <= valid_until <= U63_MAX)
        or not 1 <= amount <= U63_MAX
        or encode_known(values) != between
    ):
        return None
    sender, signature = data[_SENDER_AT:_NONCE_AT], data[-SIGNATURE_BYTES:]
    return Transaction(
        TRANSACTION_VERSION, chain_id, sender, nonce, fee, valid_until, kind, Transfer(to, amount), signature
    )


class TransactionReader:
    """`read_transaction` of one chain with a bounded memory; several threads may share it.

    Two generations: once the newer is full it becomes the older, so that what is in flight is never forgotten all at once. Each
    step is one assignment; threads that meet in between only read something twice.
    """

    __slots__ = ("_chain_id", "_known", "_older")

    def __init__(self, chain_id: bytes) -> None:
        self._chain_id = chain_id
        self._known: dict[bytes, ReadTransaction] = {}
        self._older: dict[bytes, ReadTransaction] = {}

    def __len__(self) -> int:
        return len(self._known) + len(self._older)

    def __call__(self, data: bytes) -> ReadTransaction:
        """Read a transaction, from memory where possible; raises :class:`MalformedError`."""
        known = self._known.get(data) or self._older.get(data)
        if known is not None:
            return known
        read = read_transaction(data, self._chain_id)
        if len(data) <= REMEMBERED_BYTES_MAX:
            if len(self._known) >= REMEMBERED_MAX:
                self._older, self._known = self._known, {}
            self._known[data] = read
        return read

    def hash(self, data: bytes) -> bytes:
        """Hash (32 bytes) of a transaction's bytes, whether they are well-formed or not."""
        known = self._known.get(data) or self._older.get(data)
        return hash_transaction_bytes(data, self._chain_id) if known is None else known.tx_hash
