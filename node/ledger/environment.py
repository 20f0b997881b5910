"""What every transition may look at besides the state: the block, the parameters and validators at its start."""

from __future__ import annotations

from dataclasses import dataclass

from node.ledger.block import BlockContext, Receipt, ReceiptStatus
from node.ledger.entries import Payout, ValidatorSet
from node.ledger.params import Params
from node.ledger.transaction import SignatureCheck


@dataclass(frozen=True, slots=True)
class Environment:
    """Constant through one block. `proposer_account` earns the fees."""

    context: BlockContext
    params: Params
    validators: ValidatorSet
    proposer_account: bytes
    check: SignatureCheck

    def due(self, height: int, ms: int) -> bool:
        """Whether a deadline has passed: windows are given in heights and milliseconds, and both must be over."""
        return self.context.height >= height and self.context.timestamp_ms >= ms


def event(subject: bytes, code: str, payouts: tuple[Payout, ...] = (), burned: int = 0) -> Receipt:
    """The receipt of a step that the ledger took by itself."""
    return Receipt(subject, ReceiptStatus.SYSTEM, 0, code, 0, payouts, burned)
