"""A validator's duties on real ledger states: the same after a restart, once each, and silent about local faults."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from node import fetch
from node.artefacts import Artefacts
from node.duties import Duties, is_owed
from node.errors import MempoolFull
from node.ledger.block import ReceiptStatus
from node.ledger.bodies import (
    AttestCommit,
    AttestOpen,
    BaseRegister,
    DatanetCreate,
    Held,
    InferenceReveal,
    ProviderBond,
)
from node.ledger.entries import InferenceStatus
from node.ledger.fields import from_bytes
from node.ledger.openings import Opening, encode_opening
from node.ledger.records import encode_records
from node.ledger.results import AuditStatus, audit_result_hash
from node.ledger.state import get_adapter
from node.ledger.transaction import decode_transaction
from node.recompute.jobs import AuditDone, AuditJob, IndexBuilt, Job, JobRefused, JobResult
from node.recompute.process import RecomputeProcess, WorkerBusy
from node.storage.blobs import blob_digest
from tests.unit.node.rooms import Room, identity, run
from tests.unit.node_ledger.world import (
    BASE_HASH,
    INDEX_ROOT,
    OUTPUT,
    PROMPT,
    SALT,
    VALIDATORS,
    World,
    address,
)

ME = "val0"
GOOD = Opening(PROMPT, SALT, OUTPUT, SALT)


class InstantWorker:
    """Stands in for the worker process: an answer for each job at once, and a note of what was asked."""

    def __init__(self, answer: Callable[[Job], JobResult]) -> None:
        self.answer = answer
        self.jobs: list[Job] = []

    async def submit(self, job: Job) -> JobResult:
        self.jobs.append(job)
        await trio.lowlevel.checkpoint()
        return self.answer(job)


def honest(job: Job) -> JobResult:
    if isinstance(job, AuditJob):
        return AuditDone(AuditStatus.OK, b"h" * 32, ((address("ann"), 10**9),))
    return IndexBuilt(INDEX_ROOT, 6)


class Desk:
    """One validator's duties over a world's state, run to their end at each look."""

    def __init__(self, room: Room, world: World, answer: Callable[[Job], JobResult] = honest) -> None:
        self.room, self.world = room, world
        self.worker = InstantWorker(answer)
        self.artefacts = Artefacts(
            room.folder / "artefacts",
            room.blobs,
            world.state,
            room.fetcher,
            cast("RecomputeProcess", self.worker),
        )
        self.artefacts.base_path(BASE_HASH).write_bytes(b"base")
        room.blobs.put(b"file")
        for text in ("ann", "ben", "cid"):
            room.blobs.put(encode_records([list(text.encode()), [1, 2, 3]]))
        self.submitted: list[bytes] = []
        self.refuses = False
        self._nursery: trio.Nursery | None = None
        self.duties = Duties(
            identity(ME),
            world.chain,
            world.state,
            room.blobs,
            room.fetcher,
            self.artefacts,
            self.submit,
            self.start,
        )

    async def submit(self, raw: bytes) -> bytes:
        if self.refuses:
            raise MempoolFull(1)
        self.submitted.append(raw)
        return raw[:32]

    def start(self, task: Callable[..., Any], *args: object) -> bool:
        assert self._nursery is not None
        self._nursery.start_soon(task, *args)
        return True

    async def look(self, times: int = 1) -> list[bytes]:
        """Look at this height and, on empty blocks, the following ones; returns what was sent since the start."""
        for number in range(times):
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self.duties.look(self.world.height)
                if number:
                    self.duties.look(self.world.height)  # twice at a height is no more than once
            if number + 1 < times:
                self.world.height += 1
        return self.submitted

    def bodies(self) -> list[Held | AttestCommit | AttestOpen]:
        return [decode_transaction(raw).body for raw in self.submitted]  # type: ignore[misc]


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    monkeypatch.setattr(fetch, "DELAY_S_MIN", 0.0)
    monkeypatch.setattr(fetch, "DELAY_S_MAX", 0.0)
    made = Room(ME, tmp_path)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def no_shipped_base(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(artefacts: Artefacts) -> bytes:
        return BASE_HASH

    monkeypatch.setattr("node.artefacts.hold_shipped_base", nothing)


def revealed(world: World, room: Room, data: bytes, *, stored: bool = True) -> bytes:
    """An inference whose provider revealed these bytes."""
    name = world.drawn(world.active_adapter())
    world.accept("provider", InferenceReveal(name, blob_digest(data), len(data)))
    if stored:
        room.blobs.put(data)
    return name


def commit_all(world: World, name: str, inference: bytes, raw: bytes) -> None:
    """Order this validator's commitment, and those of the others, so that the openings begin."""
    others = [
        world.tx(other, world.commit_body(inference, world.answer(inference), other))
        for other in VALIDATORS
        if other != name
    ]
    world.block(raw, *others)
    assert world.inference(inference).status == InferenceStatus.OPENING


