"""Range sync against peers that lie, stall, cut short and boast, in any order that Hypothesis can think of.

One node with a real store, executor and `Sync` is behind. Of its three peers one is honest, though it may be away for a while; the
others behave as the machine says. Whatever they do, nothing is stored that a quorum did not prove, nobody honest is blamed,
and once the honest peer is there for good, the node catches up. Time is virtual: it runs only while the machine waits.
"""

import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import hypothesis.strategies as st
import pytest
import trio
import trio.testing
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from node import sync
from node.ledger.batch import encode_batch
from node.ledger.bodies import Transfer
from node.network.errors import PeerUnavailable, RequestRefused
from node.wire import (
    Announcement,
    BlockRange,
    Request,
    SyncedBlock,
    decode_range,
    decode_range_request,
    encode_announcement,
    encode_range,
    encode_range_request,
)
from tests.profiles import examples
from tests.unit.node.rooms import Room, next_block, peer_id, run, with_rooms
from tests.unit.node.test_sync import FORGERIES
from tests.unit.node_ledger.world import address

CHAIN_BLOCKS = 18
SPAN = 3
"""Blocks of a range here, so that a short chain takes many of them."""
HONEST, FIRST, SECOND = (peer_id(name) for name in ("val1", "val2", "val3"))
STEP_S = 0.5
THREAD_PAUSE_S = 0.002
"""Virtual time goes on in steps, and only while no thread works: how long the disk takes must not look like a peer that stalls."""
CATCH_UP_S = 1_200.0
"""Virtual. Two liars that stall hold up four requests of 8 s between any two that go well, and rest for at most 64 s each."""


def _foreign_batch(answer: BlockRange, room: Room) -> BlockRange:
    """A batch that is signed and well-formed, and that no block names."""
    raw = room.tx("cid", Transfer(address("ben"), 3), nonce=0)
    rows = list(answer.blocks)
    rows[0] = SyncedBlock(rows[0].block, (encode_batch(room.batch(99, raw)),))
    return BlockRange(tuple(rows), answer.proof)


LIES = {**FORGERIES, "a batch of its own": _foreign_batch}
MANNERS = (
    "honest",
    "stalls",
    "refuses",
    "gone",
    "pruned",
    "empty",
    "garbage",
    "slow",
    *sorted(LIES),
)


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


@cache
def _server() -> Room:
    """A node with the whole chain, a batch in every block; shared by all examples, which only read it."""
    folder = tempfile.TemporaryDirectory()
    room = Room("val1", Path(folder.name))
    _FOLDERS.append(folder)
    for number in range(CHAIN_BLOCKS):
        raw = room.tx("ann", Transfer(address("ben"), 1), nonce=number)
        room.commit(next_block(room.top(), [room.put(room.batch(number + 1, raw))]))
    return room


@pytest.fixture(scope="module", autouse=True)
def shared_server() -> Iterator[None]:
    yield
    _server().close()
    _server.cache_clear()
    for folder in _FOLDERS:
        folder.cleanup()


