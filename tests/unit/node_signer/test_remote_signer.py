"""A replica whose signer is elsewhere: it votes through it, goes on without it, and comes back to it; it never signs itself."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic

import pytest
import trio

from consensus import crypto
from consensus.effects import Persist
from consensus.errors import SafetyRefusal
from consensus.inputs import PayloadOffered, Started, TimerFired, TimerKind
from consensus.messages import ProposalMessage, VoteMessage
from consensus.replica import Replica
from consensus.safety import ForeignSignature, SafetyRecord, record_from_bytes
from consensus.types import CommitCertificate, Handover, Header, Vote, genesis_qc, header_id
from consensus.validators import ValidatorSet, make_validator_set
from consensus.verify import commit_vote_message, verify_vote
from node.signer.epoch import EpochRoot, root_after
from node.signer.errors import SignerForeign, SignerUnavailable
from node.signer.frames import LENGTH_BYTES, pack
from node.signer.protocol import (
    ANSWER_BYTES_MAX,
    AskStatus,
    AskVote,
    Judged,
    Refused,
    Signed,
    Status,
    decode_request,
    encode_answer,
)
from node.signer.remote import RETRY_S_MIN, RemoteSigner, SignerLink
from node.storage.errors import DatabaseNotWritable, SigningKeyElsewhere
from tests.unit.consensus.lab import (
    BEACONS,
    CHAIN,
    CONFIG,
    CONTEXT,
    GENESIS,
    GENESIS_QC,
    KEYS,
    LEADERS,
    SEEDS,
    VALIDATORS,
    VERIFIER,
    Bench,
    Chain,
    commit_vote_by,
    commit_votes,
    of,
    qc_of,
    quorum_tc,
    sent,
    timeout_by,
    timeouts,
    vote_by,
    votes,
)
from tests.unit.node_signer.desk import ME, ROOT, Desk, custodian, found, link_to, serving

MADE = Chain()
ONE = MADE.block(GENESIS, 1)
TWO = MADE.block(ONE, 2)
OTHER_ONE = MADE.block(GENESIS, 1, timestamp_ms=GENESIS.header.timestamp_ms + 5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return found(tmp_path / "signer")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "signer.sock"


@pytest.fixture
def desk(folder: Path, path: Path) -> Iterator[Desk]:
    with serving(custodian(folder), path) as running:
        yield running


def bench_with(signer: RemoteSigner) -> Bench:
    """A validator's replica that asks `signer`."""
    bench = Bench(None, start=False)
    bench.replica = Replica(VALIDATORS, GENESIS, CONFIG, signer=signer, beacon=BEACONS[ME], verifier=VERIFIER)
    bench.step(Started(bench.now_ms))
    return bench


def alarm(bench: Bench) -> ForeignSignature | None:
    return bench.replica.foreign_signature


# --- a replica with it ---


def test_a_replica_votes_commits_times_out_and_proposes_through_it(desk: Desk) -> None:
    bench = bench_with(desk.asker())
    [vote] = votes(bench.propose(ONE))
    assert verify_vote(CONTEXT, vote) == ME
    assert len(commit_votes(bench.certificates(qc_of(ONE)))) == 1
    bench.now_ms += 100_000
    assert len(timeouts(bench.step(TimerFired(TimerKind.ROUND, bench.now_ms)))) == 1
    leading = next(round_ for round_ in range(3, 64) if LEADERS.index(round_) == ME)
    bench.certificates(tc=quorum_tc(leading - 1, qc_of(ONE)))
    [proposal] = sent(bench.step(PayloadOffered(leading, (), bench.now_ms)), ProposalMessage)
    assert proposal.block.header.proposer == KEYS[ME]
    # What the daemon keeps of the record is what the signer says.
    records = [effect.record for effect in of(bench.effects, Persist) if effect.record is not None]
    assert record_from_bytes(records[-1]).last_proposed == leading


def test_without_a_signer_it_follows_as_an_observer_and_asks_for_no_payload_again(path: Path) -> None:
    link = link_to(path)
    bench = bench_with(RemoteSigner(link, 0))
    bench.propose(ONE)
    bench.certificates(qc_of(ONE))
    bench.propose(TWO)
    bench.certificates(qc_of(TWO))
    assert bench.delivered() == [ONE.id]
    leading = next(round_ for round_ in range(3, 64) if LEADERS.index(round_) == ME)
    bench.certificates(tc=quorum_tc(leading - 1, qc_of(TWO)))
    for _ in range(3):
        assert not bench.step(PayloadOffered(leading, (), bench.now_ms))
    assert not votes(bench.effects) + commit_votes(bench.effects)
    assert not sent(bench.effects, ProposalMessage)
    assert not timeouts(bench.effects)


