"""Nothing is believed on somebody's word: certificates are checked by whoever acts on them, the signer once more by itself."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from consensus import crypto
from consensus.effects import Effect, Misbehaved
from consensus.errors import InvalidBlock, InvalidCertificate, InvalidSignature, SafetyRefusal
from consensus.inputs import BlocksSynced
from consensus.messages import CommitVoteMessage, TimeoutMessage
from consensus.rules import verify_block
from consensus.safety import SafetyRules
from consensus.types import QC, TC, Block, TwoChain
from consensus.verify import verify_commit_proof, verify_qc, verify_tc, vote_message
from tests.unit.consensus.lab import (
    CHAIN,
    CONFIG,
    CONTEXT,
    GENESIS,
    GENESIS_QC,
    KEYS,
    LEADERS,
    NOW_MS,
    SEEDS,
    Bench,
    Chain,
    cc_of,
    commit_vote_by,
    follower,
    line,
    of,
    qc_of,
    quorum_tc,
    signed_block,
    timeout_by,
    timeout_from,
)

CHAINS = Chain()
ONE, TWO, THREE = line(CHAINS, 3)
OTHER = CHAINS.block(GENESIS, 1, timestamp_ms=ONE.header.timestamp_ms + 1)
TWO_SIGN = (0, 1)
CONFIG_OF_ONE_BATCH = replace(CONFIG, payload_digests_max=1)


def thin_tc(round_: int, qc: QC) -> TC:
    whole = quorum_tc(round_, qc)
    return replace(whole, entries=whole.entries[:2])


def signer() -> SafetyRules:
    return SafetyRules(SEEDS[0], CONTEXT)


def lying_qc(round_: int, parent_round: int) -> QC:
    """A quorum's QC for the first block, in rounds that are not its own."""
    args = (0, round_, ONE.id, GENESIS.id, parent_round)
    rows = tuple((index, crypto.sign(SEEDS[index], vote_message(CHAIN, *args))) for index in (0, 1, 2))
    return QC(*args, rows)


# --- certificates within certificates ---


def test_a_quorum_of_liars_cannot_certify_a_parent_as_new_as_its_child() -> None:
    for parent_round in (2, 3):
        with pytest.raises(InvalidCertificate, match="not older"):
            verify_qc(CONTEXT, lying_qc(2, parent_round))
    verify_qc(CONTEXT, lying_qc(2, 1))


def test_the_qcs_within_a_tc_and_a_two_chain_need_their_quorum_too() -> None:
    thin = qc_of(TWO, TWO_SIGN)
    with pytest.raises(InvalidCertificate, match="not a quorum"):
        verify_tc(CONTEXT, replace(quorum_tc(3, qc_of(TWO)), high_qc=thin))
    for proof in (TwoChain(qc_of(ONE), thin), TwoChain(thin, qc_of(THREE))):
        with pytest.raises(InvalidCertificate, match="not a quorum"):
            verify_commit_proof(CONTEXT, proof)
    assert verify_commit_proof(CONTEXT, TwoChain(qc_of(TWO), qc_of(THREE))) == (TWO.id, 2)


# --- the signer ---


def test_a_vote_only_for_a_child_of_the_block_that_its_qc_certifies() -> None:
    stranger = signed_block(replace(ONE.header, parent=bytes(32)), GENESIS_QC, None)
    beside = CHAINS.block(ONE, 1)
    for block in (stranger, beside):
        with pytest.raises(SafetyRefusal, match="not certified"):
            signer().sign_vote(block)
    assert signer().sign_vote(ONE).round == 1


@pytest.mark.parametrize("certificate", ["vote's TC", "commit vote's QC", "timeout's QC", "timeout's TC"])
def test_the_signer_counts_signatures_itself(certificate: str) -> None:
    rules = signer()
    thin = qc_of(ONE, TWO_SIGN)
    acts: dict[str, Callable[[], object]] = {
        "vote's TC": lambda: rules.sign_vote(CHAINS.block(GENESIS, 3, tc=thin_tc(2, GENESIS_QC))),
        "commit vote's QC": lambda: rules.sign_commit_vote(thin, ONE.header),
        "timeout's QC": lambda: rules.sign_timeout(2, thin, None),
        "timeout's TC": lambda: rules.sign_timeout(3, GENESIS_QC, thin_tc(2, GENESIS_QC)),
    }
    before = rules.record
    with pytest.raises(InvalidCertificate, match="not a quorum"):
        acts[certificate]()
    assert rules.record == before


def test_no_signature_under_a_certificate_or_in_a_block_of_another_epoch() -> None:
    foreign = replace(qc_of(ONE), epoch=1)
    with pytest.raises(SafetyRefusal, match="another epoch"):
        signer().sign_commit_vote(foreign, ONE.header)
    with pytest.raises(SafetyRefusal, match="another epoch"):
        signer().sign_timeout(2, foreign, None)
    leader = SafetyRules(SEEDS[LEADERS.index(1)], CONTEXT)
    with pytest.raises(SafetyRefusal, match="another epoch"):
        leader.sign_proposal(replace(ONE.header, epoch=1))
    assert leader.sign_proposal(ONE.header) == ONE.signature


# --- the replica ---


def blamed(effects: list[Effect]) -> list[str]:
    return [fault.reason for fault in of(effects, Misbehaved)]


