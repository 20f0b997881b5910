"""The consensus driver: gives a pure replica its inputs and performs its effects, in their contract order.

This task alone touches the replica. What other tasks of this node tell it (`tell`) is never lost; what peers send
(`offer`) may be dropped past a bound, which the protocol allows.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog
import trio

from consensus.effects import (
    Behind,
    Deliver,
    Diverged,
    Effect,
    EpochEnded,
    FetchBlock,
    FetchPayload,
    HelpEpoch,
    Misbehaved,
    Persist,
    RequestPayload,
    Send,
    SetTimer,
    Stalled,
)
from consensus.inputs import (
    Input,
    MessageReceived,
    PayloadAvailable,
    PayloadOffered,
    PayloadPending,
    PayloadRefused,
    Started,
    TimerFired,
    TimerKind,
)
from consensus.messages import VoteMessage, encode_message
from consensus.replica import Replica
from consensus.types import Block
from node.clock import now_ms
from node.storage.chain import ChainStore
from node.storage.errors import SigningKeyElsewhere

log = structlog.get_logger(__name__)

PEER_INPUTS_MAX = 8192

INPUTS_AT_ONCE_MAX = 16
"""A flood of inputs must not starve the other tasks: after so many, in some milliseconds, they get their turn."""

SIGNING_TIMERS = (TimerKind.ROUND, TimerKind.PROPOSE)
"""What makes the replica sign of its own accord: give up on a leader, and propose."""


@dataclass(frozen=True, slots=True)
class DriverPorts:
    """Where effects go that leave the driver. All of them return at once; none may fail.

    Attributes:
        send: encoded consensus message to one validator id, or with None to all.
        deliver: final blocks, oldest first.
        offer_payload: digests of stored batches for the round this node leads.
        fetch_payload: make batches available; answers come back through `tell`.
        fetch_block: ask for a block and its ancestors.
        behind: the chain is far ahead; fetch a range.
        misbehaved: a validator id (or None) broke the rules.
        help_epoch: a peer still works in an epoch that has ended.
    """

    send: Callable[[bytes | None, bytes], None]
    deliver: Callable[[tuple[Block, ...]], None]
    offer_payload: Callable[[RequestPayload], tuple[bytes, ...]]
    fetch_payload: Callable[[FetchPayload], None]
    fetch_block: Callable[[FetchBlock], None]
    behind: Callable[[Behind], None]
    misbehaved: Callable[[Misbehaved], None]
    help_epoch: Callable[[HelpEpoch], None]


class Driver:
    """Runs one replica. Construct, then run `run` in the daemon's nursery.

    A validator whose key may have signed before listens first: for `listen_ms` it answers what others send but starts nothing by
    itself. Were another process using its key, or its whole home an old copy, then this shows in what others send
    (`Replica.foreign_signature`), and the daemon ends before a further signature leaves.

    A leader offers its payload no sooner than `block_interval_ms` after it voted for the block before: what comes meanwhile shares one
    block. Rounds go on, and votes are not held.
    """

    def __init__(
        self,
        replica: Replica,
        store: ChainStore,
        ports: DriverPorts,
        *,
        listen_ms: int = 0,
        block_interval_ms: int = 0,
    ) -> None:
        self.replica = replica
        self.diverged: Diverged | None = None
        self.stalled = False
        self.peer_inputs_dropped = 0
        self._store = store
        self._ports = ports
        self._own: deque[Input] = deque()
        self._done: dict[int, trio.Event] = {}  # by identity of an input that waits in `_own`
        self._peers: deque[MessageReceived] = deque()
        self._timers: dict[TimerKind, int] = {}
        self._listen_ms = listen_ms
        self._listen_until_ms = 0
        self._block_interval_ms = block_interval_ms
        self._voted_ms = 0
        self._request: RequestPayload | None = None  # came too early; the newest one counts
        self._next_replica: Replica | None = None
        self._wake = trio.Event()
        self._disk = trio.CapacityLimiter(1)

    def tell(self, event: Input) -> None:
        """Queue an input of this node itself. Bounded by what causes it: blocks, batches and requests in flight."""
        self._own.append(event)
        self._wake.set()

    async def tell_and_wait(self, event: Input) -> None:
        """`tell`, and return once the replica has taken it and its effects are done."""
        done = self._done[id(event)] = trio.Event()
        self.tell(event)
        await done.wait()

    def succeed(self, replica: Replica) -> None:
        """Go on with the next epoch's replica, once what is being done for the present one is done."""
        self._next_replica = replica
        self._wake.set()

    def offer(self, event: MessageReceived) -> bool:
        """Queue a peer's message; returns False, and drops it, when too many wait (messages may be lost)."""
        if len(self._peers) >= PEER_INPUTS_MAX:
            self.peer_inputs_dropped += 1
            return False
        self._peers.append(event)
        self._wake.set()
        return True

    async def run(self) -> None:
        """Step the replica for ever; a failure to persist ends the daemon, for nothing may be signed after it.

        Raises StorageError from the disk, and SigningKeyElsewhere once our key turns out to be used by someone else.
        """
        start_ms = now_ms()
        if self._listen_ms:
            self._listen_until_ms = start_ms + self._listen_ms
        self._own.appendleft(Started(start_ms))  # before what other tasks told already
        taken = 0
        while True:
            taken = (taken + 1) % INPUTS_AT_ONCE_MAX
            if not taken:
                await trio.lowlevel.checkpoint()
            event = await self._next()
            effects = self.replica.step(event)
            if (found := self.replica.foreign_signature) is not None:
                # Before any of the effects: they may hold a signature that contradicts the other's.
                self._store.disown(found)
                raise SigningKeyElsewhere(found)
            for effect in effects:
                await self._perform(effect)
            if (done := self._done.pop(id(event), None)) is not None:
                done.set()

    def _take_over(self) -> None:
        """Start the next epoch's replica, if there is one; what was asked of, timed or meant for the old one is void."""
        if self._next_replica is None:
            return
        self.replica, self._next_replica = self._next_replica, None
        self._timers.clear()
        self._request = None
        self.stalled = False
        for event in self._own:
            if (done := self._done.pop(id(event), None)) is not None:
                done.set()
        # A batch that came is there in every epoch.
        kept = (PayloadAvailable, PayloadRefused, PayloadPending)
        self._own = deque(event for event in self._own if isinstance(event, kept))
        self._own.appendleft(Started(now_ms()))

    async def _next(self) -> Input:
        """The next input: this node's own first, then in the order of time what peers sent and what timers are due.

        A timer waits for the messages that had arrived before it was due: after a stall the round that they finish
        must not be timed out for nothing.
        """
        while True:
            self._take_over()
            if self._own:
                return self._own.popleft()
            now = now_ms()
            if self._request is not None and now >= self._offers_from_ms:
                request, self._request = self._request, None
                return PayloadOffered(request.round, self._ports.offer_payload(request), now)
            due = min(self._timers, key=lambda kind: (self._due_ms(kind), kind), default=None)
            if due is not None and self._due_ms(due) > now:
                due = None
            if self._peers and (due is None or self._peers[0].now_ms <= self._due_ms(due)):
                return self._peers.popleft()
            if due is not None:
                del self._timers[due]
                return TimerFired(due, now)
            self._wake = trio.Event()
            with trio.move_on_after(self._seconds_to_timer(now)):
                await self._wake.wait()

    def _due_ms(self, kind: TimerKind) -> int:
        at_ms = self._timers[kind]
        return max(at_ms, self._listen_until_ms) if kind in SIGNING_TIMERS else at_ms

    @property
    def _offers_from_ms(self) -> int:
        """Before then no payload is offered."""
        return max(self._listen_until_ms, self._voted_ms + self._block_interval_ms)

    def _seconds_to_timer(self, now: int) -> float:
        times = [self._due_ms(kind) for kind in self._timers]
        if self._request is not None:
            times.append(self._offers_from_ms)
        return min((max(at_ms - now, 0) / 1000 for at_ms in times), default=float("inf"))

    async def _perform(self, effect: Effect) -> None:
        match effect:
            case Persist() if effect.sync:
                await trio.to_thread.run_sync(self._store.persist, effect, limiter=self._disk)
            case Persist():
                self._store.persist(effect)
            case Send(to, message):
                if isinstance(message, VoteMessage):
                    self._voted_ms = now_ms()
                self._ports.send(to, encode_message(message))
            case Deliver(blocks):
                self.stalled = False
                self._ports.deliver(blocks)
            case SetTimer(kind, at_ms):
                self._set_timer(kind, at_ms)
            case RequestPayload() if now_ms() < self._offers_from_ms:
                self._request = effect
            case RequestPayload(round_):
                self.tell(PayloadOffered(round_, self._ports.offer_payload(effect), now_ms()))
            case FetchPayload():
                self._ports.fetch_payload(effect)
            case FetchBlock():
                self._ports.fetch_block(effect)
            case Behind():
                self._ports.behind(effect)
            case HelpEpoch():
                self._ports.help_epoch(effect)
            case EpochEnded(boundary):
                log.info("epoch_ends", epoch=boundary.header.epoch, height=boundary.height)
            case Misbehaved(peer, reason):
                log.warning("misbehaved", peer=peer.hex() if peer else None, reason=reason)
                self._ports.misbehaved(effect)
            case Diverged(height):
                self.diverged = effect
                log.error(
                    "diverged",
                    height=height,
                    committed=effect.committed,
                    expected=effect.expected_state_digest.hex(),
                    computed=effect.state_digest.hex(),
                )
            case Stalled(round_, rounds):
                self.stalled = True
                log.warning("stalled", round=round_, rounds_since_commit=rounds, reason=effect.reason)

    def _set_timer(self, kind: TimerKind, at_ms: int | None) -> None:
        if at_ms is None:
            self._timers.pop(kind, None)
        else:
            self._timers[kind] = at_ms
