"""A transaction read once: its hash, its fields and what its sender signed, and a bounded memory of what was read.

One transaction is met many times on its way (from a client or peer, in a batch, where it executes, where it is shown); its bytes say the
same each time. Only well-formed transactions are remembered, so garbage cannot fill the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from consensus.digest import digest
from node.ledger.transaction import Transaction, decode_transaction, hash_transaction_bytes

REMEMBERED_MAX = 8_192
"""In each of two generations."""

REMEMBERED_BYTES_MAX = 1_024
"""Longer ones are read anew each time, so that the memory stays below some 30 MB."""

_EIGHT_FIELDS = b"\x98"
_SIGNATURE_FIELD_BYTES = 66
"""The last field of the canonical form: two bytes of header and the signature."""


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
    transaction = decode_transaction(data)
    message = digest(
        "transaction-sign", _EIGHT_FIELDS + data[1:-_SIGNATURE_FIELD_BYTES], transaction.chain_id
    )
    signed = (transaction.sender, message, transaction.signature)
    return ReadTransaction(hash_transaction_bytes(data, chain_id), transaction, signed)


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
