"""What the signer signs is on its disk first, and it says nothing twice: after crashes, old copies, full disks, new epochs."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consensus.errors import LocalError
from consensus.safety import ForeignSignature
from consensus.types import QC, Block, CommitVote, Handover, Timeout, Vote, header_id
from consensus.validators import Validator, ValidatorSet, make_validator_set
from consensus.verify import verify_commit_vote, verify_timeout, verify_vote
from node.signer.book import SLOT_BYTES
from node.signer.custodian import Custodian
from node.signer.epoch import root_after, root_from_bytes
from node.signer.protocol import (
    Answer,
    AskCommitVote,
    AskEpoch,
    AskForeign,
    AskProposal,
    AskStatus,
    AskTimeout,
    AskVote,
    Judged,
    Refused,
    Request,
    Signed,
    Status,
)
from node.storage.errors import DatabaseNotWritable, SafetyRecordUnusable
from tests.profiles import examples
from tests.unit.consensus.lab import (
    BEACONS,
    CONTEXT,
    GENESIS,
    GENESIS_QC,
    KEYS,
    LEADERS,
    Chain,
    cc_of,
    qc_of,
    quorum_tc,
    tc_of,
)
from tests.unit.node_signer.desk import ME, custodian, found

CHAIN_OF_BLOCKS = Chain()
ONE = CHAIN_OF_BLOCKS.block(GENESIS, 1)
TWO = CHAIN_OF_BLOCKS.block(ONE, 2)
OTHER_ONE = CHAIN_OF_BLOCKS.block(GENESIS, 1, timestamp_ms=GENESIS.header.timestamp_ms + 5)


def own_block(round_: int, **changes: Any) -> Block:
    """A block of the signer's own, in the first round from `round_` on that it leads."""
    round_ = next(each for each in range(round_, round_ + 64) if LEADERS.index(each) == ME)
    return CHAIN_OF_BLOCKS.block(GENESIS, round_, tc=quorum_tc(round_ - 1, GENESIS_QC), **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return found(tmp_path / "signer")


def item_of(answer: Answer) -> object:
    assert isinstance(answer, Signed), answer
    return answer.item


def refusal(answer: Answer) -> str:
    assert isinstance(answer, Refused), answer
    return answer.reason


# --- what it signs ---


def test_every_kind_is_signed_and_verifies(folder: Path) -> None:
    keeper = custodian(folder)
    vote = item_of(keeper.answer(AskVote(ONE)))
    assert isinstance(vote, Vote)
    assert verify_vote(CONTEXT, vote) == ME
    commit = item_of(keeper.answer(AskCommitVote(qc_of(ONE), ONE.header)))
    assert isinstance(commit, CommitVote)
    assert verify_commit_vote(CONTEXT, commit) == ME
    timed = item_of(keeper.answer(AskTimeout(2, qc_of(ONE), None)))
    assert isinstance(timed, tuple)
    assert verify_timeout(CONTEXT, timed[0]) == ME
    block = own_block(3)
    assert item_of(keeper.answer(AskProposal(block.header))) == block.signature
    status = keeper.answer(AskStatus())
    assert isinstance(status, Status)
    assert (status.public, status.record) == (KEYS[ME], keeper.record)


def test_a_certificate_that_does_not_verify_is_a_refusal_and_changes_nothing(folder: Path) -> None:
    keeper = custodian(folder)
    before = (folder / "signer.book").read_bytes()
    thin = replace(TWO, qc=qc_of(ONE, signers=(0, 1)))
    assert refusal(keeper.answer(AskVote(thin))) == "not verified: not a quorum"
    assert (folder / "signer.book").read_bytes() == before


def test_every_signature_is_on_the_disk_before_it_is_handed_out(folder: Path, tmp_path: Path) -> None:
    """Killed at any moment after the answer, and started again, it stands by each of them."""
    requests: list[tuple[Request, Request]] = [
        (AskVote(ONE), AskVote(OTHER_ONE)),
        (AskProposal(own_block(2).header), AskProposal(own_block(2, timestamp_ms=10**6 + 9).header)),
        (AskCommitVote(qc_of(ONE), ONE.header), AskCommitVote(qc_of(OTHER_ONE), OTHER_ONE.header)),
        (AskTimeout(2, qc_of(ONE), None), AskVote(TWO)),
    ]
    keeper = custodian(folder)
    for number, (asked, contrary) in enumerate(requests):
        item = item_of(keeper.answer(asked))
        restarted = custodian(Path(shutil.copytree(folder, tmp_path / str(number))))
        assert item_of(restarted.answer(asked)) == item
        assert refusal(restarted.answer(contrary))


def test_a_request_that_is_repeated_gets_the_same_bytes_and_writes_nothing(folder: Path) -> None:
    keeper = custodian(folder)
    asked: list[Request] = [
        AskVote(ONE),
        AskCommitVote(qc_of(ONE), ONE.header),
        AskProposal(own_block(2).header),
        AskTimeout(2, qc_of(ONE), None),
    ]
    first = [item_of(keeper.answer(request)) for request in asked]
    files = [(folder / name).read_bytes() for name in ("signer.book", "safety.guard")]
    assert [item_of(keeper.answer(request)) for request in asked] == first
    assert [(folder / name).read_bytes() for name in ("signer.book", "safety.guard")] == files


# --- disks ---


@pytest.mark.parametrize("full", ["signer.book", "safety.guard"])
def test_on_a_full_disk_nothing_leaves_and_what_was_said_before_stands(folder: Path, full: str) -> None:
    keeper = custodian(folder)
    first = item_of(keeper.answer(AskVote(ONE)))
    path, kept = folder / full, folder / "kept"
    path.rename(kept)
    path.symlink_to("/dev/full")
    with pytest.raises(DatabaseNotWritable):
        keeper.answer(AskVote(TWO))
    path.unlink()
    kept.rename(path)
    again = custodian(folder)
    if full == "signer.book":
        assert item_of(again.answer(AskVote(ONE))) == first
    assert isinstance(item_of(again.answer(AskVote(TWO))), Vote)


def test_a_write_that_power_cut_short_leaves_the_page_before(folder: Path) -> None:
    keeper = custodian(folder)
    keeper.answer(AskVote(ONE))
    guard = (folder / "safety.guard").read_bytes()
    book = (folder / "signer.book").read_bytes()
    keeper.answer(AskVote(TWO))
    after = (folder / "signer.book").read_bytes()
    at = next(index for index, (old, new) in enumerate(zip(book, after, strict=True)) if old != new)
    # The first half of the new page reached the disk, its signature never left, the guard was not written.
    (folder / "signer.book").write_bytes(after[: at + 100] + book[at + 100 :])
    (folder / "safety.guard").write_bytes(guard)
    again = custodian(folder)
    assert again.record.last_voted == 1
    assert isinstance(item_of(again.answer(AskVote(TWO))), Vote)


def test_a_book_restored_from_an_old_copy_is_refused_by_the_guard(folder: Path) -> None:
    keeper = custodian(folder)
    keeper.answer(AskVote(ONE))
    old = (folder / "signer.book").read_bytes()
    keeper.answer(AskVote(TWO))
    (folder / "signer.book").write_bytes(old)
    for _ in range(2):
        with pytest.raises(SafetyRecordUnusable, match="last voted 1 after 2"):
            custodian(folder)


def test_a_book_that_lost_its_latest_page_is_refused_by_the_guard(folder: Path) -> None:
    keeper = custodian(folder)
    keeper.answer(AskVote(ONE))
    keeper.answer(AskVote(TWO))
    data = bytearray((folder / "signer.book").read_bytes())
    latest = 0 if data[4:12] > data[SLOT_BYTES + 4 : SLOT_BYTES + 12] else SLOT_BYTES
    data[latest + 40] ^= 1
    (folder / "signer.book").write_bytes(data)
    with pytest.raises(SafetyRecordUnusable, match="older than what this key signed last"):
        custodian(folder)


@pytest.mark.parametrize("damage", [b"", b"\xff" * 2 * SLOT_BYTES, bytes(2 * SLOT_BYTES)])
def test_a_damaged_or_missing_book_is_refused(folder: Path, damage: bytes) -> None:
    (folder / "signer.book").write_bytes(damage)
    with pytest.raises(SafetyRecordUnusable, match="damaged"):
        custodian(folder)
    (folder / "signer.book").unlink()
    with pytest.raises(SafetyRecordUnusable, match="missing"):
        custodian(folder)


def test_killed_between_book_and_guard_it_goes_on_and_the_guard_catches_up_before_anything_leaves(
    folder: Path,
) -> None:
    keeper = custodian(folder)
    keeper.answer(AskVote(ONE))
    before = [(folder / name).read_bytes() for name in ("signer.book", "safety.guard")]
    vote = item_of(keeper.answer(AskVote(TWO)))
    (folder / "safety.guard").write_bytes(before[1])
    again = custodian(folder)
    assert item_of(again.answer(AskVote(TWO))) == vote
    # It has left now: a book without it is too old.
    (folder / "signer.book").write_bytes(before[0])
    with pytest.raises(SafetyRecordUnusable):
        custodian(folder)


# --- what its signatures rely on ---


def test_who_lost_the_certificates_gets_them_back_and_can_go_on(folder: Path) -> None:
    """Power cut on all machines right after the signers wrote: without the QC nobody could time out with this lock again."""
    keeper = custodian(folder)
    keeper.answer(AskCommitVote(qc_of(ONE), ONE.header))
    again = custodian(folder)
    assert refusal(again.answer(AskTimeout(1, GENESIS_QC, None))) == "high QC is below the lock"
    status = again.answer(AskStatus())
    assert isinstance(status, Status)
    assert status.certificates is not None
    assert isinstance(item_of(again.answer(AskTimeout(2, status.certificates.high_qc, None))), tuple)


def test_the_tc_that_permitted_a_round_comes_back_too(folder: Path) -> None:
    keeper = custodian(folder)
    tc = quorum_tc(4, GENESIS_QC)
    keeper.answer(AskTimeout(5, GENESIS_QC, tc))
    status = custodian(folder).answer(AskStatus())
    assert isinstance(status, Status)
    assert status.certificates is not None
    assert status.certificates.last_tc == tc


def test_a_certificate_that_was_not_looked_at_is_not_remembered(folder: Path) -> None:
    keeper = custodian(folder)
    made_up = tc_of(900, {0: GENESIS_QC})
    keeper.answer(AskTimeout(1, GENESIS_QC, made_up))
    keeper.answer(AskVote(replace(TWO, tc=made_up)))
    keeper.answer(AskVote(replace(TWO, qc=replace(qc_of(ONE), parent_round=0, signatures=()))))
    status = keeper.answer(AskStatus())
    assert isinstance(status, Status)
    assert status.certificates is not None
    assert status.certificates.last_tc is None
    assert status.certificates.high_qc == qc_of(ONE)


# --- somebody else with the key ---


@pytest.mark.parametrize("kind", ["vote", "commit vote", "timeout", "proposal"])
def test_a_signature_that_is_not_in_the_book_ends_the_signer_for_good(folder: Path, kind: str) -> None:
    keeper = custodian(folder)
    keeper.answer(AskVote(ONE))
    judged = keeper.answer(AskForeign(ForeignSignature(kind, 40, 0)))
    assert isinstance(judged, Judged)
    assert judged.foreign
    assert keeper.over is not None
    assert refusal(keeper.answer(AskVote(TWO))) == "the key is used elsewhere"
    with pytest.raises(SafetyRecordUnusable):
        custodian(folder)


def test_a_signature_that_was_made_for_another_daemon_is_not_foreign(folder: Path) -> None:
    keeper = custodian(folder)
    keeper.answer(AskVote(ONE))
    keeper.answer(AskTimeout(2, qc_of(ONE), None))
    for found_ in (ForeignSignature("vote", 1, 0), ForeignSignature("timeout", 2, 1)):
        judged = keeper.answer(AskForeign(found_))
        assert isinstance(judged, Judged)
        assert not judged.foreign
    assert isinstance(item_of(keeper.answer(AskTimeout(2, qc_of(ONE), None))), tuple)


def test_another_statement_of_the_round_that_both_know_is_foreign(folder: Path) -> None:
    keeper = custodian(folder)
    keeper.answer(AskVote(ONE))
    judged = keeper.answer(AskForeign(ForeignSignature("vote", 1, 1)))
    assert isinstance(judged, Judged)
    assert judged.foreign


# --- epochs ---


def next_set(members: tuple[int, ...] = (0, 1, 2, 3)) -> ValidatorSet:
    return make_validator_set(1, [Validator(KEYS[index], 1, BEACONS[index].anchor) for index in members])


def handover(next_: ValidatorSet) -> Handover:
    boundary = Chain().block(GENESIS, 1, next_validators_hash=next_.hash)
    return Handover((boundary.header,), cc_of(boundary))


def test_it_follows_a_proven_hand_over_and_signs_nothing_in_the_epoch_before(folder: Path) -> None:
    keeper = custodian(folder)
    keeper.answer(AskVote(ONE))
    later = next_set()
    proof = handover(later)
    status = keeper.answer(AskEpoch(proof, later))
    assert isinstance(status, Status)
    assert status.record.epoch == 1
    root = root_after(proof.headers[0], later)
    for each in (keeper, custodian(folder, root_from_bytes((folder / "epoch.root").read_bytes()))):
        assert refusal(each.answer(AskVote(TWO))) == "proposal of another epoch"
        qc = QC(1, 0, root.start.id, root.start.id, 0, ())
        timed = item_of(each.answer(AskTimeout(1, replace(qc, parent_id=root.start.qc.parent_id), None)))
        assert isinstance(timed, tuple)
        assert isinstance(timed[0], Timeout)
        assert timed[0].epoch == 1


Tamper = Callable[[Handover, ValidatorSet], AskEpoch]


@pytest.mark.parametrize(
    "tampered",
    [
        lambda proof, later: AskEpoch(proof, next_set((0, 1, 2))),
        lambda proof, later: AskEpoch(replace(proof, proof=replace(proof.proof, signatures=())), later),
        lambda proof, later: AskEpoch(
            replace(proof, headers=(replace(proof.headers[0], timestamp_ms=7),)), later
        ),
        lambda proof, later: AskEpoch(Handover((ONE.header,), cc_of(ONE)), later),
        lambda proof, later: AskEpoch(replace(proof, headers=()), later),
    ],
    ids=["another set", "no quorum", "another header", "no boundary", "nothing"],
)
def test_a_hand_over_that_proves_something_else_is_refused(folder: Path, tampered: Tamper) -> None:
    keeper = custodian(folder)
    later = next_set()
    assert refusal(keeper.answer(tampered(handover(later), later))).startswith("hand-over: ")
    assert keeper.record.epoch == 0
    assert not (folder / "epoch.root").exists()


def test_a_key_that_is_not_in_the_next_set_signs_nothing_there(folder: Path) -> None:
    keeper = custodian(folder)
    later = next_set((0, 1, 2))
    assert isinstance(keeper.answer(AskEpoch(handover(later), later)), Status)
    assert refusal(keeper.answer(AskTimeout(1, GENESIS_QC, None))).startswith("the key is not a validator's")


def test_an_epoch_file_that_is_lost_while_the_book_went_on_is_refused(folder: Path) -> None:
    keeper = custodian(folder)
    later = next_set()
    proof = handover(later)
    keeper.answer(AskEpoch(proof, later))
    root = root_after(proof.headers[0], later)
    qc = QC(1, 0, root.start.id, root.start.qc.parent_id, 0, ())
    assert isinstance(item_of(keeper.answer(AskTimeout(1, qc, None))), tuple)
    with pytest.raises(LocalError, match="later epoch"):
        custodian(folder)


# --- two daemons ---

BLOCKS = [
    CHAIN_OF_BLOCKS.block(
        GENESIS,
        round_,
        tc=None if round_ == 1 else quorum_tc(round_ - 1, GENESIS_QC),
        timestamp_ms=GENESIS.header.timestamp_ms + stamp,
    )
    for round_ in range(1, 6)
    for stamp in (1, 2)
]


def requests_for(block: Block) -> list[Request]:
    tc = None if block.round == 1 else quorum_tc(block.round - 1, GENESIS_QC)
    return [
        AskVote(block),
        AskCommitVote(qc_of(block), block.header),
        AskTimeout(block.round, GENESIS_QC, tc),
        AskProposal(replace(block.header, proposer=KEYS[ME])),
    ]


@settings(max_examples=examples(15), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    script=st.lists(
        st.tuples(st.sampled_from(BLOCKS), st.integers(0, 3), st.booleans()), min_size=4, max_size=14
    )
)
def test_whatever_two_daemons_ask_and_however_often_it_restarts_nothing_is_said_twice(
    tmp_path_factory: pytest.TempPathFactory, script: list[tuple[Block, int, bool]]
) -> None:
    folder = found(tmp_path_factory.mktemp("two") / "signer")
    keeper: Custodian = custodian(folder)
    said: dict[tuple[int, int], set[bytes]] = {}
    for block, which, restarts in script:
        request = requests_for(block)[which]
        answer = keeper.answer(request)
        if isinstance(answer, Signed):
            item = answer.item
            name = header_id(request.header) if isinstance(request, AskProposal) else repr(item).encode()
            said.setdefault((which, block.round), set()).add(name)
        if restarts:
            keeper = custodian(folder)
    assert all(len(names) == 1 for names in said.values()), said
