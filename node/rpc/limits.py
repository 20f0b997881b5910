"""How often one client may call: a token bucket for each address, in a table of bounded size. Pure: time is passed in."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address, ip_network

ADDRESSES_MAX = 4096
"""Addresses remembered; past it the one unheard of for longest is forgotten, and starts with a full bucket."""

_IPV6_PREFIX_BITS = 64


@dataclass(slots=True)
class _Bucket:
    tokens: float
    updated_s: float


class RateLimiter:
    """Buckets that hold ``burst`` tokens and gain ``per_second``; one token is one call, and one page."""

    def __init__(self, per_second: int, burst: int) -> None:
        self._per_second = per_second
        self._burst = burst
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, client: str, now_s: float) -> float:
        """Take a token for a client (`client_key`); return 0.0, or how many seconds until there is one."""
        if not self._per_second:
            return 0.0
        bucket = self._bucket(client, now_s)
        if bucket.tokens >= 1:
            bucket.tokens -= 1
            return 0.0
        return (1 - bucket.tokens) / self._per_second

    def charge(self, client: str, calls: int, now_s: float) -> None:
        """Take tokens for the further calls of a batch that was let in. The bucket may go below nothing: it pays later."""
        if self._per_second:
            self._bucket(client, now_s).tokens -= calls

    def __len__(self) -> int:
        return len(self._buckets)

    def _bucket(self, client: str, now_s: float) -> _Bucket:
        bucket = self._buckets.get(client)
        if bucket is None:
            bucket = self._buckets[client] = _Bucket(float(self._burst), now_s)
            if len(self._buckets) > ADDRESSES_MAX:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(client)
            gained = max(0.0, now_s - bucket.updated_s) * self._per_second
            bucket.tokens = min(float(self._burst), bucket.tokens + gained)
            bucket.updated_s = now_s
        return bucket


@lru_cache(maxsize=1024)
def client_key(host: str, *, limit_loopback: bool) -> str | None:
    """Whose bucket a connection from ``host`` uses; None for this machine's own clients, unless they are limited too.

    An IPv6 client has a network of 64 bits to choose its addresses from, so that network is the client.
    """
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    mapped = getattr(address, "ipv4_mapped", None)
    address = address if mapped is None else mapped
    if address.is_loopback and not limit_loopback:
        return None
    if address.version == 6:
        return str(ip_network((address, _IPV6_PREFIX_BITS), strict=False))
    return str(address)
