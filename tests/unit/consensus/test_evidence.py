"""Evidence: each pair of statements that nobody honest makes convinces anybody, and nothing that an honest replica signs does."""

from contextlib import suppress
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus import crypto
from consensus.effects import Effect, Misbehaved, Persist, RequestPayload
from consensus.errors import CodecError, SafetyRefusal
from consensus.evidence import (
    EVIDENCE_BYTES_MAX,
    Evidence,
    InvalidEvidence,
    Offence,
    OffenceKind,
    SignedHeader,
    Statement,
    evidence_from_bytes,
    make_evidence,
    signed_header,
    verify_evidence,
)
from consensus.inputs import PayloadOffered
from consensus.messages import CommitVoteMessage, Message, ProposalMessage, VoteMessage
from consensus.safety import SafetyRules, record_from_bytes
from consensus.types import PAYLOAD_DIGESTS_MAX, Block, Timeout, header_id
from consensus.verify import proposal_message, timeout_message
from tests.profiles import examples
from tests.simulation.disk import Disk
from tests.unit.consensus.lab import (
    CHAIN,
    CONFIG,
    CONTEXT,
    GENESIS,
    GENESIS_QC,
    KEYS,
    LEADERS,
    SEEDS,
    Bench,
    Chain,
    cc_of,
    commit_vote_by,
    commit_votes,
    expire,
    of,
    qc_of,
    quorum_tc,
    sent,
    timeout_by,
    timeout_from,
    timeouts,
    vote_by,
    votes,
)

CHAINS = Chain()
ONE = CHAINS.block(GENESIS, 1)
OTHER = CHAINS.block(GENESIS, 1, timestamp_ms=ONE.header.timestamp_ms + 1)
TWO = CHAINS.block(ONE, 2)
THREE = CHAINS.block(TWO, 3)

OFFENCES: tuple[tuple[Statement, Statement, Offence], ...] = (
    (
        signed_header(ONE),
        signed_header(OTHER),
        Offence(KEYS[LEADERS.index(1)], 0, 1, OffenceKind.TWO_PROPOSALS),
    ),
    (vote_by(2, ONE), vote_by(2, OTHER), Offence(KEYS[2], 0, 1, OffenceKind.TWO_VOTES)),
    (
        commit_vote_by(2, ONE),
        commit_vote_by(2, OTHER),
        Offence(KEYS[2], 0, 1, OffenceKind.TWO_COMMIT_VOTES),
    ),
    (
        timeout_by(2, 5, qc_of(ONE)),
        timeout_by(2, 5, GENESIS_QC),
        Offence(KEYS[2], 0, 5, OffenceKind.TWO_TIMEOUTS),
    ),
    (
        commit_vote_by(2, TWO),
        timeout_by(2, 2, qc_of(ONE)),
        Offence(KEYS[2], 0, 2, OffenceKind.TIMEOUT_BELOW_COMMIT_VOTE),
    ),
    (
        commit_vote_by(2, TWO),
        timeout_by(2, 9, GENESIS_QC),
        Offence(KEYS[2], 0, 2, OffenceKind.TIMEOUT_BELOW_COMMIT_VOTE),
    ),
    (
        vote_by(2, THREE),
        timeout_by(2, 3, qc_of(ONE)),
        Offence(KEYS[2], 0, 3, OffenceKind.TIMEOUT_BELOW_VOTE),
    ),
    (
        vote_by(2, THREE),
        timeout_by(2, 30, GENESIS_QC),
        Offence(KEYS[2], 0, 3, OffenceKind.TIMEOUT_BELOW_VOTE),
    ),
)

HONEST: tuple[tuple[Statement, Statement], ...] = (
    (signed_header(ONE), signed_header(ONE)),
    (signed_header(ONE), signed_header(TWO)),
    (vote_by(2, ONE), vote_by(2, ONE)),
    (vote_by(2, ONE), vote_by(2, TWO)),
    (vote_by(2, ONE), vote_by(1, OTHER)),
    (commit_vote_by(2, ONE), commit_vote_by(2, TWO)),
    (timeout_by(2, 5, GENESIS_QC), timeout_by(2, 6, GENESIS_QC)),
    # A timeout of the round before, and one that claims as much as was locked.
    (commit_vote_by(2, TWO), timeout_by(2, 1, GENESIS_QC)),
    (commit_vote_by(2, TWO), timeout_by(2, 5, qc_of(TWO))),
    (commit_vote_by(2, TWO), timeout_by(1, 2, qc_of(ONE))),
    (vote_by(2, THREE), timeout_by(2, 2, qc_of(ONE))),
    (vote_by(2, THREE), timeout_by(2, 3, qc_of(TWO))),
    # No offence consists of these kinds.
    (vote_by(2, ONE), commit_vote_by(2, OTHER)),
    (signed_header(ONE), vote_by(LEADERS.index(1), OTHER)),
)