# --- the same over restarts, once each ---


def test_a_restarted_validator_sends_the_very_same_bytes(room: Room) -> None:
    world = World()
    inference = revealed(world, room, encode_opening(GOOD))

    async def main() -> None:
        first = (await Desk(room, world).look())[0]
        world.block()  # another block was executed before the restart
        again = (await Desk(room, world).look())[0]
        assert first == again
        commit_all(world, ME, inference, first)
        opening = (await Desk(room, world).look())[0]
        assert opening == (await Desk(room, world).look())[0]
        outcome = world.block(opening)
        assert outcome.receipts[0].status == ReceiptStatus.OK  # it opens what was committed

    run(main)


def test_each_duty_is_done_once_for_each_attempt(room: Room) -> None:
    world = World()
    revealed(world, room, encode_opening(GOOD))

    async def main() -> None:
        desk = Desk(room, world)
        await desk.look(10)
        assert len(desk.submitted) == 1
        body = desk.bodies()[0]
        assert isinstance(body, AttestCommit)
        assert body.attempt == 0
        audits = [job for job in desk.worker.jobs if isinstance(job, AuditJob)]
        assert len(audits) == 1

    run(main)


def test_the_salt_differs_by_inference_attempt_and_validator() -> None:
    def salt(name: str, inference: bytes, attempt: int) -> bytes:
        nothing = cast("Any", None)
        made = Duties(identity(name), b"c" * 32, {}, nothing, nothing, nothing, nothing, nothing)
        return made._salt(inference, attempt)

    salts = {
        salt(name, inference, attempt)
        for name in VALIDATORS
        for inference in (b"a" * 32, b"b" * 32)
        for attempt in (0, 1)
    }
    assert len(salts) == 16
    assert salt(ME, b"a" * 32, 0) == salt(ME, b"a" * 32, 0)


def test_a_duty_refused_by_a_full_pool_is_tried_again(room: Room) -> None:
    world = World()
    revealed(world, room, encode_opening(GOOD))

    async def main() -> None:
        desk = Desk(room, world)
        desk.refuses = True
        assert await desk.look() == []
        desk.refuses = False
        world.height += 1
        assert len(await desk.look()) == 1

    run(main)


# --- what is said of a provider ---


def commitment_to(world: World, inference: bytes, status: AuditStatus) -> bytes:
    """The result hash of an opening that is not what was committed to."""
    adapter = get_adapter(world.state, world.inference(inference).voucher.adapter)
    assert adapter is not None
    return audit_result_hash(adapter.adapter_hash, adapter.index_root, 0, (), (), (), (), status)


FALSE_OPENINGS: dict[str, bytes] = {
    "no opening at all": b"opening",
    "another prompt": encode_opening(Opening((1, 2), SALT, OUTPUT, SALT)),
    "another output": encode_opening(Opening(PROMPT, SALT, (1, 2, 3), SALT)),
    "another salt of the prompt": encode_opening(Opening(PROMPT, bytes(32), OUTPUT, SALT)),
    "another salt of the output": encode_opening(Opening(PROMPT, SALT, OUTPUT, bytes(32))),
    "a byte more": encode_opening(GOOD) + b"\0",
    "a byte less": encode_opening(GOOD)[:-1],
}


