"""What of a node's blobs stays and what goes: over random histories, with kills between any two steps on the disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import hypothesis.strategies as st
import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from consensus.types import Block
from node.config import StorageSection
from node.executor import ExecutedBlock
from node.keeper import Keeper
from node.ledger.blobs import blob_referred
from node.ledger.entries import (
    ADAPTER,
    CONTRIBUTION,
    INFERENCE,
    Adapter,
    ArtefactStatus,
    Contribution,
    Inference,
    InferenceStatus,
)
from node.ledger.fields import to_bytes
from node.ledger.openings import Voucher
from node.storage.blobs import BlobStore, LooseLimits, Note, blob_digest
from node.storage.chain import ChainStore, ExecutedHead
from node.storage.database import Database
from node.storage.errors import LooseQuotaExceeded
from tests.profiles import examples

SECTION = StorageSection(blobs_loose_heights_max=10, blobs_loose_ms_max=1000)
LIMITS = LooseLimits(bytes_max=8 * 8192, owner_bytes_max=3 * 8192, unnamed_bytes_max=3 * 8192)
HASH = b"h" * 32
BLOBS = {blob_digest(data): data for data in (bytes([number]) * (number + 1) for number in range(6))}
OWNERS = [bytes([letter]) * 32 for letter in b"abc"]


def contribution(name: bytes) -> bytes:
    return to_bytes(Contribution(HASH, HASH, HASH, 1, 1, name, len(BLOBS.get(name, b"x")), "MIT", 1))


def adapter(name: bytes, status: ArtefactStatus) -> bytes:
    return to_bytes(Adapter(status, HASH, "a", HASH, (HASH,), b"r", HASH, name, 9, HASH, 1))


def inference(name: bytes, status: InferenceStatus) -> bytes:
    voucher = Voucher(HASH, HASH, HASH, 1, HASH, HASH, 1, 1, 1)
    return to_bytes(Inference(status, voucher, HASH, 1, 1, 1, 1, blob_digest=name, blob_bytes=9))


RARELY = st.sampled_from([False, False, False, False, True])
KILLED_AT = st.sampled_from([None, None, None, None, *range(8)])


class Killed(BaseException):
    """The process ended here."""


@contextmanager
def killed_at(step: int) -> Iterator[None]:
    """End the process before its `step`-th change of the disk; past the last one nothing happens."""
    left = [step]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return real(*arguments, **options)

        return call

    patch = pytest.MonkeyPatch()
    for owner, names in ((Path, ("unlink", "write_bytes", "rename", "mkdir")), (os, ("fsync",))):
        for name in names:
            patch.setattr(owner, name, counted(getattr(owner, name)))
    try:
        yield
    finally:
        patch.undo()


class Histories(RuleBasedStateMachine):
    """A node's blobs against what the ledger's records say; the records are the truth."""

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="keeper-"))
        self.database = Database(self.folder / "chain")
        self.store = ChainStore(self.database)
        self.height, self.now = 1, 10_000
        self.records: dict[bytes, bytes] = {}
        self.waiting: set[bytes] = set()
        self.owed: set[bytes] = set()
        self.blobs = BlobStore(self.folder / "blobs", 1 << 20, LIMITS)
        self.open_keeper()

    def open_keeper(self) -> None:
        self.keeper = Keeper(
            self.store, self.blobs, SECTION, lambda: self.waiting, tuple, clock=lambda: self.now
        )
        self.keeper.recall(self.height)

    def teardown(self) -> None:
        if hasattr(self, "database"):
            self.database.close()
            shutil.rmtree(self.folder)

    def restart(self) -> None:
        self.waiting = set()  # a pool is memory
        self.blobs = BlobStore(self.folder / "blobs", 1 << 20, LIMITS)
        self.open_keeper()

    def referred(self) -> set[bytes]:
        found = (blob_referred(key, value) for key, value in self.records.items())
        return {name for name in found if name is not None}

    def put_record(self, key: bytes, value: bytes, killed: bool) -> None:
        """One executed block: its write is atomic, and the process may end right after it."""
        self.database.write({b"s" + key: value}, sync=False)
        self.records[key] = value
        self.owed |= {name for name in self.referred() if self.blobs.has(name)}
        self.owed &= self.referred()
        self.height += 1
        if killed:
            self.restart()
            return
        head = ExecutedHead(self.height, HASH, HASH, HASH, b"", b"")
        references = ((key, blob_referred(key, value)),)
        self.keeper.executed(ExecutedBlock(cast("Block", None), (), (), (), head, references))

    names = st.sampled_from(sorted(BLOBS))

    @rule(name=names, owner=st.sampled_from([b"", *OWNERS]), step=KILLED_AT)
    def put(self, name: bytes, owner: bytes, step: int | None) -> None:
        note, before_bytes = Note(owner, self.height, self.now), self.blobs.loose_bytes(owner)
        try:
            with killed_at(99 if step is None else step):
                self.blobs.put(BLOBS[name], note=note)
        except LooseQuotaExceeded:
            return
        except Killed:
            self.restart()
            return
        limit = LIMITS.owner_bytes_max if owner else LIMITS.unnamed_bytes_max
        assert self.blobs.loose_bytes(owner) <= max(limit, before_bytes)

    @rule(name=names, owner=st.sampled_from(OWNERS), heights=st.integers(0, 30))
    def claim(self, name: bytes, owner: bytes, heights: int) -> None:
        try:
            self.blobs.claim(name, Note(owner, self.height, self.now, self.height + heights))
        except LooseQuotaExceeded:
            return
        if self.blobs.note(name) is not None:
            self.waiting.add(name)

    @rule(name=names, killed=RARELY)
    def contribute(self, name: bytes, killed: bool) -> None:
        if self.blobs.has(name):
            self.put_record(CONTRIBUTION + name, contribution(name), killed)

    @rule(
        name=names,
        call=st.sampled_from(OWNERS),
        status=st.sampled_from(
            [InferenceStatus.COMMITTING, InferenceStatus.OPENING, InferenceStatus.SETTLED]
        ),
        killed=RARELY,
    )
    def audit(self, name: bytes, call: bytes, status: InferenceStatus, killed: bool) -> None:
        if self.blobs.has(name):
            self.put_record(INFERENCE + call, inference(name, status), killed)

    @rule(name=names, status=st.sampled_from(list(ArtefactStatus)), killed=RARELY)
    def publish(self, name: bytes, status: ArtefactStatus, killed: bool) -> None:
        if self.blobs.has(name):
            self.put_record(ADAPTER + b"m" * 32, adapter(name, status), killed)

    @rule(heights=st.integers(1, 40), ms=st.integers(0, 3000))
    def wait(self, heights: int, ms: int) -> None:
        self.height, self.now = self.height + heights, self.now + ms

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave_the_pool(self, data: st.DataObject) -> None:
        self.waiting.discard(data.draw(st.sampled_from(sorted(self.waiting))))

    @rule(step=KILLED_AT)
    def collect(self, step: int | None) -> None:
        try:
            with killed_at(99 if step is None else step):
                trio.run(partial(self.keeper.collect, self.height))
        except (Killed, BaseExceptionGroup):
            self.restart()
            return
        for name, note in self.blobs.notes():
            old = note.height + 10 <= self.height and note.ms + 1000 <= self.now
            vouched = note.until_height >= self.height
            assert not old or vouched or name in self.waiting

    @precondition(lambda self: self.height % 3 == 0)
    @rule(lost=st.booleans(), torn=st.booleans())
    def power_cut(self, lost: bool, torn: bool) -> None:
        """What was not synced may be gone: notes are not."""
        for file in sorted((self.folder / "blobs").glob("*/*.note")):
            if lost:
                file.unlink()
            elif torn:
                file.write_bytes(file.read_bytes()[:7])
        self.restart()

    @invariant()
    def what_the_ledger_refers_to_is_here(self) -> None:
        for name in getattr(self, "owed", ()):
            assert self.blobs.get(name) == BLOBS[name]

    @invariant()
    def sums_are_those_of_the_files(self) -> None:
        if hasattr(self, "blobs"):
            notes = self.blobs.notes()
            assert self.blobs.loose_bytes() == 8192 * len(notes)
            assert all(self.blobs.loose_bytes(owner) >= 0 for owner in OWNERS)
            files = [path for path in (self.folder / "blobs").glob("*/*") if path.suffix != ".note"]
            assert len(files) == len(self.blobs._sizes)


def test_over_random_histories_nothing_referred_to_is_lost_and_nothing_else_stays_for_ever() -> None:
    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=examples(100),
            stateful_step_count=30,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[tuple[Keeper, BlobStore, Database, list[int]]]:
    database = Database(tmp_path / "chain")
    blobs, now = BlobStore(tmp_path / "blobs", 1 << 20, LIMITS), [5000]
    made = Keeper(ChainStore(database), blobs, SECTION, set, tuple, clock=lambda: now[0])
    yield made, blobs, database, now
    database.close()


def test_a_loose_blob_goes_only_when_heights_and_milliseconds_have_both_passed(
    keeper: tuple[Keeper, BlobStore, Database, list[int]],
) -> None:
    """A clock that jumps ahead by hours, or a chain that stands still, ends nobody's time by itself."""
    made, blobs, _, now = keeper
    name = blobs.put(b"loose", note=made.fresh_note(100))
    for height, ms in ((110, 0), (100, 10**9)):
        now[0] = 5000 + ms
        assert trio.run(made.collect, height) == 0
        assert blobs.has(name)
    assert trio.run(made.collect, 110) == 1
    assert not blobs.has(name)


