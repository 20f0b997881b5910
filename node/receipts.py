"""Storage receipts: which validators say, signed after fsync, that they hold a transaction's blob."""

from dataclasses import dataclass, field

from node.directory import Directory
from node.ledger.batch import (
    StorageClaim,
    StorageReceipts,
    storage_receipt_digest,
    verify_storage_receipt,
)

CLAIMS_MAX = 4096


@dataclass(slots=True)
class ReceiptBook:
    """Receipts by what they vouch for.

    Of each validator the last `CLAIMS_MAX` receipts are kept, so that none can push out another's; those forgotten come
    again when their transaction is gossiped again.
    """

    chain_id: bytes
    directory: Directory
    _signatures: dict[bytes, dict[bytes, bytes]] = field(default_factory=dict)
    _claims_of: dict[bytes, dict[bytes, None]] = field(default_factory=dict)

    def add(self, claim: StorageClaim, account: bytes, signature: bytes) -> bool:
        """Keep a receipt; returns False when its signer is no validator or its signature is wrong."""
        if not self.directory.is_validator_account(account):
            return False
        name = storage_receipt_digest(claim, self.chain_id)
        known = self._signatures.get(name, {})
        if account in known:
            return True
        if not verify_storage_receipt(account, signature, claim, self.chain_id):
            return False
        claims = self._claims_of.setdefault(account, {})
        if len(claims) >= CLAIMS_MAX:
            self._forget(next(iter(claims)), account)
        claims[name] = None
        self._signatures.setdefault(name, {})[account] = signature
        return True

    def _forget(self, name: bytes, account: bytes) -> None:
        del self._claims_of[account][name]
        holders = self._signatures[name]
        del holders[account]
        if not holders:
            del self._signatures[name]

    def signature(self, claim: StorageClaim, account: bytes) -> bytes | None:
        """Return this validator's receipt, or None."""
        return self._signatures.get(storage_receipt_digest(claim, self.chain_id), {}).get(account)

    def quorum(self, claim: StorageClaim) -> StorageReceipts | None:
        """Receipts of more than two thirds of stake in order of account, or None while there are too few."""
        known = self._signatures.get(storage_receipt_digest(claim, self.chain_id), {})
        if not self.directory.validators.is_quorum(frozenset(known)):
            return None
        return tuple(sorted(known.items()))
