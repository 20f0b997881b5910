"""Rules of an epoch's end on the bench: which block is the boundary, what may follow it, and that nothing is signed afterwards."""

from dataclasses import replace
from typing import Any

import pytest

from consensus.effects import (
    Behind,
    Deliver,
    Diverged,
    Effect,
    EpochEnded,
    HelpEpoch,
    Misbehaved,
    Persist,
    RequestPayload,
    Send,
    SetTimer,
)
from consensus.epochs import carry_reveals, epoch_start
from consensus.errors import LocalError
from consensus.inputs import (
    BlocksSynced,
    Executed,
    Input,
    MessageReceived,
    PayloadAvailable,
    PayloadOffered,
    PayloadPending,
    Started,
    TimerFired,
    TimerKind,
)
from consensus.messages import (
    BlocksMessage,
    CommitVoteMessage,
    HandoverMessage,
    Message,
    ProposalMessage,
    SyncMessage,
    TimeoutMessage,
    VoteMessage,
)
from consensus.recovery import RecoveredState
from consensus.replica import Replica
from consensus.safety import SafetyRecord, SafetyRules, record_from_bytes
from consensus.types import QC, Block, Handover, SyncInfo, Timeout, TwoChain, is_boundary
from consensus.validators import make_validator_set
from consensus.verify import make_context
from tests.simulation.disk import Disk
from tests.unit.consensus.lab import (
    BATCH,
    BEACONS,
    CONFIG,
    GENESIS,
    KEYS,
    LEADERS,
    NOW_MS,
    SEEDS,
    VALIDATORS,
    VERIFIER,
    Bench,
    Chain,
    cc_of,
    commit_vote_by,
    commit_votes,
    follower,
    of,
    qc_of,
    quorum_tc,
    sent,
    timeout_from,
    timeouts,
    vote_by,
    votes,
)

NEXT = make_validator_set(1, VALIDATORS.validators[1:], bytes([3]) * 32)
STATE, ROOT = bytes([1]) * 32, bytes([7]) * 32
CLAIM: dict[str, Any] = {
    "executed_height": 1,
    "state_digest": STATE,
    "receipts_accumulator": STATE,
    "snapshot_root": ROOT,
}
"""What a header says of the ledger after block one, in which the next set is frozen."""


class Frozen:
    """A replica whose ledger froze the next set with block one; blocks after it are made by hand."""

    def __init__(self, me: int | None, *, executed: bool = True) -> None:
        self.chain, self.bench, self.disk = Chain(), Bench(me), Disk(GENESIS)
        self.one = self.chain.block(GENESIS, 1)
        self.do(self.bench.propose(self.one))
        self.do(self.bench.certificates(qc_of(self.one), cc=cc_of(self.one)))
        if executed:
            self.execute()

    def do(self, effects: list[Effect]) -> list[Effect]:
        for persist in of(effects, Persist):
            self.disk.write(persist)
        return effects

    def execute(self) -> list[Effect]:
        now_ms = self.bench.now_ms
        told = Executed(1, self.one.id, STATE, STATE, now_ms, NEXT.hash, ROOT)
        return self.do(self.bench.step(told))

    def block(self, parent: Block, round_: int, **changes: Any) -> Block:
        """A block after block one; the boundary unless it says otherwise."""
        made = {"next_validators_hash": NEXT.hash, **CLAIM, **changes}
        return self.chain.block(parent, round_, **made)

    def after(self, parent: Block, round_: int, **changes: Any) -> Block:
        """A descendant of the boundary."""
        return self.block(parent, round_, **{"next_validators_hash": b"", **changes})


def ended(me: int | None = 0) -> tuple[Frozen, Block]:
    """A replica that has just been given the boundary and its proof."""
    made = Frozen(me)
    end = made.block(made.one, 2)
    made.do(made.bench.propose(end))
    made.do(made.bench.certificates(cc=cc_of(end)))
    return made, end


# Which block is the boundary.


def test_the_first_block_that_claims_the_frozen_set_names_it() -> None:
    made = Frozen(follower(1, 2))
    assert [vote.round for vote in votes(made.bench.propose(made.block(made.one, 2)))] == [2]