def test_a_blob_that_was_vouched_for_stays_until_its_transaction_has_expired(
    keeper: tuple[Keeper, BlobStore, Database, list[int]],
) -> None:
    made, blobs, _, now = keeper
    name = blobs.put(b"vouched", note=made.fresh_note(1, OWNERS[0], until_height=500))
    now[0] = 10**9
    assert trio.run(made.collect, 500) == 0
    assert trio.run(made.collect, 501) == 1
    assert not blobs.has(name)


def test_a_blob_of_an_ordered_transaction_stays_until_that_has_executed(
    tmp_path: Path,
) -> None:
    from tests.unit.node.rooms import Room  # its world costs a second to build

    room = Room("val0", tmp_path)
    from node.ledger.bodies import ContributionSubmit

    name = room.blobs.put(b"ordered", note=Note(b"", 0, 0))
    body = ContributionSubmit(b"d" * 32, b"r" * 32, 1, 1, name, 7, "MIT")
    batch = room.put(room.batch(1, room.tx("ann", body), b"\xc1"))
    ordered = [batch]
    made = Keeper(room.store, room.blobs, SECTION, set, lambda: ordered, clock=lambda: 10**9)
    assert trio.run(made.collect, 1000) == 0
    ordered.clear()
    assert trio.run(made.collect, 1000) == 1
    room.close()


