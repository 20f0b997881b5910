"""Nothing is believed that a quorum of known, distinct validators of this epoch and chain did not sign."""

from dataclasses import replace

import pytest

from consensus import crypto
from consensus.codec import encode
from consensus.digest import digest
from consensus.errors import InvalidCertificate, InvalidSignature
from consensus.types import TwoChain
from consensus.validators import Validator, ValidatorSet, make_validator_set
from consensus.verify import (
    Context,
    commit_vote_message,
    proposal_message,
    timeout_message,
    verify_cc,
    verify_commit_proof,
    verify_commit_vote,
    verify_proposal_signature,
    verify_qc,
    verify_tc,
    verify_timeout,
    verify_vote,
    vote_message,
)
from tests.unit.consensus.lab import (
    CHAIN,
    CONTEXT,
    GENESIS,
    GENESIS_QC,
    KEYS,
    SEEDS,
    VALIDATORS,
    Chain,
    cc_of,
    commit_vote_by,
    qc_of,
    quorum_tc,
    tc_of,
    timeout_by,
    vote_by,
)

CHAIN_OF = Chain()
ONE = CHAIN_OF.block(GENESIS, 1)
TWO = CHAIN_OF.block(ONE, 2)
OTHER_CHAIN = Context(bytes([7]) * 32, VALIDATORS, GENESIS_QC)
OTHER_EPOCH = Context(CHAIN, ValidatorSet(1, VALIDATORS.validators), GENESIS_QC)


def test_a_signature_of_one_kind_is_valid_as_no_other() -> None:
    messages = {
        vote_message(CHAIN, 0, 1, ONE.id, GENESIS.id, 0),
        commit_vote_message(CHAIN, 0, 1, ONE.id, 1),
        timeout_message(CHAIN, 0, 1, 0),
        proposal_message(CHAIN, 0, 1, ONE.id),
    }
    assert messages == {
        digest("vote", encode((0, 1, ONE.id, GENESIS.id, 0)), CHAIN),
        digest("commit-vote", encode((0, 1, ONE.id, 1)), CHAIN),
        digest("timeout", encode((0, 1, 0)), CHAIN),
        digest("proposal", encode((0, 1, ONE.id)), CHAIN),
    }
    vote, commit, timeout = vote_by(0, ONE), commit_vote_by(0, ONE), timeout_by(0, 1, GENESIS_QC)
    for signature in (commit.signature, timeout.signature, ONE.signature):
        with pytest.raises(InvalidSignature):
            verify_vote(CONTEXT, replace(vote, signature=signature))
    for signature in (vote.signature, timeout.signature, ONE.signature):
        with pytest.raises(InvalidSignature):
            verify_commit_vote(CONTEXT, replace(commit, signature=signature))
    for signature in (vote.signature, commit.signature, ONE.signature):
        with pytest.raises(InvalidSignature):
            verify_timeout(CONTEXT, replace(timeout, signature=signature))
    for signature in (vote.signature, commit.signature, timeout.signature):
        with pytest.raises(InvalidSignature):
            verify_proposal_signature(CONTEXT, replace(ONE, signature=signature))


def test_every_signed_field_counts() -> None:
    vote, commit, timeout = vote_by(0, ONE), commit_vote_by(0, ONE), timeout_by(0, 1, GENESIS_QC)
    for changed in (
        replace(vote, round=2),
        replace(vote, block_id=TWO.id),
        replace(vote, parent_id=TWO.id),
        replace(vote, parent_round=1),
    ):
        with pytest.raises(InvalidSignature):
            verify_vote(CONTEXT, changed)
    for changed_commit in (
        replace(commit, round=2),
        replace(commit, block_id=TWO.id),
        replace(commit, height=2),
    ):
        with pytest.raises(InvalidSignature):
            verify_commit_vote(CONTEXT, changed_commit)
    for changed_timeout in (replace(timeout, round=2), replace(timeout, high_qc_round=1)):
        with pytest.raises(InvalidSignature):
            verify_timeout(CONTEXT, changed_timeout)


@pytest.mark.parametrize("context", [OTHER_CHAIN, OTHER_EPOCH], ids=["chain", "epoch"])
def test_nothing_crosses_chains_or_epochs(context: Context) -> None:
    with pytest.raises(InvalidSignature):
        verify_vote(context, vote_by(0, ONE))
    with pytest.raises(InvalidSignature):
        verify_commit_vote(context, commit_vote_by(0, ONE))
    with pytest.raises(InvalidSignature):
        verify_timeout(context, timeout_by(0, 1, GENESIS_QC))
    with pytest.raises(InvalidSignature):
        verify_proposal_signature(context, ONE)
    with pytest.raises(InvalidCertificate):
        verify_qc(context, qc_of(ONE))
    with pytest.raises(InvalidCertificate):
        verify_cc(context, cc_of(ONE))
    with pytest.raises(InvalidCertificate):
        verify_tc(context, quorum_tc(2, qc_of(ONE)))


