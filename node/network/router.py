"""The GossipSub router, contained: what a peer's control messages may make this node remember, send and dial.

py-libp2p keeps what it is told under any topic a peer makes up, answers one request for a message as often as it is
repeated within it, and dials whoever a PRUNE names. Here an RPC's control part is cut down before the router sees it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.mcache import CacheEntry, MessageCache
from libp2p.pubsub.utils import safe_bytes_from_hex

_DEGREE, _DEGREE_LOW, _DEGREE_HIGH = 8, 6, 12  # up to 7 nodes everyone is in everyone's mesh at once
_CONTROL_ENTRIES_MAX = 64  # of each kind in one RPC; the rest is not looked at
_CONTROL_IDS_MAX = 5000  # of each kind in one RPC, as in go-libp2p and js-libp2p
_MESSAGE_ID_BYTES_MAX = 64
_ANSWER_BYTES_MAX = 4 * 1024 * 1024  # sent for the IWANTs of one RPC; what is left can be asked for again
_IWANT_PER_S_MAX, _IHAVE_PER_S_MAX = 20.0, 100.0
_UNKNOWN_TOPIC_POINTS = 5


def message_id(message: Any) -> bytes:
    """Identify a message by what it says and where, not by who said it: one batch sent by two nodes is one batch."""
    hasher = hashlib.blake2b(digest_size=20)
    for topic in message.topicIDs:
        hasher.update(topic.encode() + b"\0")
    hasher.update(message.data)
    return hasher.digest()


class ContentMessageCache(MessageCache):
    """Stock: recent messages are kept under author and number, whatever the id function, so IHAVE never matches."""

    def __init__(self, window_size: int, history_size: int, bytes_max: int) -> None:
        super().__init__(window_size, history_size)
        self._bytes_max = bytes_max
        self._kept_bytes = 0

    def put(self, msg: Any) -> None:
        """Keep a message for lazy gossip, unless the cache is full."""
        mid = message_id(msg)
        if mid in self.msgs or self._kept_bytes + len(msg.data) > self._bytes_max:
            return
        self.msgs[mid] = msg
        self._kept_bytes += len(msg.data)
        self.history[0].append(CacheEntry(mid, msg.topicIDs))

    def shift(self) -> None:
        """Forget the oldest heartbeat's messages."""
        super().shift()
        self._kept_bytes = sum(len(kept.data) for kept in self.msgs.values())


class ContainedGossipSub(GossipSub):
    """GossipSub that floods its own messages (v1.1, flood publishing) and takes peers' control messages in measure."""

    def __init__(
        self, topics: Iterable[str], cache_bytes_max: int, penalise: Callable[[str, int, str], None]
    ) -> None:
        super().__init__(
            protocols=[PROTOCOL_ID_V11],
            degree=_DEGREE,
            degree_low=_DEGREE_LOW,
            degree_high=_DEGREE_HIGH,
            heartbeat_interval=1,
            gossip_window=3,
            gossip_history=5,
            do_px=False,
            adaptive_gossip_enabled=False,
            spam_protection_enabled=False,
            eclipse_protection_enabled=False,
        )
        self._topics = frozenset(topics)
        self._penalise = penalise
        self.mcache = ContentMessageCache(3, 5, cache_bytes_max)
        self.max_iwant_requests_per_second = _IWANT_PER_S_MAX
        self.max_ihave_messages_per_second = _IHAVE_PER_S_MAX

    async def handle_rpc(self, rpc: Any, sender_peer_id: Any) -> None:
        """Cut an RPC's control part down to what an honest peer sends, then let the router act on it."""
        control = rpc.control
        unknown = [self._keep_known(entries) for entries in (control.ihave, control.graft, control.prune)]
        if any(unknown):
            self._penalise(str(sender_peer_id), _UNKNOWN_TOPIC_POINTS, "gossip control for an unknown topic")
        del control.idontwant[:]  # v1.2; we speak v1.1
        self._limit_ids(control.ihave)
        self._answerable(control.iwant)
        await super().handle_rpc(rpc, sender_peer_id)

    def _keep_known(self, entries: Any) -> bool:
        """Drop what is about topics we are not in (stock remembers each name for ever); True if there was any."""
        known = [entry for entry in entries[:_CONTROL_ENTRIES_MAX] if entry.topicID in self._topics]
        dropped = len(known) < len(entries)
        if dropped:
            kept = [type(entry).FromString(entry.SerializeToString()) for entry in known]
            del entries[:]
            entries.extend(kept)
        return dropped

    def _limit_ids(self, entries: Any) -> None:
        room = _CONTROL_IDS_MAX
        for entry in entries:
            ids = [mid for mid in entry.messageIDs[:room] if len(mid) <= _MESSAGE_ID_BYTES_MAX]
            room -= len(ids)
            del entry.messageIDs[:]
            entry.messageIDs.extend(ids)

    def _answerable(self, entries: Any) -> None:
        """Merge IWANTs into one that names each message once, and no more of them than may be sent for one RPC.

        Stock sends a message as often as it is named: a request of 1 MiB would be answered with gigabytes.
        """
        wanted: dict[bytes, bytes] = {}
        room = _ANSWER_BYTES_MAX
        for entry in entries[:_CONTROL_ENTRIES_MAX]:
            for wire_id in entry.messageIDs[:_CONTROL_IDS_MAX]:
                mid = safe_bytes_from_hex(wire_id)
                message = None if mid is None else self.mcache.get(mid)
                if message is None or mid in wanted:
                    continue
                room -= len(message.data)
                if room < 0:
                    break
                wanted[mid] = wire_id
        del entries[:]
        if wanted:
            entries.add().messageIDs.extend(wanted.values())

    async def publish(self, msg_forwarder: Any, pubsub_msg: Any) -> None:
        """Forward a message; stock also keeps the time of every message ever forwarded."""
        await super().publish(msg_forwarder, pubsub_msg)
        self.recent_message_deliveries.clear()

    def _check_equivocation(self, msg: Any) -> bool:
        """Stock keeps up to a thousand whole messages to compare sequence numbers, which mean nothing here."""
        return True

    async def _do_px(self, px_peers: Any) -> None:
        """Stock dials the peers that a PRUNE names, whether or not peer exchange is on."""

    def _get_peers_to_send(
        self, topic_ids: Any, msg_forwarder: Any, origin: Any, msg_id: bytes | None = None
    ) -> list[ID]:
        targets = set(super()._get_peers_to_send(topic_ids, msg_forwarder, origin, msg_id))
        pubsub = self.pubsub
        if pubsub is not None and msg_forwarder == pubsub.my_id:
            for topic in topic_ids:
                targets |= pubsub.peer_topics.get(topic, set()) & pubsub.peers.keys()
        return list(targets)

    async def _maintain_mesh_quality(self, topic: str) -> None:
        """Stock swaps mesh peers by scores that are not used here."""
