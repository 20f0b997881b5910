"""Fetching what is named by its digest: blobs and batches, from whichever peer has them; and indices, by their adapter."""

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import structlog
import trio

from consensus.crypto import verify
from node.ledger.batch import Batch, batch_digest, decode_batch
from node.ledger.errors import LedgerError, MalformedError
from node.network.errors import NetworkError
from node.network.network import Network
from node.storage.blobs import BLOB_BYTES_MAX, BlobStore, Note
from node.storage.chain import ChainStore
from node.storage.errors import BlobDigestMismatch, BlobQuotaExceeded, LooseQuotaExceeded
from node.wire import (
    BLOB_PART_BYTES,
    INDEX_BYTES_MAX,
    INDEX_FILES,
    Request,
    encode_blob_request,
    encode_index_request,
)

log = structlog.get_logger(__name__)

REQUEST_TIMEOUT_S = 5.0
BLOB_TIMEOUT_S = 30.0
INDEX_TIMEOUT_S = 120.0
ROUNDS_MAX = 8
DELAY_S_MIN = 0.1
DELAY_S_MAX = 3.0
# Batches, which votes wait for, have places of their own: blobs that nobody has must not hold them up.
BATCHES_ASKED_MAX = 8
BLOBS_ASKED_MAX = 8
WRONG_BYTES_POINTS = 40
# An honest validator with a damaged disk sends it, too, until its own next audit tells it.
WRONG_INDEX_POINTS = 10


class Fetcher:
    """Asks peers in turn, in a bounded number of rounds with growing pauses; one fetch per digest at a time."""

    def __init__(self, network: Network, store: ChainStore, blobs: BlobStore, chain_id: bytes) -> None:
        self._network = network
        self._store = store
        self._blobs = blobs
        self._chain_id = chain_id
        self._running: dict[bytes, trio.Event] = {}
        self._batch_limit = trio.CapacityLimiter(BATCHES_ASKED_MAX)
        self._blob_limit = trio.CapacityLimiter(BLOBS_ASKED_MAX)

    async def blob(
        self, name: bytes, size_bytes: int, sources: Iterable[str] = (), note: Note | None = None
    ) -> bool:
        """Make a blob present, durably and whole; returns whether it is. `sources` are asked before the other peers.

        `note` goes with one that the ledger does not refer to (yet).
        """
        if size_bytes > BLOB_BYTES_MAX:
            return False
        # Reading it removes a damaged copy, which is then fetched like one that was never here.
        if self._blobs.has(name) and await trio.to_thread.run_sync(self._blobs.get, name) is None:
            log.warning("blob_damaged", blob=name.hex())

        async def ask(peer_id: str) -> None:
            async with self._blob_limit:
                with trio.move_on_after(BLOB_TIMEOUT_S):
                    await self._blob_from(peer_id, name, size_bytes, note)

        # Two transactions may claim different sizes: who lies must not keep the other waiting.
        key = name + size_bytes.to_bytes(8, "big")
        return await self._fetch(key, lambda: self._blobs.has(name), ask, tuple(sources))

    async def batch(self, name: bytes, sources: Iterable[str] = ()) -> bool:
        """Make a batch present; returns whether it is."""

        async def ask(peer_id: str) -> None:
            async with self._batch_limit:
                await self._batch_from(peer_id, name)

        return await self._fetch(name, lambda: self._store.batch(name) is not None, ask, tuple(sources))

    async def _fetch(
        self,
        name: bytes,
        present: Callable[[], bool],
        ask: Callable[[str], Awaitable[None]],
        sources: tuple[str, ...],
    ) -> bool:
        if (other := self._running.get(name)) is not None:
            await other.wait()
            return present()
        if present():
            return True
        self._running[name] = trio.Event()
        try:
            return await self._rounds(name, present, ask, sources)
        finally:
            self._running.pop(name).set()

    async def _rounds(
        self,
        name: bytes,
        present: Callable[[], bool],
        ask: Callable[[str], Awaitable[None]],
        sources: tuple[str, ...],
    ) -> bool:
        delay_s = DELAY_S_MIN
        for _ in range(ROUNDS_MAX):
            connected = [peer.peer_id for peer in self._network.peers() if peer.connected]
            for peer_id in dict.fromkeys((*sources, *connected)):
                try:
                    await ask(peer_id)
                except NetworkError as error:
                    log.debug("fetch_failed", what=name.hex(), peer=peer_id, error=str(error))
                except (BlobDigestMismatch, LedgerError) as error:
                    self._network.penalise(peer_id, WRONG_BYTES_POINTS, f"wrong bytes: {error}")
                except LooseQuotaExceeded as error:  # anybody can bring that about: it is worth no alarm
                    log.info("blob_not_taken", blob=name.hex(), reason=str(error))
                    return False
                except (BlobQuotaExceeded, OSError) as error:  # this node's disk, no peer's fault
                    log.error("blob_refused", blob=name.hex(), error=str(error))
                    return False
                if present():
                    return True
            await trio.sleep(delay_s)
            delay_s = min(delay_s * 2, DELAY_S_MAX)
        log.warning("fetch_gave_up", what=name.hex(), rounds=ROUNDS_MAX)
        return False

    async def any_blob(self, name: bytes, note: Note | None = None) -> bytes | None:
        """Bring a blob of unknown size here, asking every connected peer once; returns its bytes, or None."""
        for peer in self._network.peers():
            if not peer.connected:
                continue
            try:
                async with self._blob_limit:
                    await self._whole_blob_from(peer.peer_id, name, note)
            except NetworkError as error:
                log.debug("fetch_failed", what=name.hex(), peer=peer.peer_id, error=str(error))
            except BlobDigestMismatch as error:
                self._network.penalise(peer.peer_id, WRONG_BYTES_POINTS, f"wrong bytes: {error}")
            except LooseQuotaExceeded as error:
                log.info("blob_not_taken", blob=name.hex(), reason=str(error))
                return None
            except (BlobQuotaExceeded, OSError) as error:
                log.error("blob_refused", blob=name.hex(), error=str(error))
                return None
            data = await trio.to_thread.run_sync(self._blobs.get, name)
            if data is not None:
                return data
        return None

    def connected(self) -> list[str]:
        """Peers that may be asked now."""
        return [peer.peer_id for peer in self._network.peers() if peer.connected]

    def blame_index(self, peer_id: str, reason: str) -> None:
        """Penalise a peer for an index that is not the one that was asked for."""
        self._network.penalise(peer_id, WRONG_INDEX_POINTS, f"wrong index: {reason}")

    async def index(self, peer_id: str, adapter_id: bytes, folder: Path) -> bool:
        """Fetch the files of an adapter's index from one peer into ``folder``; returns whether all came. None is checked.

        Stops after `INDEX_TIMEOUT_S` or `INDEX_BYTES_MAX`. Raises NetworkError, OSError.
        """
        size_bytes = 0
        with trio.move_on_after(INDEX_TIMEOUT_S):
            for number, name in enumerate(INDEX_FILES):
                offset, full = 0, True
                async with await trio.open_file(folder / name, "wb") as file:
                    while full:
                        request = encode_index_request(adapter_id, number, offset)
                        part = await self._network.request(peer_id, Request.INDEX, request, REQUEST_TIMEOUT_S)
                        offset, size_bytes = offset + len(part), size_bytes + len(part)
                        if not offset or size_bytes >= INDEX_BYTES_MAX:
                            return False
                        await file.write(part)
                        full = len(part) == BLOB_PART_BYTES
            return True
        return False

    async def _whole_blob_from(self, peer_id: str, name: bytes, note: Note | None) -> None:
        """Fetch parts up to the first that is not full."""
        data = bytearray()
        while len(data) <= BLOB_BYTES_MAX:
            part = await self._blob_part(peer_id, name, len(data))
            data += part
            if len(part) < BLOB_PART_BYTES:
                break
        if 0 < len(data) <= BLOB_BYTES_MAX:
            await trio.to_thread.run_sync(self._blobs.put, bytes(data), name, note)

    async def _blob_from(self, peer_id: str, name: bytes, size_bytes: int, note: Note | None) -> None:
        data = bytearray()
        while len(data) < size_bytes:
            part = await self._blob_part(peer_id, name, len(data))
            data += part
            if len(data) > size_bytes or (len(part) < BLOB_PART_BYTES and len(data) < size_bytes):
                return  # not here, or not of the size that was claimed
        try:
            await trio.to_thread.run_sync(self._blobs.put, bytes(data), name, note)
        except BlobDigestMismatch:
            # The beginning of a longer blob proves who claimed the size wrong, not who has the blob.
            if not await self._blob_part(peer_id, name, size_bytes):
                raise

    async def _blob_part(self, peer_id: str, name: bytes, offset: int) -> bytes:
        request = encode_blob_request(name, offset)
        return await self._network.request(peer_id, Request.BLOB, request, REQUEST_TIMEOUT_S)

    async def _batch_from(self, peer_id: str, name: bytes) -> None:
        data = await self._network.request(peer_id, Request.BATCH, name, REQUEST_TIMEOUT_S)
        if data:
            store_batch(self._store, data, self._chain_id, expected=name)


