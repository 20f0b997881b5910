"""The checks on an envelope: once more lenient at the mempool's door, and exact when it executes."""

from __future__ import annotations

from consensus.crypto import verify
from node.ledger.bodies import DUTY_KINDS
from node.ledger.errors import InvalidCode, InvalidTransactionError
from node.ledger.overlay import StateReader
from node.ledger.params import Params
from node.ledger.state import get_account, get_params, get_validators
from node.ledger.transaction import (
    SignatureCheck,
    Transaction,
    encode_transaction,
    fee_required,
    verify_signature,
)


def check_envelope(
    reader: StateReader,
    params: Params,
    transaction: Transaction,
    size_bytes: int,
    chain_id: bytes,
    height: int,
    nonce_gap_max: int = 0,
) -> None:
    """Raise :class:`InvalidTransactionError` unless the envelope may execute at `height`; the signature is not looked at.

    `nonce_gap_max` is how far the nonce may be ahead of the account's: 0 where it executes.
    """
    if transaction.chain_id != chain_id:
        raise InvalidTransactionError(InvalidCode.WRONG_CHAIN, chain_id=transaction.chain_id)
    if height > transaction.valid_until:
        raise InvalidTransactionError(InvalidCode.EXPIRED, valid_until=transaction.valid_until, height=height)
    if transaction.valid_until > height + params.valid_until_heights_max:
        raise InvalidTransactionError(
            InvalidCode.EXPIRY_TOO_FAR, valid_until=transaction.valid_until, height=height
        )
    if transaction.kind in DUTY_KINDS:
        if transaction.nonce or transaction.fee:
            raise InvalidTransactionError(
                InvalidCode.WRONG_NONCE, "a duty carries nonce 0 and fee 0", nonce=transaction.nonce
            )
        return
    account = get_account(reader, transaction.sender)
    if not account.nonce <= transaction.nonce <= account.nonce + nonce_gap_max:
        ahead = transaction.nonce > account.nonce and nonce_gap_max > 0
        message = f"more than {nonce_gap_max} transactions ahead of the account" if ahead else ""
        raise InvalidTransactionError(
            InvalidCode.WRONG_NONCE, message, nonce=transaction.nonce, expected=account.nonce
        )
    required = fee_required(params, transaction.kind, size_bytes)
    if transaction.fee < required:
        raise InvalidTransactionError(InvalidCode.FEE_TOO_LOW, fee=transaction.fee, required=required)
    if account.balance < transaction.fee:
        raise InvalidTransactionError(InvalidCode.FEE_UNPAYABLE, fee=transaction.fee, balance=account.balance)


def mempool_check(
    reader: StateReader,
    transaction: Transaction,
    height: int,
    *,
    chain_id: bytes,
    check: SignatureCheck = verify,
) -> None:
    """Raise :class:`InvalidTransactionError` unless the transaction may wait in a mempool at this executed height.

    It may carry a nonce up to params.nonce_gap_max ahead. A duty is admitted from validators only; whether it is owed is
    decided where it executes. Storage receipts and the body's own conditions are not looked at.
    """
    mempool_check_unsigned(
        reader, transaction, len(encode_transaction(transaction)), height, chain_id=chain_id
    )
    verify_signature(transaction, check)


def mempool_check_unsigned(
    reader: StateReader, transaction: Transaction, size_bytes: int, height: int, *, chain_id: bytes
) -> None:
    """All of `mempool_check` but the signature, which takes longest and needs no state."""
    params = get_params(reader)
    check_envelope(reader, params, transaction, size_bytes, chain_id, height + 1, params.nonce_gap_max)
    if transaction.kind in DUTY_KINDS and get_validators(reader).by_account(transaction.sender) is None:
        raise InvalidTransactionError(InvalidCode.DUTY_NOT_OWED, "not a validator", sender=transaction.sender)
