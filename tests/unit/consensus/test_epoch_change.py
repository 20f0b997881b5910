"""Four validators hand over to four others, one of them new; one is away meanwhile, one leaves."""

from collections.abc import Sequence

import pytest

from consensus.config import ConsensusConfig
from consensus.digest import digest
from consensus.effects import Behind, EpochEnded, HelpEpoch, Misbehaved
from consensus.epochs import epoch_start
from consensus.messages import (
    CommitVoteMessage,
    HandoverMessage,
    Message,
    ProposalMessage,
    TimeoutMessage,
    VoteMessage,
)
from consensus.types import is_boundary
from consensus.validators import ValidatorSet
from consensus.verify import make_context, verify_handover
from tests.unit.consensus.epoch_lab import GENESIS, KEYS, Host, Table, make_set
from tests.unit.consensus.lab import of

SETS = (make_set(0, (0, 1, 2, 3)), make_set(1, (1, 2, 3, 4), bytes([7]) * 32))


def author_and_epoch(message: Message) -> tuple[bytes, int] | None:
    """Whose signature a message brings, and of which epoch."""
    match message:
        case ProposalMessage(block=block):
            return block.header.proposer, block.header.epoch
        case VoteMessage(vote=vote):
            return vote.author, vote.epoch
        case CommitVoteMessage(commit_vote=vote):
            return vote.author, vote.epoch
        case TimeoutMessage(timeout=timeout):
            return timeout.author, timeout.epoch
    return None


def check_chains(hosts: list[Host]) -> None:
    """Everybody has the same blocks, without a gap, each batch once, and the epochs meet at the boundary."""
    longest = max((host.chain for host in hosts), key=len)
    for host in hosts:
        assert host.chain == longest[: len(host.chain)]
    assert [block.height for block in longest] == list(range(len(longest)))
    named = [batch for block in longest for batch in block.header.payload]
    assert len(named) == len(set(named))
    boundaries = [block for block in longest if is_boundary(block.header)]
    for boundary in boundaries:
        following = longest[boundary.height + 1 :]
        assert all(block.header.epoch > boundary.header.epoch for block in following)


def check_signatures(hosts: list[Host], sets: Sequence[ValidatorSet] = SETS) -> None:
    """Who was told that an epoch ended signs nothing in it any more, and nobody signs outside its sets."""
    for host in hosts:
        for epoch, message in host.sent:
            signed = author_and_epoch(message)
            if signed is not None and signed[0] == KEYS[host.index]:
                assert signed[1] == epoch
                assert sets[epoch].index_of(signed[0]) is not None


def test_a_set_hands_over_to_the_next_and_a_laggard_follows() -> None:
    table = Table(SETS, (3,))
    hosts, away = table.hosts, table.hosts[3]
    table.run(lambda: all(len(host.chain) > 2 for host in hosts))
    table.cut = {3}
    others = [host for host in hosts if host is not away]
    table.run(lambda: all(host.epoch == 1 for host in others))
    boundary = next(block for block in hosts[1].chain if is_boundary(block.header))
    assert boundary.header.next_validators_hash == SETS[1].hash
    table.run(lambda: all(len(host.chain) > boundary.height + 4 for host in others))
    assert away.epoch == 0
    table.cut = set()
    table.run(lambda: all(len(host.chain) > boundary.height + 10 for host in hosts))
    assert away.epoch == 1
    assert of(away.effects, Behind)
    check_chains(hosts)
    check_signatures(hosts)
    assert all(of(host.effects, Misbehaved) == [] for host in hosts)
    # The new one and the one that was away vote again: without either of them there is no quorum with another one gone.
    table.cut = {1}
    goal = boundary.height + 20
    table.run(lambda: all(len(hosts[index].chain) > goal for index in (2, 3, 4)))
    check_chains(hosts)
    check_signatures(hosts)


def test_a_laggard_that_hears_no_news_is_helped_when_it_times_out() -> None:
    """Nobody sends it anything of the new epoch: its own timeout brings the hand-over, and that brings the blocks."""
    table = Table(SETS, (3,))
    hosts, away = table.hosts, table.hosts[3]
    table.run(lambda: all(len(host.chain) > 2 for host in hosts))
    table.cut = {3}
    table.run(lambda: all(host.epoch == 1 for host in hosts if host is not away))
    table.cut = set()
    table.lose = lambda sender, to, message: to == 3 and not isinstance(message, HandoverMessage)
    table.run(lambda: away.epoch == 1)
    assert any(of(host.effects, HelpEpoch) for host in hosts)
    check_chains(hosts)
    check_signatures(hosts)


