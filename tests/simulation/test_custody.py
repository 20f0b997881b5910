"""A replica notices its own signature where it did not make it: once verified, in whatever it comes."""

from dataclasses import replace

import pytest

from consensus.effects import Misbehaved
from consensus.messages import (
    CommitVoteMessage,
    Message,
    ProposalMessage,
    SyncMessage,
    TimeoutMessage,
    VoteMessage,
)
from consensus.types import QC, Block, SyncInfo
from tests.unit.consensus.lab import (
    GENESIS,
    GENESIS_QC,
    LEADERS,
    Bench,
    Chain,
    cc_of,
    commit_vote_by,
    follower,
    of,
    qc_of,
    signed_block,
    tc_of,
    timeout_from,
    timeouts,
    vote_by,
    votes,
)

ME = LEADERS.index(1)
OTHERS = tuple(index for index in range(4) if index != ME)
WITH_ME = tuple(sorted((ME, *OTHERS[:2])))
CHAIN = Chain()
MINE = CHAIN.block(GENESIS, 1)
SECOND = CHAIN.block(MINE, 2)


def certificates(
    qc: QC = GENESIS_QC, cc: tuple[int, ...] | None = None, tc: tuple[int, ...] | None = None
) -> Message:
    return SyncMessage(
        SyncInfo(
            qc,
            None if tc is None else tc_of(1, dict.fromkeys(tc, GENESIS_QC)),
            None if cc is None else cc_of(MINE, cc),
        )
    )


def carrying(qc: QC) -> Block:
    """The second block with another QC of its parent."""
    return signed_block(SECOND.header, qc, None)


SHOWN: dict[str, tuple[str, Message]] = {
    "own block": ("proposal", ProposalMessage(MINE, None)),
    "own vote": ("vote", VoteMessage(vote_by(ME, MINE))),
    "own commit vote": ("commit vote", CommitVoteMessage(commit_vote_by(ME, MINE), qc_of(MINE, OTHERS))),
    "own timeout": ("timeout", timeout_from(ME, 1, GENESIS_QC)),
    "QC": ("vote", certificates(qc_of(MINE, WITH_ME))),
    "CC": ("commit vote", certificates(cc=WITH_ME)),
    "TC": ("timeout", certificates(tc=WITH_ME)),
    "QC in a block": ("vote", ProposalMessage(carrying(qc_of(MINE, WITH_ME)), None)),
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_verified_signature_of_ours_that_the_record_does_not_know_is_noticed(name: str) -> None:
    kind, message = SHOWN[name]
    bench = Bench(ME)
    bench.hear(message, OTHERS[0])
    found = bench.replica.foreign_signature
    assert found is not None
    assert (found.kind, found.round, found.known_round) == (kind, 1, 0)
    observer = Bench(None)
    observer.hear(message, OTHERS[0])
    assert observer.replica.foreign_signature is None


@pytest.mark.parametrize(
    "message",
    [
        certificates(qc_of(MINE, OTHERS)),
        certificates(cc=OTHERS),
        certificates(tc=OTHERS),
        ProposalMessage(carrying(qc_of(MINE, OTHERS)), None),
    ],
)
def test_certificates_without_our_signature_say_nothing_about_our_key(message: Message) -> None:
    bench = Bench(ME)
    bench.hear(message, OTHERS[0])
    assert bench.replica.foreign_signature is None


def forged() -> list[Message]:
    vote, commit_vote = vote_by(ME, MINE), commit_vote_by(ME, MINE)
    timeout = timeout_from(ME, 1, GENESIS_QC)
    qc = qc_of(MINE, WITH_ME)
    nothing = bytes(64)
    return [
        VoteMessage(replace(vote, signature=nothing)),
        CommitVoteMessage(replace(commit_vote, signature=nothing), qc_of(MINE, OTHERS)),
        TimeoutMessage(replace(timeout.timeout, signature=nothing), GENESIS_QC, None, None),
        certificates(replace(qc, signatures=tuple((index, nothing) for index in WITH_ME))),
        ProposalMessage(replace(MINE, signature=nothing), None),
    ]


@pytest.mark.parametrize("message", forged(), ids=lambda message: type(message).__name__)
def test_nobody_can_stop_a_validator_with_a_signature_that_it_never_made(message: Message) -> None:
    bench = Bench(ME)
    bench.hear(message, OTHERS[0])
    assert of(bench.effects, Misbehaved)
    assert bench.replica.foreign_signature is None


def test_what_the_record_knows_is_our_own_also_when_it_comes_back_from_others() -> None:
    bench = Bench(follower(1, 2))
    me = follower(1, 2)
    bench.propose(MINE)
    (vote,) = votes(bench.effects)
    bench.hear(VoteMessage(vote))
    bench.certificates(qc_of(MINE, tuple(sorted((me, *[index for index in range(4) if index != me][:2])))))
    bench.certificates(cc=cc_of(MINE, range(4)))
    assert bench.replica.foreign_signature is None
    assert not timeouts(bench.effects)


def test_another_statement_about_the_round_of_the_last_one_is_noticed() -> None:
    me = follower(1, 2)
    bench = Bench(me)
    bench.propose(MINE)
    twin = signed_block(replace(MINE.header, timestamp_ms=MINE.header.timestamp_ms + 1), GENESIS_QC, None)
    bench.hear(VoteMessage(vote_by(me, twin)))
    found = bench.replica.foreign_signature
    assert found is not None
    assert (found.kind, found.round, found.known_round) == ("vote", 1, 1)