@pytest.mark.parametrize(
    "changes",
    [
        {"next_validators_hash": b""},
        {"next_validators_hash": bytes([9]) * 32},
        {"snapshot_root": b""},
        {"snapshot_root": bytes([9]) * 32},
    ],
    ids=str,
)
def test_a_claim_that_leaves_out_or_changes_what_our_ledger_says_gets_no_vote(
    changes: dict[str, Any],
) -> None:
    made = Frozen(follower(1, 2))
    effects = made.bench.propose(made.block(made.one, 2, **changes))
    assert votes(effects) == []
    assert [report.committed for report in of(effects, Diverged)] == [False]


def test_a_boundary_before_the_ledger_froze_anything_gets_no_vote() -> None:
    made = Frozen(follower(1, 2), executed=False)
    early = made.chain.block(made.one, 2, next_validators_hash=NEXT.hash)
    effects = made.bench.propose(early)
    assert votes(effects) == []
    assert of(effects, Diverged)


def test_a_vote_on_a_boundary_waits_until_our_ledger_got_there() -> None:
    made = Frozen(follower(1, 2), executed=False)
    assert votes(made.bench.propose(made.block(made.one, 2))) == []
    assert [vote.round for vote in votes(made.execute())] == [2]


def test_a_leader_names_the_frozen_set_once() -> None:
    leader = LEADERS.index(2)
    made = Frozen(leader)
    bench = made.bench
    bench.step(PayloadAvailable(BATCH, NOW_MS))
    bench.step(PayloadPending(True, NOW_MS))
    effects = bench.step(PayloadOffered(2, (BATCH,), NOW_MS))
    (message,) = sent(effects, ProposalMessage)
    header = message.block.header
    assert header.next_validators_hash == NEXT.hash
    assert (header.snapshot_root, header.payload) == (ROOT, (BATCH,))


def test_a_leader_after_the_boundary_proposes_nothing_but_an_empty_block() -> None:
    leader = LEADERS.index(3)
    made = Frozen(leader)
    end = made.block(made.one, 2)
    made.bench.propose(end)
    made.bench.certificates(qc_of(end))
    made.bench.step(PayloadPending(True, NOW_MS))
    made.bench.now_ms += CONFIG.commit_grace_ms
    made.bench.step(TimerFired(TimerKind.PROPOSE, made.bench.now_ms))
    assert of(made.bench.effects, RequestPayload)[-1].empty_only
    effects = made.bench.step(PayloadOffered(3, (BATCH,), made.bench.now_ms))
    (message,) = sent(effects, ProposalMessage)
    assert (message.block.header.payload, message.block.header.next_validators_hash) == ((), b"")
    assert message.block.header.snapshot_root == ROOT


@pytest.mark.parametrize("changes", [{"payload": (BATCH,)}, {"next_validators_hash": NEXT.hash}], ids=str)
def test_a_descendant_that_is_not_empty_never_enters(changes: dict[str, Any]) -> None:
    made = Frozen(follower(1, 2, 3))
    made.bench.step(PayloadAvailable(BATCH, NOW_MS))
    end = made.block(made.one, 2)
    made.bench.propose(end)
    bad = made.after(end, 3, **changes)
    effects = made.bench.propose(bad)
    assert votes(effects) == []
    assert [fault.reason for fault in of(effects, Misbehaved)] == ["past the epoch's boundary and not empty"]
    assert made.bench.replica.uncommitted_chain(bad.id, 0) == ()


def test_descendants_get_votes_and_no_commit_votes() -> None:
    made = Frozen(follower(1, 2, 4, 5))
    end = made.block(made.one, 2)
    first = made.after(end, 4, tc=quorum_tc(3, qc_of(end)))
    effects = made.bench.propose(end) + made.bench.propose(first) + made.bench.certificates(qc_of(first))
    assert [vote.round for vote in votes(effects)] == [2, 4]
    assert [vote.round for vote in commit_votes(effects)] == [2]