def test_an_answer_that_was_lost_is_asked_for_again_and_is_the_same(folder: Path, path: Path) -> None:
    """Killed between its write and its answer: the vote is made, and leaves once the signer is back."""
    keeper = custodian(folder)
    with serving(keeper, path) as desk:
        signer = desk.asker()
        link = signer._link
        bench = bench_with(signer)
        desk.close()
        assert not votes(bench.propose(ONE))
    # It had written the vote.
    keeper.answer(AskVote(ONE))
    with serving(custodian(folder), path):
        link.connect()
        [vote] = votes(bench.hear(VoteMessage(vote_by(0, ONE))))
        assert vote == vote_by(ME, ONE)
        link.close()


def test_on_a_full_disk_the_signer_ends_without_an_answer_and_its_daemon_goes_on(
    folder: Path, desk: Desk
) -> None:
    bench = bench_with(desk.asker())
    book, kept = folder / "signer.book", folder / "kept"
    book.rename(kept)
    book.symlink_to("/dev/full")
    assert not votes(bench.propose(ONE))
    desk.join(10)
    assert isinstance(desk.ended, BaseExceptionGroup)
    assert desk.ended.subgroup(DatabaseNotWritable) is not None
    bench.certificates(qc_of(ONE))
    bench.propose(TWO)
    bench.certificates(qc_of(TWO))
    assert bench.delivered() == [ONE.id]


def test_two_daemons_and_one_signer_say_one_thing(desk: Desk) -> None:
    first, second = bench_with(desk.asker()), bench_with(desk.asker())
    [vote] = votes(first.propose(ONE))
    assert not votes(second.propose(OTHER_ONE))
    # The other learns why, and of nothing that would end it.
    second.hear(VoteMessage(vote))
    assert alarm(second) is None
    second.certificates(qc_of(ONE))
    assert not commit_votes(second.effects)  # it does not have the block
    third = bench_with(desk.asker())
    [same] = votes(third.propose(ONE))
    assert same == vote


def test_a_signature_made_for_the_other_daemon_is_no_alarm_and_one_made_elsewhere_is(desk: Desk) -> None:
    first, second = bench_with(desk.asker()), bench_with(desk.asker())
    [vote] = votes(first.propose(ONE))
    second.hear(VoteMessage(vote))
    assert alarm(second) is None
    second.propose(ONE)
    second.certificates(qc_of(ONE))
    elsewhere = vote_by(ME, TWO)
    second.hear(VoteMessage(elsewhere))
    assert alarm(second) == ForeignSignature("vote", 2, 1)
    # So does the signer, and its guard remembers it.
    desk.join(10)
    assert isinstance(desk.ended, BaseExceptionGroup)
    assert desk.ended.subgroup(SigningKeyElsewhere) is not None


def test_while_the_signer_is_away_nobody_is_accused(desk: Desk) -> None:
    bench = bench_with(desk.asker())
    desk.close()
    bench.hear(VoteMessage(vote_by(ME, ONE)))
    assert alarm(bench) is None


def test_what_was_refused_is_not_asked_again_at_every_step(desk: Desk) -> None:
    bench = bench_with(desk.asker())
    other = desk.asker()
    other.sign_timeout(1, GENESIS_QC, None)
    bench.propose(ONE)
    bench.certificates(qc_of(ONE))
    asked = sum(desk.server._custodian.counts.values())
    for index in range(3):
        bench.hear(VoteMessage(vote_by(index, TWO)))
        bench.step(TimerFired(TimerKind.FETCH, bench.now_ms))
    assert sum(desk.server._custodian.counts.values()) == asked
    assert not commit_votes(bench.effects)


# --- a signer that is not ours, or not well ---

Reply = Callable[[bytes], bytes | None]


