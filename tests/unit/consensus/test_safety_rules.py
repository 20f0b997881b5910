"""The safety rules one by one: what they sign, what they refuse, and what a crash cannot make them forget."""

from dataclasses import replace

import pytest

from consensus.errors import InvalidCertificate, LocalError, SafetyRefusal
from consensus.safety import SafetyRecord, SafetyRules, record_from_bytes
from consensus.types import Block
from consensus.validators import make_validator_set
from consensus.verify import Context, verify_commit_vote, verify_timeout, verify_vote
from tests.unit.consensus.lab import (
    CONTEXT,
    GENESIS,
    GENESIS_QC,
    KEYS,
    LEADERS,
    SEEDS,
    VALIDATORS,
    Chain,
    qc_of,
    quorum_tc,
    tc_of,
)


def rules(record: SafetyRecord | None = None) -> SafetyRules:
    return SafetyRules(SEEDS[3], CONTEXT, record)


def restarted(before: SafetyRules) -> SafetyRules:
    return rules(record_from_bytes(before.record.to_bytes()))


def line(length: int) -> list[Block]:
    chain, blocks = Chain(), [GENESIS]
    for round_ in range(1, length + 1):
        blocks.append(chain.block(blocks[-1], round_))
    return blocks


def test_signatures_verify() -> None:
    _, one, two = line(2)
    signer = rules()
    assert verify_vote(CONTEXT, signer.sign_vote(one)) == 3
    assert verify_commit_vote(CONTEXT, signer.sign_commit_vote(qc_of(one), one.header)) == 3
    timeout, qc = signer.sign_timeout(2, qc_of(one), None)
    assert verify_timeout(CONTEXT, timeout) == 3
    assert qc == two.qc


def test_votes_once_per_round_and_repeats_the_same_vote() -> None:
    chain = Chain()
    one, other = (
        chain.block(GENESIS, 1),
        chain.block(GENESIS, 1, timestamp_ms=GENESIS.header.timestamp_ms + 5),
    )
    signer = rules()
    vote = signer.sign_vote(one)
    assert signer.sign_vote(one) == vote
    with pytest.raises(SafetyRefusal):
        signer.sign_vote(other)


def test_a_crash_forgets_no_vote() -> None:
    chain = Chain()
    one, other = (
        chain.block(GENESIS, 1),
        chain.block(GENESIS, 1, timestamp_ms=GENESIS.header.timestamp_ms + 5),
    )
    signer = rules()
    vote = signer.sign_vote(one)
    again = restarted(signer)
    assert again.sign_vote(one) == vote
    with pytest.raises(SafetyRefusal):
        again.sign_vote(other)


def test_refuses_a_vote_below_the_last_one() -> None:
    _, one, two = line(2)
    signer = rules()
    signer.sign_vote(two)
    with pytest.raises(SafetyRefusal):
        signer.sign_vote(one)


def test_refuses_a_vote_after_a_timeout_of_the_round() -> None:
    _, one = line(1)
    signer = rules()
    signer.sign_timeout(1, GENESIS_QC, None)
    with pytest.raises(SafetyRefusal):
        signer.sign_vote(one)


def test_a_vote_across_skipped_rounds_needs_the_tc_of_the_round_before() -> None:
    chain = Chain()
    with pytest.raises(SafetyRefusal):
        rules().sign_vote(chain.block(GENESIS, 3))
    with pytest.raises(SafetyRefusal):
        rules().sign_vote(chain.block(GENESIS, 3, tc=quorum_tc(1, GENESIS_QC)))
    rules().sign_vote(chain.block(GENESIS, 3, tc=quorum_tc(2, GENESIS_QC)))


def test_a_vote_may_not_extend_less_than_the_tcs_highest_qc() -> None:
    chain = Chain()
    one = chain.block(GENESIS, 1)
    tc = tc_of(2, {0: GENESIS_QC, 1: GENESIS_QC, 2: qc_of(one)})
    with pytest.raises(SafetyRefusal):
        rules().sign_vote(chain.block(GENESIS, 3, tc=tc))
    rules().sign_vote(chain.block(one, 3, tc=tc))


def test_a_vote_needs_valid_certificates() -> None:
    _, one, two = line(2)
    thin = replace(two, qc=qc_of(one, signers=(0, 1)))
    with pytest.raises(InvalidCertificate):
        rules().sign_vote(thin)


def test_refuses_a_commit_vote_after_a_timeout_of_the_round_even_after_a_crash() -> None:
    _, one = line(1)
    signer = rules()
    signer.sign_timeout(1, GENESIS_QC, None)
    for each in (signer, restarted(signer)):
        with pytest.raises(SafetyRefusal):
            each.sign_commit_vote(qc_of(one), one.header)


