"""Keeping configured peers connected, for ever, at a bounded rate."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import structlog
import trio

from node.network.config import Limits
from node.network.peers import Peer

log = structlog.get_logger("node.network")

_STABLE_S = 10.0  # a connection that lived this long starts the next back-off from the beginning


def is_dialler(own_id: bytes, peer_id: bytes) -> bool:
    """Between two mesh peers the one with the higher id dials, so that they never dial each other at once."""
    return own_id > peer_id


async def keep_connected(
    peer: Peer,
    limits: Limits,
    dial: Callable[[], Awaitable[None]],
    banned_s: Callable[[], float],
    jitter: random.Random,
) -> None:
    """Dial the peer whenever it is not connected.

    Attempts never end; their delay doubles from ``redial_delay_ms_min`` to ``redial_delay_ms_max``, plus or minus a
    quarter so that a cluster that lost a node does not dial it in step, and falls back after a stable connection.
    """
    delay_s = limits.redial_delay_ms_min / 1000
    while True:
        if ban_s := banned_s():
            await trio.sleep(ban_s)
            continue
        try:
            with trio.fail_after(limits.dial_timeout_ms / 1000):
                await dial()
        except Exception as error:  # a dial fails in a dozen types, all of them expected
            log.debug("dial failed", peer_id=peer.peer_id, error=repr(error))
        if peer.connected:
            up_s = trio.current_time()
            await peer.wait_disconnected()
            if trio.current_time() - up_s > _STABLE_S:
                delay_s = limits.redial_delay_ms_min / 1000
        await trio.sleep(delay_s * jitter.uniform(0.75, 1.25))
        delay_s = min(delay_s * 2, limits.redial_delay_ms_max / 1000)
        await peer.wait_disconnected()  # the peer may have come back by itself