def test_a_boundary_is_proven_by_its_descendants_where_commit_votes_are_lost() -> None:
    table = Table(SETS, (3,))
    ends: set[int] = set()

    def lose(_sender: int, _to: int, message: Message) -> bool:
        """No commit votes, and no proposal in the round after the boundary's: the two-chain begins above it."""
        if isinstance(message, ProposalMessage) and message.block.header.epoch == 0:
            if is_boundary(message.block.header):
                ends.add(message.block.round)
            return message.block.round - 1 in ends
        return isinstance(message, CommitVoteMessage)

    table.lose = lose
    hosts = table.hosts
    table.run(lambda: all(host.epoch == 1 for host in hosts))
    handovers = {host.handovers[0] for host in hosts}
    assert any(len(handover.headers) == 2 for handover in handovers)
    for handover in handovers:
        assert verify_handover(make_context(SETS[0], GENESIS), handover) == SETS[1].hash
        for header in handover.headers[1:]:
            assert (header.payload, header.next_validators_hash) == ((), b"")
    ended = hosts[1].chain[-1].height
    table.run(lambda: all(len(host.chain) > ended + 5 for host in hosts))
    check_chains(hosts)
    check_signatures(hosts)
    # Reveals of discarded descendants did not count: the next epoch goes on from the boundary's.
    assert all(of(host.effects, Misbehaved) == [] for host in hosts)


@pytest.mark.parametrize("seed", range(4))
def test_epochs_follow_each_other_while_a_fifth_of_all_messages_is_lost(seed: int) -> None:
    sets = (*SETS, make_set(2, (0, 2, 3, 4), bytes([8]) * 32))
    table = Table(
        sets, (3, 8), lambda index: ConsensusConfig(vote_fanout=("all", "collector")[(seed + index) % 2])
    )
    posted = 0

    def lose(_sender: int, _to: int, _message: Message) -> bool:
        nonlocal posted
        posted += 1
        return digest("test-loss", bytes([seed]) + posted.to_bytes(8, "big"))[0] < 51

    table.lose = lose
    table.run(lambda: all(host.epoch == 2 and len(host.chain) > 16 for host in table.hosts), 200_000)
    check_chains(table.hosts)
    check_signatures(table.hosts, sets)
    assert all(of(host.effects, Misbehaved) == [] for host in table.hosts)


def test_each_node_is_told_once_how_the_epoch_ended() -> None:
    table = Table(SETS, (3,))
    table.run(lambda: all(host.epoch == 1 and len(host.chain) > 12 for host in table.hosts))
    for host in table.hosts:
        (ended,) = of(host.effects, EpochEnded)
        assert ended.handover.headers[0] == ended.boundary.header


def test_two_epochs_follow_each_other_with_drawn_leaders() -> None:
    sets = (*SETS, make_set(2, (0, 2, 3, 4), bytes([8]) * 32))
    table = Table(sets, (3, 10))
    table.run(lambda: all(host.epoch == 2 and len(host.chain) > 22 for host in table.hosts))
    chain = table.hosts[0].chain
    ends = [block for block in chain if is_boundary(block.header)]
    assert [end.header.next_validators_hash for end in ends] == [sets[1].hash, sets[2].hash]
    # A light client that knows the first set alone comes to the last one by two hand-overs.
    known, root = sets[0], GENESIS
    for end in ends:
        handover = table.hosts[3].handovers[known.epoch]
        assert verify_handover(make_context(known, root), handover) == end.header.next_validators_hash
        known = sets[known.epoch + 1]
        root = epoch_start(end, known)


@pytest.mark.parametrize("collectors", [(0, 1, 2, 3, 4), (0, 1), (0, 1, 2), (3,)], ids=str)
def test_any_mix_of_vote_fanouts_makes_progress(collectors: tuple[int, ...]) -> None:
    def config(index: int) -> ConsensusConfig:
        return ConsensusConfig(vote_fanout="collector" if index in collectors else "all")

    table = Table(SETS[:1], (), config)
    table.run(lambda: all(len(host.chain) > 12 for host in table.hosts))
    check_chains(table.hosts)
    assert all(of(host.effects, Misbehaved) == [] for host in table.hosts)
