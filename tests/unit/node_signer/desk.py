"""A signer's desk for tests: homes, custodians and served sockets for a key of `tests.unit.consensus.lab`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import trio

from consensus.safety import SafetyRecord
from node.home import write_atomic
from node.signer.book import Book, Page, create_book
from node.signer.custodian import Custodian
from node.signer.epoch import EpochRoot
from node.signer.remote import NextEpoch, RemoteSigner, SignerLink
from node.signer.server import Server, listening
from node.storage.guard import SafetyGuard, first_mark
from tests.unit.consensus.lab import CHAIN, GENESIS, KEYS, SEEDS, VALIDATORS

ME = 3
ROOT = EpochRoot(VALIDATORS, GENESIS)


def found(folder: Path, record: SafetyRecord | None = None) -> Path:
    """Make book and guard of validator `ME` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    create_book(folder / "signer.book", Page(CHAIN, KEYS[ME], record))
    write_atomic(folder / "safety.guard", first_mark(CHAIN, 0))
    return folder


def custodian(folder: Path, root: EpochRoot = ROOT) -> Custodian:
    """Open what `found` made, as a starting signer does."""
    book, guard = Book(folder / "signer.book"), SafetyGuard(folder / "safety.guard")
    record = book.page.record
    guard.check(None if record is None else record.to_bytes(), str(book.path))
    return Custodian(SEEDS[ME], root, folder / "epoch.root", book, guard)


class Desk(threading.Thread):
    """A server on a socket, in a thread; `ended` is what it ended with, other than being told to."""

    def __init__(self, keeper: Custodian, path: Path, uids: tuple[int, ...] = ()) -> None:
        super().__init__(name="signer's desk")
        self.server = Server(keeper, uids)
        self.path = path
        self.ended: BaseException | None = None
        self._scope = trio.CancelScope()
        self._ready = threading.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._links: list[SignerLink] = []

    def run(self) -> None:
        try:
            trio.run(self._serve)
        except BaseExceptionGroup as group:
            self.ended = group
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with listening(self.path) as listener, self._scope:
            self._ready.set()
            await self.server.run(listener)

    def open(self) -> Desk:
        self.start()
        self._ready.wait()
        return self

    def asker(self, record: SafetyRecord | None = None) -> RemoteSigner:
        """What a connected daemon's replica holds."""
        link = link_to(self.path)
        self._links.append(link)
        link.connect()
        return RemoteSigner(link, 0, record)

    def close(self) -> None:
        """As a killed process: connections break, answers on their way are lost."""
        if self._token is not None and self.is_alive():
            with suppress(trio.RunFinishedError):  # it ended by itself meanwhile
                self._token.run_sync_soon(self._scope.cancel)
        self.join()
        for link in self._links:
            link.close()


@contextmanager
def serving(keeper: Custodian, path: Path) -> Iterator[Desk]:
    """Serve until the end of the context."""
    desk = Desk(keeper, path).open()
    try:
        yield desk
    finally:
        desk.close()


def link_to(path: Path, next_epoch: NextEpoch = lambda epoch: None) -> SignerLink:
    """A daemon's link, not yet connected."""
    return SignerLink(path, KEYS[ME], CHAIN, next_epoch)
