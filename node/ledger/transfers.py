"""Transfers that nothing is wrong with, executed at once: they are nearly all that a busy chain carries.

Whatever deviates in the least goes the way of every other kind, through `admission.check_envelope`, `execute` and
`money.transfer`, which say what is wrong. A shortcut therefore never decides that something is refused, but for a signature:
verifying that twice would be worth an attack.
"""

from __future__ import annotations

from collections.abc import Callable

from node.ledger.block import Receipt, ReceiptStatus
from node.ledger.bodies import Transfer
from node.ledger.entries import ACCOUNT, Account
from node.ledger.environment import Environment
from node.ledger.errors import InvalidCode, InvalidTransactionError
from node.ledger.overlay import Overlay
from node.ledger.reading import ReadTransaction

AtOnce = Callable[[ReadTransaction, int], Receipt | None]
"""(transaction, bytes it takes) -> receipt of a transfer that succeeded; None, with nothing changed, for anything else.

Raises :class:`InvalidTransactionError` where the signature is bad and everything else is good.
"""

_NOTHING = Account()
_OK = ReceiptStatus.OK


def transfers_at_once(overlay: Overlay, env: Environment) -> AtOnce:
    """Executes transfers of one block; `overlay` is the block's own."""
    chain_id, earliest, params = env.context.chain_id, env.context.height, env.params
    latest = earliest + params.valid_until_heights_max
    fee_transfer, fee_per_byte = params.fee_transfer, params.fee_per_byte
    proposer, written, account, check = (
        ACCOUNT + env.proposer_account,
        overlay.accounts,
        overlay.account,
        env.check,
    )

    def at_once(known: ReadTransaction, size_bytes: int) -> Receipt | None:
        transaction = known.transaction
        body, fee = transaction.body, transaction.fee
        if (
            type(body) is not Transfer
            or transaction.chain_id != chain_id
            or not earliest <= transaction.valid_until <= latest
            or fee < fee_transfer + fee_per_byte * size_bytes
        ):
            return None
        amount, source, target = body.amount, ACCOUNT + transaction.sender, ACCOUNT + body.to
        sender = written.get(source) or account(source)
        if sender is None or sender.nonce != transaction.nonce or sender.balance < fee + amount:
            return None
        if not check(*known.signed):
            raise InvalidTransactionError(InvalidCode.BAD_SIGNATURE, sender=transaction.sender)
        # One after the other, each as the last one left it: sender, proposer and recipient may be the same.
        written[source] = Account(sender.balance - fee - amount, sender.nonce + 1)
        if fee:
            paid = written.get(proposer) or account(proposer) or _NOTHING
            written[proposer] = Account(paid.balance + fee, paid.nonce)
        recipient = written.get(target) or account(target) or _NOTHING
        written[target] = Account(recipient.balance + amount, recipient.nonce)
        return Receipt(known.tx_hash, _OK, Transfer.KIND, "", fee)

    return at_once
