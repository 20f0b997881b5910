"""What is pruned, what never is, and that blocks are taken back to exactly the state before them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from consensus.effects import Persist
from node import pruning
from node.ledger.bodies import Transfer
from node.ledger.lthash import lthash_of, state_digest
from node.ledger.params import Params
from node.pruning import RETAIN_HEIGHTS_MIN, Pruner, keep_from, subjects_of
from node.pushed import UNUSED_HEIGHTS_MAX
from node.storage.errors import StorageError
from tests.unit.node.rooms import Room, cc_of, run, with_rooms
from tests.unit.node.snapshot_chain import EVERY, document, grow, room, true_block
from tests.unit.node_ledger.world import address

FAR = 10 * RETAIN_HEIGHTS_MIN


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Room]:
    made = room("val0", tmp_path)
    yield made
    made.close()


def pruner(there: Room, retain_heights: int) -> Pruner:
    params = document().params
    return Pruner(there.store, there.upkeep, there.shelf, params, retain_heights, lambda: [])


def rows(there: Room, letters: str) -> int:
    return sum(count for letter, (count, _) in there.upkeep.count_rows().items() if letter in letters)


@pytest.mark.parametrize(
    ("retain", "params", "snapshots", "lowest"),
    [
        (0, Params(), [], 0),
        (1000, Params(), [], FAR - 999),
        (1, Params(), [], FAR - RETAIN_HEIGHTS_MIN + 1),
        (1000, Params(evidence_heights=2000, unbonding_heights=2000), [], FAR - 1999),
        (1000, Params(snapshot_heights=100), [FAR - 150, FAR - 50], FAR - 999),
        (1000, Params(snapshot_heights=800), [FAR - 1200, FAR - 400], FAR - 1600),
        (1000, Params(snapshot_heights=100), [FAR - 3000], FAR - 3000),
        (FAR + 9, Params(), [], 0),
    ],
)
def test_what_an_honest_peer_may_still_need_stays(
    retain: int, params: Params, snapshots: list[int], lowest: int
) -> None:
    assert keep_from(FAR, retain, params, snapshots) == lowest


def test_pruned_blocks_go_with_all_that_hangs_on_them_and_the_rest_stays(
    here: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "RETAIN_HEIGHTS_MIN", 4)
    monkeypatch.setattr(pruning, "COMPACT_HEIGHTS", 1)

    async def body() -> None:
        await grow(here, 20)
        before = rows(here, "bhqopnt")
        state = dict(here.store.scan_state())
        assert await pruner(here, 0).prune() == 0
        gone = await pruner(here, 4).prune()
        assert gone == 11  # the older of two snapshots, at 12 heights below 20, and what is behind it
        assert here.store.pruned_below() == 12
        assert rows(here, "bhqopnt") == before - 7 * gone
        for height in range(1, 21):
            block = here.store.block_at(height)
            assert (block is None) == (height < 12)
            assert (here.store.outcome(height) is None) == (height < 12)
        assert here.store.block_at(0) is not None
        assert dict(here.store.scan_state()) == state
        assert await pruner(here, 4).prune() == 0
        await grow(here, 3)

    run(lambda: with_rooms([here], body))


def test_a_batch_that_a_later_block_names_again_outlives_the_first(here: Room) -> None:
    """A leader may name an old batch again; the ledger skips it, but whoever catches up needs it."""

    async def body() -> None:
        await grow(here, 2)
        first, second = here.store.block_at(1), here.store.block_at(2)
        assert first is not None
        assert second is not None
        again = true_block(here, first.header.payload)
        here.commit(again)
        await here.reach(3)
        await grow(here, 3)
        assert here.upkeep.prune(3, subjects_of) == 2
        assert here.store.batch(first.header.payload[0]) is not None
        assert here.store.batch(second.header.payload[0]) is None
        assert here.upkeep.prune(4, subjects_of) == 1
        assert here.store.batch(first.header.payload[0]) is None

    run(lambda: with_rooms([here], body))


def test_what_is_not_executed_is_never_pruned(here: Room) -> None:
    run(lambda: with_rooms([here], lambda: grow(here, 3)))
    here.store.persist(Persist(False, None, None, (), (block := true_block(here),), cc_of(block), (), ()))
    assert here.upkeep.prune(10, subjects_of) == 2
    assert here.store.block_at(3) is not None


def test_batches_that_an_earlier_run_left_unused_go_and_named_ones_stay(here: Room) -> None:
    raws = [here.tx("cid", Transfer(address("ben"), 1 + number)) for number in range(3)]
    unused, ordered, late = (here.put(here.batch(90 + number, raw)) for number, raw in enumerate(raws))

    async def body() -> None:
        await grow(here, 1)
        keeping = Pruner(here.store, here.upkeep, here.shelf, document().params, 0, lambda: [ordered])
        keeping._unused = here.upkeep.unused_batches()
        assert sorted(keeping._unused) == sorted([unused, ordered, late])
        keeping.executed(UNUSED_HEIGHTS_MAX)
        await keeping.prune()
        assert here.store.batch(unused) is not None
        here.commit(true_block(here, [late]))
        await here.reach(2)
        keeping.executed(UNUSED_HEIGHTS_MAX + 1)
        await keeping.prune()
        assert [here.store.batch(name) is None for name in (unused, ordered, late)] == [True, False, False]
        block = here.store.block_at(1)
        assert block is not None
        assert here.store.batch(block.header.payload[0]) is not None

    run(lambda: with_rooms([here], body))


def test_the_database_stays_bounded_while_heights_grow(here: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "RETAIN_HEIGHTS_MIN", 8)
    monkeypatch.setattr("node.executor.TAKE_BACK_HEIGHTS", 4)
    sizes: list[int] = []

    async def body() -> None:
        keeping = pruner(here, 8)
        for _ in range(6):
            await grow(here, 2 * EVERY)
            keeping.executed(here.executor.head.height)
            await keeping.prune()
            sizes.append(rows(here, "bhqopnju"))

    run(lambda: with_rooms([here], body))
    assert max(sizes[2:]) <= max(sizes[:2]) + 4
    assert len(here.shelf.heights()) == 2


@pytest.mark.parametrize("back", [1, 3, EVERY + 2])
def test_blocks_taken_back_leave_the_state_before_them_and_execute_to_the_same_again(
    here: Room, back: int
) -> None:
    states: dict[int, dict[bytes, bytes]] = {}

    async def first() -> None:
        for height in range(1, 2 * EVERY + 2):
            await grow(here, 1)
            states[height] = dict(here.store.scan_state())

    run(lambda: with_rooms([here], first))
    top = here.store.executed()
    for height in range(top.height, top.height - back, -1):
        assert here.store.executed().height == height
        raw = list(subjects_of(here.store.outcome(height)))  # type: ignore[arg-type]
        head = here.upkeep.take_back(subjects_of)
        assert head.height == height - 1
        assert dict(here.store.scan_state()) == states[height - 1]
        assert head.state_digest == state_digest(lthash_of(states[height - 1]), here.chain_id)
        assert here.store.outcome(height) is None
        assert all(here.store.transaction_place(subject) is None for subject in raw)
    here.close()
    again = room("val0", here.folder)
    again.executor.recover()
    again.snapshots.recover()

    async def second() -> None:
        await again.reach(top.height)
        assert again.store.executed() == top

    run(lambda: with_rooms([again], second))
    again.close()


def test_more_than_is_remembered_is_refused(here: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.executor.TAKE_BACK_HEIGHTS", 3)
    run(lambda: with_rooms([here], lambda: grow(here, 9)))
    assert list(here.upkeep.replaced_heights()) == [9, 8, 7]
    for _ in range(3):
        here.upkeep.take_back(subjects_of)
    with pytest.raises(StorageError, match="not remembered"):
        here.upkeep.take_back(subjects_of)


def test_a_chain_that_is_cut_ends_where_it_was_told(here: Room) -> None:
    run(lambda: with_rooms([here], lambda: grow(here, 6)))
    for _ in range(2):
        here.upkeep.take_back(subjects_of)
    waiting = replace(true_block(here), signature=bytes(64))
    here.store.persist(Persist(False, None, None, (waiting,), (), None, (), ()))
    assert here.upkeep.cut_chain(4, ((1, bytes(32)),)) == 2
    assert here.store.committed_height() == 4
    assert here.store.reveals() == ((1, bytes(32)),)
    assert here.store.uncommitted_blocks() == ()
    assert [here.store.block_at(height) is None for height in (4, 5, 6)] == [False, True, True]