def test_a_commit_vote_locks_so_that_no_later_timeout_claims_less() -> None:
    _, one = line(1)
    signer = rules()
    signer.sign_commit_vote(qc_of(one), one.header)
    assert signer.record.lock == 1
    tc = quorum_tc(1, GENESIS_QC)
    for each in (signer, restarted(signer)):
        with pytest.raises(SafetyRefusal):
            each.sign_timeout(2, GENESIS_QC, tc)
        each.sign_timeout(2, qc_of(one), None)


def test_a_vote_locks_on_the_qc_it_extends() -> None:
    _, one, two = line(2)
    signer = rules()
    signer.sign_vote(two)
    assert signer.record.lock == 1
    with pytest.raises(SafetyRefusal):
        signer.sign_timeout(2, GENESIS_QC, quorum_tc(1, GENESIS_QC))
    signer.sign_timeout(2, qc_of(one), None)


def test_commit_votes_only_rise() -> None:
    _, one, two = line(2)
    signer = rules()
    vote = signer.sign_commit_vote(qc_of(two), two.header)
    assert signer.sign_commit_vote(qc_of(two), two.header) == vote
    with pytest.raises(SafetyRefusal):
        signer.sign_commit_vote(qc_of(one), one.header)


def test_a_commit_vote_needs_the_block_of_its_qc() -> None:
    _, one, two = line(2)
    with pytest.raises(SafetyRefusal):
        rules().sign_commit_vote(qc_of(one), two.header)


def test_a_timeout_is_repeated_with_the_qc_it_signed_for() -> None:
    chain = Chain()
    one = chain.block(GENESIS, 1)
    signer = rules()
    first = signer.sign_timeout(4, GENESIS_QC, quorum_tc(3, GENESIS_QC))
    assert signer.sign_timeout(4, qc_of(one), quorum_tc(3, qc_of(one))) == first
    assert restarted(signer).sign_timeout(4, qc_of(one), None) == first


def test_a_timeout_needs_a_round_that_was_reached() -> None:
    with pytest.raises(SafetyRefusal):
        rules().sign_timeout(3, GENESIS_QC, None)
    with pytest.raises(SafetyRefusal):
        rules().sign_timeout(3, GENESIS_QC, quorum_tc(1, GENESIS_QC))
    rules().sign_timeout(3, GENESIS_QC, quorum_tc(2, GENESIS_QC))


def test_a_timeout_of_a_certified_or_passed_round_is_refused() -> None:
    _, one, two = line(2)
    with pytest.raises(SafetyRefusal):
        rules().sign_timeout(1, qc_of(one), None)
    signer = rules()
    signer.sign_vote(two)
    with pytest.raises(SafetyRefusal):
        signer.sign_timeout(1, GENESIS_QC, None)


def test_a_timeout_raises_last_voted() -> None:
    signer = rules()
    signer.sign_timeout(3, GENESIS_QC, quorum_tc(2, GENESIS_QC))
    assert (signer.record.last_voted, signer.record.highest_timeout) == (3, 3)


def test_proposes_once_per_round_even_after_a_crash() -> None:
    chain = Chain()
    one = chain.block(GENESIS, 1)
    signer = SafetyRules(SEEDS[LEADERS.index(1)], CONTEXT)
    signer.sign_proposal(one.header)
    again = SafetyRules(SEEDS[LEADERS.index(1)], CONTEXT, record_from_bytes(signer.record.to_bytes()))
    for each in (signer, again):
        with pytest.raises(SafetyRefusal):
            each.sign_proposal(replace(one.header, timestamp_ms=one.header.timestamp_ms + 1))


def test_proposes_only_in_its_own_name() -> None:
    one = Chain().block(GENESIS, 1)
    with pytest.raises(SafetyRefusal):
        SafetyRules(SEEDS[(LEADERS.index(1) + 1) % 4], CONTEXT).sign_proposal(one.header)


def test_signs_nothing_for_another_epoch() -> None:
    chain = Chain()
    with pytest.raises(SafetyRefusal):
        rules().sign_vote(chain.block(GENESIS, 1, epoch=1))
    with pytest.raises(SafetyRefusal):
        rules().sign_timeout(1, replace(GENESIS_QC, epoch=1), None)
    with pytest.raises(LocalError):
        rules(SafetyRecord(epoch=1))


def test_a_record_of_an_earlier_epoch_makes_room_for_a_fresh_one() -> None:
    later = make_validator_set(7, VALIDATORS.validators)
    context = Context(CONTEXT.chain_id, later, replace(GENESIS_QC, epoch=7))
    signer = SafetyRules(SEEDS[3], context, SafetyRecord(6, last_voted=90, lock=80, highest_timeout=90))
    assert signer.record == SafetyRecord(7)
    kept = SafetyRecord(7, last_voted=3)
    assert SafetyRules(SEEDS[3], context, kept).record == kept


def test_a_stranger_gets_no_signer() -> None:
    with pytest.raises(LocalError):
        SafetyRules(bytes(32), Context(CONTEXT.chain_id, CONTEXT.validators, GENESIS_QC))
    assert rules().public == KEYS[3]
