"""Moving units: accounts, escrow, bonds, burning. Every function conserves `Supply`, apart from `burn_*` by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from node.ledger.block import Receipt
from node.ledger.bodies import Transfer
from node.ledger.entries import ACCOUNT, SUPPLY_KEY, Account, Supply
from node.ledger.environment import Environment
from node.ledger.errors import ExecutionError, FailedTransactionError, FailureCode
from node.ledger.overlay import Overlay
from node.ledger.state import get_account, get_supply


def credit(overlay: Overlay, address: bytes, amount: int) -> None:
    """Add `amount` to a free balance."""
    if amount:
        account = get_account(overlay, address)
        overlay.put_record(ACCOUNT + address, Account(account.balance + amount, account.nonce))


def debit(overlay: Overlay, address: bytes, amount: int) -> None:
    """Take `amount` from a free balance; fails the transaction with "insufficient-balance"."""
    account = get_account(overlay, address)
    if account.balance < amount:
        raise FailedTransactionError(
            FailureCode.INSUFFICIENT_BALANCE, account=address, balance=account.balance, needed=amount
        )
    overlay.put_record(ACCOUNT + address, Account(account.balance - amount, account.nonce))


def put_supply(overlay: Overlay, supply: Supply) -> None:
    """Write the supply; a negative part would mean that this package is wrong, so it stops the node."""
    if min(supply.total, supply.burned, supply.escrowed, supply.bonded, supply.staked) < 0:
        raise ExecutionError("a part of the supply would be negative")
    overlay.put_record(SUPPLY_KEY, supply)


def escrow(overlay: Overlay, user: bytes, amount: int) -> None:
    """Move a call's fee from its user into escrow."""
    debit(overlay, user, amount)
    supply = get_supply(overlay)
    put_supply(overlay, replace(supply, escrowed=supply.escrowed + amount))


def release(overlay: Overlay, payments: Sequence[tuple[bytes, int]], burned: int) -> None:
    """Pay out of escrow and burn a part of it."""
    supply = get_supply(overlay)
    paid = sum(amount for _, amount in payments)
    put_supply(
        overlay,
        replace(
            supply,
            total=supply.total - burned,
            burned=supply.burned + burned,
            escrowed=supply.escrowed - paid - burned,
        ),
    )
    for address, amount in payments:
        credit(overlay, address, amount)


def bond(overlay: Overlay, account: bytes, amount: int) -> None:
    """Move units from a free balance into bonds."""
    debit(overlay, account, amount)
    supply = get_supply(overlay)
    put_supply(overlay, replace(supply, bonded=supply.bonded + amount))


def burn_bond(overlay: Overlay, amount: int) -> None:
    """Destroy bonded units: nobody profits from a slash, so nobody has a reason to provoke one."""
    supply = get_supply(overlay)
    put_supply(
        overlay,
        replace(
            supply, total=supply.total - amount, burned=supply.burned + amount, bonded=supply.bonded - amount
        ),
    )


def lock_stake(overlay: Overlay, account: bytes, amount: int) -> None:
    """Move units from a free balance into stakes."""
    debit(overlay, account, amount)
    supply = get_supply(overlay)
    put_supply(overlay, replace(supply, staked=supply.staked + amount))


def return_stake(overlay: Overlay, account: bytes, amount: int) -> None:
    """Move units out of stakes into a free balance."""
    supply = get_supply(overlay)
    put_supply(overlay, replace(supply, staked=supply.staked - amount))
    credit(overlay, account, amount)


def burn_stake(overlay: Overlay, amount: int) -> None:
    """Destroy staked units, like `burn_bond`."""
    supply = get_supply(overlay)
    put_supply(
        overlay,
        replace(
            supply, total=supply.total - amount, burned=supply.burned + amount, staked=supply.staked - amount
        ),
    )


def split(amount: int, weights: Sequence[int]) -> list[int]:
    """Integer parts of `amount` in proportion to `weights`, summing to it exactly (largest remainder).

    Each part is the floor of its quota; the units left over go one each to the largest remainders, the earlier
    entry first where remainders tie. Weights must not sum to zero unless `amount` is zero.
    """
    total = sum(weights)
    if not total:
        if amount:
            raise ExecutionError("nothing to split among")
        return [0] * len(weights)
    parts = [amount * weight // total for weight in weights]
    order = sorted(range(len(weights)), key=lambda at: (-(amount * weights[at] % total), at))
    for at in order[: amount - sum(parts)]:
        parts[at] += 1
    return parts


def transfer(
    overlay: Overlay, env: Environment, sender: bytes, body: Transfer, tx_hash: bytes
) -> list[Receipt]:
    """Move free units between accounts."""
    debit(overlay, sender, body.amount)
    credit(overlay, body.to, body.amount)
    return []
