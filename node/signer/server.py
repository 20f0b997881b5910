"""The signer's socket: one framed request at a time on each connection, bounded in size, time and number.

Whoever reaches the socket is on this machine and of an allowed user; still nothing that it sends ends the process. A
connection that says something malformed, or too slowly, is closed. Connections that have asked for something before give
way to none; among those that have not, the oldest gives way to a new one.
"""

import os
import socket
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from consensus.errors import CodecError
from node.signer.custodian import Custodian
from node.signer.errors import SignerProtocolError, SocketUnusable
from node.signer.frames import LENGTH_BYTES, admits, check_path, length_of, pack, peer_uid
from node.signer.protocol import REQUEST_BYTES_MAX, decode_request, encode_answer

log = structlog.get_logger(__name__)

CONNECTIONS_MAX = 16
BACKLOG = 64
FIRST_REQUEST_S_MAX = 5.0
"""How long a new connection may take to its first whole request."""
FRAME_S_MAX = 2.0
"""How long the rest of a request, and taking the answer, may take once it has begun."""
LOG_LINES_MAX = 10
"""Lines about misbehaving connections in the life of a process; the rest is counted."""


@contextmanager
def listening(path: Path, *, shared: bool = False) -> Iterator[socket.socket]:
    """Listen at `path`, replacing a stale socket; the caller holds the home's lock, so nobody else listens there.

    The socket is 0600 in a folder of our own that is 0700. With `shared` others may enter and connect (0711, 0666): then
    the kernel's note of who connects is all that decides.

    Raises `SocketUnusable` where the folder is another's or something else has the socket's name.
    """
    check_path(path)
    _prepare_folder(path, 0o711 if shared else 0o700)
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # Until it listens nobody can connect, and by then its permissions are what they should be.
        listener.bind(os.fspath(path))
        path.chmod(0o666 if shared else 0o600)
        listener.listen(BACKLOG)
        yield listener
    finally:
        listener.close()
        with suppress(FileNotFoundError):
            path.unlink()


def _prepare_folder(path: Path, mode: int) -> None:
    folder = path.parent
    folder.mkdir(mode=mode, parents=True, exist_ok=True)
    details = folder.lstat()
    if not stat.S_ISDIR(details.st_mode) or details.st_uid != os.geteuid():
        raise SocketUnusable(path, f"a folder of user id {os.geteuid()} around it")
    folder.chmod(mode)


def _remove_stale(path: Path) -> None:
    try:
        details = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(details.st_mode):
        raise SocketUnusable(path, "a free name, or the socket that an earlier signer left")
    path.unlink()


@dataclass(eq=False, slots=True)
class _Visitor:
    """One connection; `established` once it has been answered."""

    scope: trio.CancelScope
    established: bool = False


class Server:
    """Answers on a listening socket until cancelled, or until the custodian must not go on."""

    def __init__(self, custodian: Custodian, uids: Collection[int] = ()) -> None:
        self._custodian = custodian
        self._uids = frozenset(uids)
        self._visitors: list[_Visitor] = []
        self.turned_away = 0

    async def run(self, listener: socket.socket) -> None:
        """Serve; raises DatabaseNotWritable and SigningKeyElsewhere, after which nothing more was answered."""
        listener.setblocking(False)
        accepting = trio.socket.from_stdlib_socket(listener)
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    connection, _ = await accepting.accept()
                except OSError as error:
                    # Out of file descriptors, say: those of connections come free again.
                    self._turn_away(f"cannot accept: {error}")
                    await trio.sleep(FRAME_S_MAX / 20)
                    continue
                visitor = self._admit(connection)
                if visitor is None:
                    connection.close()
                else:
                    nursery.start_soon(self._serve, visitor, trio.SocketStream(connection))

    def _admit(self, connection: trio.socket.SocketType) -> _Visitor | None:
        uid = peer_uid(connection)
        if not admits(uid, self._uids):
            self._turn_away(f"user id {uid} is not allowed")
            return None
        if len(self._visitors) >= CONNECTIONS_MAX:
            newcomer = next((visitor for visitor in self._visitors if not visitor.established), None)
            self._turn_away(f"{CONNECTIONS_MAX} connections are open")
            if newcomer is None:
                return None
            newcomer.scope.cancel()
            self._visitors.remove(newcomer)
        visitor = _Visitor(trio.CancelScope())
        self._visitors.append(visitor)
        return visitor

    def _turn_away(self, reason: str) -> None:
        self.turned_away += 1
        if self.turned_away <= LOG_LINES_MAX:
            log.warning("turned_away", reason=reason, last_line=self.turned_away == LOG_LINES_MAX)

    async def _serve(self, visitor: _Visitor, stream: trio.SocketStream) -> None:
        try:
            with visitor.scope:
                async with stream:
                    await self._answer_all(visitor, stream)
        except (SignerProtocolError, CodecError) as error:
            self._turn_away(str(error))
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError) as error:
            log.debug("connection_lost", reason=type(error).__name__)
        finally:
            if visitor in self._visitors:
                self._visitors.remove(visitor)

    async def _answer_all(self, visitor: _Visitor, stream: trio.SocketStream) -> None:
        while True:
            # Who has asked before may be silent for as long as the chain is.
            patience = float("inf") if visitor.established else FIRST_REQUEST_S_MAX
            with trio.fail_after(patience):
                first = await stream.receive_some(1)
            if not first:
                return
            with trio.fail_after(FRAME_S_MAX):
                head = first + await _exactly(stream, LENGTH_BYTES - 1)
                data = await _exactly(stream, length_of(head, REQUEST_BYTES_MAX))
            # Nothing is awaited between the rules and the disk: requests of all connections are one after the other.
            answer = self._custodian.answer(decode_request(data))
            visitor.established = True
            with trio.fail_after(FRAME_S_MAX):
                await stream.send_all(pack(encode_answer(answer)))
            if self._custodian.over is not None:
                raise self._custodian.over


async def _exactly(stream: trio.SocketStream, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = await stream.receive_some(count - len(data))
        if not part:
            raise SignerProtocolError("the connection ended within a request")
        data += part
    return bytes(data)