def store_batch(store: ChainStore, data: bytes, chain_id: bytes, expected: bytes | None = None) -> bytes:
    """Check and store a batch; returns its digest. Raises LedgerError, BlobDigestMismatch."""
    name = check_batch(data, chain_id, expected)
    store.put_batch(name, data)
    return name


def check_batch(
    data: bytes, chain_id: bytes, expected: bytes | None = None, author: bytes | None = None
) -> bytes:
    """Return the digest of a batch. Raises LedgerError, BlobDigestMismatch.

    Where `expected` (a digest) or `author` (an account) is given, a batch with another is refused. The digest does not
    cover the author's signature, so a batch is only ever stored with a good one: otherwise one node could hold, under
    the same digest, bytes that the ledger skips and another node executes.
    """
    return read_batch(data, chain_id, expected, author)[0]


def read_batch(
    data: bytes, chain_id: bytes, expected: bytes | None = None, author: bytes | None = None
) -> tuple[bytes, Batch]:
    """`check_batch`, and the batch as it was read."""
    batch = decode_batch(data)
    name = batch_digest(batch, chain_id)
    if expected is not None and name != expected:
        raise BlobDigestMismatch(expected, name)
    if author is not None and batch.author != author:
        raise MalformedError("a batch of another author", "batch.author")
    # What its author signs is its name, which takes long to make of many transactions.
    if not verify(batch.author, name, batch.signature):
        raise MalformedError("a batch that its author did not sign", "batch.signature")
    return name, batch
