"""A node that starts late: it takes what a quorum signed, from whoever has it, and blames who sends anything else."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from consensus.config import ConsensusConfig
from consensus.types import Handover, decode_block, encode_block, encode_proof
from node import sync
from node.config import SyncSection
from node.epochs import EpochRow
from node.ledger.lthash import lthash_of, state_digest
from node.network.errors import RequestRefused
from node.snapshot import fetching, late, plan
from node.snapshot.fetching import SnapshotClient
from node.snapshot.files import Manifest, decode_manifest, encode_manifest
from node.snapshot.format import (
    SnapshotHead,
    chunk_digest,
    decode_head_chunk,
    encode_head_chunk,
    read_chunks,
    state_chunks,
)
from node.snapshot.late import Latecomer, StartAnew
from node.snapshot.plan import install_ready
from node.startup import recovered_state
from node.storage.errors import StorageError
from node.wire import (
    BlockRange,
    Request,
    decode_chunk_request,
    decode_range,
    decode_snapshot_offer,
    encode_epoch_rows,
    encode_range,
    encode_range_request,
    encode_snapshot_offer,
)
from tests.unit.node.rooms import Room, cc_of, peer_id, run, with_rooms
from tests.unit.node.snapshot_chain import EVERY, grow, room, true_block

GROWN = 2 * EVERY + EVERY // 2 + 1
"""The last committed header carries the root of the second snapshot."""

SERVER, OTHER = peer_id("val1"), peer_id("val2")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.snapshot.format.CHUNK_BYTES", 256)
    monkeypatch.setattr(fetching, "REQUEST_TIMEOUT_S", 2.0)


@pytest.fixture
def rooms(tmp_path: Path) -> Iterator[tuple[Room, Room]]:
    """A fresh node, and one with a chain that two snapshots were made of."""
    here, there = room("val0", tmp_path), room("val1", tmp_path)
    run(lambda: with_rooms([there], lambda: grow(there, GROWN)))
    here.connect(there)
    yield here, there
    here.close()
    there.close()


def client(here: Room) -> SnapshotClient:
    return SnapshotClient(here.network, here.chain_id, here.epochs.genesis, here.shelf.incoming(), EVERY)


def install(here: Room) -> int | None:
    return install_ready(here.store, here.upkeep, here.shelf.incoming(), here.chain_id, EVERY)


def reopened(here: Room) -> Room:
    """The same home in a new process."""
    here.close()
    return room(here.name, here.folder)


def test_a_fresh_node_goes_on_from_the_newest_snapshot_to_the_same_state(rooms: tuple[Room, Room]) -> None:
    here, there = rooms

    async def fetch() -> None:
        assert await client(here).fetch(0)

    run(fetch)
    assert here.store.executed().height == 0
    assert install(here) == 2 * EVERY
    again = reopened(here)
    again.connect(there)
    assert again.store.executed().height == 2 * EVERY
    assert lthash_of(dict(again.store.scan_state())) == again.store.executed().lthash
    recovered = recovered_state(again.store, again.epochs.current, ConsensusConfig())
    assert recovered.committed.height == GROWN
    assert recovered.proof is not None
    assert [result.height for result in recovered.executed] == [2 * EVERY]
    assert recovered.reveals == after_all(there)
    again.executor.recover()

    async def body() -> None:
        await again.reach(GROWN)
        await grow(there, 2 * EVERY)
        assert await again.sync._advance(SERVER)
        await again.reach(GROWN + 2 * EVERY)
        assert again.store.executed().state_digest == there.store.executed().state_digest
        assert dict(again.store.scan_state()) == dict(there.store.scan_state())
        for height in range(2 * EVERY + 1, GROWN + 2 * EVERY + 1):
            ours, theirs = again.store.outcome(height), there.store.outcome(height)
            assert ours is not None
            assert theirs is not None
            assert ours.snapshot_root == theirs.snapshot_root

    run(lambda: with_rooms([again, there], body))
    assert again.loopback.blamed == []


def after_all(there: Room) -> tuple[tuple[int, bytes], ...]:
    """(count, last reveal) by validator, counted from the blocks."""
    members = there.epochs.current.consensus_set
    reveals = [(0, member.beacon_anchor) for member in members.validators]
    for height in range(1, there.store.committed_height() + 1):
        block = there.store.block_at(height)
        assert block is not None
        index = members.index_of(block.header.proposer)
        assert index is not None
        reveals[index] = (reveals[index][0] + 1, block.header.beacon_reveal)
    return tuple(reveals)


Lie = Callable[[Room, Request, bytes], bytes]


def _offer(answer: bytes, change: Callable[[Manifest], Manifest]) -> bytes:
    offer = decode_snapshot_offer(answer)
    changed = change(decode_manifest(offer.manifest))
    return encode_snapshot_offer(replace(offer, manifest=encode_manifest(changed)))


def _forged_header(there: Room, answer: bytes) -> bytes:
    """A header that carries a root of the peer's own, which nobody voted for."""
    offer = decode_snapshot_offer(answer)
    manifest = Manifest(decode_manifest(offer.manifest).height, (bytes(32), bytes(32)))
    block = decode_block(offer.block)
    forged = replace(block, header=replace(block.header, snapshot_root=manifest.root))
    proof = replace(cc_of(forged), signatures=tuple((index, bytes(64)) for index in range(3)))
    return encode_snapshot_offer(
        replace(
            offer, manifest=encode_manifest(manifest), block=encode_block(forged), proof=encode_proof(proof)
        )
    )