def test_committing_a_descendant_delivers_nothing_past_the_boundary() -> None:
    made = Frozen(None)
    end = made.block(made.one, 2)
    first = made.after(end, 4, tc=quorum_tc(3, qc_of(end)))
    second = made.after(first, 5)
    effects: list[Effect] = []
    for block in (end, first, second):
        effects += made.do(made.bench.propose(block))
    effects += made.do(made.bench.certificates(qc_of(second)))
    assert made.bench.delivered() == [made.one.id, end.id]
    (told,) = of(effects, EpochEnded)
    assert told.boundary == end
    assert told.handover == Handover((end.header, first.header), TwoChain(qc_of(first), qc_of(second)))
    persist = next(persist for persist in of(effects, Persist) if end in persist.committed)
    assert persist.proof == told.handover
    assert persist.committed == (end,)
    # The boundary's proposer and block one's have revealed; what descendants revealed does not count.
    assert sum(count for count, _ in persist.reveals) == 2


# After the end.


def every_input(made: Frozen, end: Block) -> list[Input]:
    """All that can still be said to a replica of an epoch that is over."""
    now_ms = made.bench.now_ms
    first = made.after(end, 3)
    second = made.after(first, 4)
    messages: list[Message] = [
        ProposalMessage(first, None),
        ProposalMessage(second, cc_of(end)),
        *(VoteMessage(vote_by(index, first)) for index in range(4)),
        *(CommitVoteMessage(commit_vote_by(index, first), qc_of(first)) for index in range(4)),
        *(timeout_from(index, 3, qc_of(end)) for index in range(4)),
        SyncMessage(SyncInfo(qc_of(second), quorum_tc(5, qc_of(second)), cc_of(first))),
        BlocksMessage((first, second)),
        HandoverMessage(Handover((end.header,), cc_of(end))),
    ]
    return [
        *(MessageReceived(KEYS[1], message, now_ms) for message in messages),
        *(TimerFired(kind, now_ms + 100_000) for kind in TimerKind),
        PayloadAvailable(BATCH, now_ms),
        PayloadPending(True, now_ms),
        PayloadOffered(3, (BATCH,), now_ms),
        BlocksSynced(KEYS[1], (first,), cc_of(first), now_ms),
    ]


@pytest.mark.parametrize("me", range(4))
def test_nothing_is_signed_sent_delivered_or_timed_after_the_end(me: int) -> None:
    made, end = ended(me)
    assert of(made.bench.effects, EpochEnded)
    record = made.disk.now.record
    after: list[Effect] = []
    for event in every_input(made, end):
        after += made.do(made.bench.step(event))
    assert {type(effect) for effect in after} <= {HelpEpoch}
    assert made.disk.now.record == record
    assert made.bench.replica.committed == end
    assert of(made.bench.effects, SetTimer)[-1].at_ms is None


def test_nothing_is_signed_in_the_very_step_that_ends_the_epoch() -> None:
    """A timeout of more than a third of the stake, which we would join, brings the proof of the boundary along."""
    rows = [replace(row, stake=1 + (index == 0)) for index, row in enumerate(VALIDATORS.validators)]
    replica = Replica(
        make_validator_set(0, rows), GENESIS, CONFIG, seed=SEEDS[3], beacon=BEACONS[3], verifier=VERIFIER
    )
    replica.step(Started(NOW_MS))
    chain = Chain()
    one = chain.block(GENESIS, 1)
    end = chain.block(one, 2, next_validators_hash=NEXT.hash, **CLAIM)
    certificates = SyncMessage(SyncInfo(qc_of(end), None, cc_of(one)))
    for message in (ProposalMessage(one, None), ProposalMessage(end, None), certificates):
        replica.step(MessageReceived(None, message, NOW_MS))
    joined = replace(timeout_from(0, 3, qc_of(end)), high_cc=cc_of(end))
    effects = replica.step(MessageReceived(KEYS[0], joined, NOW_MS))
    assert of(effects, EpochEnded)
    assert of(effects, Send) == []


def test_a_late_result_that_contradicts_what_was_committed_is_still_noticed() -> None:
    made = Frozen(None, executed=False)
    end = made.block(made.one, 2)
    made.bench.propose(end, cc_of(end))
    made.bench.certificates(cc=cc_of(end))
    assert made.bench.replica.ended is not None
    wrong = Executed(1, made.one.id, STATE, STATE, NOW_MS, bytes([9]) * 32, ROOT)
    assert [report.committed for report in of(made.bench.step(wrong), Diverged)] == [True]


