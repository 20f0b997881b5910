"""Messages from peers that wait to be worked off: bounded for each peer, taken from the peers in turn.

Pure of trio: the daemon waits, this keeps order. A peer that sends more than is worked off loses its own newest messages and
nobody else's; what it lost comes again, since senders repeat what still waits.
"""

from collections import deque
from dataclasses import dataclass, field

MESSAGES_PER_PEER_MAX = 64
BYTES_PER_PEER_MAX = 4 << 20
PEERS_MAX = 256


@dataclass(slots=True)
class Inbox:
    """Waiting messages by peer, each peer's in the order they came."""

    _waiting: dict[str, deque[bytes]] = field(default_factory=dict)
    _bytes: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def put(self, peer_id: str, message: bytes) -> bool:
        """Keep a message; False, and nothing kept, where its peer has too many waiting, or too many peers have any."""
        queue = self._waiting.get(peer_id)
        if queue is None:
            if len(self._waiting) >= PEERS_MAX:
                return False
            queue = self._waiting[peer_id] = deque()
            self._bytes[peer_id] = 0
        elif len(queue) >= MESSAGES_PER_PEER_MAX or self._bytes[peer_id] + len(message) > BYTES_PER_PEER_MAX:
            return False
        queue.append(message)
        self._bytes[peer_id] += len(message)
        return True

    def take(self) -> tuple[str, bytes] | None:
        """The oldest message of the peer whose turn it is, or None."""
        if not self._waiting:
            return None
        peer_id = next(iter(self._waiting))
        queue, size_bytes = self._waiting.pop(peer_id), self._bytes.pop(peer_id)
        message = queue.popleft()
        if queue:  # to the end: every other peer has its turn first
            self._waiting[peer_id] = queue
            self._bytes[peer_id] = size_bytes - len(message)
        return peer_id, message