class SyncMachine(RuleBasedStateMachine):
    """`visible` is how far the honest peer has come; it commits on as the machine says."""

    def __init__(self) -> None:
        super().__init__()
        self.server = _server()
        self.folder = tempfile.TemporaryDirectory()
        self.here = Room("val0", Path(self.folder.name))
        self.visible = 1
        self.away = False
        self.manners = {FIRST: "honest", SECOND: "honest"}
        self.running = 0
        self.most_running = 0
        self.clock = trio.testing.MockClock()
        self.ready = threading.Event()
        self.failed: list[BaseException] = []
        self.span_before = vars(sync)["RANGE_BLOCKS_MAX"]
        vars(sync)["RANGE_BLOCKS_MAX"] = SPAN
        self.thread = threading.Thread(target=self.live)
        self.thread.start()
        self.ready.wait()

    # --- the node's life, in a thread of its own ---

    def live(self) -> None:
        try:
            trio.run(self.main, clock=self.clock)
        except BaseException as error:  # told to the machine, which raises it
            self.failed.append(error)
        finally:
            self.ready.set()

    async def main(self) -> None:
        self.token = trio.lowlevel.current_trio_token()
        self.ended = trio.Event()
        answers = {
            HONEST: self.honestly,
            FIRST: self.as_told(FIRST),
            SECOND: self.as_told(SECOND),
        }
        self.here.loopback.answers = answers
        async with trio.open_nursery() as nursery:
            self.here.nursery = nursery
            nursery.start_soon(self.here.executor.run)
            nursery.start_soon(self.here.sync.run)
            self.ready.set()
            await self.ended.wait()
            nursery.cancel_scope.cancel()
        self.here.nursery = None

    def ask(self, body: Callable[[], Awaitable[None]]) -> None:
        trio.from_thread.run(body, trio_token=self.token)

    async def honestly(self, asker: str, kind: int, payload: bytes) -> bytes:
        if self.away:
            raise PeerUnavailable(HONEST, "away")
        return await self.truth(asker, kind, payload)

    async def truth(self, asker: str, kind: int, payload: bytes) -> bytes:
        if kind == Request.STATUS:
            return encode_announcement(Announcement(self.visible, bytes(32)))
        if kind != Request.RANGE:
            return await self.server.sync.answer(asker, kind, payload)
        from_height, count = decode_range_request(payload)
        count = min(count, self.visible - from_height + 1)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if count < 1:
                return encode_range(BlockRange((), b""))
            return await self.server.sync.answer(asker, kind, encode_range_request(from_height, count))
        finally:
            self.running -= 1

    def as_told(self, peer: str) -> Callable[[str, int, bytes], Awaitable[bytes]]:
        async def answer(asker: str, kind: int, payload: bytes) -> bytes:
            manner = self.manners[peer]
            if manner == "stalls":
                await trio.sleep_forever()
            if manner == "gone":
                raise PeerUnavailable(peer, "gone")
            if manner in ("refuses", "pruned"):
                code = sync.REFUSED_PRUNED if manner == "pruned" else sync.REFUSED_MALFORMED
                raise RequestRefused(code, "no")
            if manner == "slow":
                await trio.sleep(5.0)
            if manner == "garbage":
                return b"\xc1" * 40
            if kind == Request.STATUS and manner not in ("honest", "slow"):
                return encode_announcement(Announcement(1 << 60, bytes(32)))
            if kind == Request.BATCH and manner not in ("honest", "slow"):
                return b"\x90"
            truth = await self.truth(asker, kind, payload)
            if kind != Request.RANGE or manner not in LIES:
                return encode_range(BlockRange((), b"")) if manner == "empty" else truth
            found = decode_range(truth)
            if len(found.blocks) < SPAN:
                return encode_range(BlockRange((), b""))
            return encode_range(LIES[manner](found, self.server))

        return answer

    # --- what happens ---

    @initialize(first=st.sampled_from(MANNERS), second=st.sampled_from(MANNERS))
    def begin(self, first: str, second: str) -> None:
        self.manners = {FIRST: first, SECOND: second}

    @rule(peer=st.sampled_from([FIRST, SECOND]), manner=st.sampled_from(MANNERS))
    def turn(self, peer: str, manner: str) -> None:
        self.manners[peer] = manner

    @rule(away=st.booleans())
    def come_and_go(self, away: bool) -> None:
        self.away = away

    @rule(blocks=st.integers(1, 6))
    def grow(self, blocks: int) -> None:
        self.visible = min(self.visible + blocks, CHAIN_BLOCKS)

    @rule(
        peer=st.sampled_from([HONEST, FIRST, SECOND, "stranger"]),
        height=st.one_of(st.integers(0, CHAIN_BLOCKS), st.sampled_from([1 << 40, (1 << 64) - 1])),
    )
    def announce(self, peer: str, height: int) -> None:
        """Anybody boasts in anybody's name: announcements are not signed."""

        async def body() -> None:
            self.here.sync.announced(peer, encode_announcement(Announcement(height, bytes(32))))

        self.ask(body)

    @rule(seconds=st.sampled_from([0.0, 1.0, 9.0, 40.0]))
    def wait(self, seconds: float) -> None:
        async def body() -> None:
            await self.settle()
            for _ in range(int(seconds / STEP_S)):
                await self.pass_time()

        self.ask(body)

    async def settle(self) -> None:
        """Let everything happen that needs no time."""
        threads = trio.to_thread.current_default_thread_limiter()
        await trio.testing.wait_all_tasks_blocked()
        while threads.borrowed_tokens:
            await trio.testing.wait_all_tasks_blocked(THREAD_PAUSE_S)

    async def pass_time(self) -> None:
        self.clock.jump(STEP_S)
        await self.settle()

    # --- what always holds ---

    @invariant()
    def nothing_unproven_is_stored(self) -> None:
        async def body() -> None:
            truth, here = self.server.store, self.here.store
            chain = [truth.block_at(height) for height in range(CHAIN_BLOCKS + 1)]
            assert here.committed_height() <= self.visible
            for height in range(here.committed_height() + 1):
                assert here.committed_id(height) == truth.committed_id(height)
            ids = {block.id for block in chain if block is not None}
            batches = {name for block in chain if block is not None for name in block.header.payload}
            stored = {key for key, _ in self.here.database.scan(b"b")}
            assert stored <= ids
            assert {key for key, _ in self.here.database.scan(b"p")} <= batches

        self.ask(body)

    @invariant()
    def nobody_honest_is_blamed(self) -> None:
        assert HONEST not in self.here.loopback.blamed
        assert self.most_running <= 3 * sync.RANGES_OUTSTANDING_MAX
        assert not self.failed, self.failed

    def teardown(self) -> None:
        """The liars go on; the honest peer stays: the node reaches it, and executes to the same state."""
        try:
            if not self.failed:
                self.ask(self.caught_up)
        finally:
            self.end()
        assert not self.failed, self.failed

    async def caught_up(self) -> None:
        self.away = False
        until_s = trio.current_time() + CATCH_UP_S
        while self.here.executor.head.height < self.visible and trio.current_time() < until_s:
            await self.pass_time()
        head = self.here.executor.head
        assert head.height == self.visible, (head.height, self.visible, self.manners)
        assert head.block_id == self.server.store.committed_id(self.visible)

    def end(self) -> None:
        vars(sync)["RANGE_BLOCKS_MAX"] = self.span_before
        if not self.failed:
            trio.from_thread.run_sync(self.ended.set, trio_token=self.token)
        self.thread.join()
        self.here.close()
        self.folder.cleanup()