@pytest.mark.parametrize("lie", sorted(FALSE_OPENINGS))
def test_an_opening_that_is_not_what_was_committed_is_attested_invalid_by_all_alike(
    room: Room, lie: str
) -> None:
    world = World()
    inference = revealed(world, room, FALSE_OPENINGS[lie])

    async def main() -> None:
        desk = Desk(room, world)
        first = (await desk.look())[0]
        commit_all(world, ME, inference, first)
        await desk.look()
        opened = desk.bodies()[-1]
        assert isinstance(opened, AttestOpen)
        assert opened.status_code == AuditStatus.OPENING_INVALID
        assert opened.result_hash == commitment_to(world, inference, AuditStatus.OPENING_INVALID)
        assert opened.shares == ()
        assert desk.worker.jobs == []

    run(main)


def busy(job: Job) -> JobResult:
    raise WorkerBusy("256 jobs are waiting")


def refusing(job: Job) -> JobResult:
    return JobRefused("damaged")


def no_disk(job: Job) -> JobResult:
    raise OSError("no space left")


def other_root(job: Job) -> JobResult:
    return IndexBuilt(b"o" * 32, 6)


@pytest.mark.parametrize("answer", [busy, refusing, no_disk, other_root])
def test_nothing_is_attested_when_this_machine_cannot_recompute(
    room: Room, answer: Callable[[Job], JobResult]
) -> None:
    world = World()
    revealed(world, room, encode_opening(GOOD))

    async def main() -> None:
        assert await Desk(room, world, answer).look(3) == []

    run(main)


@pytest.mark.parametrize("fault", ["missing", "damaged", "cut short", "adapter missing"])
def test_nothing_is_attested_when_a_blob_is_missing_or_damaged_here(room: Room, fault: str) -> None:
    world = World()
    data = encode_opening(GOOD)
    revealed(world, room, data, stored=fault != "missing")

    async def main() -> None:
        desk = Desk(room, world)
        path = room.blobs.path(blob_digest(data))
        if fault == "damaged":
            path.write_bytes(data[:-1] + b"\0")
        elif fault == "cut short":
            path.write_bytes(b"")
        elif fault == "adapter missing":
            room.blobs.remove(blob_digest(b"file"))
        assert await desk.look(2) == []
        room.blobs.put(data)
        room.blobs.put(b"file")
        world.height += 4
        assert len(await desk.look()) == 1  # and once it is mended the duty is done

    run(main)


# --- holding ---


def pending_adapter(world: World) -> bytes:
    datanet = world.accept("ann", DatanetCreate("docs", ("CC-BY-4.0", "MIT"), ""))
    contributions = tuple(
        world.accept(name, world.contribution(datanet, name)) for name in ("ann", "ben", "cid")
    )
    world.accept("owner", BaseRegister(BASE_HASH, "tiny"))
    world.hold(BASE_HASH, b"")
    return world.accept("owner", world.adapter_body(contributions))


def test_an_index_that_was_rebuilt_as_published_is_attested(room: Room) -> None:
    world = World()
    adapter = pending_adapter(world)

    async def main() -> None:
        desk = Desk(room, world)
        outcome = world.block(*(await desk.look()))
        assert desk.bodies() == [Held(adapter, INDEX_ROOT)]
        assert outcome.receipts[0].status == ReceiptStatus.OK

    run(main)


def test_a_false_index_root_is_not_attested_and_not_rebuilt_at_every_block(room: Room) -> None:
    """The ledger would refuse the attestation at the cost of the validator that orders it."""
    world = World()
    pending_adapter(world)

    async def main() -> None:
        desk = Desk(room, world, other_root)
        assert await desk.look(20) == []
        assert len(desk.worker.jobs) == 1

    run(main)


def test_a_base_that_is_not_here_is_not_attested(room: Room) -> None:
    world = World()
    world.accept("owner", BaseRegister(BASE_HASH, "tiny"))

    async def main() -> None:
        desk = Desk(room, world)
        desk.artefacts.base_path(BASE_HASH).unlink()
        assert await desk.look() == []
        desk.artefacts.base_path(BASE_HASH).write_bytes(b"base")
        world.height += 1
        assert len(await desk.look()) == 1

    run(main)


