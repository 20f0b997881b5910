"""Writes on top of a state: a transaction's, and a block's; and accounts remembered by their bytes, as they pass."""

from __future__ import annotations

from typing import Protocol

from consensus.codec import encode_known
from node.ledger.entries import VALUE_BYTES_MAX, Account
from node.ledger.fields import (
    U63_MAX,
    decode_list,
    to_bytes,
    unpack,
)

ACCOUNTS_REMEMBERED_MAX = 16_384
_accounts: dict[bytes, Account] = {}
"""Accounts by their bytes, as they were last read or written: what a block writes the next ones read. Some 4 MB."""


def decode_account(data: bytes) -> Account:
    """Read an account, from memory where possible; raises :class:`MalformedError`."""
    known = _accounts.get(data)
    if known is None:
        known = unpack(Account, decode_list(data, VALUE_BYTES_MAX, "Account"))
        _remember_account(data, known)
    return known


def encode_account(account: Account) -> bytes:
    """Canonical bytes of an account."""
    balance, nonce = account.balance, account.nonce
    data = encode_known((balance, nonce))
    # What could not be read is not remembered as if it could.
    if 0 <= balance <= U63_MAX and 0 <= nonce <= U63_MAX:
        _remember_account(data, account)
    return data


def _remember_account(data: bytes, account: Account) -> None:
    if len(_accounts) >= ACCOUNTS_REMEMBERED_MAX:
        _accounts.clear()  # at once: several threads read and write here
    _accounts[data] = account


class StateReader(Protocol):
    """Where a state is read from: a dict, a database, an overlay."""

    def get(self, key: bytes) -> bytes | None:
        """The value under `key`, or None."""
        ...


class Overlay:
    """Writes on top of a reader; a transaction's overlay is merged into its block's only if it succeeds.

    A block writes some accounts hundreds of times, so they are kept as they are and encoded once, when their bytes are asked for:
    `accounts` are those that were written since, by key.
    """

    __slots__ = ("_base", "_changes", "accounts")

    def __init__(self, base: StateReader) -> None:
        self._base = base
        self._changes: dict[bytes, bytes | None] = {}
        self.accounts: dict[bytes, Account] = {}

    @property
    def changes(self) -> dict[bytes, bytes | None]:
        """Everything that was written here, by key; None for what was removed."""
        for key, account in self.accounts.items():
            self._changes[key] = encode_account(account)
        self.accounts.clear()
        return self._changes

    def get(self, key: bytes) -> bytes | None:
        """The value under `key`, the latest write first."""
        if key in self.accounts:
            self._encode(key)
        return self._changes[key] if key in self._changes else self._base.get(key)

    def account(self, key: bytes) -> Account | None:
        """The account under `key`, the latest write first; None where there is none."""
        written = self.accounts.get(key)
        if written is not None:
            return written
        if key in self._changes:
            data = self._changes[key]
        elif isinstance(self._base, Overlay):
            return self._base.account(key)
        else:
            data = self._base.get(key)
        return None if data is None else decode_account(data)

    def put(self, key: bytes, value: bytes) -> None:
        """Write a value."""
        self.accounts.pop(key, None)
        self._changes[key] = value

    def put_record(self, key: bytes, record: object) -> None:
        """Write a dataclass in its canonical form."""
        if type(record) is Account:
            self.accounts[key] = record
        else:
            self.put(key, to_bytes(record))

    def delete(self, key: bytes) -> None:
        """Remove a key."""
        self.accounts.pop(key, None)
        self._changes[key] = None

    def merge(self, child: Overlay) -> None:
        """Take over the writes of an overlay made on this one."""
        for key in child._changes:
            self.accounts.pop(key, None)
        self._changes.update(child._changes)
        self.accounts.update(child.accounts)

    def _encode(self, key: bytes) -> None:
        self._changes[key] = encode_account(self.accounts.pop(key))


StateWriter = Overlay