@pytest.mark.parametrize(("one", "other", "offence"), OFFENCES, ids=lambda value: type(value).__name__)
def test_each_contradiction_is_proven_from_its_bytes_alone(
    one: Statement, other: Statement, offence: Offence
) -> None:
    for evidence in (make_evidence(one, other), make_evidence(other, one)):
        data = evidence.to_bytes()
        assert len(data) <= EVIDENCE_BYTES_MAX
        assert evidence_from_bytes(data) == evidence
        assert verify_evidence(CHAIN, evidence_from_bytes(data)) == offence


@pytest.mark.parametrize(("one", "other"), HONEST, ids=lambda value: type(value).__name__)
def test_statements_that_an_honest_validator_may_make_prove_nothing(one: Statement, other: Statement) -> None:
    for evidence in (make_evidence(one, other), Evidence(one, other), Evidence(other, one)):
        with pytest.raises(InvalidEvidence):
            verify_evidence(CHAIN, evidence)


@pytest.mark.parametrize(("one", "other", "offence"), OFFENCES, ids=lambda value: type(value).__name__)
def test_evidence_has_one_form_and_needs_both_signatures_on_this_chain(
    one: Statement, other: Statement, offence: Offence
) -> None:
    evidence = make_evidence(one, other)
    forged = bytes(64)
    for bad in (
        Evidence(evidence.second, evidence.first),
        replace(evidence, first=replace(evidence.first, signature=forged)),
        replace(evidence, second=replace(evidence.second, signature=forged)),
    ):
        with pytest.raises(InvalidEvidence):
            verify_evidence(CHAIN, bad)
    with pytest.raises(InvalidEvidence):
        verify_evidence(bytes(32), evidence)
    if isinstance(other, Timeout):
        moved = replace(other, epoch=1)
        with pytest.raises(InvalidEvidence):
            verify_evidence(CHAIN, make_evidence(one, moved))


def test_statements_of_two_epochs_exclude_nothing_although_each_is_signed() -> None:
    """Rounds begin anew with an epoch: what was locked in one says nothing about another."""
    message = timeout_message(CHAIN, 1, 5, 0)
    later = Timeout(1, 5, 0, KEYS[2], crypto.sign(SEEDS[2], message))
    with pytest.raises(InvalidEvidence, match="one author and epoch"):
        verify_evidence(CHAIN, make_evidence(commit_vote_by(2, TWO), later))


def test_headers_of_another_chain_prove_nothing_here_although_signed_for_this_one() -> None:
    foreign = [replace(block.header, chain_id=bytes([7]) * 32) for block in (ONE, OTHER)]
    leader = SEEDS[LEADERS.index(1)]
    rows = [
        SignedHeader(header, crypto.sign(leader, proposal_message(CHAIN, 0, 1, header_id(header))))
        for header in foreign
    ]
    with pytest.raises(InvalidEvidence, match="another chain"):
        verify_evidence(CHAIN, make_evidence(*rows))


def test_words_said_twice_with_two_good_signatures_are_no_offence() -> None:
    """Whoever holds a key can sign the same words differently; the words are what counts."""
    vote = vote_by(2, ONE)
    again = replace(vote, signature=vote.signature[:32] + bytes(32))
    with pytest.raises(InvalidEvidence, match="do not contradict"):
        verify_evidence(CHAIN, make_evidence(vote, again))


@pytest.mark.parametrize("position", range(4))
def test_bytes_of_another_shape_are_refused(position: int) -> None:
    one, other, _ = OFFENCES[1]
    data = bytearray(make_evidence(one, other).to_bytes())
    for bad in (bytes(data[:-1]), bytes(data) + b"\0", b"", bytes([data[0] ^ 1]) + bytes(data[1:])):
        with pytest.raises(CodecError):
            evidence_from_bytes(bad)
    data[1 + position % 2] = 0x7F  # version, kind
    with pytest.raises(CodecError):
        evidence_from_bytes(bytes(data))


