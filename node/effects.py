"""What the replica asks of its peers: messages sent to them, blocks fetched from them, and a way into the present epoch."""

from collections.abc import Callable
from contextlib import suppress

from consensus.effects import Behind, FetchBlock, HelpEpoch
from consensus.messages import HandoverMessage, encode_message
from node.directory import Directory
from node.epochs import Epochs
from node.network.errors import UnknownPeer
from node.network.network import Network
from node.sync import Sync
from node.wire import Frame


class Effects:
    """Performs effects of the replica that need peers; see `node.driver.DriverPorts`."""

    def __init__(
        self,
        network: Network,
        directory: Directory,
        epochs: Epochs,
        sync: Sync,
        start: Callable[..., bool],
    ) -> None:
        """`start` runs a small task beside the others, if it can."""
        self._network = network
        self._directory = directory
        self._epochs = epochs
        self._sync = sync
        self._start = start
        self._fetching: set[bytes] = set()

    def send(self, to: bytes | None, message: bytes) -> None:
        """Send an encoded message to one validator id, or with None to all; one that is none any more needs none."""
        if to is None:
            self._network.broadcast(Frame.CONSENSUS, message)
        elif (peer_id := self._directory.peer_of.get(to)) is not None:
            # Who left the mesh, or whose mesh we left, with an epoch that just ended needs none of its messages.
            with suppress(UnknownPeer):
                self._network.send(peer_id, Frame.CONSENSUS, message)

    def fetch_block(self, effect: FetchBlock) -> None:
        """Ask for a block and its ancestors, once at a time."""
        if effect.block_id not in self._fetching and self._start(self._fetch_ancestry, effect):
            self._fetching.add(effect.block_id)

    async def _fetch_ancestry(self, effect: FetchBlock) -> None:
        try:
            await self._sync.fetch_block(effect.block_id, effect.known_height, effect.sources)
        finally:
            self._fetching.discard(effect.block_id)

    def behind(self, effect: Behind) -> None:
        """The chain is far ahead: fetch ranges."""
        self._sync.behind(effect.target_height, effect.sources)

    def help_epoch(self, effect: HelpEpoch) -> None:
        """Show a peer that still works in an epoch that ended how it ended."""
        after = self._epochs.row(effect.epoch + 1)
        if after is not None and after.handover is not None:
            self.send(effect.to, encode_message(HandoverMessage(after.handover)))
