"""Snapshots: their bytes, their roots on every node, and what crashes and full disks cost."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.ledger.lthash import lthash_of
from node.snapshot import files
from node.snapshot.files import Manifest, Shelf
from node.snapshot.format import (
    CHUNK_BYTES_MAX,
    VALUE_PART_BYTES,
    SnapshotHead,
    SnapshotInvalid,
    decode_head_chunk,
    encode_head_chunk,
    lthash_of_rows,
    read_chunks,
    snapshot_height,
    state_chunks,
)
from node.snapshot.making import merge, root_of
from node.storage.errors import StorageError
from tests.profiles import examples
from tests.unit.node.rooms import Room, run, until, with_rooms
from tests.unit.node.snapshot_chain import EVERY, grow, room

STATES = st.dictionaries(st.binary(min_size=1, max_size=12), st.binary(max_size=40), max_size=40)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Room]:
    made = room("val0", tmp_path)
    yield made
    made.close()


def expected_root(there: Room) -> bytes:
    """The root of a room's present state, from all its rows at once."""
    head = there.store.executed()
    outcome = there.store.outcome(head.height)
    assert outcome is not None
    return root_of(SnapshotHead(there.chain_id, head, outcome), there.store.scan_state())


@given(STATES)
@settings(max_examples=examples(60))
def test_a_state_cut_into_chunks_reads_back_and_adds_up(state: dict[bytes, bytes]) -> None:
    rows = sorted(state.items())
    chunks = list(state_chunks(rows))
    assert list(read_chunks(chunks)) == rows
    assert lthash_of_rows(read_chunks(chunks)) == lthash_of(state)


@given(STATES, st.dictionaries(st.binary(min_size=1, max_size=2), st.none() | st.binary(max_size=4)))
@settings(max_examples=examples(60))
def test_what_was_replaced_put_on_top_gives_the_earlier_state(
    state: dict[bytes, bytes], replaced: dict[bytes, bytes | None]
) -> None:
    expected = {key: value for key, value in (state | replaced).items() if value is not None}
    assert list(merge(sorted(state.items()), sorted(replaced.items()))) == sorted(expected.items())


def test_values_of_every_size_fit_into_bounded_chunks() -> None:
    sizes = [0, 1, VALUE_PART_BYTES - 1, VALUE_PART_BYTES, VALUE_PART_BYTES + 1, 5 * VALUE_PART_BYTES, 7]
    rows = [(b"k%d" % number, bytes([number]) * size) for number, size in enumerate(sizes)]
    chunks = list(state_chunks(rows))
    assert len(chunks) > 2
    assert max(len(chunk) for chunk in chunks) <= CHUNK_BYTES_MAX
    assert list(read_chunks(chunks)) == rows
    tiny = [(b"%08d" % number, b"") for number in range(40_000)]
    assert list(read_chunks(state_chunks(tiny))) == tiny


@pytest.mark.parametrize(
    "chunks",
    [
        [b"\x90"],
        [b"\xc1"],
        [b"\x91\xc4\x01a"],
        [b"\x92\xc4\x01a\x01"],
        [b"\x92\xc4\x01b\xc4\x00", b"\x92\xc4\x01a\xc4\x00"],
        [b"\x92\xc4\x01a\xc4\x00", b"\x92\xc4\x01a\xc4\x00"],
        [b"\x92\xc4\x00\xc4\x00"],
    ],
    ids=["empty", "garbage", "odd", "no bytes", "falling", "twice", "no key"],
)
def test_chunks_that_no_node_makes_are_refused(chunks: list[bytes]) -> None:
    with pytest.raises(SnapshotInvalid):
        list(read_chunks(chunks))


@pytest.mark.parametrize(
    ("every", "heights"),
    [
        (0, {0: 0, 9: 0}),
        (1, {0: 0, 1: 0, 2: 1, 3: 2}),
        (4, {4: 0, 5: 0, 6: 4, 9: 4, 10: 8}),
        (5, {6: 0, 7: 5, 11: 5, 12: 10}),
    ],
)
def test_a_root_is_carried_from_half_a_distance_after_its_height(every: int, heights: dict[int, int]) -> None:
    assert {height: snapshot_height(height, every) for height in heights} == heights