@pytest.mark.parametrize("kind", ["QC", "TC", "CC"])
def test_a_certificate_that_comes_alone_needs_its_quorum(kind: str) -> None:
    bench = Bench(None)
    bench.propose(ONE)
    offered: dict[str, Callable[[tuple[int, ...]], list[Effect]]] = {
        "QC": lambda who: bench.certificates(qc_of(ONE, who)),
        "TC": lambda who: bench.certificates(
            tc=thin_tc(1, GENESIS_QC) if who == TWO_SIGN else quorum_tc(1, GENESIS_QC)
        ),
        "CC": lambda who: bench.certificates(cc=cc_of(ONE, who)),
    }
    assert blamed(offered[kind](TWO_SIGN)) == ["not a quorum"]
    assert (bench.replica.round, bench.delivered()) == (1, [])
    assert blamed(offered[kind]((1, 2, 3))) == []
    assert (bench.replica.round, bench.delivered()) != (1, [])


def test_a_timeout_carries_the_qc_it_signed_for_and_that_one_has_a_quorum() -> None:
    bench = Bench(None)
    thin, whole = qc_of(ONE, TWO_SIGN), qc_of(ONE)
    assert blamed(bench.hear(timeout_from(1, 2, thin), 1)) == ["not a quorum"]
    other = TimeoutMessage(timeout_by(1, 2, GENESIS_QC), whole, None, None)
    assert blamed(bench.hear(other, 1)) == ["timeout does not carry the QC it signed for"]
    assert bench.replica.round == 1
    assert blamed(bench.hear(timeout_from(1, 2, whole), 1)) == []
    assert bench.replica.round == 2


def test_a_commit_vote_carries_its_own_blocks_qc_and_that_one_has_a_quorum() -> None:
    bench = Bench(None)
    bench.propose(ONE)
    vote = commit_vote_by(1, ONE)
    assert blamed(bench.hear(CommitVoteMessage(vote, qc_of(ONE, TWO_SIGN)), 1)) == ["not a quorum"]
    for foreign in (qc_of(OTHER), qc_of(TWO)):
        assert blamed(bench.hear(CommitVoteMessage(vote, foreign), 1)) == ["commit vote without its QC"]
    assert bench.replica.round == 1
    assert blamed(bench.hear(CommitVoteMessage(vote, qc_of(ONE)), 1)) == []
    assert bench.replica.round == 2


def test_each_block_of_a_range_is_checked_and_linked() -> None:
    unsigned = replace(TWO, signature=bytes(64))
    lifted = signed_block(replace(THREE.header, height=4), THREE.qc, None)
    ranges: tuple[tuple[tuple[Block, ...], Block, str], ...] = (
        ((ONE, unsigned), TWO, "bad signature"),
        ((ONE, THREE), THREE, "link up"),
        ((ONE, TWO, lifted), lifted, "link up"),
        ((ONE, TWO), THREE, "of another block"),
    )
    bench = Bench(None)
    for blocks, proven, reason in ranges:
        (said,) = blamed(bench.step(BlocksSynced(KEYS[1], blocks, cc_of(proven), NOW_MS)))
        assert reason in said
        assert bench.delivered() == []
    bench.step(BlocksSynced(KEYS[1], (ONE, TWO), cc_of(TWO), NOW_MS))
    assert bench.delivered() == [ONE.id, TWO.id]


def test_a_blocks_qc_is_of_its_parents_round() -> None:
    """A quorum that certified a block in a round which is not the block's own has lied; nothing is built on that."""
    header = replace(
        CHAINS.block(ONE, 3, tc=quorum_tc(2, qc_of(ONE))).header, timestamp_ms=ONE.header.timestamp_ms + 1
    )
    bench = Bench(None)
    bench.propose(ONE)
    assert "QC round is not the parent's" in blamed(bench.propose(signed_block(header, lying_qc(2, 0), None)))


# --- headers, each refused by its own name ---

_BAD: dict[str, tuple[Block, str]] = {
    "chain": (CHAINS.block(GENESIS, 1, chain_id=bytes([7]) * 32), "another chain"),
    "epoch": (CHAINS.block(GENESIS, 1, epoch=1), "another epoch"),
    "parent": (CHAINS.block(GENESIS, 1, parent=bytes(32)), "does not extend its QC"),
    "age": (CHAINS.block(ONE, 1), "not newer than its QC"),
    "execution": (CHAINS.block(GENESIS, 1, executed_height=1), "executed height is not below"),
    "batches": (CHAINS.block(GENESIS, 1, payload=(bytes(32), bytes([1]) * 32)), "too many payload"),
    "gap": (CHAINS.block(GENESIS, 3), "or missing"),
    "idle TC": (CHAINS.block(ONE, 2, tc=quorum_tc(1, GENESIS_QC)), "without need"),
}


@pytest.mark.parametrize("name", _BAD)
def test_a_header_is_refused_for_what_is_wrong_with_it(name: str) -> None:
    block, reason = _BAD[name]
    with pytest.raises(InvalidBlock, match=reason):
        verify_block(CONTEXT, CONFIG_OF_ONE_BATCH, LEADERS, block)


def test_a_block_is_signed_by_its_proposer_and_its_certificates_by_a_quorum() -> None:
    stranger = signed_block(ONE.header, ONE.qc, None, follower(1))
    with pytest.raises(InvalidSignature):
        verify_block(CONTEXT, CONFIG, LEADERS, stranger)
    for block in (
        replace(TWO, qc=qc_of(ONE, TWO_SIGN)),
        replace(CHAINS.block(GENESIS, 3, tc=quorum_tc(2, GENESIS_QC)), tc=thin_tc(2, GENESIS_QC)),
    ):
        with pytest.raises(InvalidCertificate, match="not a quorum"):
            verify_block(CONTEXT, CONFIG, LEADERS, block)
    verify_block(CONTEXT, CONFIG, LEADERS, TWO)