def test_strangers_sign_nothing() -> None:
    seed = bytes([9]) * 32
    args = (0, 1, ONE.id, GENESIS.id, 0)
    vote = replace(
        vote_by(0, ONE),
        author=crypto.public_key(seed),
        signature=crypto.sign(seed, vote_message(CHAIN, *args)),
    )
    with pytest.raises(InvalidSignature):
        verify_vote(CONTEXT, vote)


def test_a_certificate_needs_a_quorum_of_distinct_known_signers() -> None:
    qc, cc = qc_of(ONE), cc_of(ONE)
    rows = qc.signatures
    for bad in (
        rows[:2],
        (rows[0], rows[0], rows[1]),
        (rows[1], rows[0], rows[2]),
        (*rows[:2], (4, rows[2][1])),
        (*rows[:2], (3, rows[2][1])),
        (),
    ):
        with pytest.raises(InvalidCertificate):
            verify_qc(CONTEXT, replace(qc, signatures=bad))
    for bad in (cc.signatures[:2], (cc.signatures[0],) * 3, rows):
        with pytest.raises(InvalidCertificate):
            verify_cc(CONTEXT, replace(cc, signatures=bad))


def test_exactly_two_thirds_of_the_stake_is_no_quorum() -> None:
    stakes = make_validator_set(0, [Validator(key, 1, bytes(32)) for key in KEYS[:3]])
    assert not stakes.is_quorum(2)
    assert stakes.is_quorum(3)
    assert not stakes.is_one_honest(1)
    assert stakes.is_one_honest(2)


def test_stake_counts_and_not_heads() -> None:
    heavy = make_validator_set(
        0, [Validator(key, stake, bytes(32)) for key, stake in zip(KEYS, (10, 1, 1, 1), strict=True)]
    )
    context = Context(CHAIN, heavy, GENESIS_QC)
    verify_qc(context, qc_of(ONE, signers=(0,)))
    with pytest.raises(InvalidCertificate):
        verify_qc(context, qc_of(ONE, signers=(1, 2, 3)))


def test_only_the_genesis_qc_stands_without_signatures() -> None:
    verify_qc(CONTEXT, GENESIS_QC)
    with pytest.raises(InvalidCertificate):
        verify_qc(CONTEXT, replace(GENESIS_QC, block_id=ONE.id))


def test_a_tc_carries_exactly_the_highest_qc_its_signers_claim() -> None:
    mixed = tc_of(3, {0: GENESIS_QC, 1: qc_of(ONE), 2: qc_of(TWO)})
    verify_tc(CONTEXT, mixed)
    assert mixed.max_high_qc_round == 2
    with pytest.raises(InvalidCertificate):
        verify_tc(CONTEXT, replace(mixed, high_qc=qc_of(ONE)))
    with pytest.raises(InvalidCertificate):
        verify_tc(CONTEXT, replace(quorum_tc(3, qc_of(ONE)), high_qc=qc_of(TWO)))
    with pytest.raises(InvalidCertificate):
        verify_tc(CONTEXT, quorum_tc(2, qc_of(TWO)))


def test_a_tc_claim_that_was_not_signed_is_refused() -> None:
    tc = quorum_tc(3, qc_of(TWO))
    lowered = tuple((index, 1, signature) for index, _, signature in tc.entries)
    with pytest.raises(InvalidCertificate):
        verify_tc(CONTEXT, replace(tc, entries=lowered, high_qc=qc_of(ONE)))
    for entries in (tc.entries[:2], (tc.entries[0],) * 3, (*tc.entries[:2], (4, 2, tc.entries[2][2]))):
        with pytest.raises(InvalidCertificate):
            verify_tc(CONTEXT, replace(tc, entries=entries))


def test_commit_proofs() -> None:
    assert verify_commit_proof(CONTEXT, cc_of(ONE)) == (ONE.id, 1)
    assert verify_commit_proof(CONTEXT, TwoChain(qc_of(ONE), qc_of(TWO))) == (ONE.id, 1)
    skipped = CHAIN_OF.block(ONE, 3, tc=quorum_tc(2, qc_of(ONE)))
    with pytest.raises(InvalidCertificate, match="consecutive"):
        verify_commit_proof(CONTEXT, TwoChain(qc_of(ONE), qc_of(skipped)))
    fork = CHAIN_OF.block(GENESIS, 2, tc=quorum_tc(1, GENESIS_QC))
    with pytest.raises(InvalidCertificate, match="parent and child"):
        verify_commit_proof(CONTEXT, TwoChain(qc_of(ONE), qc_of(fork)))


def test_a_remembered_signature_is_not_remembered_for_another_message() -> None:
    verify = crypto.Verifier(capacity=2)
    signature = crypto.sign(SEEDS[0], b"one")
    assert verify(KEYS[0], b"one", signature)
    assert verify(KEYS[0], b"one", signature)
    assert not verify(KEYS[0], b"two", signature)
    assert not verify(KEYS[1], b"one", signature)
    assert not verify(KEYS[0], b"one", signature[:-1])
