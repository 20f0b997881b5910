"""GossipSub, contained: topics, validation, delivery and publishing.

Messages are taken where libp2p validates them, not from its subscription channels (which hold 32 and drop the rest):
there the forwarder is known, and a message for which there is no room can be left unseen, so that it may come again
by lazy gossip. Signatures are on (StrictSign), or js-libp2p would not exchange messages with us.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import structlog
import trio
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub

from node.network.config import NetworkConfig
from node.network.errors import NoGossipPeers, PayloadTooLarge, UnknownTopic
from node.network.queues import FairInbox, TokenBucket
from node.network.router import ContainedGossipSub, message_id
from node.network.types import GossipMessage, GossipValidator

log = structlog.get_logger("node.network")

_SEEN_TTL_S = 60
_REGISTER_ATTEMPTS_MAX = 6
_INVALID_POINTS = 20
_SUBSCRIPTIONS_PER_S, _SUBSCRIPTIONS_BURST = 1.0, 16.0  # changes of one peer; each may replay what is recent
_SUBSCRIPTION_POINTS = 5


class MessageIgnored(Exception):  # not an error: the message is left unseen
    """Raised inside validation for a message that is neither accepted nor held against its forwarder."""


@dataclass(slots=True)
class GossipHooks:
    """What gossip needs of the adapter; ``ids`` are libp2p peer ids, ``penalise`` takes base58."""

    validate: GossipValidator
    penalise: Callable[[str, int, str], None]
    drop_peer: Callable[[ID], None]
    is_connected: Callable[[ID], bool]
    is_banned: Callable[[ID], bool]
    inbox: FairInbox[GossipMessage]
    ignored_messages: int = 0
    buckets: dict[str, TokenBucket] = field(default_factory=dict)
    subscription_buckets: dict[str, TokenBucket] = field(default_factory=dict)


class ContainedPubsub(Pubsub):
    """Pubsub in which nothing a peer sends can end the service, and no peer is left half registered."""

    def __init__(self, host: Any, router: Any, config: NetworkConfig, hooks: GossipHooks) -> None:
        self._config = config
        self._hooks = hooks
        self._topics = {config.topic_name(topic): topic for topic in config.topics}
        self._awaiting_peers = trio.lowlevel.ParkingLot()
        super().__init__(
            host,
            router,
            seen_ttl=_SEEN_TTL_S,
            sweep_interval=10,
            strict_signing=True,
            msg_id_constructor=message_id,
            validation_cache_size=1024,
            allowed_topics=set(self._topics),
            max_subscriptions_per_rpc=64,
            max_subscriptions_per_peer=len(self._topics),
        )

    @property
    def ignored_messages(self) -> int:
        """Messages left unseen: over the forwarder's rate, or no room for them."""
        return self._hooks.ignored_messages

    async def start(self) -> None:
        """Subscribe to every configured topic; call once the service runs."""
        await self.wait_until_ready()
        for name in self._topics:
            self.set_topic_validator(name, self._validate, False)
            await self.subscribe(name)

    async def publish_when_heard(self, topic: str, data: bytes, timeout_s: float) -> None:
        """Publish once at least one connected peer has subscribed; see `Network.publish`."""
        if topic not in self._config.topics:
            raise UnknownTopic(topic)
        if len(data) > self._config.limits.gossip_bytes_max:
            raise PayloadTooLarge("gossip message", len(data), self._config.limits.gossip_bytes_max)
        name = self._config.topic_name(topic)
        with trio.move_on_after(timeout_s):
            while not self._subscribers(name):
                await self._awaiting_peers.park()
        if not self._subscribers(name):
            raise NoGossipPeers(topic)
        self._forget_seen(name, data)  # publishing again must send again
        await self.publish(name, data)

    def _subscribers(self, name: str) -> set[ID]:
        subscribers: set[ID] = self.peer_topics.get(name, set()) & self.peers.keys()
        return subscribers

    def _forget_seen(self, name: str, data: bytes) -> None:
        mid = message_id(rpc_pb2.Message(data=data, topicIDs=[name]))
        with self.seen_messages.lock:
            self.seen_messages.cache.pop(mid, None)

    # Containment

    async def push_msg(self, msg_forwarder: Any, msg: Any) -> None:
        """Stock: any exception here (an empty author, a bad key) ends the service for all peers.

        A peer's rate is limited before its signatures are verified: one RPC can carry thousands of forged ones.
        """
        if msg_forwarder == self.my_id:
            await super().push_msg(msg_forwarder, msg)
            return
        try:
            if self._hooks.is_banned(msg_forwarder) or self._is_msg_seen(msg):
                return
            self._spend(str(msg_forwarder))
            await super().push_msg(msg_forwarder, msg)
        except MessageIgnored:
            self._hooks.ignored_messages += 1
        except Exception as error:  # whatever a malformed message makes libp2p raise
            log.debug("gossip message contained", peer_id=str(msg_forwarder), error=repr(error))
            self._hooks.penalise(str(msg_forwarder), _INVALID_POINTS, "malformed gossip message")

    async def write_msg(self, stream: Any, rpc_msg: Any) -> bool:
        """Stock: replays of recent messages are written between the pieces of what the peer's queue is writing."""
        lock: trio.Lock | None = getattr(stream, "openledger_write_lock", None)
        if lock is None:
            lock = stream.openledger_write_lock = trio.Lock()
        async with lock:
            written: bool = await super().write_msg(stream, rpc_msg)
        return written

    def notify_subscriptions(self, publish_message: Any) -> None:
        """Messages were taken in `_validate` already."""

    def handle_subscription(self, origin_id: Any, sub_message: Any) -> None:
        """Note subscriptions for those who wait to publish.

        Stock: each change is free, and one that subscribes again makes us send all recent messages again.
        """
        peer_id, now_s = str(origin_id), trio.current_time()
        bucket = self._hooks.subscription_buckets.get(peer_id)
        if bucket is None:
            bucket = TokenBucket(_SUBSCRIPTIONS_PER_S, _SUBSCRIPTIONS_BURST, now_s)
            self._hooks.subscription_buckets[peer_id] = bucket
        if not bucket.take(now_s):
            self._hooks.penalise(peer_id, _SUBSCRIPTION_POINTS, "too many changes of subscriptions")
            return
        super().handle_subscription(origin_id, sub_message)
        self._awaiting_peers.unpark_all()

    async def _handle_new_peer_with_retry(self, peer_id: Any, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Stock: gives up for good on a failed negotiation, and the peer never hears gossip again."""
        for attempt in range(_REGISTER_ATTEMPTS_MAX):
            try:
                await self._handle_new_peer(peer_id)
                self._awaiting_peers.unpark_all()
                return
            except Exception as error:  # negotiation fails in many ways, all of them the peer's
                log.debug("gossip stream not opened", peer_id=str(peer_id), error=repr(error))
            await trio.sleep(0.25 * 2**attempt)
            if not self._hooks.is_connected(peer_id):
                return

    def _handle_dead_peer(self, peer_id: Any) -> None:
        """Stock: forgets a peer's subscriptions when our stream to it breaks, though the peer will not repeat them.

        The connection is dropped instead, and the next one starts afresh.
        """
        self._clear_pending_announce_retries_for_peer(peer_id)
        self._forget_all_subscriptions(peer_id)
        if self.peers.pop(peer_id, None) is not None:
            queue = self.peer_queues.pop(peer_id, None)
            if queue is not None:
                queue.close()
            self.router.remove_peer(peer_id)
        self._hooks.buckets.pop(str(peer_id), None)
        self._hooks.subscription_buckets.pop(str(peer_id), None)
        if self._hooks.is_connected(peer_id):
            self._hooks.drop_peer(peer_id)

    # Validation and delivery

    def _validate(self, forwarder: Any, message: Any) -> bool:
        """Decide on a message seen for the first time, and deliver it if it is good. Runs without a checkpoint."""
        if forwarder == self.my_id:
            return True
        if message.from_id == self.my_id.to_bytes():
            raise MessageIgnored  # our own, come back after it was forgotten
        peer_id = str(forwarder)
        limits = self._config.limits
        topic = self._topics.get(message.topicIDs[0]) if len(message.topicIDs) == 1 else None
        size = len(message.data)
        if topic is None or size > limits.gossip_bytes_max or not self._accepts(topic, message.data):
            self._hooks.penalise(peer_id, _INVALID_POINTS, "invalid gossip message")
            return False
        if not self._hooks.inbox.offer(peer_id, GossipMessage(topic, peer_id, message.data), size):
            raise MessageIgnored
        return True

    def _spend(self, peer_id: str) -> None:
        """Take one message from a forwarder's rate; raises `MessageIgnored` past it."""
        now_s = trio.current_time()
        bucket = self._hooks.buckets.get(peer_id)
        if bucket is None:
            limits = self._config.limits
            bucket = TokenBucket(limits.gossip_per_s, limits.gossip_burst, now_s)
            self._hooks.buckets[peer_id] = bucket
        if not bucket.take(now_s):
            raise MessageIgnored

    def _accepts(self, topic: str, data: bytes) -> bool:
        try:
            return self._hooks.validate(topic, data)
        except Exception as error:
            log.exception("gossip validator failed", topic=topic)
            raise MessageIgnored from error  # our own fault: it must not cost the peer


def new_pubsub(
    host: Any, config: NetworkConfig, hooks: GossipHooks
) -> tuple[ContainedPubsub, ContainedGossipSub]:
    """Build the pubsub service and its router for a host; neither runs yet."""
    topics = [config.topic_name(topic) for topic in config.topics]
    router = ContainedGossipSub(topics, config.limits.gossip_cache_bytes_max, hooks.penalise)
    return ContainedPubsub(host, router, config, hooks), router