def test_an_ended_replica_says_so_again_after_a_restart_and_stays_silent() -> None:
    made, end = ended(1)
    (told,) = of(made.bench.effects, EpochEnded)
    again = Bench(1, recovered=made.disk.recovered(8))
    assert of(again.effects, EpochEnded) == [told]
    assert of(again.effects, Send) == []
    assert {type(effect) for event in every_input(made, end) for effect in again.step(event)} <= {HelpEpoch}


# The next epoch.


def follow(made: Frozen, end: Block, me: int, record: SafetyRecord | None, **changes: Any) -> Replica:
    """The next epoch's replica on what is stored."""
    stored = made.disk.recovered(8)
    assert stored is not None
    kept = {"reveals": carry_reveals(VALIDATORS, stored.reveals, NEXT), "record": record, **changes}
    return Replica(
        NEXT,
        epoch_start(end, NEXT),
        CONFIG,
        seed=SEEDS[me],
        beacon=BEACONS[me],
        recovered=replace(stored, **kept),
        verifier=VERIFIER,
    )


def test_rounds_and_safety_data_begin_anew_and_are_stored_before_the_first_signature() -> None:
    made, end = ended(1)
    old = record_from_bytes(made.disk.now.record or b"")
    assert old.last_voted == 2
    replica = follow(made, end, 1, old)
    replica.step(Started(NOW_MS))
    assert (replica.round, replica.committed.id) == (1, epoch_start(end, NEXT).id)
    effects = replica.step(TimerFired(TimerKind.ROUND, NOW_MS + 100_000))
    (said,) = timeouts(effects)
    assert (said.epoch, said.round) == (1, 1)
    (persist,) = of(effects, Persist)
    assert effects.index(persist) == 0
    assert persist.sync
    assert record_from_bytes(persist.record or b"") == replace(
        SafetyRecord(1), last_voted=1, highest_timeout=1, last_timeout=said, last_timeout_qc=replica.high_qc
    )


def test_a_replica_of_an_epoch_that_is_over_gets_no_signer() -> None:
    with pytest.raises(LocalError):
        SafetyRules(SEEDS[1], make_context(VALIDATORS, GENESIS), SafetyRecord(1))


def test_an_epoch_begins_on_its_own_boundary_and_with_its_reveals() -> None:
    made, end = ended(1)
    other = made.block(made.one, 3, tc=quorum_tc(2, qc_of(made.one)))
    for changes in ({"committed": other}, {"committed": made.one}, {"reveals": ()}):
        replica = follow(made, end, 1, None, **changes)
        with pytest.raises(LocalError):
            replica.step(Started(NOW_MS))


def test_results_from_before_the_epoch_do_not_end_it_again() -> None:
    """The ledger named this epoch's set after block one; a header of this epoch that claims block one repeats nothing."""
    made, end = ended(1)
    results = made.disk.now.executed
    replica = follow(made, end, 1, None, executed=(*results,))
    replica.step(Started(NOW_MS))
    replica.step(Executed(1, made.one.id, STATE, STATE, NOW_MS, NEXT.hash, ROOT))
    assert not replica.diverged
    leader = next(index for index in range(3) if replica.leader(1) == NEXT.validators[index].id)
    seat = KEYS.index(NEXT.validators[leader].id)
    proposer = follow(made, end, seat, None)
    proposer.step(Started(NOW_MS))
    proposer.step(Executed(1, made.one.id, STATE, STATE, NOW_MS, NEXT.hash, ROOT))
    proposer.step(PayloadPending(True, NOW_MS))
    (message,) = sent(proposer.step(PayloadOffered(1, (BATCH,), NOW_MS)), ProposalMessage)
    assert not is_boundary(message.block.header)
    assert message.block.header.height == end.height + 1
    assert votes(replica.step(PayloadAvailable(BATCH, NOW_MS))) == []
    heard = MessageReceived(None, ProposalMessage(message.block, None), NOW_MS)
    assert seat == 1 or [vote.epoch for vote in votes(replica.step(heard))] == [1]


def test_certificates_and_blocks_of_the_epoch_before_are_not_taken_from_disk() -> None:
    made, end = ended(1)
    replica = follow(made, end, 1, None)
    replica.step(Started(NOW_MS))
    assert replica.high_qc.epoch == 1
    assert replica.high_qc.round == 0
    assert replica.high_cc is None


# Messages of other epochs.


