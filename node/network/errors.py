"""Errors of the network adapter.

Two trees, after h11: `LocalNetworkError` is our own doing (a bad address, a payload over a limit, a port in use) and
never costs a peer anything; `PeerError` names the peer that could not or would not do what was asked of it. What a
peer must not send at all is a `RemoteProtocolError`: it stays inside the adapter, which resets the stream, lowers the
peer's standing and, at the threshold, bans it.
"""

from __future__ import annotations

from node.errors import NodeError


class NetworkError(NodeError):
    """Base of every error that leaves `node.network`."""


class LocalNetworkError(NetworkError):
    """The caller or this machine is at fault, not a peer."""


class AddressInvalid(LocalNetworkError):
    """A peer's address or identity cannot be read; ``expected`` says what would have been accepted."""

    def __init__(self, text: str, expected: str) -> None:
        self.text = text
        self.expected = expected
        super().__init__(f"peer address {text!r}: expected {expected}")


class NetworkConfigInvalid(LocalNetworkError):
    """A field of `NetworkConfig` is out of its range."""

    def __init__(self, field: str, expected: str) -> None:
        self.field = field
        self.expected = expected
        super().__init__(f"network.{field}: expected {expected}")


class ListenFailed(LocalNetworkError):
    """The listening socket could not be opened (most often: the port is in use)."""

    def __init__(self, host: str, port: int, cause: str) -> None:
        self.host = host
        self.port = port
        self.cause = cause
        super().__init__(f"cannot listen on {host}:{port}: {cause}")


class PayloadTooLarge(LocalNetworkError):
    """A payload is over the limit of the path it was given to."""

    def __init__(self, what: str, size_bytes: int, bytes_max: int) -> None:
        self.what = what
        self.size_bytes = size_bytes
        self.bytes_max = bytes_max
        super().__init__(f"{what} of {size_bytes} bytes, limit {bytes_max}")


class UnknownTopic(LocalNetworkError):
    """A gossip topic that is not in the configuration."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        super().__init__(f"topic {topic!r} is not configured")


class UnknownPeer(LocalNetworkError):
    """A frame was addressed to a peer that is not a configured mesh peer."""

    def __init__(self, peer_id: str) -> None:
        self.peer_id = peer_id
        super().__init__(f"{peer_id} is not a mesh peer of this node")


class NetworkNotRunning(LocalNetworkError):
    """The network has not been started, or has stopped."""

    def __init__(self) -> None:
        super().__init__("the network is not running")


class NoGossipPeers(NetworkError):
    """No connected peer subscribed to the topic within the time given; nothing was published."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        super().__init__(f"no peer subscribed to topic {topic!r} in time")


class PeerError(NetworkError):
    """A peer did not do what was asked of it."""

    def __init__(self, peer_id: str, message: str) -> None:
        self.peer_id = peer_id
        super().__init__(f"peer {peer_id}: {message}")


class PeerUnavailable(PeerError):
    """The peer is not connected, or the connection or stream broke before the answer was complete."""


class RequestTimeout(PeerError):
    """The answer did not arrive within the caller's time."""

    def __init__(self, peer_id: str, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        super().__init__(peer_id, f"no answer within {timeout_s:g} s")


class ResponseTooLarge(PeerError):
    """The peer announced an answer over the limit; it was not read."""

    def __init__(self, peer_id: str, size_bytes: int, bytes_max: int) -> None:
        self.size_bytes = size_bytes
        self.bytes_max = bytes_max
        super().__init__(peer_id, f"answer of {size_bytes} bytes, limit {bytes_max}")


# Refusal codes 1..15 are the adapter's; a handler may refuse with 16..255 and give them its own meaning.
REFUSED_BUSY = 1
REFUSED_MALFORMED = 2
REFUSED_INTERNAL = 3
REFUSED_TOO_LARGE = 4
REFUSED_TIMEOUT = 5
REFUSED_HANDLER_MIN = 16


class RequestRefused(NetworkError):
    """A request was answered with a refusal.

    Raised to the caller of `Network.request` with the peer that refused; raised *by* a request handler (with
    ``code`` >= `REFUSED_HANDLER_MIN` and no peer) to send one.
    """

    def __init__(self, code: int, text: str, peer_id: str = "") -> None:
        self.code = code
        self.text = text
        self.peer_id = peer_id
        super().__init__(f"request refused{f' by {peer_id}' if peer_id else ''}: code {code}, {text}")


class RemoteProtocolError(NetworkError):
    """A peer sent something the protocol forbids; ``points`` is what it costs."""

    def __init__(self, reason: str, points: int = 50) -> None:
        self.reason = reason
        self.points = points
        super().__init__(reason)
