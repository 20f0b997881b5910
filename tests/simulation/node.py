"""A simulated process around a replica: performs its effects on virtual disk, network, mempool and ledger."""

from dataclasses import replace
from typing import TYPE_CHECKING

from consensus.digest import digest
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
from consensus.epochs import carry_reveals, epoch_start
from consensus.inputs import (
    BlocksSynced,
    Executed,
    Input,
    MessageReceived,
    PayloadAvailable,
    PayloadOffered,
    PayloadPending,
    Started,
    TimerFired,
    TimerKind,
)
from consensus.messages import (
    BlocksMessage,
    CommitVoteMessage,
    HandoverMessage,
    Message,
    ProposalMessage,
    TimeoutMessage,
    VoteMessage,
    message_epoch,
)
from consensus.recovery import ExecutionResult
from consensus.replica import Replica
from consensus.sync import SYNC_BLOCKS_MAX
from consensus.types import Block
from consensus.verify import verify_handover
from tests.simulation.checker import Violation
from tests.simulation.deaths import EVERYTHING, Death, Manner
from tests.simulation.disk import Disk

if TYPE_CHECKING:
    from tests.simulation.world import World


class Node:
    """One process; `incarnation` rises at each start, so that what belongs to a dead process finds nobody."""

    honest = True
    """Whether the checker holds this node to its word."""
    dead = False

    def __init__(self, world: "World", slot: int, key_index: int | None) -> None:
        self.world = world
        self.slot = slot
        self.key_index = key_index
        self.key = b"" if key_index is None else world.keys[key_index]
        """Validator id, or the empty string for an observer."""
        self.disk = Disk(world.genesis)
        self.done: set[bytes] = set()
        self.replica: Replica | None = None
        self.incarnation = 0
        self.timers: dict[TimerKind, int] = {}
        self.queue: list[Block] = []
        self.state = world.genesis.header.state_digest
        self.executing = False
        self.pending = False
        self.inbox: list[Input] = []
        self.busy = False
        self.reports: list[Effect] = []
        self.ended: EpochEnded | None = None

    @property
    def batches(self) -> frozenset[bytes]:
        """Batches stored here; a crash takes those back that no later sync covered."""
        return self.disk.now.batches

    def start(self) -> None:
        """Start the process from what the disk holds."""
        world, image = self.world, self.disk.now
        self.incarnation += 1
        self.timers, self.executing, self.pending = {}, False, False
        self.ended = None
        if self.honest:
            last, start = self.disk.last, self.disk.start
            if last is start and start is not world.genesis:
                world.checker.entered(self.slot, start)
            else:
                world.checker.started(self.slot, last.height, last.id, last.header.epoch)
        done = len(image.executed)
        self.state = image.executed[-1].state_digest if done else world.genesis.header.state_digest
        self.queue = list(image.chain[done:])
        self.done = {batch for block in image.chain for batch in block.header.payload}
        self.replica = world.make_replica(self)
        self.feed(Started(world.now))
        self.note_pending()
        self.execute_next()

    @property
    def epoch(self) -> int:
        """The epoch that this node is in."""
        return self.disk.start.header.epoch

    def begin_epoch(self) -> None:
        """Once an epoch's last block is executed, begin the next one with a new replica."""
        ended, world = self.ended, self.world
        if ended is None or len(self.disk.now.executed) < ended.boundary.height:
            return
        named = verify_handover(world.context_of(self), ended.handover)
        old, fresh = world.succession.sets[self.epoch], world.succession.sets[self.epoch + 1]
        if named != fresh.hash:
            raise Violation(f"node {self.slot} is handed over to a set that the ledger does not know")
        start = epoch_start(ended.boundary, fresh)
        reveals = carry_reveals(old, self.disk.now.reveals, fresh)
        self.disk.write_epoch(start, ended.handover, reveals)
        self.ended, self.timers = None, {}
        self.incarnation += 1
        self.executing = False
        if self.honest:
            world.checker.entered(self.slot, start)
        world.counts["epochs begun"] += 1
        self.replica = world.make_replica(self)
        # What waited was for the replica before; the new one starts with its own first input.
        self.inbox.clear()
        self.pending = False
        self.feed(Started(world.clock(self.slot)))
        self.note_pending()

    def crash(self, keep: int) -> None:
        """Kill the process and lose all but `keep` unsynced writes."""
        self.replica = None
        self.incarnation += 1
        self.disk.crash(keep)

    def crash_for_good(self) -> None:
        """Kill the process for the rest of the run; the checker expects no progress of it."""
        self.crash(0)
        self.honest = False
        self.dead = True

    def feed(self, event: Input) -> None:
        """Step the replica and perform its effects, to the end or to its own."""
        self.inbox.append(event)
        if self.busy:
            return
        self.busy = True
        while self.inbox and self.replica is not None:
            effects = self.in_order(self.replica.step(self.inbox.pop(0)))
            self.world.steps += 1
            if self.world.traced:
                self.world.note(self.slot, effects)
            self.check_key()
            death = self.world.death(self, effects)
            if death is not None:
                self.die(effects, death)
                break
            replica = self.replica
            for effect in effects:
                self.perform(effect)
            if self.replica is not replica:
                break
        self.inbox.clear()
        self.busy = False
        self.begin_epoch()

    def in_order(self, effects: list[Effect]) -> list[Effect]:
        """The order in which this driver performs effects; a broken one has another."""
        return effects

    def die(self, effects: list[Effect], death: Death) -> None:
        """Do what is done of a step that this process does not outlive, then end it."""
        sends = [effect for effect in effects if isinstance(effect, Send)]
        reached = 0
        for effect in effects:
            match effect:
                case Persist():
                    if death.manner in (Manner.BEFORE_WRITE, Manner.TORN_WRITE):
                        break
                    if death.manner is Manner.LOST_WRITE:
                        # What it would have committed it has told nobody, and a vote of its own in it never left.
                        self.disk.write(replace(effect, sync=False))
                        break
                    unsynced = death.manner is Manner.WRITTEN
                    self.perform(replace(effect, sync=False) if unsynced else effect)
                    if unsynced or death.manner is Manner.SYNCED:
                        break
                case Send():
                    reached += 1
                    if death.manner is Manner.SOME_SENT and 2 * reached > len(sends):
                        self.send_to_some(effect)
                        break
                    self.perform(effect)
                case _:
                    break
        # A kill leaves the system with all that it was given; a torn record lies behind all earlier ones.
        whole = death.manner in (Manner.TORN_WRITE, Manner.WRITTEN)
        lost = len(self.disk.images) - 2 if death.manner is Manner.LOST_WRITE else EVERYTHING
        kept = EVERYTHING if whole else min(death.kept, max(0, lost))
        self.world.die(self, kept, everywhere=death.everywhere)

    def send_to_some(self, effect: Send) -> None:
        """Begin to send: the first half of the receivers get it."""
        world = self.world
        self.check_durable(effect.message)
        world.checker.sent(self.key, effect.message)
        receivers = world.targets(self.slot, None if effect.to is None else world.index_of(effect.to))
        for slot in receivers[: (len(receivers) + 1) // 2]:
            world.transmit(self.slot, slot, effect.message)

    def check_key(self) -> None:
        """Nobody else holds an honest node's key: it must never find a signature that it does not remember."""
        if self.honest and self.replica is not None and self.replica.foreign_signature is not None:
            raise Violation(f"node {self.slot} does not remember its {self.replica.foreign_signature}")

    def later(self, delay_ms: int, event: Input) -> None:
        """Feed an input after a delay, if this process still lives then."""
        incarnation = self.incarnation
        self.world.after(delay_ms, lambda: self.feed(event) if self.incarnation == incarnation else None)

    def perform(self, effect: Effect) -> None:
        """Do one effect."""
        world = self.world
        match effect:
            case Persist():
                self.disk.write(effect)
                if self.honest:
                    for block in effect.committed:
                        world.checker.committed(self.slot, block)
            case Send(to=to, message=message):
                self.check_durable(message)
                self.send(None if to is None else world.index_of(to), message)
            case Deliver(blocks=blocks):
                self.queue.extend(blocks)
                for block in blocks:
                    self.done.update(block.header.payload)
                self.note_pending()
                self.execute_next()
            case SetTimer(kind=kind, at_ms=at_ms):
                self.set_timer(kind, at_ms)
            case RequestPayload():
                self.offer(effect)
            case FetchPayload(digests=digests, sources=sources):
                self.fetch_payload(digests, sources)
            case FetchBlock(block_id=block_id, known_height=known, sources=sources):
                for source in sources:
                    world.request_block(self.slot, world.index_of(source), block_id, known)
            case Behind(sources=sources):
                world.request_range(self.slot, world.index_of(world.rng.choice(sources)))
            case EpochEnded():
                self.ended = effect
            case HelpEpoch(to=to, epoch=epoch):
                handover = self.disk.now.handovers.get(epoch)
                if handover is not None:
                    world.counts["hand-overs sent"] += 1
                    self.send(world.index_of(to), HandoverMessage(handover))
            case Misbehaved() | Diverged() | Stalled():
                world.counts[type(effect).__name__.lower()] += 1
                self.reports.append(effect)
                if isinstance(effect, Misbehaved) and effect.evidence:
                    world.judge(effect.evidence)

    def send(self, to: int | None, message: Message) -> None:
        """Put a message on the network."""
        if self.honest:
            self.world.checker.sent(self.key, message)
        self.world.broadcast(self.slot, to, message)

    def check_durable(self, message: Message) -> None:
        """No signature of ours leaves before the record that remembers it is synced."""
        record = self.disk.synced_marks if self.honest else None
        if record is not None and (message_epoch(message) or 0) > record.epoch:
            record = None
        if record is None:
            if self.honest and isinstance(message, (VoteMessage, CommitVoteMessage, TimeoutMessage)):
                raise Violation(f"node {self.slot} signed before it stored its record")
            return
        late = False
        match message:
            case VoteMessage(vote=vote):
                late = record.last_voted < vote.round
            case CommitVoteMessage(commit_vote=vote):
                late = record.lock < vote.round
            case TimeoutMessage(timeout=timeout):
                late = record.highest_timeout < timeout.round
            case ProposalMessage(block=block):
                late = block.header.proposer == self.key and record.last_proposed < block.round
            case _:
                pass
        if late:
            raise Violation(f"node {self.slot} signed before it stored its record")

    def set_timer(self, kind: TimerKind, at_ms: int | None) -> None:
        """Arm a timer; a replaced one fires into nothing."""
        if at_ms is None:
            self.timers.pop(kind, None)
            return
        self.timers[kind] = at_ms
        incarnation = self.incarnation

        def fire() -> None:
            if self.incarnation == incarnation and self.timers.get(kind) == at_ms:
                del self.timers[kind]
                self.feed(TimerFired(kind, self.world.clock(self.slot)))

        self.world.at(self.world.when(self.slot, at_ms), fire)

    def add_batch(self, batch: bytes) -> None:
        """Store a batch, as unsynced as in a node, and tell the replica; a dead process takes none."""
        if self.replica is None:
            return
        self.disk.write_batch(batch)
        self.feed(PayloadAvailable(batch, self.world.clock(self.slot)))
        self.note_pending()
        self.execute_next()

    def waiting(self) -> list[bytes]:
        """Batches stored here and not committed, in a fixed order."""
        return sorted(self.batches - self.done)

    def note_pending(self) -> None:
        """Tell the replica when the mempool becomes empty or gets something."""
        pending = bool(self.waiting())
        if pending or pending != self.pending:
            self.pending = pending
            self.feed(PayloadPending(pending, self.world.clock(self.slot)))

    def offer(self, request: RequestPayload) -> None:
        """Answer a payload request after a moment."""
        named = set(request.uncommitted_payload)
        fresh = [batch for batch in self.waiting() if batch not in named]
        digests = () if request.empty_only else tuple(fresh[:4])
        self.later(1, PayloadOffered(request.round, digests, self.world.clock(self.slot) + 1))

    def fetch_payload(self, digests: tuple[bytes, ...], sources: tuple[bytes, ...]) -> None:
        """Answer at once for what is stored; ask the sources for the rest."""
        for batch in digests:
            if batch in self.batches:
                self.later(0, PayloadAvailable(batch, self.world.clock(self.slot)))
                continue
            for source in sources:
                self.world.request_batch(self.slot, self.world.index_of(source), batch)

    def gives(self, batch: bytes, asker: int) -> bool:
        """Whether it hands a batch that it has to somebody."""
        return True

    def execute_next(self) -> None:
        """Execute the oldest delivered block once its batches are here; ask around for those that are not."""
        if self.executing or self.replica is None or not self.queue:
            return
        block = self.queue[0]
        missing = [batch for batch in block.header.payload if batch not in self.batches]
        for batch in missing:
            self.world.request_batch_anywhere(self.slot, batch)
        if missing:
            incarnation = self.incarnation
            self.world.after(200, lambda: self.execute_next() if self.incarnation == incarnation else None)
            return
        self.executing = True
        incarnation = self.incarnation
        self.world.after(
            self.world.execution_ms(),
            lambda: self.executed(block) if self.incarnation == incarnation else None,
        )

    def executed(self, block: Block) -> None:
        """Store the result and report it."""
        self.executing = False
        self.queue.pop(0)
        self.state = digest("simulated-state", self.state + block.id)
        result = ExecutionResult(
            block.height,
            self.state,
            digest("simulated-receipts", self.state),
            self.world.next_set_after(self.disk.start, block),
        )
        self.disk.write_result(result)
        self.feed(
            Executed(
                block.height,
                block.id,
                result.state_digest,
                result.receipts_accumulator,
                self.world.clock(self.slot),
                result.next_validators_hash,
            )
        )
        self.begin_epoch()
        self.execute_next()

    def receive(self, sender: int, message: Message) -> None:
        """Take a message from the network."""
        key = self.world.nodes[sender].key or None
        self.feed(MessageReceived(key, message, self.world.clock(self.slot)))

    def serve_block(self, block_id: bytes, known: int) -> BlocksMessage | None:
        """Answer a block request from memory and disk."""
        if self.replica is None:
            return None
        chain = list(self.replica.uncommitted_chain(block_id, known))
        stored = self.disk.now.chain
        below = chain[0].header.parent if chain else block_id
        found = next((block for block in reversed(stored) if block.id == below), None)
        if found is not None:
            chain = [*stored[known : found.height], *chain]
            chain = [block for block in chain if block.header.epoch == chain[-1].header.epoch]
        return BlocksMessage(tuple(chain[-16:])) if chain else None

    def serve_range(self, above: int) -> BlocksSynced | None:
        """Answer a range request from disk."""
        found = self.disk.proven_range(above, SYNC_BLOCKS_MAX)
        return None if found is None else BlocksSynced(self.key, found[0], found[1], self.world.now)