@contextmanager
def answering(path: Path, reply: Reply) -> Iterator[None]:
    """Something that listens and answers each request with what `reply` makes of it; None: with silence."""
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=_answer, args=(listener, reply))
        thread.start()
        try:
            yield
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _answer(listener: socket.socket, reply: Reply) -> None:
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(5)
                while head := connection.recv(LENGTH_BYTES):
                    data = connection.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
                    answer = reply(data)
                    if answer is not None:
                        connection.sendall(answer)


STATUS = encode_answer(Status(KEYS[ME], CHAIN, SafetyRecord(0), None))


def wrong(answer: bytes) -> Reply:
    """Right about who it is, and wrong in everything else."""

    def reply(data: bytes) -> bytes:
        return pack(STATUS) if isinstance(decode_request(data), AskStatus) else answer

    return reply


R = SafetyRecord(0)
FORGED = replace(vote_by(ME, ONE), signature=bytes(64))


@pytest.mark.parametrize(
    "answer",
    [
        pack(encode_answer(Signed(vote_by(ME, OTHER_ONE), R))),
        pack(encode_answer(Signed(vote_by(0, ONE), R))),
        pack(encode_answer(Signed(FORGED, R))),
        pack(encode_answer(Signed(commit_vote_by(ME, ONE), R))),
        pack(encode_answer(Signed((timeout_by(ME, 1, GENESIS_QC), GENESIS_QC), R))),
        pack(encode_answer(Judged(False, R))),
        pack(STATUS),
        pack(b"\xc1"),
        bytes(4),
        (ANSWER_BYTES_MAX + 1).to_bytes(4, "big"),
        pack(STATUS)[:10],
    ],
    ids=[
        "of another block",
        "another key's",
        "does not verify",
        "another kind",
        "a timeout",
        "a judgement",
        "a status",
        "not canonical",
        "an empty frame",
        "too long",
        "half a frame",
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_counts_as_no_signer(path: Path, answer: bytes) -> None:
    with answering(path, wrong(answer)):
        link = link_to(path)
        link.connect()
        with pytest.raises(SafetyRefusal):
            RemoteSigner(link, 0).sign_vote(ONE)
        assert not link.connected
        assert link.problem


def test_a_signer_with_another_key_or_of_another_chain_is_refused(path: Path) -> None:
    for status in (Status(KEYS[0], CHAIN, R, None), Status(KEYS[ME], bytes(32), R, None)):
        data = pack(encode_answer(status))
        with answering(path, lambda _, data=data: data):  # type: ignore[misc]
            link = link_to(path)
            with pytest.raises(SignerForeign):
                link.connect()
            assert not link.connected
        path.unlink()


def test_whatever_another_user_listens_as_is_not_asked(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    ours = os.geteuid()
    monkeypatch.setattr("node.signer.frames.os.geteuid", lambda: ours + 1)
    with pytest.raises(SignerForeign, match="user id"):
        link_to(desk.path).connect()
    trusted = SignerLink(desk.path, KEYS[ME], CHAIN, uids=(ours,))
    with pytest.raises(SignerUnavailable):  # the signer, for its part, does not know this user
        trusted.connect()


def test_a_signer_that_stands_still_costs_its_deadline_once(path: Path) -> None:
    with answering(path, lambda data: pack(STATUS) if isinstance(decode_request(data), AskStatus) else None):
        link = link_to(path)
        link.connect()
        signer = RemoteSigner(link, 0)
        began_s = monotonic()
        with pytest.raises(SafetyRefusal, match="timed out"):
            signer.sign_vote(ONE)
        first_s = monotonic() - began_s
        began_s = monotonic()
        for _ in range(1000):
            with pytest.raises(SafetyRefusal):
                signer.sign_vote(ONE)
        assert first_s >= 0.4
        assert monotonic() - began_s < first_s


def test_a_refusal_by_a_signer_that_has_not_heard_of_the_epoch_makes_it_hear(path: Path) -> None:
    with answering(path, wrong(pack(encode_answer(Refused("proposal of another epoch", R))))):
        link = link_to(path)
        link.connect()
        with pytest.raises(SafetyRefusal):
            RemoteSigner(link, 1).sign_timeout(1, GENESIS_QC, None)
        assert not link.connected


def test_records_of_another_epoch_are_not_taken_for_this_ones(desk: Desk) -> None:
    late = RemoteSigner(desk.asker()._link, 0, SafetyRecord(7, last_voted=90))
    assert late.record == SafetyRecord(0)
    late._learn(SafetyRecord(7, last_voted=90))
    assert late.record == SafetyRecord(0)


def test_the_link_comes_back_by_itself_and_says_what_is_wrong_meanwhile(folder: Path, path: Path) -> None:
    async def main() -> None:
        link = link_to(path)
        heard: list[Status] = []
        connected = trio.Event()

        def on_connected(status: Status) -> None:
            heard.append(status)
            connected.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run, on_connected)
            await trio.sleep(2 * RETRY_S_MIN)
            assert link.problem == "No such file or directory"
            for _ in range(2):
                connected = trio.Event()
                desk = await trio.to_thread.run_sync(Desk(custodian(folder), path).open)
                with trio.fail_after(10):
                    await connected.wait()
                signer = RemoteSigner(link, 0)
                vote = signer.sign_vote(ONE)
                await trio.to_thread.run_sync(desk.close)
                with pytest.raises(SafetyRefusal):
                    signer.sign_vote(TWO)
                assert not link.connected
            nursery.cancel_scope.cancel()
        link.close()
        assert isinstance(vote, Vote)
        assert [status.record.last_voted for status in heard] == [0, 1]

    trio.run(main)


def test_a_proposal_is_signed_again_for_the_same_header_only(desk: Desk) -> None:
    first, second = desk.asker(), desk.asker()
    round_ = next(each for each in range(1, 64) if LEADERS.index(each) == ME)
    block = MADE.block(GENESIS, round_)
    assert first.sign_proposal(block.header) == second.sign_proposal(block.header) == block.signature
    changed = replace(block.header, timestamp_ms=block.header.timestamp_ms + 1)
    assert header_id(changed) != block.id
    with pytest.raises(SafetyRefusal):
        second.sign_proposal(changed)


def test_a_daemon_brings_its_signer_into_the_epoch_it_is_in_itself(desk: Desk) -> None:
    """Two epochs at once: a signer that was away for one of them gets both hand-overs, in order."""
    later, ended, begun = [make_set(1), make_set(2)], [], ROOT
    for next_set in later:
        boundary = boundary_of(begun, next_set)
        ended.append((Handover((boundary,), certify(boundary, begun)), next_set))
        begun = root_after(boundary, next_set)
    link = link_to(desk.path, lambda epoch: ended[epoch] if epoch < 2 else None)
    assert link.connect().record == SafetyRecord(2)
    with pytest.raises(SafetyRefusal, match="another epoch"):
        RemoteSigner(link, 0).sign_vote(ONE)
    start = genesis_qc(begun.start)
    timeout, _ = RemoteSigner(link, 2).sign_timeout(1, start, None)
    assert timeout.epoch == 2
    link.close()
    # A daemon that lags is not followed back, and its questions are refused.
    behind = link_to(desk.path)
    assert behind.connect().record.epoch == 2
    with pytest.raises(SafetyRefusal):
        RemoteSigner(behind, 0).sign_timeout(1, GENESIS_QC, None)
    behind.close()


def test_a_signer_that_is_given_a_false_hand_over_stays_where_it_is_and_is_not_used(desk: Desk) -> None:
    next_set = make_set(1)
    boundary = boundary_of(ROOT, next_set)
    thin = replace(certify(boundary, ROOT), signatures=())
    link = link_to(desk.path, lambda epoch: (Handover((boundary,), thin), next_set))
    with pytest.raises(SignerUnavailable, match="does not follow the chain: hand-over: not a quorum"):
        link.connect()
    assert desk.asker().sign_vote(ONE).epoch == 0


def make_set(epoch: int) -> ValidatorSet:
    return make_validator_set(epoch, list(VALIDATORS.validators))


def boundary_of(root: EpochRoot, next_set: ValidatorSet) -> Header:
    start = root.start.header
    changed = {"round": 1, "height": start.height + 1, "parent": root.start.id, "proposer": KEYS[0]}
    return replace(start, next_validators_hash=next_set.hash, **changed)  # type: ignore[arg-type]


def certify(header: Header, root: EpochRoot) -> CommitCertificate:
    name = header_id(header)
    message = commit_vote_message(CHAIN, header.epoch, header.round, name, header.height)
    rows = tuple((index, crypto.sign(seed, message)) for index, seed in enumerate(SEEDS[:3]))
    return CommitCertificate(header.epoch, header.round, name, header.height, rows)