def of_epoch(epoch: int) -> list[Message]:
    """Messages of an epoch of which a replica of another one can check nothing."""
    qc = QC(epoch, 4, bytes([8]) * 32, bytes(32), 3, ())
    block = Chain().block(GENESIS, 1, epoch=epoch)
    vote = replace(vote_by(1, block), epoch=epoch)
    return [
        ProposalMessage(replace(block, qc=qc), None),
        VoteMessage(vote),
        CommitVoteMessage(replace(commit_vote_by(1, block), epoch=epoch), qc),
        TimeoutMessage(Timeout(epoch, 5, 4, KEYS[1], bytes(64)), qc, None, None),
        SyncMessage(SyncInfo(qc, None, None)),
        HandoverMessage(Handover((block.header,), cc_of(block))),
    ]


@pytest.mark.parametrize("message", of_epoch(1), ids=lambda message: type(message).__name__)
def test_a_message_of_a_later_epoch_is_no_fault_and_shows_that_we_lag(message: Message) -> None:
    bench = Bench(0)
    effects = bench.hear(message, 2)
    assert of(effects, Misbehaved) == []
    (behind,) = of(effects, Behind)
    assert (behind.committed_height, behind.target_height, behind.sources) == (0, 1, (KEYS[2],))
    assert of(bench.hear(message, 2), Behind) == []
    bench.now_ms += 2_000
    assert len(of(bench.hear(message, 2), Behind)) == 1


def test_who_has_what_it_asked_for_and_still_hears_a_later_epoch_asks_again_at_once() -> None:
    bench, chain, later = Bench(0), Chain(), of_epoch(1)[1]
    assert len(of(bench.hear(later, 2), Behind)) == 1
    one = chain.block(GENESIS, 1)
    child = chain.block(one, 2)
    bench.step(BlocksSynced(KEYS[2], (one,), TwoChain(qc_of(one), qc_of(child)), bench.now_ms))
    (behind,) = of(bench.hear(later, 2), Behind)
    assert (behind.committed_height, behind.target_height) == (1, 2)
    assert of(bench.hear(later, 2), Behind) == []


def test_of_many_that_speak_of_a_later_epoch_the_latest_few_are_asked() -> None:
    bench = Bench(0)
    bench.hear(VoteMessage(replace(vote_by(1, Chain().block(GENESIS, 1)), epoch=1)), 1)
    for number in range(100):
        sender = bytes([number]) * 32
        bench.step(MessageReceived(sender, of_epoch(1)[1], bench.now_ms))
    bench.now_ms += 2_000
    (behind,) = of(bench.step(MessageReceived(KEYS[3], of_epoch(1)[1], bench.now_ms)), Behind)
    assert behind.sources[0] == KEYS[3]
    assert len(behind.sources) == 8


@pytest.mark.parametrize("message", of_epoch(0), ids=lambda message: type(message).__name__)
def test_a_message_of_an_earlier_epoch_is_no_fault_and_its_sender_is_helped_rarely(message: Message) -> None:
    made, end = ended(1)
    replica = follow(made, end, 1, None)
    replica.step(Started(NOW_MS))
    asks = isinstance(message, ProposalMessage | TimeoutMessage | SyncMessage)
    expected = [HelpEpoch(KEYS[2], 0)] if asks else []
    assert replica.step(MessageReceived(KEYS[2], message, NOW_MS)) == expected
    assert replica.step(MessageReceived(KEYS[2], message, NOW_MS + 1_999)) == []
    assert replica.step(MessageReceived(None, message, NOW_MS + 1_999)) == []
    assert replica.step(MessageReceived(KEYS[2], message, NOW_MS + 2_000)) == expected


def test_a_hand_over_ends_the_epoch_of_a_laggard_that_has_the_boundary() -> None:
    made = Frozen(follower(1, 2))
    end = made.block(made.one, 2)
    made.bench.propose(end)
    effects = made.bench.hear(HandoverMessage(Handover((end.header,), cc_of(end))), 2)
    assert [told.boundary for told in of(effects, EpochEnded)] == [end]
    assert [block.id for deliver in of(effects, Deliver) for block in deliver.blocks] == [end.id]


