"""Frames on a Unix socket, and who is at its other end.

A frame is its length in four bytes, big-endian, and that many bytes. Both sides bound what they accept before they make
room for it.
"""

import os
import socket
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from node.signer.errors import SignerProtocolError, SocketUnusable

LENGTH_BYTES = 4
PATH_BYTES_MAX = 107
"""Linux' `sun_path` without its final zero."""
_CREDENTIALS = struct.Struct("3i")


def pack(data: bytes) -> bytes:
    """Return a frame."""
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


def length_of(head: bytes, bytes_max: int) -> int:
    """Return how many bytes follow a frame's first four; `SignerProtocolError` for none and for more than `bytes_max`."""
    length = int.from_bytes(head, "big")
    if not 0 < length <= bytes_max:
        raise SignerProtocolError(f"a frame of {length} bytes where 1 to {bytes_max} are allowed")
    return length


class _HasOptions(Protocol):
    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


def peer_uid(connection: _HasOptions) -> int:
    """Return the user id of the process at the other end, as the kernel noted it when the connection was made."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(data)
    return int(uid)


def admits(uid: int, allowed: Collection[int]) -> bool:
    """Whether a process of user `uid` may be talked to: one of our own user, or of those named."""
    return uid == os.geteuid() or uid in allowed


def check_path(path: Path) -> None:
    """Raise `SocketUnusable` for a path that does not fit into an address; the kernel would cut it off."""
    if len(os.fsencode(path)) > PATH_BYTES_MAX:
        raise SocketUnusable(path, f"a path of at most {PATH_BYTES_MAX} bytes")
