"""The end of an epoch on a running replica, and messages of other epochs, which are nobody's fault."""

from consensus.core import Core
from consensus.effects import EpochEnded, HelpEpoch
from consensus.inputs import MessageReceived
from consensus.messages import (
    HandoverMessage,
    Message,
    ProposalMessage,
    SyncMessage,
    TimeoutMessage,
    message_epoch,
)
from consensus.tree import Node
from consensus.types import CommitProof, Handover, header_id, is_boundary
from consensus.verify import verify_handover

HANDOVER_INTERVAL_MS = 2_000
"""A peer is helped out of a past epoch at most this often: a hand-over is larger than what asks for it."""
HELPED_MAX = 512
"""Peers whose last help is remembered; past it the oldest may be helped again early."""
NEWER_MAX = 8
"""Peers remembered to speak of a later epoch, the latest; they are asked for what we lack."""


def boundary_on(path: list[Node]) -> int | None:
    """Return the position of the block that ends the epoch on a path from the root, or None."""
    return next((at for at, node in enumerate(path) if is_boundary(node.block.header)), None)


def handover_of(path: list[Node], proof: CommitProof) -> Handover:
    """Return the hand-over of a path that begins with the boundary and whose last block `proof` proves."""
    if isinstance(proof, Handover):
        return proof
    return Handover(tuple(node.block.header for node in path), proof)


def end_epoch(core: Core, handover: Handover) -> None:
    """The root is the boundary: say so, and forget all that can no longer matter, descendants included."""
    core.ended = EpochEnded(core.root, handover)
    core.out.report(core.ended)
    descendants = [node for node in core.tree.nodes.values() if node is not core.tree.root]
    core.out.forgotten.extend(node.block.id for node in descendants if node.stored)
    core.tree.nodes = {core.root.id: core.tree.root}
    core.orphans, core.proposals = {}, {}
    core.block_fetches.entries.clear()
    core.payload_fetches.entries.clear()
    for book in (core.votes, core.commit_votes, core.timeouts):
        book.clear()
    core.handover = None


def of_another_epoch(core: Core, event: MessageReceived) -> bool:
    """Whether a message is not of this replica's epoch, or the epoch is over; then help its sender, or note that we lag."""
    epoch = message_epoch(event.message)
    if epoch is None:
        return core.ended is not None
    if epoch == core.context.epoch and core.ended is None:
        return False
    if epoch <= core.context.epoch:
        _help(core, event.sender, event.message, epoch)
    elif core.ended is None and event.sender is not None:
        core.newer.pop(event.sender, None)
        core.newer[event.sender] = None
        if len(core.newer) > NEWER_MAX:
            del core.newer[next(iter(core.newer))]
    return True


def _help(core: Core, sender: bytes | None, message: Message, epoch: int) -> None:
    """Ask the driver to send the hand-over, rarely. Votes do not ask for it: many are on their way when an epoch ends."""
    if sender is None or not isinstance(message, ProposalMessage | TimeoutMessage | SyncMessage):
        return
    helped_ms = core.handed.get(sender)
    if helped_ms is not None and core.now_ms < helped_ms + HANDOVER_INTERVAL_MS:
        return
    core.handed.pop(sender, None)
    if len(core.handed) >= HELPED_MAX:
        del core.handed[next(iter(core.handed))]
    core.handed[sender] = core.now_ms
    core.out.report(HelpEpoch(sender, epoch))


def take_handover(core: Core, sender: bytes | None, message: HandoverMessage) -> bytes | None:
    """Verify a hand-over of our epoch and remember it; return the boundary's id if it is here and can be committed.

    Raises:
        RemoteError: it proves nothing.
    """
    handover = message.handover
    verify_handover(core.context, handover)
    boundary_id = header_id(handover.headers[0])
    if boundary_id in core.tree and boundary_id != core.root.id:
        return boundary_id
    if handover.headers[0].height > core.root.height:
        core.handover = (boundary_id, handover, sender)
    return None