def test_one_opening_that_answers_two_calls_stays_until_both_audits_ended(
    keeper: tuple[Keeper, BlobStore, Database, list[int]],
) -> None:
    made, blobs, database, _ = keeper
    name = blobs.put(b"opening")
    for call in OWNERS[:2]:
        database.write({b"s" + INFERENCE + call: inference(name, InferenceStatus.COMMITTING)}, sync=False)
    made.recall(1)
    head = ExecutedHead(2, HASH, HASH, HASH, b"", b"")
    for call, still in zip(OWNERS[:2], (True, False), strict=True):
        done = ExecutedBlock(cast("Block", None), (), (), (), head, ((INFERENCE + call, None),))
        made.executed(done)
        assert made.refers(name) == still
        assert (blobs.note(name) is None) == still


def test_a_copy_that_replaces_a_lost_one_is_kept_like_it(
    keeper: tuple[Keeper, BlobStore, Database, list[int]],
) -> None:
    """A damaged blob counts as missing; who puts it again knows nothing of what the ledger refers to."""
    made, blobs, database, now = keeper
    name = blobs.put(b"records")
    database.write({b"s" + CONTRIBUTION + HASH: contribution(name)}, sync=False)
    made.recall(1)
    blobs.path(name).write_bytes(b"recordz")
    blobs.put(b"records", note=made.fresh_note(1))
    now[0] = 10**9
    assert trio.run(made.collect, 1000) == 0
    assert blobs.get(name) == b"records"
    assert blobs.note(name) is None


@pytest.mark.parametrize("restarted", [False, True])
def test_what_the_ledger_refers_to_is_never_collected(
    keeper: tuple[Keeper, BlobStore, Database, list[int]], tmp_path: Path, restarted: bool
) -> None:
    """From the block on that refers to it, and after a process that ended between that block and the note."""
    made, blobs, database, now = keeper
    made.recall(1)
    name = blobs.put(b"records", note=made.fresh_note(1))
    key = CONTRIBUTION + HASH
    database.write({b"s" + key: contribution(name)}, sync=False)
    if restarted:
        blobs = BlobStore(tmp_path / "blobs", 1 << 20, LIMITS)
        made = Keeper(ChainStore(database), blobs, SECTION, set, tuple, clock=lambda: now[0])
        made.recall(2)
    else:
        head = ExecutedHead(2, HASH, HASH, HASH, b"", b"")
        made.executed(ExecutedBlock(cast("Block", None), (), (), (), head, ((key, name),)))
    now[0] = 10**9
    assert trio.run(made.collect, 1000) == 0
    assert blobs.get(name) == b"records"
