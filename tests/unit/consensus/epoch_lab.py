"""Real replicas on a table: a driver by hand, a network that is a list, a clock that jumps to the next timer.

The ledger freezes the next set at a given height and takes it over with the boundary. Nodes can be cut off and come back.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from consensus import crypto
from consensus.beacon import BeaconChain
from consensus.config import ConsensusConfig
from consensus.crypto import Verifier
from consensus.digest import digest
from consensus.effects import (
    Behind,
    Deliver,
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
    HandoverMessage,
    Message,
    decode_message,
    encode_message,
)
from consensus.recovery import ExecutionResult, RecoveredState
from consensus.replica import Replica
from consensus.safety import record_from_bytes
from consensus.tree import Reveals
from consensus.types import (
    Block,
    CommitProof,
    Handover,
    decode_proof,
    encode_proof,
    genesis_block,
    is_boundary,
)
from consensus.validators import Validator, ValidatorSet, make_validator_set

SEEDS = sorted((digest("epoch-test-key", bytes([i])) for i in range(5)), key=crypto.public_key)
KEYS = [crypto.public_key(seed) for seed in SEEDS]
BEACONS = [BeaconChain(digest("test-beacon", seed), 256) for seed in SEEDS]
CHAIN = digest("test-chain", b"epochs")
NOW_MS = 1_000_000
GENESIS = genesis_block(CHAIN, digest("test-state", b""), timestamp_ms=NOW_MS - 1_000)
BATCH_COUNT = 40


def make_set(epoch: int, members: Sequence[int], seed: bytes = bytes(32)) -> ValidatorSet:
    """The set of some of the five, equal in stake."""
    rows = [Validator(KEYS[index], 1, BEACONS[index].anchor) for index in members]
    return make_validator_set(epoch, rows, seed)


@dataclass
class Host:
    """One node: its replica, and what its driver and ledger keep."""

    table: "Table"
    index: int
    config: ConsensusConfig
    sets: tuple[ValidatorSet, ...]
    freeze_heights: tuple[int, ...]
    inputs: deque[Input] = field(default_factory=deque)
    timers: dict[TimerKind, int] = field(default_factory=dict)
    record: bytes | None = None
    chain: list[Block] = field(default_factory=lambda: [GENESIS])
    proofs: dict[int, bytes] = field(default_factory=dict)
    reveals: Reveals = ()
    results: list[ExecutionResult] = field(default_factory=list)
    handovers: dict[int, Handover] = field(default_factory=dict)
    effects: list[Effect] = field(default_factory=list)
    sent: list[tuple[int, Message]] = field(default_factory=list)
    epoch: int = 0
    frozen: bytes = b""
    state: bytes = GENESIS.header.state_digest

    def __post_init__(self) -> None:
        self.replica = self.make_replica(GENESIS, None)

    def make_replica(self, root: Block, recovered: RecoveredState | None) -> Replica:
        """A replica of the current epoch, a validator's if this node is one in it."""
        now, validators = self.table.now_ms, self.sets[self.epoch]
        member = validators.index_of(KEYS[self.index]) is not None
        replica = Replica(
            validators,
            root,
            self.config,
            seed=SEEDS[self.index] if member else None,
            beacon=BEACONS[self.index] if member else None,
            recovered=recovered,
            verifier=self.table.verifier,
        )
        self.timers = {}
        # What was told to the replica before is of an epoch that is over, but for what peers said.
        self.inputs = deque(event for event in self.inputs if isinstance(event, MessageReceived))
        news = [PayloadAvailable(batch, now) for batch in self.table.batches]
        self.inputs.extendleft(reversed([Started(now), *news, PayloadPending(True, now)]))
        return replica

    def run(self) -> bool:
        """Give one input, if there is one, and perform its effects."""
        if not self.inputs:
            return False
        for effect in self.replica.step(self.inputs.popleft()):
            self.effects.append(effect)
            self.perform(effect)
        return True

    def perform(self, effect: Effect) -> None:
        """Do one effect as a driver would."""
        table = self.table
        match effect:
            case Persist():
                self.persist(effect)
            case Send(to=to, message=message):
                self.sent.append((self.epoch, message))
                table.post(self.index, None if to is None else KEYS.index(to), message)
            case Deliver(blocks=blocks):
                for block in blocks:
                    self.execute(block)
            case SetTimer(kind=kind, at_ms=None):
                self.timers.pop(kind, None)
            case SetTimer(kind=kind, at_ms=int(at_ms)):
                self.timers[kind] = at_ms
            case RequestPayload():
                self.inputs.append(PayloadOffered(effect.round, self.offer(effect), table.now_ms))
            case FetchBlock(block_id=block_id, known_height=known, sources=sources):
                for source in sources:
                    table.hosts[KEYS.index(source)].serve_block(self.index, block_id, known)
            case Behind(sources=sources):
                for source in sources:
                    table.hosts[KEYS.index(source)].serve_range(self.index)
            case HelpEpoch(to=to, epoch=epoch):
                if epoch in self.handovers:
                    table.post(self.index, KEYS.index(to), HandoverMessage(self.handovers[epoch]))
            case EpochEnded(boundary=boundary, handover=handover):
                self.handovers[self.epoch] = handover
                self.next_epoch(boundary)
            case Misbehaved() | FetchPayload() | Stalled():
                pass
            case _:
                raise AssertionError(f"node {self.index}: {effect}")

    def persist(self, effect: Persist) -> None:
        """Keep what a store keeps; proofs as bytes."""
        if effect.record is not None:
            self.record = effect.record
        for block in effect.committed:
            assert block.height == self.chain[-1].height + 1
            self.chain.append(block)
        if effect.committed and effect.proof is not None:
            self.proofs[self.chain[-1].height] = encode_proof(effect.proof)
            self.reveals = effect.reveals

    def execute(self, block: Block) -> None:
        """The ledger: freezes the next set at its height, and takes it with the boundary."""
        self.state = digest("test-state", self.state + block.id)
        later = self.epoch + 1
        if later < len(self.sets) and block.height >= self.freeze_heights[self.epoch]:
            self.frozen = self.sets[later].hash
        if is_boundary(block.header):
            self.frozen = b""
        root = digest("test-snapshot", b"") if block.height >= 2 else b""
        result = ExecutionResult(block.height, self.state, self.state, self.frozen, root)
        self.results.append(result)
        told = (block.height, block.id, self.state, self.state, self.table.now_ms, self.frozen, root)
        self.inputs.append(Executed(*told))

    def next_epoch(self, boundary: Block) -> None:
        """Start the next epoch's replica on what is stored."""
        old, new = self.sets[self.epoch : self.epoch + 2]
        self.epoch += 1
        recovered = RecoveredState(
            record=None if self.record is None else record_from_bytes(self.record),
            certificates=None,
            committed=self.chain[-1],
            proof=self.proof(boundary.height),
            reveals=carry_reveals(old, self.reveals, new),
            blocks=(),
            executed=tuple(self.results[-16:]),
        )
        self.replica = self.make_replica(epoch_start(boundary, new), recovered)

    def proof(self, height: int) -> CommitProof | None:
        """A stored proof, read back."""
        return decode_proof(self.proofs[height]) if height in self.proofs else None

    def offer(self, request: RequestPayload) -> tuple[bytes, ...]:
        """The first batch that is not in the chain yet."""
        named = {batch for block in self.chain for batch in block.header.payload}
        named |= set(request.uncommitted_payload)
        fresh = [batch for batch in self.table.batches if batch not in named]
        return () if request.empty_only else tuple(fresh[:1])

    def serve_block(self, to: int, block_id: bytes, known: int) -> None:
        """Answer a block request."""
        blocks = list(self.replica.uncommitted_chain(block_id, known))
        blocks += [block for block in self.chain[1:] if block.id == block_id]
        if blocks:
            self.table.post(self.index, to, BlocksMessage(tuple(blocks)))

    def serve_range(self, to: int) -> None:
        """Answer a request for the blocks after the other's last, up to a proof and not past a boundary."""
        above = self.table.hosts[to].chain[-1].height
        blocks: list[Block] = []
        for block in self.chain[above + 1 :]:
            blocks.append(block)
            if is_boundary(block.header):
                break
        while blocks and blocks[-1].height not in self.proofs:
            blocks.pop()
        proof = self.proof(blocks[-1].height) if blocks else None
        if proof is not None and self.table.linked(self.index, to):
            synced = BlocksSynced(KEYS[self.index], tuple(blocks), proof, self.table.now_ms)
            self.table.hosts[to].inputs.append(synced)


