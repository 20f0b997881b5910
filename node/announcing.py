"""Says by gossip how far this node has come, for peers that do not hear it through consensus."""

from collections.abc import Callable

import structlog
import trio

from node.directory import Directory
from node.network import PeerEvent
from node.network.errors import NetworkError
from node.network.network import Network
from node.sync import Sync
from node.wire import Topic, encode_announcement

log = structlog.get_logger(__name__)

PUBLISH_TIMEOUT_S = 2.0
# Between two announcements of this node; the last block of a busy time is announced once it has passed.
PAUSE_S = 0.5
# The same where only validators would hear it: they follow consensus, and ask when they hear nothing.
AMONG_VALIDATORS_PAUSE_S = 5.0


class Announcer:
    """Announces executed blocks, as seldom as the peers that are connected allow."""

    def __init__(
        self, network: Network, directory: Directory, sync: Sync, start: Callable[..., bool]
    ) -> None:
        """`start` runs a small task beside the others, if it can."""
        self._network = network
        self._directory = directory
        self._sync = sync
        self._start = start
        self._connected: set[str] = set()
        self._announcing = False
        self._from_s = 0.0

    def peer_changed(self, event: PeerEvent) -> None:
        """A peer came or went."""
        if event.connected:
            self._connected.add(event.peer_id)
        else:
            self._connected.discard(event.peer_id)

    @property
    def followed(self) -> bool:
        """Whether a peer is connected that is no validator, and so learns from announcements how far the chain is."""
        return any(peer_id not in self._directory.validator_of for peer_id in self._connected)

    def announce_soon(self) -> None:
        """Say how far this node has come, soon: gossip costs every node milliseconds, so blocks that follow at once go together."""
        if not self._announcing:
            self._announcing = self._start(self._announce, max(0.0, self._from_s - trio.current_time()))

    async def _announce(self, delay_s: float) -> None:
        await trio.sleep(delay_s)
        self._announcing = False
        pause_s = PAUSE_S if self.followed else AMONG_VALIDATORS_PAUSE_S
        self._from_s = trio.current_time() + pause_s
        try:
            data = encode_announcement(self._sync.announcement())
            await self._network.publish(Topic.BLOCKS, data, PUBLISH_TIMEOUT_S)
        except NetworkError as error:
            log.debug("announcement_failed", error=str(error))
