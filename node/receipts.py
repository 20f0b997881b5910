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

    Past `CLAIMS_MAX` claims the oldest is forgotten; validators send theirs again when its transaction is gossiped
    again.
    """

    chain_id: bytes
    directory: Directory
    _signatures: dict[bytes, dict[bytes, bytes]] = field(default_factory=dict)

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
        if name not in self._signatures and len(self._signatures) >= CLAIMS_MAX:
            del self._signatures[next(iter(self._signatures))]
        self._signatures.setdefault(name, {})[account] = signature
        return True

    def signature(self, claim: StorageClaim, account: bytes) -> bytes | None:
        """Return this validator's receipt, or None."""
        return self._signatures.get(storage_receipt_digest(claim, self.chain_id), {}).get(account)

    def quorum(self, claim: StorageClaim) -> StorageReceipts | None:
        """Receipts of more than two thirds of stake in order of account, or None while there are too few."""
        known = self._signatures.get(storage_receipt_digest(claim, self.chain_id), {})
        if not self.directory.validators.is_quorum(frozenset(known)):
            return None
        return tuple(sorted(known.items()))