class Table:
    """All nodes and what lies between them."""

    def __init__(
        self,
        sets: Sequence[ValidatorSet],
        freeze_heights: Sequence[int] = (),
        config: Callable[[int], ConsensusConfig] = lambda index: ConsensusConfig(),
    ) -> None:
        self.now_ms = NOW_MS
        self.verifier = Verifier()
        self.batches = tuple(digest("test-batch", bytes([number])) for number in range(BATCH_COUNT))
        self.cut: set[int] = set()
        self.lose: Callable[[int, int, Message], bool] = lambda sender, to, message: False
        self.hosts = [
            Host(self, index, config(index), tuple(sets), tuple(freeze_heights)) for index in range(len(KEYS))
        ]

    def linked(self, one: int, other: int) -> bool:
        """Whether two nodes hear each other."""
        return one == other or not {one, other} & self.cut

    def post(self, sender: int, to: int | None, message: Message) -> None:
        """Put a message into inboxes, through its bytes."""
        data = encode_message(message)
        for index, host in enumerate(self.hosts):
            if index == sender or to not in (None, index) or not self.linked(sender, index):
                continue
            if not self.lose(sender, index, message):
                host.inputs.append(MessageReceived(KEYS[sender], decode_message(data), self.now_ms))

    def run(self, until: Callable[[], bool], steps_max: int = 20_000) -> None:
        """Let things happen until a condition holds; fails when it does not come to hold."""
        for _ in range(steps_max):
            if until():
                return
            ran = [host.run() for host in self.hosts]  # one input each, all of them
            if any(ran):
                continue
            due = [(at_ms, host.index, kind) for host in self.hosts for kind, at_ms in host.timers.items()]
            at_ms, index, kind = min(due)
            self.now_ms = max(self.now_ms + 1, at_ms)
            del self.hosts[index].timers[kind]
            self.hosts[index].inputs.append(TimerFired(kind, self.now_ms))
        raise AssertionError("it does not happen")
