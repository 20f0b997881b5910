"""What a node keeps of an epoch: its bytes, and what a stranger's word about one is worth."""

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from consensus.digest import digest
from consensus.epochs import epoch_start
from consensus.errors import CodecError, ConsensusError
from consensus.types import Block, Handover, genesis_block
from node.epochs import CONTEXTS_MAX, EpochRow, Epochs, check_row, first_row, row_from_bytes
from node.ledger.entries import ValidatorSet
from node.ledger.epochs import consensus_set
from node.ledger.genesis import chain_id
from node.storage.chain import ChainStore
from node.storage.database import Database
from tests.unit.node.rooms import cc_of, next_block
from tests.unit.node_ledger.world import genesis

DOCUMENT = genesis()
CHAIN = chain_id(DOCUMENT)
OLD = ValidatorSet(DOCUMENT.validators)
NEW = ValidatorSet(OLD.validators[1:], digest("test-seed", b""))
OTHER = ValidatorSet(OLD.validators[:3])
FIRST = first_row(genesis_block(CHAIN, digest("test-state", b"")), OLD)


def boundary_to(following: ValidatorSet) -> Block:
    block = next_block(FIRST.start)
    return replace(block, header=replace(block.header, next_validators_hash=consensus_set(following, 1).hash))


def second_row(following: ValidatorSet = NEW) -> EpochRow:
    boundary = boundary_to(following)
    start = epoch_start(boundary, consensus_set(following, 1))
    reveals = tuple((number, digest("test-reveal", b"")) for number, _ in enumerate(following.validators))
    return EpochRow(1, start, following, reveals, Handover((boundary.header,), cc_of(boundary)))


def test_rows_survive_their_bytes() -> None:
    for row in (FIRST, second_row()):
        again = row_from_bytes(row.to_bytes())
        assert again == row
        assert again.start.id == row.start.id


def test_no_cut_or_lengthened_row_is_read() -> None:
    data = second_row().to_bytes()
    for size in range(len(data)):
        with pytest.raises(CodecError):
            row_from_bytes(data[:size])
    with pytest.raises(CodecError):
        row_from_bytes(data + b"\0")


def test_a_row_that_the_set_before_it_handed_over_to_is_taken() -> None:
    check_row(FIRST, second_row(), CHAIN)


ROW = second_row()
HANDOVER = ROW.handover or Handover((), cc_of(boundary_to(NEW)))
FORGED = replace(HANDOVER.headers[0], next_validators_hash=consensus_set(OTHER, 1).hash)


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(replace(ROW, validators=OTHER), id="another set"),
        pytest.param(replace(ROW, validators=replace(NEW, seed=bytes(32))), id="other leaders"),
        pytest.param(replace(ROW, number=2), id="another number"),
        pytest.param(replace(ROW, start=second_row(OTHER).start), id="another root"),
        pytest.param(replace(ROW, handover=None), id="no hand-over"),
        pytest.param(
            replace(ROW, validators=OTHER, handover=Handover((FORGED,), HANDOVER.proof)), id="forged header"
        ),
        pytest.param(
            replace(ROW, handover=Handover(HANDOVER.headers, cc_of(next_block(FIRST.start)))),
            id="proof of another block",
        ),
        pytest.param(
            replace(
                ROW,
                handover=Handover(
                    HANDOVER.headers,
                    replace(cc_of(boundary_to(NEW)), signatures=cc_of(boundary_to(NEW)).signatures[:2]),
                ),
            ),
            id="no quorum",
        ),
    ],
)
def test_a_row_that_nobody_vouches_for_is_refused(row: EpochRow) -> None:
    with pytest.raises(ConsensusError):
        check_row(FIRST, row, CHAIN)


def test_the_newest_epoch_is_not_read_again_from_the_disk(tmp_path: Path) -> None:
    with closing(Database(tmp_path / "chain")) as database:
        store = ChainStore(database)
        store.put_epoch(1, ROW.to_bytes())
        epochs = Epochs(store, CHAIN, FIRST)
        assert epochs.row(1) is epochs.current
        assert epochs.current == ROW
        assert epochs.row(0) is FIRST
        assert epochs.row(2) is None


def test_threads_that_ask_for_more_epochs_than_are_kept_get_the_right_ones(tmp_path: Path) -> None:
    numbers = range(1, 2 * CONTEXTS_MAX)
    before_s = sys.getswitchinterval()
    with closing(Database(tmp_path / "chain")) as database, ThreadPoolExecutor(4) as pool:
        store = ChainStore(database)
        for number in numbers:
            store.put_epoch(number, replace(ROW, number=number).to_bytes())
        epochs = Epochs(store, CHAIN, FIRST)

        def ask(first: int) -> bool:
            orders = [(first + step * 7) % len(numbers) + 1 for step in range(300)]
            found = [(epochs.context(number), number) for number in orders]
            return all(context is not None and context.epoch == number for context, number in found)

        sys.setswitchinterval(1e-6)
        try:
            assert all(pool.map(ask, range(4)))
        finally:
            sys.setswitchinterval(before_s)