def test_the_longest_evidence_fits_its_limit() -> None:
    full = tuple(bytes([number]) * 32 for number in range(PAYLOAD_DIGESTS_MAX))
    largest: dict[str, Any] = {"payload": full, "snapshot_root": bytes(32), "next_validators_hash": bytes(32)}
    one, other = (CHAINS.block(GENESIS, 1, **largest, timestamp_ms=2**63 + n) for n in (0, 1))
    data = make_evidence(signed_header(one), signed_header(other)).to_bytes()
    assert len(data) < EVIDENCE_BYTES_MAX
    assert verify_evidence(CHAIN, evidence_from_bytes(data)).kind is OffenceKind.TWO_PROPOSALS


def test_a_replica_reports_a_timeout_that_hides_a_lock_once_and_with_evidence() -> None:
    bench = Bench(None)
    for block in (ONE, TWO, THREE):
        bench.propose(block)
    bench.hear(CommitVoteMessage(commit_vote_by(2, THREE), qc_of(THREE)), 2)
    for round_ in (5, 6):
        bench.hear(timeout_from(2, round_, qc_of(TWO)), 2)
    (fault,) = of(bench.effects, Misbehaved)
    offence = verify_evidence(CHAIN, evidence_from_bytes(fault.evidence))
    assert offence == Offence(KEYS[2], 0, 3, OffenceKind.TIMEOUT_BELOW_COMMIT_VOTE)


@pytest.mark.parametrize("vote_first", [True, False])
def test_a_replica_reports_a_timeout_that_hides_a_votes_parent_in_either_order(vote_first: bool) -> None:
    bench = Bench(None)
    messages: list[Message] = [VoteMessage(vote_by(2, THREE)), timeout_from(2, 3, GENESIS_QC)]
    for message in messages if vote_first else reversed(messages):
        bench.hear(message, 2)
    (fault,) = of(bench.effects, Misbehaved)
    offence = verify_evidence(CHAIN, evidence_from_bytes(fault.evidence))
    assert offence == Offence(KEYS[2], 0, 3, OffenceKind.TIMEOUT_BELOW_VOTE)


# What an honest replica signs.

ME = 3
"""It signs none of the certificates made by hand, and leads none of the blocks made by hand."""


class Ordeal:
    """One honest replica, whose three colleagues sign anything at all: forks, conflicting certificates, any round."""

    def __init__(self) -> None:
        self.chain, self.disk = Chain(), Disk(GENESIS)
        self.bench = Bench(ME)
        self.blocks = [GENESIS]
        self.said: list[Statement] = []
        self.note(self.bench.effects)

    def note(self, effects: list[Effect]) -> None:
        for persist in of(effects, Persist):
            self.disk.write(persist)
        self.said += [*votes(effects), *commit_votes(effects), *timeouts(effects)]
        for message in sent(effects, ProposalMessage):
            if message.block.header.proposer == KEYS[ME]:
                self.said.append(signed_header(message.block))
        for request in of(effects, RequestPayload):
            self.note(self.bench.step(PayloadOffered(request.round, (), self.bench.now_ms)))

    def block(self, parent: Block, gap: int, hidden: int, salt: int) -> Block:
        """A block `gap` rounds after its parent, with a TC of which `hidden` says how much it claims."""
        round_ = parent.round + gap
        if LEADERS.index(round_) == ME:
            round_ += 1
        tc = None
        if round_ != parent.round + 1:
            below = [
                other for other in self.blocks if other.round <= parent.round and other.round < round_ - 1
            ]
            tc = quorum_tc(round_ - 1, qc_of(below[hidden % len(below)]))
        made = self.chain.block(parent, round_, tc=tc, timestamp_ms=parent.header.timestamp_ms + 1 + salt)
        self.blocks.append(made)
        return made

    def act(self, kind: int, which: int, gap: int) -> None:
        """One thing that happens to the replica."""
        subject = self.blocks[which % len(self.blocks)]
        match kind:
            case 0 | 1:
                self.note(self.bench.propose(self.block(subject, 1 + gap % 3, which, gap)))
            case 2:
                self.note(self.bench.certificates(qc_of(subject)))
            case 3:
                tc = quorum_tc(subject.round + 1 + gap, qc_of(subject))
                self.note(self.bench.certificates(tc=tc))
            case 4:
                self.note(expire(self.bench))
            case 5:
                if subject.height:
                    self.note(self.bench.certificates(cc=cc_of(subject)))
            case _:
                self.bench = Bench(ME, recovered=self.disk.recovered(CONFIG.lag_max + 1))
                self.note(self.bench.effects)