def test_a_hand_over_makes_a_laggard_fetch_what_it_lacks_until_the_boundary_is_here() -> None:
    made = Frozen(follower(1, 2))
    end = made.block(made.one, 2)
    handover = Handover((end.header,), cc_of(end))
    sender = LEADERS.index(1)
    effects = made.bench.hear(HandoverMessage(handover), sender)
    assert [(told.committed_height, told.target_height) for told in of(effects, Behind)] == [(1, 2)]
    assert of(effects, Behind)[0].sources[0] == KEYS[sender]
    made.bench.now_ms += 2_000
    assert of(made.bench.step(TimerFired(TimerKind.FETCH, made.bench.now_ms)), Behind)
    # It comes by itself, without a proof of its own.
    effects = made.bench.propose(end)
    assert [told.handover for told in of(effects, EpochEnded)] == [handover]


def test_a_committed_range_up_to_the_boundary_ends_the_epoch() -> None:
    made, source = Frozen(None), Frozen(None)
    end = source.block(source.one, 2)
    first = source.after(end, 4, tc=quorum_tc(3, qc_of(end)))
    second = source.after(first, 5)
    handover = Handover((end.header, first.header), TwoChain(qc_of(first), qc_of(second)))
    effects = made.bench.step(BlocksSynced(KEYS[1], (source.one, end), handover, NOW_MS))
    assert [told.handover for told in of(effects, EpochEnded)] == [handover]
    assert made.bench.replica.committed_proof == handover


def test_a_range_that_goes_past_the_end_is_nobodys_fault() -> None:
    made, source = Frozen(None), Frozen(None)
    end = source.block(source.one, 2)
    beyond = source.block(end, 3, epoch=1)
    effects = made.bench.step(BlocksSynced(KEYS[1], (end, beyond), cc_of(beyond), NOW_MS))
    assert effects == []


def test_a_forged_hand_over_blames_its_sender() -> None:
    made = Frozen(follower(1, 2))
    end = made.block(made.one, 2, next_validators_hash=bytes([9]) * 32)
    weak = Handover((end.header,), replace(cc_of(end), signatures=cc_of(end).signatures[:2]))
    effects = made.bench.hear(HandoverMessage(weak), 2)
    assert [fault.peer for fault in of(effects, Misbehaved)] == [KEYS[2]]
    assert of(effects, Behind) == []


# Another signer.


class Counting(SafetyRules):
    """A signer of its own that counts what it is asked."""

    __slots__ = ("asked",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asked = 0

    def sign_vote(self, block: Block):  # type: ignore[no-untyped-def]
        self.asked += 1
        return super().sign_vote(block)


def test_a_signer_given_from_outside_signs_and_its_record_is_persisted() -> None:
    me = follower(1)
    signer = Counting(SEEDS[me], make_context(VALIDATORS, GENESIS))
    replica = Replica(VALIDATORS, GENESIS, CONFIG, signer=signer, verifier=VERIFIER)
    replica.step(Started(NOW_MS))
    one = Chain().block(GENESIS, 1)
    effects = replica.step(MessageReceived(None, ProposalMessage(one, None), NOW_MS))
    assert [vote.author for vote in votes(effects)] == [KEYS[me]]
    assert signer.asked == 1
    assert [persist.record for persist in of(effects, Persist)] == [signer.record.to_bytes()]


def test_a_signer_of_a_stranger_or_of_another_epoch_or_beside_a_seed_is_refused() -> None:
    signer = Counting(SEEDS[1], make_context(VALIDATORS, GENESIS))
    with pytest.raises(LocalError):
        Replica(VALIDATORS, GENESIS, CONFIG, signer=signer, seed=SEEDS[1])
    other = make_validator_set(0, VALIDATORS.validators[2:])
    with pytest.raises(LocalError):
        Replica(other, GENESIS, CONFIG, signer=signer)
    signer.record = SafetyRecord(1)
    with pytest.raises(LocalError):
        Replica(VALIDATORS, GENESIS, CONFIG, signer=signer)


def test_the_stored_state_of_a_later_epoch_is_refused() -> None:
    _, end = ended(1)
    start = epoch_start(end, NEXT)
    later = RecoveredState(
        None,
        None,
        replace(start, header=replace(start.header, height=9)),
        cc_of(end),
        ((0, bytes(32)),) * 4,
        (),
        (),
    )
    with pytest.raises(LocalError):
        Bench(1, recovered=later)
