"""Range sync between real stores: what is served, what is taken, who is blamed, and that liars starve nobody."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from consensus.inputs import BlocksSynced
from consensus.types import decode_block, encode_block, encode_proof
from node import fetch, sync
from node.ledger.batch import batch_digest, encode_batch
from node.ledger.bodies import Transfer
from node.network.errors import RequestRefused
from node.wire import (
    BLOB_PART_BYTES,
    Announcement,
    BlockRange,
    Request,
    SyncedBlock,
    decode_range,
    encode_announcement,
    encode_blob_request,
    encode_block_request,
    encode_range,
    encode_range_request,
)
from tests.unit.node.rooms import Room, cc_of, next_block, peer_id, run, with_rooms
from tests.unit.node_ledger.world import address

AHEAD = 5
SERVER = peer_id("val1")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "DELAY_S_MIN", 0.001)
    monkeypatch.setattr(fetch, "DELAY_S_MAX", 0.002)
    monkeypatch.setattr(sync, "POLL_S", 0.05)
    monkeypatch.setattr(sync, "REST_S_MIN", 0.02)
    monkeypatch.setattr(sync, "EXECUTION_WAIT_S_MAX", 1.0)


@pytest.fixture
def rooms(tmp_path: Path) -> Iterator[tuple[Room, Room]]:
    """A node that was away, and one that is `AHEAD` blocks with a batch each ahead of it."""
    here, there = Room("val0", tmp_path), Room("val1", tmp_path)
    for number in range(AHEAD):
        raw = there.tx("ann", Transfer(address("ben"), 1), nonce=number)
        there.commit(next_block(there.top(), [there.put(there.batch(number + 1, raw))]))
    here.connect(there)
    yield here, there
    here.close()
    there.close()


def announce(room: Room, peer: str, height: int) -> None:
    room.sync.announced(peer, encode_announcement(Announcement(height, bytes(32))))


def test_a_node_that_was_away_reaches_the_same_state(rooms: tuple[Room, Room]) -> None:
    here, there = rooms

    async def body() -> None:
        assert here.nursery is not None
        here.nursery.start_soon(here.sync.run)  # finds out by itself
        await there.reach(AHEAD)
        await here.reach(AHEAD)
        assert here.store.executed().state_digest == there.store.executed().state_digest
        assert here.loopback.blamed == []
        assert not any(kind == Request.BATCH for _, kind, _ in here.loopback.requests)

    run(lambda: with_rooms([here, there], body))


Forgery = Callable[[BlockRange, Room], BlockRange]


def _batch(answer: BlockRange, data: bytes, place: int = 2) -> BlockRange:
    rows = list(answer.blocks)
    rows[place] = SyncedBlock(rows[place].block, (data,))
    return BlockRange(tuple(rows), answer.proof)


def _altered_block(answer: BlockRange, room: Room) -> BlockRange:
    rows = list(answer.blocks)
    block = decode_block(rows[2].block)
    payload = (b"p" * 32,)
    rows[2] = SyncedBlock(encode_block(replace(block, header=replace(block.header, payload=payload))), (b"",))
    return BlockRange(tuple(rows), answer.proof)


def _altered_signature(answer: BlockRange, room: Room) -> BlockRange:
    rows = list(answer.blocks)
    block = replace(decode_block(rows[2].block), signature=bytes(64))
    rows[2] = SyncedBlock(encode_block(block), rows[2].batches)
    return BlockRange(tuple(rows), answer.proof)


def _forged_proof(answer: BlockRange, room: Room) -> BlockRange:
    block = decode_block(answer.blocks[-1].block)
    proof = replace(cc_of(block), signatures=tuple((index, bytes(64)) for index in range(3)))
    return BlockRange(answer.blocks, encode_proof(proof))


def _own_chain(answer: BlockRange, room: Room) -> BlockRange:
    """Blocks made up by a peer, with a batch of its own in each and a proof that nobody signed."""
    batch = room.batch(99, room.tx("cid", Transfer(address("ben"), 3), nonce=0))
    block = next_block(room.genesis, [batch_digest(batch, room.chain_id)])
    proof = replace(cc_of(block), signatures=())
    return BlockRange((SyncedBlock(encode_block(block), (encode_batch(batch),)),), encode_proof(proof))


FORGERIES: dict[str, Forgery] = {
    "another batch": lambda answer, room: _batch(answer, answer.blocks[1].batches[0]),
    "batch not signed": lambda answer, room: _batch(answer, answer.blocks[2].batches[0][:-1] + b"\0"),
    "no batch at all": lambda answer, room: _batch(answer, b"\x90"),
    "too few batches": lambda answer, room: BlockRange(
        (*answer.blocks[:-1], SyncedBlock(answer.blocks[-1].block, ())), answer.proof
    ),
    "too many batches": lambda answer, room: BlockRange(
        (*answer.blocks[:-1], SyncedBlock(answer.blocks[-1].block, answer.blocks[-1].batches * 2)),
        answer.proof,
    ),
    "end cut off": lambda answer, room: BlockRange(answer.blocks[:-1], answer.proof),
    "beginning cut off": lambda answer, room: BlockRange(answer.blocks[1:], answer.proof),
    "block left out": lambda answer, room: BlockRange(answer.blocks[:1] + answer.blocks[2:], answer.proof),
    "altered block": _altered_block,
    "altered signature": _altered_signature,
    "forged proof": _forged_proof,
    "no proof": lambda answer, room: BlockRange(answer.blocks, b""),
    "a chain of its own": _own_chain,
    "garbage in a block": lambda answer, room: BlockRange(
        (SyncedBlock(b"\xc1", ()), *answer.blocks[1:]), answer.proof
    ),
}


@pytest.mark.parametrize("forgery", sorted(FORGERIES))
def test_a_wrong_range_changes_nothing_and_costs_its_sender_alone(
    rooms: tuple[Room, Room], forgery: str
) -> None:
    here, there = rooms

    async def forged(asker: str, kind: int, payload: bytes) -> bytes:
        answer = await there.sync.answer(asker, kind, payload)
        if kind != Request.RANGE:
            return answer
        return encode_range(FORGERIES[forgery](decode_range(answer), there))

    async def body() -> None:
        here.loopback.answers = {SERVER: forged, peer_id("val2"): there.sync.answer}
        assert not await here.sync._advance(SERVER)
        assert here.told == []
        assert here.loopback.blamed == [SERVER]
        own = batch_digest(
            there.batch(99, there.tx("cid", Transfer(address("ben"), 3), nonce=0)), here.chain_id
        )
        assert here.store.batch(own) is None
        assert await here.sync._advance(peer_id("val2"))
        assert here.loopback.blamed == [SERVER]

    run(lambda: with_rooms([here, there], body))


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x92\x90", b"\x92\x90\xc4\x00"])
def test_an_answer_without_blocks_is_never_taken(rooms: tuple[Room, Room], data: bytes) -> None:
    here, there = rooms

    async def answer(asker: str, kind: int, payload: bytes) -> bytes:
        return data

    async def body() -> None:
        here.loopback.answers = {SERVER: answer}
        assert not await here.sync._advance(SERVER)
        assert here.told == []
        assert here.loopback.blamed == (
            [] if data == b"\x92\x90\xc4\x00" else [SERVER]
        )  # empty is no offence

    run(lambda: with_rooms([here, there], body))


def test_a_server_that_lacks_a_batch_is_no_liar_and_the_batch_is_found_elsewhere(
    rooms: tuple[Room, Room], tmp_path: Path
) -> None:
    """A node may have committed a block whose batches it is still fetching."""
    here, there = rooms
    missing = there.top().header.payload[0]
    data = there.store.batch(missing)
    assert data is not None
    third = Room("val2", tmp_path)
    fetch.store_batch(third.store, data, third.chain_id)
    there.database.write({b"p" + missing: None}, sync=False)
    here.connect(third)

    async def body() -> None:
        assert await here.sync._advance(SERVER)
        await here.reach(AHEAD)
        assert here.store.batch(missing) == data
        assert here.loopback.blamed == []

    run(lambda: with_rooms([here], body))
    third.close()


def test_a_range_over_the_limit_still_reaches_its_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left out for its size is fetched batch by batch, so that no block is too large to be caught up with."""
    here, there = Room("val0", tmp_path), Room("val1", tmp_path)
    here.connect(there)
    sizes = []
    for number in range(3):
        raw = [there.tx("ann", Transfer(address("ben"), 1), nonce=5 * number + k) for k in range(5)]
        names = [there.put(there.batch(5 * number + k + 1, raw[k])) for k in range(5)]
        sizes += [len(there.store.batch(name) or b"") for name in names]
        there.commit(next_block(there.top(), names), proof=number == 2)
    blocks_bytes = sum(
        len(encode_block(block)) for block in (there.store.block_at(h) for h in (1, 2, 3)) if block
    )
    monkeypatch.setattr(sync, "RANGE_BYTES_MAX", blocks_bytes + 4 * sizes[0])

    async def body() -> None:
        data = await there.sync.answer("asker", Request.RANGE, encode_range_request(1, 64))
        answer = decode_range(data)
        assert len(answer.blocks) == 3
        assert [bool(batch) for row in answer.blocks for batch in row.batches] == [True] * 4 + [False] * 11
        assert await here.sync._advance(SERVER)
        await here.reach(3)
        await there.reach(3)
        assert here.store.executed().state_digest == there.store.executed().state_digest
        assert here.loopback.blamed == []

    run(lambda: with_rooms([here, there], body))
    here.close()
    there.close()