def _forged_range(answer: bytes) -> bytes:
    known = decode_range(answer)
    return encode_range(BlockRange(known.blocks[:-1], known.proof))


def _impossible_set(there: Room, kind: Request, answer: bytes) -> bytes:
    """A header of the next epoch, and how that began: a true hand-over, beside a set that names one validator twice."""
    if kind == Request.SNAPSHOT:
        offer = decode_snapshot_offer(answer)
        block = decode_block(offer.block)
        later = replace(block, header=replace(block.header, epoch=1))
        return encode_snapshot_offer(replace(offer, block=encode_block(later)))
    if kind == Request.EPOCHS:
        first = there.epochs.genesis
        block = true_block(there)
        boundary = replace(block, header=replace(block.header, next_validators_hash=bytes(32)))
        twice = replace(first.validators, validators=first.validators.validators[:1] * 2)
        row = EpochRow(1, first.start, twice, (), Handover((boundary.header,), cc_of(boundary)))
        return encode_epoch_rows([row.to_bytes()])
    return answer


LIES: dict[str, Lie] = {
    "another manifest": lambda there, kind, answer: (
        _offer(answer, lambda known: replace(known, digests=(*known.digests[:-1], bytes(32))))
        if kind == Request.SNAPSHOT
        else answer
    ),
    "another height for the same chunks": lambda there, kind, answer: (
        _offer(answer, lambda known: replace(known, height=known.height + EVERY))
        if kind == Request.SNAPSHOT
        else answer
    ),
    "a manifest of garbage": lambda there, kind, answer: b"\xc1" if kind == Request.SNAPSHOT else answer,
    "a root that nobody voted for": lambda there, kind, answer: (
        _forged_header(there, answer) if kind == Request.SNAPSHOT else answer
    ),
    "an epoch of a set that cannot be": lambda there, kind, answer: _impossible_set(there, kind, answer),
    "another chunk": lambda there, kind, answer: answer[::-1] if kind == Request.CHUNK else answer,
    "a chunk without end": lambda there, kind, answer: (
        answer + bytes(1 << 20) if kind == Request.CHUNK else answer
    ),
    "another block": lambda there, kind, answer: b"\xc1" if kind == Request.BLOCK else answer,
    "a range without its end": lambda there, kind, answer: (
        _forged_range(answer) if kind == Request.RANGE else answer
    ),
}


@pytest.mark.parametrize("lie", sorted(LIES))
def test_a_liar_is_blamed_and_left_and_an_honest_peer_is_enough(rooms: tuple[Room, Room], lie: str) -> None:
    here, there = rooms

    async def lying(asker: str, kind: int, payload: bytes) -> bytes:
        return LIES[lie](there, Request(kind), await there.sync.answer(asker, kind, payload))

    async def body() -> None:
        here.loopback.answers = {SERVER: lying}
        assert not await client(here).fetch(0)
        assert set(here.loopback.blamed) == {SERVER}
        assert here.shelf.incoming().plan(plan.PLAN_BYTES_MAX) is None
        here.loopback.answers[OTHER] = there.sync.answer
        assert await client(here).fetch(0)
        assert set(here.loopback.blamed) == {SERVER}

    run(body)
    assert install(here) == 2 * EVERY


def test_a_whole_state_of_a_peers_own_is_not_taken(rooms: tuple[Room, Room]) -> None:
    """Everything fits together, but no committed header carries its root."""
    here, there = rooms
    honest = there.shelf.manifest(2 * EVERY)
    first = there.shelf.chunk(2 * EVERY, 0)
    assert honest is not None
    assert first is not None
    known = decode_head_chunk(first, there.chain_id)
    rest = (there.shelf.chunk(2 * EVERY, index) or b"" for index in range(1, len(honest.digests)))
    state = dict(read_chunks(rest)) | {b"a/mine": b"all the money"}
    lthash = lthash_of(state)
    digest = state_digest(lthash, there.chain_id)
    head = replace(known.head, lthash=lthash, state_digest=digest)
    forged = SnapshotHead(there.chain_id, head, replace(known.outcome, state_digest=digest))
    chunks = [encode_head_chunk(forged), *state_chunks(sorted(state.items()))]
    manifest = Manifest(2 * EVERY, tuple(chunk_digest(chunk, there.chain_id) for chunk in chunks))

    async def forging(asker: str, kind: int, payload: bytes) -> bytes:
        if kind == Request.CHUNK:
            return chunks[decode_chunk_request(payload)[1]]
        answer = await there.sync.answer(asker, kind, payload)
        return _offer(answer, lambda known: manifest) if kind == Request.SNAPSHOT else answer

    async def body() -> None:
        here.loopback.answers = {SERVER: forging}
        assert not await client(here).fetch(0)
        assert here.loopback.blamed == [SERVER]

    run(body)


