"""Fetching by digest: from the next peer when one lies, once at a time, bounded, and blame only for wrong bytes."""

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio

from node import fetch
from node.ledger.batch import batch_digest, encode_batch, sign_batch
from node.ledger.bodies import Transfer
from node.network.errors import PeerUnavailable
from node.storage.blobs import blob_digest
from node.wire import BLOB_PART_BYTES, Request, decode_blob_request
from tests.unit.node.rooms import Room, peer_id, run
from tests.unit.node_ledger.world import address, seed

LIAR, GOOD = peer_id("val1"), peer_id("val2")
BLOB = bytes(range(256)) * 2_500  # two whole parts and a bit
Serve = Callable[[str, int, bytes], Awaitable[bytes]]


@pytest.fixture(autouse=True)
def quick_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "DELAY_S_MIN", 0.001)
    monkeypatch.setattr(fetch, "DELAY_S_MAX", 0.002)


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    made = Room("val0", tmp_path)
    yield made
    made.close()


def serving(data: bytes) -> Serve:
    """A peer that has these bytes under whatever name."""

    async def answer(asker: str, kind: int, payload: bytes) -> bytes:
        if kind != Request.BLOB:
            return data
        _, offset = decode_blob_request(payload)
        return data[offset : offset + BLOB_PART_BYTES]

    return answer


async def unavailable(asker: str, kind: int, payload: bytes) -> bytes:
    raise PeerUnavailable(LIAR, "gone")


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("size", [1, BLOB_PART_BYTES - 1, BLOB_PART_BYTES, BLOB_PART_BYTES + 1, len(BLOB)])
def test_a_blob_comes_from_the_next_peer_when_one_lies_and_the_liar_alone_is_blamed(
    room: Room, size: int
) -> None:
    data = BLOB[:size]
    room.loopback.answers = {LIAR: serving(flipped(data)), GOOD: serving(data)}

    async def main() -> None:
        assert await room.fetcher.blob(blob_digest(data), size)
        assert room.blobs.get(blob_digest(data)) == data
        assert room.loopback.blamed == [LIAR]

    run(main)


@pytest.mark.parametrize("size", [BLOB_PART_BYTES, 2 * BLOB_PART_BYTES, len(BLOB) - 1, len(BLOB) + 1, 1])
def test_a_false_size_in_a_transaction_never_costs_the_peers_that_have_the_blob(
    room: Room, size: int
) -> None:
    room.loopback.answers = {LIAR: serving(BLOB), GOOD: serving(BLOB)}

    async def main() -> None:
        assert not await room.fetcher.blob(blob_digest(BLOB), size)
        assert room.loopback.blamed == []

    run(main)


@pytest.mark.parametrize("answer", [b"", BLOB[:7], BLOB * 3])
def test_what_is_short_long_or_absent_is_not_taken(room: Room, answer: bytes) -> None:
    async def same(asker: str, kind: int, payload: bytes) -> bytes:
        return answer

    room.loopback.answers = {LIAR: same, GOOD: serving(BLOB)}

    async def main() -> None:
        assert await room.fetcher.blob(blob_digest(BLOB), len(BLOB))
        assert GOOD not in room.loopback.blamed

    run(main)


def test_fetches_of_one_blob_at_a_time_share_one_answer(room: Room) -> None:
    room.loopback.answers = {GOOD: serving(BLOB)}
    found: list[bool] = []

    async def ask() -> None:
        found.append(await room.fetcher.blob(blob_digest(BLOB), len(BLOB)))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
        assert found == [True] * 5
        assert len(room.loopback.requests) == 3  # its three parts
        assert room.fetcher._running == {}

    run(main)


def test_fetching_what_nobody_has_is_bounded_and_waiters_do_not_start_over(room: Room) -> None:
    room.loopback.answers = {LIAR: serving(b""), GOOD: unavailable}
    found: list[bool] = []

    async def ask() -> None:
        found.append(await room.fetcher.blob(b"n" * 32, 9, [LIAR]))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask)
        assert found == [False] * 3
        assert len(room.loopback.requests) == 2 * fetch.ROUNDS_MAX
        assert room.loopback.blamed == []
        assert not await room.fetcher.blob(b"n" * 32, 1 << 40)
        assert len(room.loopback.requests) == 2 * fetch.ROUNDS_MAX

    run(main)


def test_a_cancelled_fetch_leaves_nothing_behind(room: Room) -> None:
    async def never(asker: str, kind: int, payload: bytes) -> bytes:
        await trio.Event().wait()
        return b""

    room.loopback.answers = {LIAR: never}

    async def main() -> None:
        with trio.move_on_after(0.02):
            await room.fetcher.blob(blob_digest(BLOB), len(BLOB))
        room.loopback.answers = {GOOD: serving(BLOB)}
        assert await room.fetcher.blob(blob_digest(BLOB), len(BLOB))

    run(main)


def test_a_peer_that_drips_does_not_hold_a_blob_for_ever(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "BLOB_TIMEOUT_S", 0.05)

    async def drip(asker: str, kind: int, payload: bytes) -> bytes:
        await trio.sleep(0.04)
        _, offset = decode_blob_request(payload)
        return BLOB[offset : offset + BLOB_PART_BYTES]

    room.loopback.answers = {LIAR: drip, GOOD: serving(BLOB)}

    async def main() -> None:
        assert await room.fetcher.blob(blob_digest(BLOB), len(BLOB))
        assert [peer for peer, _, _ in room.loopback.requests].count(LIAR) == 2

    run(main)


def test_a_full_disk_of_this_node_costs_no_peer(tmp_path: Path) -> None:
    room = Room("val0", tmp_path, blobs_bytes_max=100)
    room.loopback.answers = {GOOD: serving(BLOB)}

    async def main() -> None:
        assert not await room.fetcher.blob(blob_digest(BLOB), len(BLOB))
        assert room.loopback.blamed == []

    run(main)
    room.close()


def test_blobs_that_nobody_sends_do_not_hold_up_batches(room: Room) -> None:
    """Votes wait for batches: fetches of blobs, however many, must leave them a way."""
    batch = room.batch(1, room.tx("ann", Transfer(address("ben"), 1)))

    async def answer(asker: str, kind: int, payload: bytes) -> bytes:
        if kind == Request.BLOB:
            await trio.sleep_forever()
        return encode_batch(batch)

    room.loopback.answers = {GOOD: answer}

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(room.fetcher.blob, bytes([number]) * 32, 9)
            await trio.sleep(0.02)
            with trio.fail_after(5):
                assert await room.fetcher.batch(batch_digest(batch, room.chain_id))
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.parametrize("lie", ["another batch", "not signed", "not a batch"])
def test_a_wrong_batch_is_refused_blamed_and_asked_of_the_next(room: Room, lie: str) -> None:
    batch = room.batch(1, room.tx("ann", Transfer(address("ben"), 1)))
    other = sign_batch(seed("val0"), room.chain_id, 2, batch.items)
    good = encode_batch(batch)
    lies = {"another batch": encode_batch(other), "not signed": flipped(good), "not a batch": b"\x90"}
    name = batch_digest(batch, room.chain_id)
    room.loopback.answers = {LIAR: serving(lies[lie]), GOOD: serving(good)}

    async def main() -> None:
        assert await room.fetcher.batch(name, [LIAR])
        assert room.store.batch(name) == good
        assert room.store.batch(batch_digest(other, room.chain_id)) is None
        assert room.loopback.blamed == [LIAR]

    run(main)
