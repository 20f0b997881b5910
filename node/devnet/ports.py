"""Free TCP ports that stay free for a node that comes back."""

from __future__ import annotations

import secrets
import socket
from contextlib import ExitStack

from node.devnet.errors import PortsExhausted

PORT_LOW = 20_000
PORT_HIGH = 32_000
"""Below the range from which systems draw the local ports of outgoing connections (Linux 32768, others 49152): while a
node is down, nobody's connection takes its port by chance, and its URL survives a restart."""

_TRIES_PER_PORT = 50


def free_ports(count: int) -> list[int]:
    """Return ``count`` distinct ports on which nothing listened a moment ago; raises `PortsExhausted`."""
    ports: list[int] = []
    tries = count * _TRIES_PER_PORT
    with ExitStack() as held:
        for _ in range(tries):
            if len(ports) == count:
                return ports
            listener = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            port = PORT_LOW + secrets.randbelow(PORT_HIGH - PORT_LOW)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.append(port)
    if len(ports) == count:
        return ports
    raise PortsExhausted(count, tries)