def test_a_state_that_does_not_add_up_is_refused_even_with_a_quorums_root(tmp_path: Path) -> None:
    """More than two thirds would have to be wrong together, by a fault of the program or of themselves."""
    here, there = room("val0", tmp_path), room("val1", tmp_path)

    async def body() -> None:
        await grow(there, 2 * EVERY - 1)
        there.database.write({b"sa/nobody": b"money"}, sync=False)
        await grow(there, GROWN - 2 * EVERY + 1)
        here.connect(there)
        assert not await client(here).fetch(0)
        assert here.shelf.incoming().manifest() is None
        assert here.loopback.blamed == []

    run(lambda: with_rooms([there], body))
    here.close()
    there.close()


def test_what_came_before_a_restart_is_not_fetched_again(rooms: tuple[Room, Room]) -> None:
    here, there = rooms
    chunks = 0

    async def dying(asker: str, kind: int, payload: bytes) -> bytes:
        nonlocal chunks
        if kind == Request.CHUNK:
            chunks += 1
            if chunks > 3:
                raise RequestRefused(99, "gone", SERVER)
        return await there.sync.answer(asker, kind, payload)

    async def first() -> None:
        here.loopback.answers = {SERVER: dying}
        assert not await client(here).fetch(0)

    async def second() -> None:
        again.loopback.answers = {SERVER: there.sync.answer}
        assert await client(again).fetch(0)

    run(first)
    again = reopened(here)
    run(second)
    manifest = again.shelf.incoming().manifest()
    assert manifest is not None
    asked = [kind for _, kind, _ in again.loopback.requests].count(Request.CHUNK)
    assert asked == len(manifest.digests) - 3
    assert again.loopback.blamed == []
    again.close()


def test_an_installation_that_is_interrupted_anywhere_is_done_again(
    rooms: tuple[Room, Room], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = rooms

    async def fetch() -> None:
        assert await client(here).fetch(0)

    run(fetch)
    monkeypatch.setattr("node.storage.upkeep.ROWS_PER_WRITE", 4)
    whole, at = here.database.write, 0
    for crash_at in range(1, 1000):
        at = 0

        def write(changes: dict[bytes, bytes | None], *, sync: bool, crash_at: int = crash_at) -> None:
            nonlocal at
            at += 1
            if at == crash_at:
                raise StorageError("the process ends here")
            whole(changes, sync=sync)

        monkeypatch.setattr(here.database, "write", write)
        try:
            assert install(here) == 2 * EVERY
        except StorageError:
            assert (here.upkeep.installing() is not None) == (crash_at > 1)  # whoever finds it knows
            continue
        break
    assert at > 10
    monkeypatch.undo()
    assert here.upkeep.installing() is None
    assert here.store.executed().height == 2 * EVERY
    known = there.store.outcome(2 * EVERY)
    assert known is not None
    assert here.store.executed().state_digest == known.state_digest
    assert lthash_of(dict(here.store.scan_state())) == here.store.executed().lthash


def test_a_database_half_overwritten_whose_snapshot_is_gone_is_refused(rooms: tuple[Room, Room]) -> None:
    here, _ = rooms
    here.database.write({b"minstalling": bytes(32)}, sync=True)
    with pytest.raises(StorageError, match="half installed"):
        install(here)


def test_a_chunk_that_rots_before_it_is_installed_costs_another_fetch_and_nothing_else(
    rooms: tuple[Room, Room],
) -> None:
    here, _ = rooms

    async def fetch() -> None:
        assert await client(here).fetch(0)

    run(fetch)
    manifest = here.shelf.incoming().manifest()
    assert manifest is not None
    path = here.shelf.incoming().folder / manifest.digests[-1].hex()
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert install(here) is None
    assert here.store.executed().height == 0
    run(fetch)
    assert install(here) == 2 * EVERY


def test_a_plan_beside_the_manifest_of_another_snapshot_is_not_installed(rooms: tuple[Room, Room]) -> None:
    here, _ = rooms

    async def fetch() -> None:
        assert await client(here).fetch(0)

    run(fetch)
    incoming = here.shelf.incoming()
    manifest = incoming.manifest()
    assert manifest is not None
    other = replace(manifest, digests=(*manifest.digests, manifest.digests[-1]))
    (incoming.folder / "manifest").write_bytes(encode_manifest(other))
    assert install(here) is None
    assert here.store.executed().height == 0
    run(fetch)
    assert install(here) == 2 * EVERY


def test_the_safety_record_survives_an_installation(rooms: tuple[Room, Room]) -> None:
    here, _ = rooms
    here.database.write({b"msafety": b"what was signed"}, sync=True)

    async def fetch() -> None:
        assert await client(here).fetch(0)

    run(fetch)
    assert install(here) == 2 * EVERY
    assert here.store.safety_record() == b"what was signed"


def latecomer(here: Room, **section: object) -> Latecomer:
    return Latecomer(here.store, client(here), replace(SyncSection(), **section), EVERY)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("section", "height", "gone", "starts_anew"),
    [
        ({}, GROWN, False, False),
        ({}, GROWN, True, True),
        ({"lag_heights_max": 5}, GROWN, False, True),
        ({"lag_heights_max": 5, "snapshot": "never"}, GROWN, True, False),
        ({"lag_heights_max": 5}, 5, False, False),
    ],
)
def test_a_node_gives_up_executing_every_block_only_where_it_must(
    rooms: tuple[Room, Room],
    section: dict[str, object],
    height: int,
    gone: bool,
    starts_anew: bool,
) -> None:
    here, _ = rooms

    async def body() -> None:
        if starts_anew:
            with pytest.raises(StartAnew):
                await latecomer(here, **section).consider(height, gone)
        else:
            await latecomer(here, **section).consider(height, gone)
            assert here.loopback.requests == []

    run(body)