SyncMachine.TestCase.settings = settings(max_examples=examples(12), stateful_step_count=12)
TestSyncMachine = SyncMachine.TestCase


@pytest.mark.parametrize("manner", MANNERS)
def test_every_manner_alone_leaves_only_what_is_proven(manner: str) -> None:
    """The machine's shortest history for each: both others behave alike while the honest peer is away, then it comes."""
    machine = SyncMachine()
    try:
        machine.begin(manner, manner)
        machine.grow(7)
        machine.come_and_go(away=True)
        machine.announce(FIRST, 1 << 40)
        machine.announce(SECOND, 1 << 40)
        machine.wait(9.0)
        machine.nothing_unproven_is_stored()
        machine.nobody_honest_is_blamed()
    finally:
        machine.teardown()


def test_a_range_of_an_epoch_that_ended_meanwhile_costs_nobody_anything(tmp_path: Path) -> None:
    here, server = Room("val0", tmp_path), _server()

    async def late(asker: str, kind: int, payload: bytes) -> bytes:
        answer = await server.sync.answer(asker, kind, payload)
        here.epochs._current = replace(here.epochs.current, number=1)
        return answer

    async def body() -> None:
        here.loopback.answers = {HONEST: late}
        await here.sync._advance(HONEST)
        assert here.loopback.blamed == []

    run(lambda: with_rooms([here], body))
    here.close()