def test_each_result_carries_the_root_of_the_right_state(here: Room) -> None:
    roots: dict[int, bytes] = {}

    async def body() -> None:
        for height in range(1, 2 * EVERY + EVERY // 2 + 1):
            await grow(here, 1)
            if height % EVERY == 0:
                roots[height] = expected_root(here)
            outcome = here.store.outcome(height)
            assert outcome is not None
            assert outcome.snapshot_root == roots.get(snapshot_height(height, EVERY), b"")
            assert here.done[-1].snapshot_root == outcome.snapshot_root

    run(lambda: with_rooms([here], body))
    assert len(set(roots.values())) == 2
    assert here.shelf.heights() == [2 * EVERY, EVERY]
    manifest = here.shelf.manifest(EVERY)
    assert manifest is not None
    assert manifest.root == roots[EVERY]


@pytest.mark.parametrize("executed_after", [0, 1])
def test_a_process_that_ends_before_the_root_is_known_finds_the_state_again(
    tmp_path: Path, executed_after: int
) -> None:
    """The frozen view is gone with the process, and later blocks changed what is on disk."""
    first = room("val0", tmp_path)
    expected: list[bytes] = []

    async def grow_first() -> None:
        await grow(first, EVERY)
        expected.append(expected_root(first))
        await grow(first, executed_after)

    run(lambda: with_rooms([first], grow_first))
    first.database.write({b"x" + EVERY.to_bytes(8, "big"): None}, sync=False)
    first.close()
    again = room("val0", tmp_path)
    again.snapshots.recover()

    async def body() -> None:
        await grow(again, EVERY)  # past the height that carries the root
        assert again.upkeep.snapshot_root(EVERY) == expected[0]

    run(lambda: with_rooms([again], body))
    again.close()


def test_a_root_that_cannot_be_known_any_more_is_said_and_not_guessed(tmp_path: Path) -> None:
    first = room("val0", tmp_path)
    run(lambda: with_rooms([first], lambda: grow(first, EVERY + 1)))
    first.database.write(
        {b"x" + EVERY.to_bytes(8, "big"): None, b"j" + (EVERY + 1).to_bytes(8, "big"): None}, sync=False
    )
    with pytest.raises(StorageError, match="not known any more"):
        first.snapshots.recover()
    first.close()


def test_a_full_disk_costs_the_files_and_never_the_root(here: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_synced", full)

    async def body() -> None:
        await grow(here, EVERY)
        expected = expected_root(here)
        await until(lambda: here.upkeep.snapshot_root(EVERY) is not None)
        assert here.upkeep.snapshot_root(EVERY) == expected
        assert here.shelf.heights() == []
        assert "No space left" in here.snapshots.problem
        monkeypatch.undo()
        await grow(here, EVERY)
        await until(lambda: here.upkeep.snapshot_root(2 * EVERY) is not None)
        await until(lambda: not here.snapshots.problem)
        assert here.shelf.heights() == [2 * EVERY]

    run(lambda: with_rooms([here], body))


def test_half_a_snapshot_is_swept_and_the_newest_few_stay(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, 2)
    for height in (4, 8, 12):
        draft = shelf.begin(height)
        draft.write(0, b"head")
        draft.finish(Manifest(height, (bytes(32), bytes([height]) * 32)))
    torn = shelf.begin(16)
    torn.write(0, b"head")
    shelf.tidy()
    assert shelf.heights() == [12, 8]
    assert (tmp_path / "16.part").exists()
    assert Shelf(tmp_path, 2).heights() == [12, 8]
    assert not (tmp_path / "16.part").exists()
    assert shelf.chunk(12, 0) == b"head"
    assert (shelf.chunk(12, 1), shelf.chunk(4, 0), shelf.manifest(4)) == (None, None, None)


def test_a_head_that_contradicts_itself_is_refused(here: Room) -> None:
    run(lambda: with_rooms([here], lambda: grow(here, 1)))
    head = here.store.executed()
    outcome = here.store.outcome(1)
    assert outcome is not None
    data = encode_head_chunk(SnapshotHead(here.chain_id, head, outcome))
    assert decode_head_chunk(data, here.chain_id).head == head
    for wrong in (head.lthash, head.accumulator_root, head.state_digest, head.accumulator, here.chain_id):
        at = data.index(wrong) + 1
        with pytest.raises(SnapshotInvalid):
            decode_head_chunk(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], here.chain_id)
    with pytest.raises(SnapshotInvalid):
        decode_head_chunk(data, bytes(32))
