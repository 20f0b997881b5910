"""What peers send, handed to the room that it is for; who sends what no room can read is to blame."""

from collections.abc import Callable

from consensus.errors import ConsensusError
from consensus.inputs import MessageReceived
from consensus.messages import decode_message
from node.batches import Batches
from node.clock import now_ms
from node.directory import Directory
from node.intake import Intake
from node.ledger.errors import LedgerError
from node.network.network import Network
from node.storage.errors import BlobDigestMismatch
from node.sync import Sync
from node.wire import Frame, Topic, WireError, decode_announcement, decode_transactions

MALFORMED_POINTS = 20


class Dispatcher:
    """Reads the network's frames and gossip; `run_frames` and `run_gossip` belong in the daemon's nursery."""

    def __init__(
        self,
        network: Network,
        directory: Directory,
        intake: Intake,
        batches: Batches,
        sync: Sync,
        offer: Callable[[MessageReceived], bool],
    ) -> None:
        """`offer` queues a peer's message for consensus, or drops it where too many wait."""
        self._network = network
        self._directory = directory
        self._intake = intake
        self._batches = batches
        self._sync = sync
        self._offer = offer

    async def run_frames(self) -> None:
        """Take direct frames for ever."""
        async for frame in self._network.frames:
            try:
                self._take(frame.peer_id, frame.kind, frame.payload)
            except (ConsensusError, LedgerError, BlobDigestMismatch, WireError) as error:
                self._network.penalise(frame.peer_id, MALFORMED_POINTS, str(error))

    def _take(self, peer_id: str, kind: int, payload: bytes) -> None:
        match kind:
            case Frame.CONSENSUS:
                sender = self._directory.validator_of.get(peer_id)
                self._offer(MessageReceived(sender, decode_message(payload), now_ms()))
            case Frame.BATCH:
                self._batches.take(peer_id, payload)
            case Frame.TRANSACTIONS:
                self._intake.offer(peer_id, payload)
            case Frame.STORAGE_RECEIPT:
                self._intake.receive_receipt(peer_id, payload)
            case _:
                raise WireError(f"unknown frame kind {kind}")

    async def run_gossip(self) -> None:
        """Take gossip for ever."""
        async for message in self._network.gossip:
            if message.topic == Topic.TRANSACTIONS:
                await self._intake.receive(message.peer_id, message.data, forwarded=True)
            else:
                try:
                    self._sync.announced(message.peer_id, message.data)
                except WireError as error:
                    self._network.penalise(message.peer_id, MALFORMED_POINTS, str(error))


def plausible(topic: str, data: bytes) -> bool:
    """Cheap check before gossip is passed on: the shape alone. Who forwards what fails it is to blame."""
    try:
        if topic == Topic.BLOCKS:
            decode_announcement(data)
        else:
            decode_transactions(data)
    except WireError:
        return False
    return True