@settings(max_examples=examples(100))
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 30), st.integers(0, 4)), max_size=20))
def test_no_two_signatures_of_an_honest_replica_are_evidence(acts: list[tuple[int, int, int]]) -> None:
    ordeal = Ordeal()
    for act in acts:
        ordeal.act(*act)
    for one, other in combinations(dict.fromkeys(ordeal.said), 2):
        with pytest.raises(InvalidEvidence):
            verify_evidence(CHAIN, make_evidence(one, other))


def test_the_ordeal_makes_the_replica_sign_every_kind() -> None:
    """Otherwise the property above would hold of nothing."""
    ordeal = Ordeal()
    for act in (
        (0, 0, 0),
        (0, 1, 0),
        (2, 2, 0),
        (4, 0, 0),
        (3, 2, 1),
        (4, 0, 0),
        (6, 0, 0),
        (3, 2, 4),
        (4, 0, 0),
    ):
        ordeal.act(*act)
    for round_ in range(2, 16):
        ordeal.act(3, 2, round_)
        ordeal.act(4, 0, 0)
    assert {type(statement).__name__ for statement in ordeal.said} == {
        "Vote",
        "CommitVote",
        "Timeout",
        "SignedHeader",
    }


def pool() -> tuple[list[Block], list[Block]]:
    """Forked blocks in rounds 1 to 7 with all the certificates they need, and some that `ME` leads."""
    chain, blocks = Chain(), [GENESIS]
    for round_ in range(1, 8):
        for parent in {
            blocks[-1].id: blocks[-1],
            blocks[len(blocks) // 2].id: blocks[len(blocks) // 2],
        }.values():
            if parent.round < round_:
                low = blocks[len(blocks) // 3]
                tc = None if parent.round + 1 == round_ else quorum_tc(round_ - 1, qc_of(low))
                blocks += [
                    chain.block(parent, round_, tc=tc, proposer=KEYS[ME], state_digest=bytes([n]) * 32)
                    for n in (1, 2)
                ]
    return blocks[1:], blocks


VOTABLE, CERTIFIED = pool()
QCS = {block.id: qc_of(block) for block in CERTIFIED}
TCS = {round_: quorum_tc(round_, GENESIS_QC) for round_ in range(1, 8)}


@settings(max_examples=examples(150))
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, len(VOTABLE) - 1), st.integers(0, len(VOTABLE) - 1)),
        max_size=30,
    )
)
def test_no_order_of_requests_makes_the_safety_rules_sign_evidence(acts: list[tuple[int, int, int]]) -> None:
    """Whoever asks may be a replica gone mad: the signer alone keeps the validator from what is slashed."""
    rules, said = SafetyRules(SEEDS[ME], CONTEXT), list[Statement]()
    for kind, which, other in acts:
        block, certified = VOTABLE[which], CERTIFIED[other]
        with suppress(SafetyRefusal):
            match kind:
                case 0:
                    said.append(rules.sign_vote(block))
                case 1:
                    said.append(rules.sign_commit_vote(QCS[block.id], block.header))
                case 2:
                    round_ = 1 + which % 8
                    timeout, _ = rules.sign_timeout(round_, QCS[certified.id], TCS.get(round_ - 1))
                    said.append(timeout)
                case 3:
                    said.append(SignedHeader(block.header, rules.sign_proposal(block.header)))
                case _:
                    rules = SafetyRules(SEEDS[ME], CONTEXT, record_from_bytes(rules.record.to_bytes()))
    for one, other_ in combinations(dict.fromkeys(said), 2):
        with pytest.raises(InvalidEvidence):
            verify_evidence(CHAIN, make_evidence(one, other_))
