"""The literal table from kind number to the function that performs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from node.ledger import audits, data, erasure, evidence, models, money, serving, staking
from node.ledger.block import Receipt
from node.ledger.environment import Environment
from node.ledger.overlay import Overlay

Transition = Callable[[Overlay, Environment, bytes, Any, bytes], list[Receipt]]
"""(overlay, environment, sender, body, transaction hash) -> receipts of the ledger's own steps.

Writes go to an overlay that is dropped if the transition raises `FailedTransactionError` or, for duties,
`InvalidTransactionError`.
"""

TRANSITIONS: dict[int, Transition] = {
    1: money.transfer,
    10: data.create_datanet,
    20: data.submit_contribution,
    21: erasure.erase,
    30: models.register_base,
    31: models.publish_adapter,
    32: models.attest_held,
    40: serving.add_bond,
    41: serving.record_inference,
    42: serving.reveal_inference,
    50: audits.attest_commit,
    51: audits.attest_open,
    60: staking.register_validator,
    61: staking.add_stake,
    62: staking.unbond_stake,
    63: staking.leave,
    64: staking.unjail,
    65: staking.anchor_anew,
    70: evidence.submit_evidence,
}