def test_where_each_block_has_a_proof_a_range_ends_before_the_limit(
    rooms: tuple[Room, Room], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, there = rooms
    block = there.store.block_at(1)
    assert block is not None
    one = len(encode_block(block)) + len(there.store.batch(block.header.payload[0]) or b"")
    monkeypatch.setattr(sync, "RANGE_BYTES_MAX", 3 * one)

    async def main() -> None:
        data = await there.sync.answer("asker", Request.RANGE, encode_range_request(1, 64))
        answer = decode_range(data)
        assert 1 <= len(answer.blocks) < AHEAD
        assert all(all(row.batches) for row in answer.blocks)

    run(main)


def test_peers_are_seldom_asked_how_far_they_are_while_blocks_come_through_consensus(
    rooms: tuple[Room, Room],
) -> None:
    """A validator in step would open a stream to each peer every 2 s to learn nothing; one that hears nothing asks."""
    here, _ = rooms
    spared = []
    for _ in range(2 * (sync.POLLS_SPARED_MAX + 1)):
        before = here.store.committed_height()
        here.commit(next_block(here.top(), []))
        spared.append(here.sync._spares_poll(before))
    assert spared == 2 * ([True] * sync.POLLS_SPARED_MAX + [False])
    assert not here.sync._spares_poll(here.store.committed_height())


def test_a_peer_that_announces_what_it_does_not_have_keeps_nobody_waiting(rooms: tuple[Room, Room]) -> None:
    here, there = rooms
    liar = peer_id("val3")

    async def empty(asker: str, kind: int, payload: bytes) -> bytes:
        if kind == Request.STATUS:
            return encode_announcement(Announcement(1 << 60, bytes(32)))
        return encode_range(BlockRange((), b""))

    async def body() -> None:
        here.loopback.answers[liar] = empty
        assert here.nursery is not None
        here.nursery.start_soon(here.sync.run)

        async def shout() -> None:
            while True:
                announce(here, liar, 1 << 60)
                await trio.sleep(0.001)

        here.nursery.start_soon(shout)
        announce(here, SERVER, AHEAD)
        began_s = trio.current_time()
        await here.reach(AHEAD)
        await trio.sleep(0.3)
        asked = [peer for peer, kind, _ in here.loopback.requests if kind == Request.RANGE].count(liar)
        assert asked <= 10, (asked, trio.current_time() - began_s)

    run(lambda: with_rooms([here, there], body))


def test_consensus_is_told_who_sent_a_range_where_it_is_a_validator(rooms: tuple[Room, Room]) -> None:
    here, there = rooms

    async def body() -> None:
        assert await here.sync._advance(SERVER)
        event = here.told[0]
        assert isinstance(event, BlocksSynced)
        assert event.sender == here.directory.validator_of[SERVER]
        assert [block.height for block in event.blocks] == list(range(1, AHEAD + 1))

    run(lambda: with_rooms([here, there], body))


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (Request.RANGE, b""),
        (Request.RANGE, encode_range_request(1, 65)),
        (Request.RANGE, encode_range_request(0, 1)),
        (Request.BLOCK, b"\x90"),
        (Request.BLOB, b"\x90"),
        (77, b""),
    ],
)
def test_malformed_requests_get_a_typed_refusal(rooms: tuple[Room, Room], kind: int, payload: bytes) -> None:
    async def main() -> None:
        with pytest.raises(RequestRefused):
            await rooms[1].sync.answer("asker", kind, payload)

    run(main)


def test_requests_for_what_is_not_there_get_an_empty_answer(rooms: tuple[Room, Room]) -> None:
    _, there = rooms
    name = there.blobs.put(b"blob")

    async def main() -> None:
        async def ask(kind: int, payload: bytes) -> bytes:
            return await there.sync.answer("asker", kind, payload)

        assert decode_range(await ask(Request.RANGE, encode_range_request(2**64 - 1, 64))).blocks == ()
        assert await ask(Request.BATCH, bytes(32)) == b""
        with pytest.raises(RequestRefused):
            await ask(Request.BATCH, bytes(31))
        assert await ask(Request.BLOB, encode_blob_request(name, 0)) == b"blob"
        assert await ask(Request.BLOB, encode_blob_request(name, 2**64 - 1)) == b""
        assert await ask(Request.BLOB, encode_blob_request(name, BLOB_PART_BYTES)) == b""
        assert await ask(Request.BLOCK, encode_block_request(b"b" * 32, 0))
        assert await ask(Request.BLOCK, encode_block_request(there.top().id, 2**64 - 1))

    run(main)