def test_what_always_fails_is_tried_ever_more_rarely(room: Room) -> None:
    world = World()
    revealed(world, room, encode_opening(GOOD))

    async def main() -> None:
        desk = Desk(room, world, refusing)
        await desk.look(60)
        assert 3 <= len(desk.worker.jobs) <= 8
        assert len(desk.duties._resting) == 1

    run(main)


# --- what the ledger would take ---


def attempts(world: World, inference: bytes, adapter: bytes) -> Sequence[tuple[str, Any]]:
    """Every kind of duty by every validator, and by somebody who is none of them, right and wrong."""
    found: list[tuple[str, Any]] = []
    for name in VALIDATORS:
        right, wrong = world.answer(inference), world.answer(inference, b"wrong")
        found += [
            (name, Held(adapter, INDEX_ROOT)),
            (name, Held(adapter, b"o" * 32)),
            (name, Held(BASE_HASH, b"")),
        ]
        found += [(name, world.commit_body(inference, right, name)), (name, right), (name, wrong)]
        later = world.answer(inference, attempt=1)
        found += [(name, world.commit_body(inference, later, name)), (name, later)]
    found += [(ME, Held(b"n" * 32, b"")), (ME, world.commit_body(b"n" * 32, world.answer(b"n" * 32), ME))]
    return found


def check_agreement(world: World, inference: bytes, adapter: bytes) -> int:
    """`is_owed` says of each duty what execution says; returns how many are owed."""
    owed = 0
    for name, body in attempts(world, inference, adapter):
        before = (dict(world.state), world.lthash, world.accumulator, world.height, world.now_ms)
        expected = is_owed(world.state, address(name), body)
        outcome = world.block(world.tx(name, body))
        receipt = next(entry for entry in outcome.receipts if entry.kind == body.KIND)
        assert (receipt.status == ReceiptStatus.OK) == expected, (name, body, receipt)
        owed += expected
        world.state.clear()
        world.state.update(before[0])
        _, world.lthash, world.accumulator, world.height, world.now_ms = before
    return owed


def test_a_duty_is_owed_exactly_where_the_ledger_takes_it() -> None:
    world = World()
    adapter = pending_adapter(world)
    world.hold(adapter, INDEX_ROOT, VALIDATORS[:3])
    world.accept("provider", ProviderBond(world.params.provider_bond_min, "serves"))
    inference = world.drawn(adapter)
    assert check_agreement(world, inference, adapter) == 1  # the fourth may still hold the adapter
    world.accept("provider", InferenceReveal(inference, blob_digest(b"opening"), 100))
    assert check_agreement(world, inference, adapter) == 1 + 4
    right = world.answer(inference)
    world.block(*[world.tx(name, world.commit_body(inference, right, name)) for name in VALIDATORS[:3]])
    assert check_agreement(world, inference, adapter) == 1 + 1
    world.until(inference, InferenceStatus.OPENING)
    adapter_owed = is_owed(world.state, address("val3"), Held(adapter, INDEX_ROOT))
    assert check_agreement(world, inference, adapter) == adapter_owed + 3
    world.block(world.tx("val0", right))
    assert check_agreement(world, inference, adapter) == adapter_owed + 2  # once opened is enough
    world.block(world.tx("val1", right))
    world.until(inference, InferenceStatus.COMMITTING)  # no quorum: the next attempt
    assert world.inference(inference).attempt == 1
    check_agreement(world, inference, adapter)


def test_an_audit_that_did_not_change_is_not_decoded_again(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands may be open, and each block asks for all of them while votes wait."""
    world = World()
    inference = revealed(world, room, encode_opening(GOOD))
    decoded: list[object] = []

    def noted(cls: type[Any], data: bytes, bytes_max: int) -> Any:
        decoded.append(cls)
        return from_bytes(cls, data, bytes_max)

    async def main() -> None:
        desk = Desk(room, world)
        (commitment,) = await desk.look()
        monkeypatch.setattr("node.duties.from_bytes", noted)
        for _ in range(5):
            await desk.look()
        assert decoded == []
        commit_all(world, ME, inference, commitment)
        await desk.look()
        assert len(decoded) == 1
        assert len(desk.submitted) == 2

    run(main)
