"""Proposing: when the leader owes a block, asking for its payload, and building it."""

from consensus.core import AVAILABLE_MAX, Core, remember
from consensus.digest import DIGEST_BYTES
from consensus.effects import RequestPayload
from consensus.errors import LocalError, SafetyRefusal
from consensus.execution import owed
from consensus.inputs import PayloadOffered
from consensus.messages import ProposalMessage
from consensus.proposals import add_block
from consensus.tree import Node
from consensus.types import Block, Header


def _ready(core: Core) -> Node | None:
    """Return the block to extend if we lead the round, have not proposed in it, and can build on the highest QC."""
    if core.safety is None or core.me is None or core.beacon is None or core.diverged:
        return None
    if core.leaders.index(core.round) != core.me or core.safety.record.last_proposed >= core.round:
        return None
    parent = core.tree.get(core.high_qc.block_id)
    # A block may not claim less execution than its parent, nor more than we did ourselves: wait for `Executed`.
    if parent is None or core.executed_height < parent.block.header.executed_height:
        return None
    if parent.reveals[core.me][0] >= core.beacon.length:
        _report_spent(core)
        return None
    return parent


def _report_spent(core: Core) -> None:
    if not core.beacon_spent:
        core.beacon_spent = True
        core.stalled("the beacon chain is used up: this validator cannot lead")


def due_ms(core: Core) -> int:
    """Return from when on a block is owed even with no payload.

    At once after a failed round; soon while a non-empty block or the epoch's boundary waits for its commit votes; else at
    the heartbeat.
    """
    if core.round_by_tc:
        return core.round_entered_ms
    if any(node.block.header.payload or node.closes for node in _uncommitted(core, core.high_qc.block_id)):
        # A collector expects no commit votes: the next block is what commits.
        return core.round_entered_ms + (0 if core.collects else core.config.commit_grace_ms)
    return core.round_entered_ms + core.config.heartbeat_ms


def propose_deadline(core: Core) -> int | None:
    """Return when to look again whether a block is owed; None if we cannot or need not."""
    if core.payload_asked or _ready(core) is None:
        return None
    return due_ms(core)


def proposes_soon(core: Core) -> bool:
    """Whether our block of this round is under way or due, with which the highest QC goes to all."""
    if _ready(core) is None:
        return core.safety is not None and core.safety.record.last_proposed >= core.round
    return core.payload_asked or _waiting(core) or core.now_ms >= due_ms(core)


def _waiting(core: Core) -> bool:
    return core.payload_pending and not core.payload_idle


def try_request(core: Core) -> None:
    """Ask the driver for payload if a block is owed or payload waits."""
    parent = _ready(core)
    if parent is None or core.payload_asked:
        return
    if not _waiting(core) and core.now_ms < due_ms(core):
        return
    core.payload_asked = True
    named = tuple(_named(core, parent))
    core.out.report(RequestPayload(core.round, parent.block.id, named, _empty_only(core, parent)))


def on_offered(core: Core, event: PayloadOffered) -> None:
    """Build, sign and send the block; with nothing to put in and none owed yet, stay idle."""
    if event.round != core.round or not core.payload_asked:
        return
    core.payload_asked = False
    parent = _ready(core)
    if parent is None:
        return
    if len(event.digests) > core.config.payload_digests_max or any(
        len(batch) != DIGEST_BYTES for batch in event.digests
    ):
        raise LocalError("payload offer: too many digests, or not digests")
    named = _named(core, parent)
    fresh = tuple(batch for batch in dict.fromkeys(event.digests) if batch not in named)
    payload = () if _empty_only(core, parent) else fresh
    if not payload and core.now_ms < due_ms(core):
        core.payload_idle = True
        return
    _propose(core, parent, payload)


def _propose(core: Core, parent: Node, payload: tuple[bytes, ...]) -> None:
    if core.safety is None or core.beacon is None or core.me is None:
        return
    reveal = core.beacon.preimage(parent.reveals[core.me][0] + 1)
    if reveal is None:
        return
    above, result = parent.block.header, owed(core.results[core.executed_height], parent.closes)
    header = Header(
        chain_id=core.context.chain_id,
        epoch=core.context.epoch,
        round=core.round,
        height=above.height + 1,
        parent=parent.block.id,
        proposer=core.safety.public,
        timestamp_ms=max(core.now_ms, above.timestamp_ms + 1),
        payload=payload,
        beacon_reveal=reveal,
        executed_height=result.height,
        state_digest=result.state_digest,
        receipts_accumulator=result.receipts_accumulator,
        next_validators_hash=result.next_validators_hash,
        snapshot_root=result.snapshot_root,
    )
    tc = None if core.high_qc.round + 1 == core.round else core.last_tc
    try:
        signature = core.safety.sign_proposal(header)
    except SafetyRefusal:
        # A signer elsewhere may be away, or have proposed here for another process: this round is given up.
        core.payload_asked = True
        return
    block = Block(header, core.high_qc, tc, signature)
    for batch in payload:
        remember(core.available, batch, AVAILABLE_MAX)
    core.proposals[block.round] = block
    add_block(core, block, None)
    core.out.send(None, ProposalMessage(block, core.high_cc))


def _uncommitted(core: Core, tip: bytes) -> list[Node]:
    return core.tree.path(tip) if tip in core.tree else []


def _named(core: Core, parent: Node) -> dict[bytes, None]:
    """Batches already named by uncommitted ancestors, in order."""
    path = _uncommitted(core, parent.block.id)
    return dict.fromkeys(batch for node in path for batch in node.block.header.payload)


def _empty_only(core: Core, parent: Node) -> bool:
    """Whether the next block may not carry payload: past the epoch's boundary, or too far ahead of execution."""
    return parent.closes or parent.block.height + 1 - core.executed_height > core.config.lag_max