def test_who_claims_a_great_height_costs_a_round_of_questions_and_no_more_for_a_while(
    rooms: tuple[Room, Room], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = rooms

    async def body() -> None:
        deciding = latecomer(here, lag_heights_max=1000)
        for _ in range(5):
            await deciding.consider(1 << 60, False)
        assert [kind for _, kind, _ in here.loopback.requests] == [Request.SNAPSHOT]
        monkeypatch.setattr(late, "PAUSE_S", 0.0)
        await deciding.consider(1 << 60, False)
        assert len(here.loopback.requests) == 2

    run(body)


def test_blocks_that_everybody_ahead_has_pruned_are_noticed_and_one_alone_is_not_believed(
    rooms: tuple[Room, Room],
) -> None:
    here, there = rooms
    there.upkeep.prune(3, lambda outcome: [])

    async def body() -> None:
        with pytest.raises(RequestRefused) as refused:
            await there.sync.answer("asker", Request.RANGE, encode_range_request(2, 64))
        assert refused.value.code == sync.REFUSED_PRUNED

        async def refusing(asker: str, kind: int, payload: bytes) -> bytes:
            raise RequestRefused(sync.REFUSED_PRUNED, "gone")

        here.loopback.answers = {SERVER: refusing, OTHER: there.sync.answer}
        here.sync._note(SERVER, GROWN)
        here.sync._note(OTHER, GROWN)
        assert not await here.sync._advance(SERVER)
        assert not here.sync._gone()
        assert not await here.sync._advance(OTHER)
        assert here.sync._gone()
        assert here.loopback.blamed == []

    run(lambda: with_rooms([here], body))


@pytest.mark.parametrize("kind", [Request.SNAPSHOT, Request.CHUNK, Request.EPOCHS])
def test_a_node_without_snapshots_answers_with_nothing(tmp_path: Path, kind: Request) -> None:
    fresh = room("val0", tmp_path)
    payload = {Request.SNAPSHOT: b"", Request.CHUNK: b"\x92\x08\x00", Request.EPOCHS: b"\x92\x01\x01"}[kind]
    expected = b"\x90" if kind == Request.EPOCHS else b""

    async def body() -> None:
        assert await fresh.sync.answer("asker", kind, payload) == expected
        if kind != Request.SNAPSHOT:
            with pytest.raises(RequestRefused):
                await fresh.sync.answer("asker", kind, b"\x90")

    run(body)
    fresh.close()


def test_a_snapshot_is_offered_only_once_a_committed_header_carries_its_root(tmp_path: Path) -> None:
    there = room("val1", tmp_path)

    async def body() -> None:
        await grow(there, EVERY + EVERY // 2)
        assert there.shelf.heights() == [EVERY]
        assert await there.sync.answer("asker", Request.SNAPSHOT, b"") == b""
        there.commit(true_block(there))
        assert await there.sync.answer("asker", Request.SNAPSHOT, b"")
        await trio.lowlevel.checkpoint()

    run(lambda: with_rooms([there], body))
    there.close()
