"""Signing rules that no honest replica's story reaches: only what asks in another order shows that they hold."""

import pytest

from consensus.errors import SafetyRefusal
from consensus.safety import SafetyRecord, SafetyRules
from tests.unit.consensus.lab import CONTEXT, GENESIS, GENESIS_QC, SEEDS, Chain, qc_of, quorum_tc


def test_no_timeout_of_a_round_below_the_last_vote() -> None:
    rules = SafetyRules(SEEDS[0], CONTEXT)
    rules.sign_vote(Chain().block(GENESIS, 5, tc=quorum_tc(4, GENESIS_QC)))
    with pytest.raises(SafetyRefusal, match="above this round"):
        rules.sign_timeout(4, GENESIS_QC, quorum_tc(3, GENESIS_QC))
    timeout, _ = rules.sign_timeout(5, GENESIS_QC, quorum_tc(4, GENESIS_QC))
    assert timeout.round == 5


def test_no_second_timeout_of_a_round_although_the_first_is_not_remembered() -> None:
    rules = SafetyRules(SEEDS[0], CONTEXT, SafetyRecord(0, last_voted=5, highest_timeout=5))
    with pytest.raises(SafetyRefusal, match="timed out"):
        rules.sign_timeout(5, GENESIS_QC, quorum_tc(4, GENESIS_QC))
    timeout, _ = rules.sign_timeout(6, GENESIS_QC, quorum_tc(5, GENESIS_QC))
    assert timeout.round == 6


def test_no_timeout_of_a_round_whose_certificate_is_at_hand() -> None:
    """Such a timeout would claim a high QC of its own round, with which no TC of the round can be made."""
    block = Chain().block(GENESIS, 3, tc=quorum_tc(2, GENESIS_QC))
    rules = SafetyRules(SEEDS[0], CONTEXT)
    with pytest.raises(SafetyRefusal, match="certified"):
        rules.sign_timeout(3, qc_of(block), quorum_tc(2, GENESIS_QC))
    timeout, _ = rules.sign_timeout(4, qc_of(block), None)
    assert timeout.high_qc_round == 3
