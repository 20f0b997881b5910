"""Frames on the wire, sans-IO: ``u32 length of what follows | u8 kind | payload``, big-endian."""

from __future__ import annotations

import struct

from node.network.errors import RemoteProtocolError

_HEADER = struct.Struct("!IB")
HEADER_BYTES = _HEADER.size
READ_BYTES = 256 * 1024  # each read may cost the peer a window update: read much at once


def encode_header(kind: int, payload_bytes: int) -> bytes:
    """Return the 5 header bytes of a frame."""
    return _HEADER.pack(payload_bytes + 1, kind)


class FrameDecoder:
    """Cuts a byte stream into frames; holds at most one incomplete frame and what was fed with it."""

    def __init__(self, payload_bytes_max: int) -> None:
        self._payload_bytes_max = payload_bytes_max
        self._buffer = bytearray()

    @property
    def buffered_bytes(self) -> int:
        """Bytes of an incomplete frame."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Return the ``(kind, payload)`` frames completed by ``data``.

        Raises `RemoteProtocolError` as soon as a header announces an empty or oversized frame, before its body.
        """
        self._buffer += data
        frames: list[tuple[int, bytes]] = []
        offset = 0
        with memoryview(self._buffer) as view:
            while len(view) - offset >= HEADER_BYTES:
                length, kind = _HEADER.unpack_from(view, offset)
                if not 1 <= length <= self._payload_bytes_max + 1:
                    raise RemoteProtocolError(f"frame of {length} bytes announced", points=100)
                if len(view) - offset - 4 < length:
                    break
                frames.append((kind, bytes(view[offset + HEADER_BYTES : offset + 4 + length])))
                offset += 4 + length
        del self._buffer[:offset]
        return frames
